"""The closed loop's data and report: the same arrivals for all arms, and sums that agree."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import closed_loop as loop


@pytest.fixture(scope="module")
def results() -> list[dict]:
    files = sorted((loop.SHIPPED / "ramp").rglob("*.json"))
    return [json.loads(f.read_text()) | {"step": f.stem} for f in files]


def test_all_arms_saw_the_same_arrivals(results: list[dict]) -> None:
    steps: dict[tuple, list[dict]] = {}
    for result in results:
        steps.setdefault((result["round"], result["step"]), []).append(result)
    assert len(steps) >= 9
    for same in steps.values():
        gaps = [np.diff(sorted(result["start_times"])) for result in same]
        assert len({len(g) for g in gaps}) == 1
        # Sent when the load generator got to it, so a little off.
        assert all(np.abs(np.cumsum(g) - np.cumsum(gaps[0])).max() < 0.5 for g in gaps)


def test_every_request_was_answered(results: list[dict]) -> None:
    assert all(result["completed"] == result["num_prompts"] for result in results)


def test_the_calibration_is_what_the_schedule_was_fitted_to() -> None:
    runs = bsd.read(loop.SHIPPED / "calibration")
    assert len(runs) == 30 and runs.set_aside.empty
    assert set(runs.table["draft_tokens"]) == {0, *loop.KS}
    about = json.loads((loop.SHIPPED / "ramp.json").read_text())
    assert about["schedule"][0][0] == 1
    assert {k for _, _, k in about["schedule"]} <= {0, *loop.KS}


def test_contrasts_are_ratios_of_means() -> None:
    rng = np.random.default_rng(1)
    rows = [
        (arm, 0, step, level, 1.0, latency * scale)
        for step, level in enumerate((0.1, 0.5, 0.1))
        for latency in rng.lognormal(0, 0.3, 50)
        for arm, scale in (("schedule", 0.8), ("k1", 1.0))
    ]
    columns = ["arm", "round", "step", "level", "rate_rps", "latency_s"]
    ratios = loop.contrasts(pd.DataFrame(rows, columns=columns))
    np.testing.assert_allclose(ratios[["ratio", "low", "high"]], 0.8)
    assert list(ratios["level"]) == [0.1, 0.5, "all"]


def test_ramp_is_the_one_that_was_driven() -> None:
    about = json.loads((loop.SHIPPED / "ramp.json").read_text())
    points = loop.steps(about["capacity_rps"])
    assert len({point.name for point in points.values()}) == len(points)
    for file in (loop.SHIPPED / "ramp" / "round0" / "plain").glob("*.json"):
        result, point = json.loads(file.read_text()), points[file.stem]
        assert result["offered_rps"] == point.rate_rps
        assert result["num_prompts"] == point.requests


def test_arms_of_a_sweep_get_the_same_requests(tmp_path: Path) -> None:
    points = [loop.WARM_UP, *loop.steps(10.0).values()]
    benches = []
    for name, server in loop.servers(tmp_path / "models").items():
        loop.write_sweep(tmp_path / name, [server], [points], options=loop.VLLM, seed=7)
        benches.append((tmp_path / name / name / "bench_params.json").read_text())
    assert len(set(benches)) == 1 and len(benches) == 6


def test_kept_steps_are_what_the_report_reads(tmp_path: Path) -> None:
    points = loop.steps(10.0)
    for i, point in enumerate(points.values()):
        file = tmp_path / "sweep" / "k1" / "runs" / f"SERVE--k1-BENCH--{point.name}" / "run=0.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"latencies": [0.5 + i], "generated_texts": ["no"]}))
    loop.keep(tmp_path / "sweep", tmp_path / "ramp" / "round0" / "k1", points, "k1", 0)
    requests = loop.measured(tmp_path)
    assert requests["latency_s"].tolist() == [0.5 + i for i in range(len(points))]
    assert requests["level"].tolist() == list(loop.LEVELS)
