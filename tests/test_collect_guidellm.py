"""GuideLLM as the collector's load generator: what it is asked, what its report becomes."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bayes_sd as bsd
from bayes_sd.collector import engine_metrics, guidellm_load
from bayes_sd.collector.bench import Job, window
from bayes_sd.collector.plan import BenchPlan
from bayes_sd.collector.server import Failure

REPORT = Path(__file__).parent / "data" / "guidellm" / "v0.8-sd-poisson.json"
WHO: dict[str, Any] = {
    "verifier": "m",
    "verifier_params": 6e7,
    "drafter": "d",
    "drafter_params": 1e6,
}
WHO |= {"num_speculative_tokens": 3, "target_acceptance": 0.8}
JOB = Job("http://127.0.0.1:1", "m", "models/m", 64, 64, 20, rate_rps=1.2, seed=7)


def test_a_report_becomes_the_same_run_as_through_its_own_reader(tmp_path: Path) -> None:
    report = json.loads(REPORT.read_text())
    path = tmp_path / "run.json"
    path.write_text(json.dumps(guidellm_load.result(report, JOB) | WHO))
    ours = bsd.read_traces(path).runs.iloc[0]
    theirs = bsd.read_traces(
        REPORT, draft_tokens=3, **{k: v for k, v in WHO.items() if k[0] != "n"}
    ).runs.iloc[0]
    for name in ("requests", "prompt_tokens", "output_tokens", "rate_rps", "e2e_mean_s",
                 "e2e_log_var", "ttft_mean_s", "tpot_mean_s", "duration_s", "span_s"):  # fmt: skip
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert ours["detail"] and ours["loop"] == "open"


def test_the_words_name_what_is_asked() -> None:
    words = guidellm_load.arguments(JOB, "out.json")
    told = dict(zip(words[::2], words[1::2], strict=False))
    assert told["--profile"] == "kind=poisson,rate=1.2"
    assert told["--constraint"] == "kind=max_requests,count=20"
    assert "target=http://127.0.0.1:1,model=m," in told["--backend"]
    assert told["--backend"].endswith(",extras.body.temperature=0")
    closed = Job("http://127.0.0.1:1", "m", "t", 64, 64, 20, concurrency=4)
    assert "kind=concurrent,streams=4" in guidellm_load.arguments(closed, "out.json")
    burst = Job("http://127.0.0.1:1", "m", "t", 64, 64, 20)
    assert "kind=throughput,max_concurrency=20" in guidellm_load.arguments(burst, "out.json")


def test_requests_that_the_report_lacks_are_lost() -> None:
    found = guidellm_load.result(json.loads(REPORT.read_text()), replace(JOB, requests=30))
    assert found["failed"] == 30 - found["completed"] > 0


@pytest.mark.parametrize("report", [{}, {"benchmarks": []}, {"benchmarks": [{"requests": {}}]}])
def test_a_report_without_requests_is_a_failed_run(report: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="report cannot be used"):
        guidellm_load.result(report, JOB)


def test_its_times_of_day_are_found_on_the_clock_of_the_gauges() -> None:
    began, day = time.perf_counter(), time.time()
    found = window({"duration": 2.0, "start_times": [day + 1.5, day + 1]}, began, began + 9)
    assert found == pytest.approx((began + 1, began + 3), abs=0.1)
    ours = window({"duration": 2.0, "start_times": [began + 1.5]}, began, began + 9)
    assert ours == (began + 1.5, began + 3.5)
    assert window({"duration": 2.0}, began, began + 9) == (began + 7, began + 9)


def test_acceptance_comes_from_the_engine() -> None:
    grown = {"drafts": 10.0, "draft_tokens_proposed": 20.0, "accepted_tokens": 13.0}
    told = engine_metrics.drafting(grown | {"accepted_tokens_1": 8.0, "accepted_tokens_2": 5.0})
    assert told["spec_decode_per_position_acceptance_rates"] == [0.8, 0.5]
    assert told["spec_decode_num_drafts"] == 10 and told["spec_decode_accepted_tokens"] == 13
    assert engine_metrics.drafting({"drafts": 0.0}) == {}


def test_preload_is_for_vllm_only() -> None:
    with pytest.raises(ValueError, match="preload is for vllm"):
        BenchPlan(tool="guidellm", preload="python")
