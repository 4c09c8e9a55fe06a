"""What the tests of the collector share: a small plan around the fakes, and its processes."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bayes_sd.collector.testbed import VOCABULARY, successors, write_testbed

FAKES = Path(__file__).parent / "fakes"
SERVE = [sys.executable, "-S", "-E", str(FAKES / "server.py")]
BENCH = [sys.executable, "-S", "-E", str(FAKES / "bench.py")]


def points(count: int = 2) -> list[dict[str, Any]]:
    return [{"load": 0.1 * (i + 1), "prompt": 16, "output": 8} for i in range(count)]


def configuration(name: str = "plain", count: int = 2, **more: Any) -> dict[str, Any]:
    arm = {}
    if more.get("arm", "plain") != "plain":
        arm = {"drafter_model": "models/tiny-draft-a80", "drafter": "tiny-draft", "draft_tokens": 3}
    return {"name": name, "model": "models/tiny", "points": points(count), **arm, **more}


def plan_of(*configurations: dict[str, Any], **parts: Any) -> dict[str, Any]:
    server = {"command": SERVE, "startup_timeout_s": 20, "stop_timeout_s": 3}
    bench = {"command": BENCH, "run_seconds": 1, "max_seconds": 5, "timeout_s": 30}
    return {
        "seed": 1,
        "environment": {"hardware": "here"},
        "server": server | parts.pop("server", {}),
        "bench": bench | parts.pop("bench", {}),
        "configurations": list(configurations) or [configuration()],
        **parts,
    }


def save(folder: Path, plan: dict[str, Any], name: str = "plan.yaml") -> Path:
    write_testbed(folder / "models", ["tiny"], ["tiny-draft"], [0.8])
    path = folder / name
    path.write_text(yaml.safe_dump(plan))
    return path


def processes_naming(text: str) -> list[str]:
    """Command lines of live processes that contain a text; Linux only."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text in line and state != "Z":
            found.append(line)
    return found


def wait_for(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Until it is true; fails after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def cycles(token: int, k: int, output: int, acceptance: float) -> tuple[int, list[int]]:
    """Drafts of one request whose prompt ends with a token, and accepted tokens by position."""
    right, drafted = successors(), successors(acceptance)
    token, done = right[token], 1
    drafts, accepted = 0, [0] * k
    while done < output:
        drafts, j = drafts + 1, 0
        while j < k and drafted[token] == right[token]:
            accepted[j] += 1
            token, j = right[token], j + 1
        token, done = right[token], done + j + 1
    return drafts, accepted


def counted(run: Mapping[str, Any]) -> tuple[int, list[int]]:
    """The same of all requests of a run, from its seed and what was imposed alone.

    `run` is what its file holds: the prompts of ``vllm bench serve --dataset-name random`` go
    through the vocabulary from a start that the seed fixes.
    """
    k, prompt, output = run["num_speculative_tokens"], run["input_lens"][0], run["output_lens"][0]
    starts = np.random.default_rng(run["seed"]).integers(0, VOCABULARY, size=run["num_prompts"])
    lasts = (starts + np.arange(len(starts)) + prompt - 1) % VOCABULARY
    every = [cycles(last, k, output, run["target_acceptance"]) for last in lasts]
    return sum(n for n, _ in every), np.sum([accepted for _, accepted in every], axis=0).tolist()
