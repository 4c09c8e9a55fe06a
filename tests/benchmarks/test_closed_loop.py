"""The closed loop's data and report: the same arrivals for all arms, and sums that agree."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
loop = importlib.import_module("closed_loop")


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    files = sorted((loop.SHIPPED / "ramp").rglob("*.json"))
    return [json.loads(f.read_text()) | {"step": f.stem} for f in files]


def test_all_arms_saw_the_same_arrivals(runs: list[dict]) -> None:
    steps: dict[tuple, list[dict]] = {}
    for run in runs:
        steps.setdefault((run["round"], run["step"]), []).append(run)
    assert len(steps) >= 9
    for same in steps.values():
        gaps = [np.diff(sorted(run["start_times"])) for run in same]
        assert len({len(g) for g in gaps}) == 1
        # Sent when the load generator got to it, so a little off.
        assert all(np.abs(np.cumsum(g) - np.cumsum(gaps[0])).max() < 0.5 for g in gaps)


def test_every_request_was_answered(runs: list[dict]) -> None:
    assert all(run["completed"] == run["num_prompts"] for run in runs)


def test_the_calibration_is_what_the_schedule_was_fitted_to() -> None:
    traces = bsd.read_traces(loop.SHIPPED / "calibration")
    assert len(traces) == 30 and traces.set_aside.empty
    assert set(traces.runs["draft_tokens"]) == {0, *loop.KS}
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
    found = loop.contrasts(pd.DataFrame(rows, columns=columns))
    np.testing.assert_allclose(found[["ratio", "low", "high"]], 0.8)
    assert list(found["level"]) == [0.1, 0.5, "all"]
