"""The command line: what it prints, where, and with which exit code."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd import cli
from bayes_sd.cli_options import Asked
from bayes_sd.corpus import corpus
from bayes_sd.model import latency_model

WORK = ["--prompt", "128", "--output", "64"]
PAIR = ["--verifier", "dense-60m", "--drafter", "draft-3m", "--acceptance", "0.7"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def instant(fit: bsd.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that fit get the session's fit: sampling is tested elsewhere."""
    monkeypatch.setattr(latency_model.LatencyModel, "fit", lambda self, traces, **kw: fit)


def test_help_is_light() -> None:
    code = (
        "import sys; from bayes_sd.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('pymc', 'pytensor', 'nutpie', 'arviz', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_check_says_what_is_there() -> None:
    result = run("check", str(corpus("vllm-cpu")), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["passed"] is True
    assert "dense-25m" in run("check", str(corpus("vllm-cpu"))).stdout


@pytest.mark.parametrize(
    ("content", "says"), [("{", "JSON"), ('{"benchmarks": []}', "GuideLLM"), ("[]", "JSON")]
)
def test_a_bad_file_is_one_sentence_and_exit_1(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for command in (["check"], ["fit", "-o", str(tmp_path / "fit.nc")]):
        result = run(command[0], str(tmp_path / "a.json"), *command[1:])
        assert result.exit_code == 1
        assert says in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "fit.nc").exists()


def test_only_saturated_runs_exit_3(tmp_path: Path) -> None:
    shutil.copy(corpus("vllm-cpu") / "dense-200m_2.json", tmp_path)
    assert run("check", str(tmp_path)).exit_code == 3
    result = run("fit", str(tmp_path), "-o", str(tmp_path / "fit.nc"))
    assert result.exit_code == 3
    assert "no steady run" in result.stderr


def test_an_unconverged_fit_exits_3_and_writes_nothing(
    fit: bsd.Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    from bayes_sd.inference.gate import Convergence

    table = pd.DataFrame({"rhat": [1.2], "ess_bulk": [50.0], "ess_tail": [60.0]}, index=["s_pass"])

    def refuse(*_: Any, **__: Any) -> None:
        raise bsd.ConvergenceError(fit, Convergence(table, 3, 4, 100, 0))

    monkeypatch.setattr(latency_model.LatencyModel, "fit", refuse)
    result = run("fit", str(corpus("vllm-cpu")), "-o", str(tmp_path / "fit.nc"))
    assert result.exit_code == 3
    assert "did not converge" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_fit_into_a_missing_folder_is_refused_before_sampling(tmp_path: Path) -> None:
    result = run("fit", str(corpus("vllm-cpu")), "-o", str(tmp_path / "no" / "fit.nc"))
    assert result.exit_code == 1
    assert "does not exist" in result.stderr


@pytest.mark.usefixtures("instant")
def test_fit_saves_and_says_so(tmp_path: Path) -> None:
    result = run("fit", str(corpus("vllm-cpu")), "-o", str(tmp_path / "fit.nc"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fit"]["divergences"] == 0
    assert (tmp_path / "fit.nc").is_file()


def test_predict(fit_path: Path) -> None:
    result = run("predict", str(fit_path), "--rps", "1:8:8", "-k", "0,5", *PAIR, *WORK, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 16
    assert {r["k"] for r in rows} == {0, 5}
    assert all(r["request_p50_s"] < r["request_p99_s"] for r in rows if r["request_p99_s"])
    beyond = run("predict", str(fit_path), "--rps", "1000", *PAIR, *WORK, "--json")
    assert json.loads(beyond.stdout)["rows"][0]["mean_p50_s"] is None
    assert json.loads(beyond.stdout)["rows"][0]["prob_saturated"] == 1


def test_decide(fit_path: Path) -> None:
    result = run("decide", str(fit_path), "--rps", "1,8", "-k", "5", *PAIR, *WORK, "--json")
    assert result.exit_code == 0, result.output
    (decision,) = json.loads(result.stdout)["decisions"]
    assert decision["prob_faster"][0] > 0.95 > 0.05 > decision["prob_faster"][1]
    even = decision["break_even_rps"]
    assert 1 < even["p05"] < even["p50"] < even["p95"] < 8
    assert "break-even rate" in run("decide", str(fit_path), "-k", "5", *PAIR, *WORK).stdout
    far = ["--rps", "0.00012,0.00013,1000"]
    shown = run("decide", str(fit_path), "-k", "5", *far, *PAIR, *WORK).stdout
    *near, beyond = [line.split() for line in shown.splitlines() if "polated" in line][-3:]
    assert [row[0] for row in near] == ["0.00012", "0.00013"]
    assert beyond == ["1000", "0", "1", "extrapolated"]


def test_options_beside_an_unnamed_verifier_are_not_ignored(fit: bsd.Fit) -> None:
    tree = fit.tree.copy()
    runs = tree["runs"].to_dataset()
    own = (runs["verifier"] == "dense-60m") & (runs["drafter"] == "draft-3m")
    tree["runs"] = xr.DataTree(runs.isel(run=(own & (runs["acceptance_imposed"] == 0.7)).values))
    one = bsd.Fit(tree)
    assert Asked().of(one, True) == bsd.System("dense-60m", "draft-3m")
    asked = Asked(drafter="other", acceptance=0.1, environment="mars").of(one, True)
    assert asked == bsd.System("dense-60m", "other", 0.1, "mars")
    new = Asked(new_drafter="params=1e5").of(one, True)
    assert new.drafter == bsd.Size(1e5)


def test_decide_on_a_new_model(fit_path: Path) -> None:
    new = ["--new-verifier", "params=8e9,layers=36", "--new-drafter", "params=5e8"]
    new.append("--extrapolate")
    new += ["--acceptance", "0.7"]
    result = run("decide", str(fit_path), "--rps", "0.1", *new, *WORK, "--json")
    assert json.loads(result.stdout)["decisions"][0]["support"] == "extrapolated"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--rps", "1", "--verifier", "gpt-5"], 1, "dense-115m"),
        (["--rps", "1"], 1, "Say which system"),
        (["--rps", "one", *PAIR], 2, "START:STOP:COUNT"),
        (["--rps", "-1", *PAIR], 1, "finite numbers"),
        (["--concurrency", "4", "--rps", "1", *PAIR], 2, "exactly one"),
        (["--rps", "1", "-k", "2.5", *PAIR], 2, "whole numbers"),
        (["--rps", "1", *PAIR, "--new-verifier", "params=1e9"], 2, "not both"),
    ],
)
def test_wrong_questions(fit_path: Path, arguments: list[str], code: int, says: str) -> None:
    result = run("predict", str(fit_path), *arguments, *WORK)
    assert result.exit_code == code, result.output
    assert says in result.stderr.replace("\n", " ")


def test_a_file_that_is_no_fit(tmp_path: Path) -> None:
    (tmp_path / "fit.nc").write_text("not netCDF")
    for name in ("fit.nc", "missing.nc"):
        result = run("predict", str(tmp_path / name), "--rps", "1", *WORK)
        assert result.exit_code == 1
        assert name in result.stderr


@pytest.mark.usefixtures("instant")
def test_demo_prints_one_object_and_writes_its_figures(tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"runs", "requests", "fit", "collapse", "decisions", "files"} <= set(found)
    assert {"rhat_max", "ess_bulk_min", "ess_tail_min", "divergences", "chains", "draws"} <= set(
        found["fit"]
    )
    assert found["collapse"]["r2_dense"] >= 0.97
    assert found["collapse"]["r2_moe"] >= 0.95
    assert len(found["decisions"]) == 18
    for d in found["decisions"]:
        assert len(d["rates_rps"]) == len(d["prob_faster"])
        assert sum(v for n, v in d["break_even_rps"].items() if n.startswith("prob")) == (
            pytest.approx(1, abs=1e-3)
        )
    assert all(Path(f).stat().st_size > 10_000 for f in found["files"])


@pytest.mark.usefixtures("instant")
def test_demo_prints_tables(tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for text in ("Fitted coefficients", "reading the weights once", "P(SD beats plain)", "wrote "):
        assert text in result.stdout


def test_metrics_of_a_server_are_checked_without_a_benchmark(tmp_path: Path) -> None:
    packed = Path(__file__).parent / "data" / "prometheus" / "sd-server.txt.gz"
    (tmp_path / "scrapes.prom").write_bytes(gzip.decompress(packed.read_bytes()))
    sidecar = tmp_path / "who.yaml"
    sidecar.write_text(
        '"*.prom": {verifier_params: 60e6, drafter: draft-3m, drafter_params: 3e6, engine: cpu}\n'
    )
    words = ["check", str(tmp_path / "scrapes.prom"), "--metrics", "--config", str(sidecar)]
    result = run(*words, "--window", "60", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summary"][0]["drafter"] == "draft-3m"
    assert run(*words, "--window", "-1").exit_code == 1
