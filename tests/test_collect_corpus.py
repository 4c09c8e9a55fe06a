"""What the engine of the second campaign counted and showed, against what it must have been."""

import json

import pytest
from collect_helpers import counted

from bayes_sd.corpus import corpus

RUNS = [json.loads(path.read_text()) for path in sorted(corpus("vllm-cpu-2").rglob("*.json"))]


def test_every_count_of_the_engine_is_the_one_seed_and_checkpoints_fix() -> None:
    drafted = [run for run in RUNS if run.get("engine_drafts")]
    assert len(drafted) == 83
    for run in drafted:
        drafts, accepted = counted(run)
        assert drafts == run["engine_drafts"], run["point"]
        told = [run[f"engine_accepted_tokens_{j + 1}"] for j in range(len(accepted))]
        assert accepted == told, run["point"]


def test_gauges_show_requests_past_their_first_pass() -> None:
    """Their mean is the time spent decoding or queueing for a place, not all of the latency."""
    shown = sum(run["engine_in_flight_mean"] * run["duration"] for run in RUNS)
    past = sum(run["engine_decode_time_s_sum"] + run["engine_queue_time_s_sum"] for run in RUNS)
    whole = sum(run["engine_e2e_s_sum"] for run in RUNS)
    print(
        f"of the time in the server: gauges {shown / whole:.3f}, past first pass {past / whole:.3f}"
    )
    assert shown == pytest.approx(past, rel=0.03)
    assert past / whole == pytest.approx(0.84, abs=0.01)
