"""Everything printed for users to run, run: the README against the demo, notebook, doctests."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import bayes_sd

ROOT = Path(__file__).parents[2]
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
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), (page.name, target)
