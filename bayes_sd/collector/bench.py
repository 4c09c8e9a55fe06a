"""One run of the load generator: its command line, its result, what is kept of it."""

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_sd.collector import guidellm_load, processes
from bayes_sd.collector.plan import BenchPlan
from bayes_sd.collector.server import Failure, last_line

COMMAND = ("vllm", "bench", "serve")
COMMANDS = {"vllm": COMMAND, "guidellm": guidellm_load.COMMAND}
ENVS: dict[str, dict[str, str]] = {"vllm": {}, "guidellm": guidellm_load.ENV}
FORK = Path(__file__).with_name("bench_fork.py")
PRELOAD_TIMEOUT_S = 180
# Texts mean nothing here, and inter-token latencies are most of a file and summed up in it.
DROPPED = ("generated_texts", "itls", "errors")
DIGITS = 6


@dataclass(frozen=True)
class Job:
    """One call of the load generator."""

    base_url: str
    model: str
    tokenizer: str
    prompt: int
    output: int
    requests: int
    rate_rps: float = math.inf
    concurrency: int | None = None
    seed: int = 0

    @property
    def arguments(self) -> list[str]:
        """Options of ``vllm bench serve``, without where to save."""
        words = ["--backend", "vllm", "--base-url", self.base_url, "--model", self.model]
        words += ["--tokenizer", self.tokenizer, "--dataset-name", "random"]
        words += ["--random-input-len", str(self.prompt), "--random-output-len", str(self.output)]
        words += ["--num-prompts", str(self.requests), "--request-rate", f"{self.rate_rps:g}"]
        words += ["--burstiness", "1", "--seed", str(self.seed), "--ignore-eos"]
        words += ["--temperature", "0", "--disable-tqdm"]
        if self.concurrency is not None:
            words += ["--max-concurrency", str(self.concurrency)]
        return words


class Bench:
    """The load generator of a plan; keeps it imported if the plan says where it lives."""

    def __init__(self, plan: BenchPlan, records: Path, log: Path) -> None:
        self._plan, self._records, self._log = plan, records, log
        self._fork: processes.Guarded | None = None

    def close(self) -> None:
        """End what is kept running."""
        if self._fork is not None:
            self._fork.stop(5)
            self._fork = None

    def run(self, job: Job) -> dict[str, Any]:
        """Run it and return its result, complete; times are the load generator's own.

        Raises
        ------
        Failure
            If it fails, does not end in time, or writes no usable result.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere: a leftover among the runs might be taken for one.
        with tempfile.TemporaryDirectory(prefix="bayes-sd-") as folder:
            raw = Path(folder) / "raw.json"
            words = [*self._words(job, raw), *self._plan.args]
            code = self._forked(words) if self._plan.preload else self._started(words)
            if code:
                last = last_line(self._log)
                raise Failure(f"the load generator ended with status {code}: {last}")
            try:
                result = json.loads(raw.read_text(encoding="utf-8"))
            except OSError:
                last = last_line(self._log)
                raise Failure(f"the load generator wrote no result: {last}") from None
            except ValueError:
                raise Failure("the load generator's result is not complete JSON") from None
        if self._plan.tool == "guidellm":
            result = guidellm_load.result(result, job)
        if not isinstance(result, dict) or "duration" not in result:
            raise Failure("the load generator's result has no duration; is it vllm bench serve?")
        if not result.get("completed"):
            raise Failure(f"all {job.requests} requests failed: {_first_error(result)}")
        return result

    def _words(self, job: Job, raw: Path) -> list[str]:
        if self._plan.tool == "guidellm":
            return guidellm_load.arguments(job, str(raw))
        words = [*job.arguments, "--save-result", "--save-detailed"]
        words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles"]
        words += [",".join(f"{p:g}" for p in self._plan.percentiles)]
        return [*words, "--result-dir", str(raw.parent), "--result-filename", raw.name]

    def _started(self, words: list[str]) -> int:
        with self._log.open("a", encoding="utf-8") as log:
            process = processes.start(
                [*(self._plan.command or COMMANDS[self._plan.tool]), *words],
                self._records,
                log=log,
                env=ENVS[self._plan.tool] | self._plan.env,
                grace_s=5,
            )
        try:
            return process.guard.wait(self._plan.timeout_s)
        except subprocess.TimeoutExpired:
            raise Failure(f"the run did not end within {self._plan.timeout_s:g} s") from None
        finally:
            process.stop(5)

    def _forked(self, words: list[str]) -> int:
        fork = self._imported()
        job = {"argv": [*COMMAND[1:], *words], "log": os.path.abspath(self._log)}
        assert fork.guard.stdin is not None
        try:
            fork.guard.stdin.write(json.dumps(job) + "\n")
            fork.guard.stdin.flush()
        except OSError:
            self.close()
            raise Failure("the imported load generator is gone") from None
        answer = self._answer(fork, self._plan.timeout_s)
        if answer is None:
            self.close()
            raise Failure(f"the run did not end within {self._plan.timeout_s:g} s")
        try:
            return int(answer)
        except ValueError:
            self.close()
            raise Failure(f"the imported load generator is gone: {last_line(self._log)}") from None

    def _imported(self) -> processes.Guarded:
        if self._fork is None:
            assert self._plan.preload is not None
            with self._log.open("a", encoding="utf-8") as log:
                self._fork = processes.start(
                    [self._plan.preload, str(FORK)],
                    self._records,
                    log=log,
                    env=self._plan.env,
                    grace_s=5,
                    piped=True,
                )
            if self._answer(self._fork, PRELOAD_TIMEOUT_S) != "ready":
                self.close()
                raise Failure(
                    f"bench.preload {self._plan.preload!r} cannot import vllm bench serve: "
                    f"{last_line(self._log)}"
                )
        return self._fork

    @staticmethod
    def _answer(fork: processes.Guarded, timeout_s: float) -> str | None:
        """Next line from the imported load generator; None if none comes in time."""
        import select

        assert fork.guard.stdout is not None
        if not select.select([fork.guard.stdout], [], [], timeout_s)[0]:
            return None
        return fork.guard.stdout.readline().strip()


def _first_error(result: Mapping[str, Any]) -> str:
    said = (str(error).strip().splitlines() for error in result.get("errors") or () if error)
    return next((lines[-1][:200] for lines in said if lines), "no reason given")


def window(result: Mapping[str, Any], began_s: float, ended_s: float) -> tuple[float, float]:
    """When requests were sent and answered, on the clock of ``time.perf_counter``.

    On one machine the load generator of vLLM reads the same clock, GuideLLM the time of day; if
    its times lie inside the call on neither, the last ``duration`` seconds of the call stand in.
    """
    duration = float(result["duration"])
    starts = [s for s in result.get("start_times") or () if isinstance(s, float | int) and s > 0]
    for zero in (0.0, time.time() - time.perf_counter()):
        first = min(starts, default=0.0) - zero
        if began_s <= first and first + duration <= ended_s + 1:
            return first, first + duration
    return max(began_s, ended_s - duration), ended_s


def slim(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a result: no texts, no inter-token lists, six digits, no local paths."""
    kept = {key: value for key, value in result.items() if key not in DROPPED}
    if not kept.get("latencies") and result.get("itls") and result.get("ttfts"):
        pairs = zip(result["ttfts"], result["itls"], strict=True)
        kept["latencies"] = [ttft + sum(itl) for ttft, itl in pairs]
    if any(result.get("errors") or ()):
        kept["errors"] = [str(error or "")[-200:] for error in result["errors"]]
    if kept.get("start_times"):
        first = min(kept["start_times"])
        kept["start_times"] = [s - first for s in kept["start_times"]]
    for key in ("model_id", "tokenizer_id"):
        if isinstance(kept.get(key), str):
            kept[key] = os.path.basename(kept[key].rstrip("/"))
    return {key: _rounded(value) for key, value in kept.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value


def now_s() -> float:
    """The clock the load generator uses too."""
    return time.perf_counter()
