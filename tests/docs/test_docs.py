"""Everything printed for users runs: README, tutorial, how-tos, notebook, doctests; the site."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import nbformat
import pytest
import yaml
from generate import schema
from nbclient import NotebookClient
from typer.testing import CliRunner

import bayes_sd
from bayes_sd.cli.app import PANELS, app
from bayes_sd.fit import Fit
from bayes_sd.runs.schema import Runs

ROOT = Path(__file__).parents[2]
VERBS = [verb.__name__ for verbs in PANELS.values() for verb in verbs]
NOTEBOOKS = {  # and what each says when it has run, whatever the draws
    "quickstart": "is faster up to a break-even load",
    "law": "mean TTFT",
    "families": "is faster",
    "unmeasured": "inside 90%",
    "your_runs": "--speculative-config",
    "bayesian": "elpd_loo",
}
COMMAND = Path(sys.executable).with_name("bayes-sd")
MODULES = [module.name for module in pkgutil.walk_packages(bayes_sd.__path__, "bayes_sd.")]
pytestmark = pytest.mark.docs


def pages() -> list[Path]:
    """The README and the pages of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """Lines of indented blocks that call bayes-sd."""
    lines = re.findall(r"^ {4}(?:uv run )?(bayes-sd .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, fit_path: Path) -> Path:
    """A folder with the fit that the demo makes, every tenth of its draws, and the files that
    README and docs speak of."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "bayes-sd-demo").mkdir()
    (folder / "bayes-sd-demo" / "fit.nc").symlink_to(fit_path)
    (folder / "runs").symlink_to(ROOT / "traces" / "vllm-cpu")
    described = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "plan.md").read_text(), re.DOTALL)
    assert described is not None
    (folder / "describe.yaml").write_text(described[1])
    (folder / "fit.nc").symlink_to(folder / "bayes-sd-demo" / "fit.nc")
    for saved in (ROOT / "notebooks").glob("*.nc"):  # small fits that a notebook speaks of
        (folder / saved.name).symlink_to(saved)
    return folder


def test_every_command_of_the_readme_runs_on_the_demo(demo: Path) -> None:
    ran = []
    for words in commands((ROOT / "README.md").read_text()):
        if words[0] in ("demo", "fit"):  # the first ran already, the second is the same fit
            continue
        done = subprocess.run([COMMAND, *words], cwd=demo, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        ran.append(words[0])
    assert {"compare", "schedule", "capacity", "next-runs", "latency", "check"} <= set(ran)


def test_every_command_of_the_tutorial_and_the_how_tos_runs_on_the_demo(
    demo: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo)
    monkeypatch.setattr(Fit, "load", lambda path: fit)
    of_readme = commands((ROOT / "README.md").read_text())
    ran = []
    for page in [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]:
        for words in commands(page.read_text()):
            if words in ran or words in of_readme or words[0] in ("demo", "fit"):
                continue
            if words[:2] == ["check", "metrics.txt"]:  # of a server: tests/runs has such files
                assert set(words[2:]) >= {"--window", "--set"}
                continue
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, (page.name, words, done.output)
            ran.append(words)
    assert {"compare", "schedule", "capacity", "next-runs", "report"} <= {words[0] for words in ran}


# What `vllm serve --help=all` and `vllm bench serve --help=all` of vLLM 0.32 list, of what the
# tutorial says; a result is that of a shipped run with as many draft tokens.
FAKE_VLLM = """#!{python}
import argparse, json, pathlib, shutil, sys, time
parser = argparse.ArgumentParser(allow_abbrev=False)
bench = sys.argv[1] == "bench"
assert not bench or sys.argv[2] == "serve"
for name in ("model", "dataset-name", "result-dir", "result-filename") if bench else ():
    parser.add_argument(f"--{{name}}", required=True)
for name in ("ignore-eos", "save-result", "save-detailed") if bench else ():
    parser.add_argument(f"--{{name}}", action="store_true", required=True)
numbers = ("request-rate", "num-prompts", "num-warmups", "seed", "temperature")
lengths = ("random-input-len", "random-output-len")
for name in (*numbers, *lengths, "ready-check-timeout-sec") if bench else ():
    parser.add_argument(f"--{{name}}", type=float, required=True)
parser.add_argument("--port", type=int, required=True)
if bench:
    parser.add_argument("--metadata", nargs="+", required=True)
else:
    parser.add_argument("model")
    parser.add_argument("--no-enable-prefix-caching", action="store_true", required=True)
    parser.add_argument("--speculative-config", type=json.loads)
given = parser.parse_args(sys.argv[3 if bench else 2:])
if not bench:
    print(given.speculative_config, flush=True)
    time.sleep(600)
told = dict(pair.split("=", 1) for pair in given.metadata)
assert given.temperature == 0 and given.num_prompts >= 60 * given.request_rate
name = "dense-115m_draft-12m_k7_a70" if "drafter" in told else "dense-115m"
folder = pathlib.Path(given.result_dir)
folder.mkdir(exist_ok=True)
run = sorted(pathlib.Path("{traces}").glob(f"{{name}}_?.json"))[len([*folder.iterdir()]) % 5]
shutil.copy(run, folder / given.result_filename)
"""
# The fit is the committed one, which knows more than this pair.
FAKE_COMMAND = """#!/usr/bin/env bash
[ "$1" = fit ] && exec cp "{fit}" "$4"
pair=(); [ "$1" = check ] || pair=(
    --verifier dense-115m --drafter draft-12m -k 0,7 --prompt 128 --output 64
)
exec "{command}" "$@" "${{pair[@]}}"
"""


@pytest.mark.process
def test_the_script_of_the_tutorial_measures_and_prints_a_schedule(
    tmp_path: Path, fit_path: Path
) -> None:
    (script,) = re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL
    )
    fakes = {
        "vllm": FAKE_VLLM.format(python=sys.executable, traces=ROOT / "traces" / "vllm-cpu"),
        "bayes-sd": FAKE_COMMAND.format(fit=fit_path, command=COMMAND),
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    told = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    how = {"cwd": tmp_path, "env": told, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", script], **how)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "runs").iterdir()]) == 10
    assert "'num_speculative_tokens': 3" in (tmp_path / "server-k3.log").read_text()
    assert (tmp_path / "report.html").exists()
    assert done.stdout.splitlines()[-1].startswith("--speculative-config")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    folders = [str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run([*words, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    said = (site / "cli.html").read_text()
    assert all(f"bayes-sd {verb.replace('_', '-')}" in said for verb in VERBS)
    assert (site / "api" / "bayes_sd.Fit.html").exists()
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names and names == {path.stem for path in (site / "notebooks").glob("*.html")}
    for name in ("run_table", *(verb.replace("_", "-") for verb in VERBS)):
        assert json.loads((site / f"{name}.schema.json").read_text())["$id"].startswith("urn:")


def test_shipped_runs_are_as_the_schema_of_the_run_table_says(runs: Runs) -> None:
    records = json.loads(runs.table.to_json(orient="records"))
    jsonschema.validate(records, schema())
    records[0]["loop"] = "ring"
    with pytest.raises(jsonschema.ValidationError, match="ring"):
        jsonschema.validate(records, schema())


def test_every_public_name_is_in_the_reference() -> None:
    listed = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in bayes_sd.__all__ if not re.search(rf"^ +{name}\b", listed, re.M)] == []


def test_the_description_of_the_plan_page_makes_a_plan(demo: Path) -> None:
    words = ["plan", "describe.yaml", "-o", "campaign"]
    done = subprocess.run([COMMAND, *words], cwd=demo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((demo / "describe.yaml").read_text())["verifiers"]
    assert os.access(demo / "campaign" / "run.sh", os.X_OK)


def test_the_python_of_the_readme_runs_on_the_demo(demo: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=demo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "faster" in done.stdout


def test_every_notebook_is_listed_and_small() -> None:
    there = {path.stem: path.stat().st_size for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(there) == set(NOTEBOOKS) and max(there.values()) < 300_000


@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_its_outputs_are_committed(demo: Path, name: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    committed = [cell.outputs for cell in code]
    assert sum(map(bool, committed)) >= len(code) - 2
    for cell in notebook.cells:
        cell.source = cell.source.replace("../traces", str(ROOT / "traces"))
    resources = {"metadata": {"path": str(demo)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert NOTEBOOKS[name] in str([cell.get("outputs") for cell in notebook.cells])
    for cell, before in zip(code, committed, strict=True):  # of the same kinds as those committed
        assert kinds(cell.outputs) == kinds(before), cell.source


def kinds(outputs: list[Any]) -> set[str]:
    """What a cell shows: text that was printed, tables, figures."""
    return {kind for output in outputs for kind in output.get("data", {"printed": ""})}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_links_of_readme_and_docs_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), (page.name, target)
