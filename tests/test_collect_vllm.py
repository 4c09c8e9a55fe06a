"""The whole chain against a real vLLM: checkpoints, servers, runs, an interruption, traces.

Runs only where BAYES_SD_VLLM is the ``vllm`` command of an installed vLLM; takes minutes.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from collect_helpers import configuration, plan_of, processes_naming, save, wait_for

import bayes_sd as bsd

VLLM = os.environ.get("BAYES_SD_VLLM", "")
pytestmark = pytest.mark.skipif(not VLLM, reason="BAYES_SD_VLLM is not set")


def test_killed_and_resumed(tmp_path: Path) -> None:
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    args = ["--max-model-len", "1024", "--no-enable-prefix-caching", "--dtype", "bfloat16"]
    server = {"command": [VLLM, "serve"], "env": env, "args": args, "startup_timeout_s": 300}
    bench = {"command": [VLLM, "bench", "serve"], "env": env, "run_seconds": 4, "timeout_s": 120}
    arms = [configuration(), configuration("sd", arm="sd", acceptance=0.8)]
    path, out = save(tmp_path, plan_of(*arms, server=server, bench=bench)), tmp_path / "runs"
    code = "from bayes_sd.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, "collect", str(path), "-o", str(out)]) as p:
        wait_for(lambda: list(out.rglob("*.json")), 400)
        p.send_signal(signal.SIGKILL)
    wait_for(lambda: not processes_naming(str(tmp_path)), 60)
    assert bsd.collect(path, out).complete
    assert not processes_naming(str(tmp_path))
    traces = bsd.read_traces(out)
    assert len(traces) == 4 and traces.set_aside.empty
    drafted = traces.select(arm="sd").runs
    assert drafted.accepted_1.sum() / drafted.drafts.sum() == pytest.approx(0.8, abs=0.08)
    for file in out.rglob("*.json"):
        kept = json.loads(file.read_text())
        assert kept["engine_requests"] == kept["completed"]
        # What the engine counts as time in it, and the load generator as latency.
        assert kept["engine_e2e_s_sum"] == pytest.approx(sum(kept["latencies"]), rel=0.2)
