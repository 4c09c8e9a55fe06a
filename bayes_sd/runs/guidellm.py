"""Runs from a report of GuideLLM (``benchmarks.json``): one a benchmark.

Its time per output token includes the first one: ours is its inter-token latency.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.rows import Requests, Rows, Statistics, called, counted, rows_of, run_row

LATENCIES = {
    "e2e": ("request_latency", 1.0),
    "ttft": ("time_to_first_token_ms", 1e-3),
    "tpot": ("inter_token_latency_ms", 1e-3),
}
MANY_CUT_OFF = 0.1  # of all requests: long ones are cut off more often than short ones
GROWING = 1.5
STRATEGIES = ("synchronous", "concurrent", "constant", "poisson", "throughput")


class _Request(c.Record):
    request_start_time: c.Finite | None = None
    request_latency: c.Number | None = None
    time_to_first_token_ms: c.Number | None = None
    prompt_tokens: c.Count | None = None
    output_tokens: c.Count | None = None


class _Benchmark(c.Record):
    strategy: str = called("config.strategy.type_", default=...)
    streams: c.PositiveCount | None = called("config.strategy.streams")
    rate: c.Positive | None = called("config.strategy.rate")
    max_concurrency: c.PositiveCount | None = called("config.strategy.max_concurrency")
    rampup_s: c.NonNegative | None = called("config.strategy.rampup_duration")
    model: str | None = called("config.backend.model")
    duration: c.Positive
    succeeded: c.Count = called("metrics.request_totals.successful", default=...)
    errored: c.Count | None = called("metrics.request_totals.errored")
    cut_off: c.Count | None = called("metrics.request_totals.incomplete")
    in_flight: c.Number | None = called("metrics.request_concurrency.total.mean")
    peak: c.Number | None = called("metrics.request_concurrency.total.max")
    e2e: Statistics | None = called("metrics.request_latency.successful")
    ttft: Statistics | None = called("metrics.time_to_first_token_ms.successful")
    tpot: Statistics | None = called("metrics.inter_token_latency_ms.successful")
    prompt_tokens: c.Number | None = called("metrics.prompt_token_count.successful.mean")
    output_tokens: c.Number | None = called("metrics.output_token_count.successful.mean")
    successful: list[_Request] | None = called("requests.successful")
    incomplete: list[_Request] | None = called("requests.incomplete")
    failed: list[_Request] | None = called("requests.errored")


def is_result(data: c.Values) -> bool:
    """Whether a JSON object looks like a report of GuideLLM."""
    return "benchmarks" in data


def stated(data: c.Values) -> dict[str, Any]:
    """Configuration in the ``--label key=value`` pairs of a report (0.7 and later)."""
    metadata = c.mapping(c.mapping(data.get("config")).get("metadata"))
    return c.canonical(c.mapping(metadata.get("labels")))


def runs_of(data: c.Values, configuration: c.Values, path: Path) -> Rows:
    """Row of each benchmark of a report, or why it has none."""
    benchmarks = data.get("benchmarks")
    if not isinstance(benchmarks, list) or not {"args", "config"} & set(data):
        raise InputError("has benchmarks but neither args nor config, as GuideLLM 0.4 and later")
    if not benchmarks:
        raise InputError("is a GuideLLM report without benchmarks; at least one is needed")
    return rows_of(enumerate(benchmarks), lambda each: _run(each, configuration))


def _run(benchmark: Any, configuration: c.Values) -> dict[str, Any]:
    b = c.record(_Benchmark, benchmark)
    listed = [*(b.successful or ()), *(b.incomplete or ()), *(b.failed or ())]
    starts = [r.request_start_time for r in listed if r.request_start_time is not None]
    # Where only a sample of requests is listed, the first and the last may be missing.
    complete = len(b.successful or ()) == b.succeeded
    cut_off = len(b.incomplete or ()) if b.cut_off is None else b.cut_off
    load = {
        **_load(b),
        **counted(b.succeeded, b.errored, b.duration),
        "incomplete": cut_off,
        "prompt_tokens": b.prompt_tokens,
        "output_tokens": b.output_tokens,
        "in_flight": b.in_flight or None,
        "span_s": float(np.ptp(starts)) or None if starts and complete else None,
    }
    latencies = {
        metric: (getattr(b, metric) or Statistics()).latency(unit_s, f"metrics.{name}.successful")
        for metric, (name, unit_s) in LATENCIES.items()
    }
    server = {"verifier": b.model, **configuration}
    requests = _requests(b) if complete else None
    # In a queue that grew to the end twice as many are cut off as rate and latency would have it.
    expected = (b.rate or math.nan) * latencies["e2e"].mean_s
    most = max(GROWING * expected + 3 * expected**0.5, MANY_CUT_OFF * b.succeeded)
    grew = frozenset({"overloaded"} if load["loop"] == "open" and cut_off > most else ())
    return run_row(server, load, latencies, requests=requests, saturated=bool(grew), flags=grew)


def _load(b: _Benchmark) -> dict[str, Any]:
    if b.strategy not in STRATEGIES:
        read = ", ".join(STRATEGIES)
        raise InputError(f"strategy {b.strategy!r} has no constant load; read are {read}")
    if b.rampup_s:
        raise InputError(f"rampup_duration is {b.rampup_s:g} s; only constant loads are read")
    if b.strategy == "throughput":
        return {"loop": "burst"}
    if b.strategy in ("synchronous", "concurrent"):
        return {"loop": "closed", "concurrency": 1 if b.strategy == "synchronous" else b.streams}
    # GuideLLM always has a limit (512 by default); one that was never reached limited nothing.
    reached = b.max_concurrency is not None and not (b.peak and b.peak < b.max_concurrency)
    return {
        "loop": "open",
        "rate_rps": b.rate,
        "concurrency": b.max_concurrency if reached else None,
        # Constant gaps would be an infinite shape: left unknown.
        "burstiness": 1.0 if b.strategy == "poisson" else None,
    }


def _requests(b: _Benchmark) -> Requests | None:
    """The successful requests, or None where something of one is not listed."""
    needed = ("request_latency", "prompt_tokens", "output_tokens", "time_to_first_token_ms")
    table = [[getattr(r, name) for name in needed] for r in b.successful or ()]
    e2e, prompt, output, ttft_ms = np.array(table, dtype=float).T
    known = not np.isnan([e2e, prompt, output]).any()
    return Requests(e2e, ttft_ms / 1000, prompt, output) if known else None
