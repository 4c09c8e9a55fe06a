"""Runs from a report of GuideLLM (``benchmarks.json``): one a benchmark.

Reports since 0.7 state what was asked for under ``config``, earlier ones under ``args``; the
benchmarks look alike. Latency is in seconds there, the times of tokens in milliseconds. What
GuideLLM calls time per output token includes the first one: ours is its inter-token latency.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasPath, Field

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.rows import ALL_FAILED, Latency, Requests, tool_row

STRATEGIES = ("synchronous", "concurrent", "constant", "poisson", "throughput")


def _under(*keys: str) -> Any:
    """A field that lies under these keys, None if one of them is missing."""
    return Field(None, validation_alias=AliasPath(*keys))


def _statistics(name: str, status: str = "successful") -> Any:
    return _under("metrics", name, status)


class _Distribution(c.Record):
    count: c.Count
    mean: c.Number | None = None
    max: c.Number | None = None
    std: c.NonNegative | None = _under("std_dev")
    p50: c.NonNegative | None = _under("percentiles", "p50")
    p90: c.NonNegative | None = _under("percentiles", "p90")
    p99: c.NonNegative | None = _under("percentiles", "p99")


class _Request(c.Record):
    request_start_time: c.Number | None = None
    request_latency: c.Number | None = None
    time_to_first_token_ms: c.Number | None = None
    prompt_tokens: c.Count | None = None
    output_tokens: c.Count | None = None


class _Benchmark(c.Record):
    strategy: str = Field(validation_alias=AliasPath("config", "strategy", "type_"))
    streams: c.PositiveCount | None = _under("config", "strategy", "streams")
    rate: c.Positive | None = _under("config", "strategy", "rate")
    max_concurrency: c.PositiveCount | None = _under("config", "strategy", "max_concurrency")
    rampup_s: c.NonNegative | None = _under("config", "strategy", "rampup_duration")
    model: str | None = _under("config", "backend", "model")
    duration: c.Positive
    succeeded: c.Count = Field(
        validation_alias=AliasPath("metrics", "request_totals", "successful")
    )
    errored: c.Count | None = _under("metrics", "request_totals", "errored")
    in_flight: _Distribution | None = _statistics("request_concurrency", "total")
    request_latency: _Distribution | None = _statistics("request_latency")
    time_to_first_token_ms: _Distribution | None = _statistics("time_to_first_token_ms")
    inter_token_latency_ms: _Distribution | None = _statistics("inter_token_latency_ms")
    prompt_token_count: _Distribution | None = _statistics("prompt_token_count")
    output_token_count: _Distribution | None = _statistics("output_token_count")
    successful: list[_Request] | None = _under("requests", "successful")
    incomplete: list[_Request] | None = _under("requests", "incomplete")
    failed: list[_Request] | None = _under("requests", "errored")


def is_result(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a report of GuideLLM."""
    return "benchmarks" in data


def stated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration in the ``--label key=value`` pairs of a report (0.7 and later)."""
    labels: Any = data
    for key in ("config", "metadata", "labels"):
        labels = labels.get(key) if isinstance(labels, Mapping) else None
    return c.canonical(labels) if isinstance(labels, Mapping) else {}


def runs_of(
    data: Mapping[str, Any], configuration: Mapping[str, Any], path: Path
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Row of each benchmark of a report, or why it has none."""
    benchmarks = data["benchmarks"]
    if not isinstance(benchmarks, list) or not {"args", "config"} & set(data):
        problem = "has benchmarks but neither args nor config, so it is no report of GuideLLM"
        raise InputError(f"{problem} (benchmarks.json); versions from 0.4 on are read")
    if not benchmarks:
        raise InputError("is a GuideLLM report without benchmarks; at least one is needed")
    for i, benchmark in enumerate(benchmarks):
        try:
            yield i, _run(c.record(_Benchmark, benchmark), configuration)
        except InputError as error:
            yield i, error


def _run(b: _Benchmark, configuration: Mapping[str, Any]) -> dict[str, Any]:
    if b.succeeded == 0:
        raise InputError(ALL_FAILED)
    load = _load(b) | {
        "requests": b.succeeded,
        "failed": b.errored or 0,
        "duration_s": b.duration,
        "achieved_rps": b.succeeded / b.duration,
        "prompt_tokens": _mean(b, "prompt_token_count"),
        "output_tokens": _mean(b, "output_token_count"),
    }
    if b.in_flight is not None and b.in_flight.mean:
        load["in_flight"] = b.in_flight.mean
    listed = [*(b.successful or ()), *(b.incomplete or ()), *(b.failed or ())]
    starts = [r.request_start_time for r in listed if r.request_start_time is not None]
    # Where only a sample of requests is listed, the first and the last may be missing.
    if starts and len(b.successful or ()) == b.succeeded and max(starts) > min(starts):
        load["span_s"] = max(starts) - min(starts)
    reported = {
        "e2e": _latency(b, "request_latency", 1.0),
        "ttft": _latency(b, "time_to_first_token_ms", 1e-3),
        "tpot": _latency(b, "inter_token_latency_ms", 1e-3),
    }
    return tool_row(configuration, b.model, load, reported, _single(b))


def _load(b: _Benchmark) -> dict[str, Any]:
    """Loop, rate, concurrency and burstiness."""
    if b.strategy not in STRATEGIES:
        read = ", ".join(STRATEGIES)
        raise InputError(f"strategy {b.strategy!r} has no constant load; read are {read}")
    if b.rampup_s:
        raise InputError(f"rampup_duration is {b.rampup_s:g} s; only constant loads are read")
    if b.strategy == "synchronous":
        return {"loop": "closed", "concurrency": 1}
    if b.strategy == "concurrent":
        if b.streams is None:
            raise InputError("config.strategy.streams is missing; concurrent benchmarks have it")
        return {"loop": "closed", "concurrency": b.streams}
    if b.strategy == "throughput":
        return {"loop": "burst"}
    if b.rate is None:
        raise InputError(f"config.strategy.rate is missing; {b.strategy} benchmarks have it")
    load: dict[str, Any] = {"loop": "open", "rate_rps": b.rate}
    # GuideLLM always has a limit (512 by default); one that was never reached limited nothing.
    peak = b.in_flight and b.in_flight.max
    if b.max_concurrency is not None and not (peak and peak < b.max_concurrency):
        load["concurrency"] = b.max_concurrency
    # Constant gaps would be an infinite shape: left unknown.
    return load | ({"burstiness": 1.0} if b.strategy == "poisson" else {})


def _latency(b: _Benchmark, name: str, unit_s: float) -> Latency:
    x: _Distribution | None = getattr(b, name)
    # GuideLLM writes 0.0 for the statistics of nothing.
    if x is None or x.count == 0 or not x.mean:
        return Latency()
    values = x.model_dump(include={"mean", "std", "p50", "p90", "p99"}, exclude_none=True)
    seconds = {statistic: value * unit_s for statistic, value in values.items()}
    return c.record(Latency, seconds, f"metrics.{name}.successful: ")


def _mean(b: _Benchmark, name: str) -> float:
    x: _Distribution | None = getattr(b, name)
    if x is None or x.count == 0 or x.mean is None:
        raise InputError(f"metrics.{name}.successful.mean is missing")
    return x.mean


def _single(b: _Benchmark) -> Requests | None:
    """The successful requests, or None where the report keeps only a sample of them."""
    listed = b.successful or []
    needed = ("request_start_time", "request_latency", "prompt_tokens", "output_tokens")
    if len(listed) != b.succeeded or any(getattr(r, n) is None for r in listed for n in needed):
        return None
    start, e2e, prompt, output = (
        np.array([getattr(r, name) for r in listed], dtype=float) for name in needed
    )
    ttft_ms = [r.time_to_first_token_ms for r in listed]
    ttft = np.array([math.nan if t is None else t / 1000 for t in ttft_ms])
    return Requests(start, e2e, ttft, prompt, output)
