"""Plans and descriptions: what is refused, what is designed, what it is expected to take."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from collect_helpers import FAKES, configuration, plan_of, save
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd import cli
from bayes_sd.collector import design, engine_metrics, load
from bayes_sd.collector.plan import BenchPlan, PointPlan, read_plan
from bayes_sd.collector.server import command_of, speculative_config
from bayes_sd.collector.testbed import write_testbed


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


def broken(change: dict[str, Any], at: str | None = None) -> dict[str, Any]:
    plan = plan_of()
    part = plan if at is None else plan["configurations"][0] if at == "c" else plan[at]
    part.update(change)
    return plan


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (broken({"serve": 1}), "unknown key 'serve'; known are seed, environment, server, bench"),
        (broken({"comand": "x"}, "server"), "server has unknown key 'comand'; known are command"),
        (broken({"k": 3}, "c"), "configurations 0 has unknown key 'k'; known are name, arm, model"),
        (broken({"points": [{"prompt": 1, "output": 1}]}, "c"), "exactly one of load, rate_rps"),
        (broken({"points": [{"rps": 1}]}, "c"), "'rps'; known are load, rate_rps, concurrency"),
        (broken({"points": [{"load": -1, "prompt": 1, "output": 1}]}, "c"), "greater than 0"),
        (broken({"points": []}, "c"), "at least 1"),
        (broken({"arm": "sd"}, "c"), "arm is sd but there is no drafter_model"),
        (broken({"drafter": "x"}, "c"), "arm is plain but a drafter"),
        (broken({"name": "a/b"}, "c"), "letters, digits"),
        (broken({"model": "./gone"}, "c"), "'./gone' is no folder"),
        (broken({"min_requests": 500}, "bench"), "min_requests 500 is more than max_requests"),
        (broken({"port": 70000}, "server"), "less than or equal to 65535"),
        (plan_of(configuration(), configuration()), "'plain' is there twice"),
    ],
)
def test_a_bad_plan_is_one_sentence(tmp_path: Path, plan: dict[str, Any], reason: str) -> None:
    done = run("collect", str(save(tmp_path, plan)), "-o", str(tmp_path / "runs"))
    assert done.exit_code == 1 and reason in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(bsd.InputError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(bsd.InputError, match="is not YAML"):
        read_plan(tmp_path / "bad.yaml")


def test_unknown_sizes_are_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = save(tmp_path, plan_of(configuration(model="org/model-on-a-hub")))
    with pytest.raises(bsd.InputError, match="verifier_params is missing"):
        bsd.collect(plan, tmp_path / "runs", progress=False)


def test_the_command_line_of_a_server(tmp_path: Path) -> None:
    sd = configuration("sd", arm="sd", acceptance=0.5, synthetic_acceptance=True)
    path = save(tmp_path, plan_of(configuration(), sd, configuration("k0", arm="sd_k0")))
    plan = read_plan(path)
    plain, sd_, k0 = plan.configurations
    words = command_of(plan.server, plain, 1234)
    assert words[-4:] == ["--port", "1234", "--served-model-name", "plain"]
    assert "--speculative-config" not in words
    asked = speculative_config(sd_)
    assert asked is not None and asked["synthetic_acceptance_rates"] == [0.5, 0.25, 0.125]
    drafted = json.loads(command_of(plan.server, k0, 1)[-1])
    assert drafted["num_speculative_tokens_per_batch_size"][0][2] == 0
    quoted = command_of(plan.server.model_copy(update={"quote": True}), k0, 1)
    assert quoted[-1].startswith("'{")


def test_requests_fit_the_time_of_a_run() -> None:
    bench = BenchPlan(run_seconds=10, max_seconds=20, min_requests=16, max_requests=100)

    def asked(rate: float) -> int:
        return load.load_of(bench, PointPlan(rate_rps=rate, prompt=1, output=1), None).requests

    assert [asked(r) for r in (0.05, 1.2, 5, 50)] == [load.FEWEST, 16, 50, 100]
    half = PointPlan(load=0.5, prompt=bench.probe_prompt, output=bench.probe_output)
    assert load.load_of(bench, half, 8.0).rate_rps == 4.0
    longer = half.model_copy(update={"output": 2 * bench.probe_output + 32})
    assert load.load_of(bench, longer, 8.0).rate_rps == pytest.approx(2.0)
    closed = load.load_of(bench, PointPlan(concurrency=8, prompt=128, output=64), 8.0)
    assert closed.rate_rps is None and closed.concurrency == 8 and closed.requests == 40


def describe(folder: Path, **changes: Any) -> Path:
    write_testbed(folder / "models", ["tiny", "tiny-moe"], ["tiny-draft"], [0.5, 0.55, 0.6])
    about = {
        "verifiers": ["models/tiny", "models/tiny-moe"],
        "drafters": [{"name": "tiny-draft", "model": "models/tiny-draft-a{percent}"}],
        "k": [1, 4],
        "acceptance": [0.5, 0.6],
        "arms_per_verifier": 3,
        "sd_k0_arms": 1,
        "runs_per_server": [4, 6],
        "replicated_cells": 5,
    }
    path = folder / "describe.yaml"
    path.write_text(yaml.safe_dump(about | changes))
    return path


def test_a_design_covers_what_was_asked_within_the_budget(tmp_path: Path) -> None:
    plan = design.design(design.read_description(describe(tmp_path)))
    arms = [c.arm for c in plan.configurations]
    assert (arms.count("plain"), arms.count("sd"), arms.count("sd_k0")) == (2, 6, 1)
    sd = [c for c in plan.configurations if c.arm == "sd"]
    assert {c.draft_tokens for c in sd} == {1, 2, 3, 4}
    assert {c.acceptance for c in sd} == {0.5, 0.55, 0.6}
    every = [p for c in plan.configurations for p in c.points]
    assert sum(p.replicate for p in every) == 5
    assert all(p.load is not None and 0.05 <= p.load <= 1.2 for p in every)
    assert load.total_s(plan) <= 3600


def test_a_tight_budget_means_fewer_runs_and_then_an_error(tmp_path: Path) -> None:
    free = design.design(design.read_description(describe(tmp_path)))
    minutes = load.total_s(free) / 60
    tight = describe(tmp_path, time_budget_minutes=minutes - 1)
    made = design.design(design.read_description(tight))
    assert len(made.configurations[0].points) < len(free.configurations[0].points)
    with pytest.raises(bsd.InputError, match="time_budget_minutes is 1, so take fewer"):
        design.design(design.read_description(describe(tmp_path, time_budget_minutes=1)))


def test_a_design_is_written_read_and_shown(tmp_path: Path) -> None:
    path, out = describe(tmp_path), tmp_path / "plan.yaml"
    shown = run("collect", str(path), "--design", "--dry-run", "--json")
    assert not out.exists() and json.loads(shown.stdout)["runs"] == 54
    assert run("collect", str(path), "--design", "-o", str(out)).exit_code == 0
    assert read_plan(out) == design.design(design.read_description(path))
    table = run("collect", str(out), "--dry-run").stdout
    assert "tiny-moe_plain" in table and "9 servers, 54 runs, about" in table
    assert run("collect", str(path), "--design").exit_code == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verifier": []}, "unknown key 'verifier'; known are verifiers"),
        ({"k": [5, 1]}, "k must be"),
        ({"acceptance": [0.5, 1.5]}, "acceptance must not be above 1"),
        ({"loads": [0, 1]}, "loads must be"),
        ({"loads": [0.1, 30]}, "at most 2"),
        ({"prompts": [0]}, "at least 1"),
        ({"drafters": []}, "drafters are missing"),
        ({"acceptance": None}, "so acceptance is needed"),
        ({"verifiers": ["models/gone/x"]}, "is no folder"),
        ({"acceptance": [0.9, 0.95]}, "is no folder; write it first"),
        ({"replicated_cells": 99}, "9 servers can have"),
    ],
)
def test_impossible_descriptions_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    done = run("collect", str(describe(tmp_path, **change)), "--design", "--dry-run")
    assert done.exit_code == 1 and reason in done.stderr


METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 1.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:generation_tokens_total{engine="0"} 640.0
vllm:generation_tokens_total_like_but_other{engine="0"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 7.0
"""


def test_metrics_are_summed_over_engines() -> None:
    found = engine_metrics.parse(METRICS, 5.0)
    assert found.values == {"running": 4, "waiting": 2, "generation_tokens": 640}
    assert found.positions == {1: 7}
    later = engine_metrics.parse(METRICS.replace("640.0", "1280.0").replace(" 7.0", " 9.0"), 6.0)
    assert engine_metrics.deltas(found, later) == {"generation_tokens": 640, "accepted_tokens_2": 2}
    assert engine_metrics.went_backwards(found, later) is None
    assert engine_metrics.went_backwards(later, found) == "generation_tokens"
    assert engine_metrics.occupancy([found, later], 5.5, 7)["in_flight_mean"] == 6
    assert engine_metrics.occupancy([found], 8, 9) == {"samples": 0}


def test_the_load_generator_is_imported_once(tmp_path: Path) -> None:
    """With a package called vllm whose command line is the stand-in."""
    package = tmp_path / "site"
    for name in ("vllm/entrypoints/cli", "vllm/benchmarks", "transformers/models"):
        (package / name).mkdir(parents=True)
    main = f"""import runpy, sys
def main():
    assert sys.argv[:3] == ["vllm", "bench", "serve"]
    runpy.run_path({str(FAKES / "bench.py")!r}, run_name="__main__")
"""
    (package / "vllm/entrypoints/cli/main.py").write_text(main)
    (package / "vllm/benchmarks/serve.py").write_text("print('imported')")
    (package / "transformers/models/auto.py").write_text("")
    plan = plan_of(bench={"preload": sys.executable, "env": {"PYTHONPATH": str(package)}})
    done = bsd.collect(save(tmp_path, plan), tmp_path / "runs", progress=False)
    assert done.complete and done.new == 2
    assert (tmp_path / "runs/bench.log").read_text().count("imported") == 1
    gone = plan_of(bench={"preload": sys.executable}, server={"retries": 0})
    failed = bsd.collect(save(tmp_path, gone), tmp_path / "none", progress=False)
    assert "cannot import vllm bench serve" in failed.failures["plain/server"]


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, bayes_sd.cli; print([m for m in ('yaml', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
