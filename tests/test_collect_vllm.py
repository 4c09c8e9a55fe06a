"""The whole chain against a real vLLM: checkpoints, servers, runs, an interruption, traces.

Runs only where BAYES_SD_VLLM is the ``vllm`` command of an installed vLLM, and the last test only
where BAYES_SD_GUIDELLM is the ``guidellm`` command of GuideLLM 0.8 too; takes minutes.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collect_helpers import (
    configuration,
    counted,
    cycles,
    plan_of,
    processes_naming,
    save,
    wait_for,
)

import bayes_sd as bsd
from bayes_sd.collector.bench import Bench, Job, now_s, window
from bayes_sd.collector.engine_metrics import Poll, deltas, occupancy, scrape
from bayes_sd.collector.plan import read_plan
from bayes_sd.collector.server import serving
from bayes_sd.collector.testbed import write_testbed

VLLM = os.environ.get("BAYES_SD_VLLM", "")
GUIDELLM = os.environ.get("BAYES_SD_GUIDELLM", "")
pytestmark = pytest.mark.skipif(not VLLM, reason="BAYES_SD_VLLM is not set")
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
ARGS = ["--max-model-len", "1024", "--no-enable-prefix-caching", "--dtype", "bfloat16"]
# Long enough that the engine's passes are most of a request, not the way to it and back.
POINTS = [{"load": load, "prompt": 64, "output": 128} for load in (0.05, 0.1)]


def whole_plan(folder: Path, **bench: Any) -> Path:
    """A plan of a plain and an SD server, two points each, measured with this `bench`."""
    server = {"command": [VLLM, "serve"], "env": ENV, "args": ARGS, "startup_timeout_s": 300}
    arms = [configuration(points=POINTS)]
    arms += [configuration("sd", arm="sd", acceptance=0.8, points=POINTS)]
    bench = {"env": ENV, "run_seconds": 4, "timeout_s": 120, **bench}
    return save(folder, plan_of(*arms, server=server, bench=bench))


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.rglob("*.json")]


def check_engine(run: dict[str, Any]) -> None:
    """The engine saw the run's requests, and most of their latency as time in the server."""
    assert run["engine_requests"] == run["num_prompts"]
    mean_s = run["engine_e2e_s_sum"] / run["engine_e2e_count"]
    assert 0.5 < mean_s / (sum(run["latencies"]) / run["completed"]) < 1


def test_killed_and_resumed(tmp_path: Path) -> None:
    path, out = whole_plan(tmp_path, command=[VLLM, "bench", "serve"]), tmp_path / "runs"
    code = "from bayes_sd.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, "collect", str(path), "-o", str(out)]) as p:
        wait_for(lambda: list(out.rglob("*.json")), 400)
        p.send_signal(signal.SIGKILL)
    wait_for(lambda: not processes_naming(str(tmp_path)), 60)
    assert bsd.collect(path, out).complete
    assert not processes_naming(str(tmp_path))
    traces = bsd.read_traces(out)
    assert len(traces) == 4 and traces.set_aside.empty
    for run in results(out):
        check_engine(run)
        if run["arm"] == "sd":
            drafts, accepted = counted(run)
            assert run["engine_drafts"] == drafts
            assert [run[f"engine_accepted_tokens_{j + 1}"] for j in range(3)] == accepted


def test_gauges_show_requests_past_their_first_pass(tmp_path: Path) -> None:
    """Of four that are always in flight, a scrape shows those that decode or queue, no more."""
    path = whole_plan(tmp_path, command=[VLLM, "bench", "serve"])
    (model,) = write_testbed(tmp_path / "models", ["dense-25m"])
    plan = read_plan(path)
    arm = plan.configurations[0].model_copy(update={"model": str(model)})
    with serving(plan.server, arm, tmp_path, tmp_path / "server.log") as server:
        bench = Bench(plan.bench, tmp_path, tmp_path / "bench.log")
        job = Job(server.base_url, "plain", str(model), 512, 16, 40, concurrency=4)
        bench.run(replace(job, requests=4))
        before, began = scrape(server.base_url), now_s()
        with Poll(lambda: scrape(server.base_url), 0.05) as poll:
            result = bench.run(job)
        ended, after = now_s(), scrape(server.base_url)
    assert before is not None and after is not None
    grown = deltas(before, after)
    shown = occupancy(poll.scrapes, *window(result, began, ended))
    told = ("queue", "prefill", "decode")
    share = {name: grown[f"{name}_time_s_sum"] / grown["e2e_s_sum"] for name in told}
    in_flight = grown["e2e_s_sum"] / result["duration"]
    print(f"in flight {in_flight:.2f}, gauges {shown}, shares of the time in the server {share}")
    assert in_flight == pytest.approx(4, rel=0.1)
    past = (share["queue"] + share["decode"]) * in_flight
    assert shown["in_flight_mean"] == pytest.approx(past, rel=0.2)
    assert past < 3


@pytest.mark.skipif(not GUIDELLM, reason="BAYES_SD_GUIDELLM is not set")
def test_guidellm_measures_it_too(tmp_path: Path) -> None:
    path, out = whole_plan(tmp_path, tool="guidellm", command=[GUIDELLM, "run"]), tmp_path / "runs"
    done = bsd.collect(path, out)
    assert done.complete, done.failures
    traces = bsd.read_traces(out)
    assert len(traces) == 4 and traces.set_aside.empty
    for run in results(out):
        check_engine(run)
        assert run["output_lens"] == [128] * run["completed"]
    # Its words are all unknown to these checkpoints, so that every prompt ends with token 0.
    drafts, accepted = cycles(0, 3, 128, 0.8)
    requests = sum(run["num_prompts"] for run in results(out) if run["arm"] == "sd")
    drafted = traces.select(arm="sd").runs
    assert drafted.drafts.sum() == drafts * requests
    assert drafted.accepted_1.sum() == accepted[0] * requests
