"""Runs from a report of GuideLLM (``benchmarks.json``): one a benchmark.

Reports since 0.7 state what was asked for under ``config``, earlier ones under ``args``; the
benchmarks look alike. Latency is in seconds there, the times of tokens in milliseconds, and what
GuideLLM calls time per output token includes the first one: ours is its inter-token latency.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bayes_sd.errors import InputError
from bayes_sd.traces.config import configure
from bayes_sd.traces.numbers import (
    Count,
    NonNegative,
    Number,
    Positive,
    PositiveCount,
    absent,
    sentence,
)
from bayes_sd.traces.records import Drafting, Latency, Workload
from bayes_sd.traces.requests import Requests, compare_means, latencies_of
from bayes_sd.traces.rows import run_row

NEEDED = "a report of GuideLLM (benchmarks.json)"
STRATEGIES = ("synchronous", "concurrent", "constant", "poisson", "throughput")
METRICS = {
    "e2e": ("request_latency", 1.0),
    "ttft": ("time_to_first_token_ms", 1e-3),
    "tpot": ("inter_token_latency_ms", 1e-3),
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Strategy(_Record):
    type_: str
    streams: PositiveCount | None = None
    rate: Positive | None = None
    max_concurrency: PositiveCount | None = None
    rampup_duration: NonNegative = 0.0


class _Backend(_Record):
    model: str | None = None


class _Config(_Record):
    strategy: _Strategy
    backend: _Backend = _Backend()


class _Percentiles(_Record):
    p50: NonNegative | None = None
    p90: NonNegative | None = None
    p99: NonNegative | None = None


class _Distribution(_Record):
    count: Count
    mean: Number | None = None
    max: Number | None = None
    std_dev: NonNegative | None = None
    percentiles: _Percentiles | None = None


class _ByStatus(_Record):
    successful: _Distribution | None = None
    total: _Distribution | None = None


class _Totals(_Record):
    successful: Count
    errored: Count = 0


class _Metrics(_Record):
    request_totals: _Totals
    request_latency: _ByStatus
    request_concurrency: _ByStatus | None = None
    time_to_first_token_ms: _ByStatus | None = None
    inter_token_latency_ms: _ByStatus | None = None
    prompt_token_count: _ByStatus | None = None
    output_token_count: _ByStatus | None = None


class _Request(_Record):
    request_start_time: Number | None = None
    request_latency: Number | None = None
    time_to_first_token_ms: Number | None = None
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None


class _Requests(_Record):
    successful: list[_Request] | None = None
    incomplete: list[_Request] | None = None
    errored: list[_Request] | None = None


class _Benchmark(_Record):
    config: _Config
    metrics: _Metrics
    duration: Positive
    requests: _Requests = _Requests()


def is_report(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a report of GuideLLM."""
    return "benchmarks" in data


def stated(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``--label key=value`` pairs of a report (0.7 and later)."""
    at: Any = data
    for key in ("config", "metadata", "labels"):
        at = at.get(key) if isinstance(at, Mapping) else None
    return at if isinstance(at, Mapping) else {}


def runs_of(
    data: Mapping[str, Any], configuration: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Row of each benchmark of a report, or why it has none.

    Parameters
    ----------
    data : mapping
        The file's JSON object.
    configuration : mapping
        Canonical configuration keys from labels, sidecar and arguments together.

    Raises
    ------
    InputError
        If the report as a whole cannot be read.
    """
    benchmarks = data["benchmarks"]
    if not isinstance(benchmarks, list) or not {"args", "config"} & set(data):
        raise InputError(
            f"has benchmarks but neither args nor config, so it is not {NEEDED}; "
            "versions from 0.4 on are read"
        )
    if not benchmarks:
        raise InputError("is a GuideLLM report without benchmarks; at least one is needed")
    for i, benchmark in enumerate(benchmarks):
        try:
            yield i, _run(benchmark, configuration)
        except InputError as error:
            yield i, error


def _run(benchmark: Any, configuration: Mapping[str, Any]) -> dict[str, Any]:
    try:
        b = _Benchmark.model_validate(benchmark)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    values = dict(configuration)
    if b.config.backend.model:
        values.setdefault("verifier", b.config.backend.model)
    if absent(values.get("drafter")) or values["drafter"] == "none":
        values.setdefault("draft_tokens", 0)
    config = configure(values)
    succeeded = b.metrics.request_totals.successful
    if succeeded == 0:
        raise InputError("no request succeeded; at least one successful request is needed")
    reported = {m: _latency(b.metrics, *METRICS[m]) for m in METRICS}
    requests = _single(b, succeeded)
    in_flight = b.metrics.request_concurrency.total if b.metrics.request_concurrency else None
    load = _load(b.config.strategy, in_flight) | {
        "requests": succeeded,
        "failed": b.metrics.request_totals.errored,
        "duration_s": b.duration,
        "achieved_rps": succeeded / b.duration,
        "prompt_tokens": _mean(b.metrics.prompt_token_count, "prompt_token_count"),
        "output_tokens": _mean(b.metrics.output_token_count, "output_token_count"),
    }
    if (span_s := _span(b)) > 0:
        load["span_s"] = span_s
    if in_flight and in_flight.mean:
        load["in_flight"] = in_flight.mean
    if requests is not None:
        latencies = latencies_of(requests, b.duration)
        compare_means(latencies, reported)
        load["prompt_tokens"] = float(requests.prompt.mean())
        load["output_tokens"] = float(requests.output.mean())
        load["prompt_tokens_sd"] = float(requests.prompt.std())
        load["output_tokens_sd"] = float(requests.output.std())
    else:
        latencies = reported
        if math.isnan(latencies["e2e"].mean):
            raise InputError("metrics.request_latency.successful.mean is missing")
    try:
        workload = Workload(**load)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    return run_row(config, workload, latencies, Drafting(), detail=requests is not None)


def _load(strategy: _Strategy, in_flight: _Distribution | None) -> dict[str, Any]:
    kind = strategy.type_
    if kind not in STRATEGIES:
        raise InputError(
            f"strategy {kind!r} has no constant load; read are {', '.join(STRATEGIES)}"
        )
    if strategy.rampup_duration > 0:
        raise InputError(
            f"rampup_duration is {strategy.rampup_duration:g} s; only constant loads are read"
        )
    if kind == "synchronous":
        return {"loop": "closed", "concurrency": 1}
    if kind == "concurrent":
        if strategy.streams is None:
            raise InputError("config.strategy.streams is missing; concurrent benchmarks have it")
        return {"loop": "closed", "concurrency": strategy.streams}
    if kind == "throughput":
        return {"loop": "burst"}
    if strategy.rate is None:
        raise InputError(f"config.strategy.rate is missing; {kind} benchmarks have it")
    load: dict[str, Any] = {"loop": "open", "rate_rps": strategy.rate}
    # GuideLLM always has a limit (512 by default); one that was never reached limited nothing.
    cap, peak = strategy.max_concurrency, in_flight and in_flight.max
    if cap is not None and not (peak and peak < cap):
        load["concurrency"] = cap
    # Constant gaps would be an infinite shape: left unknown.
    return load | ({"burstiness": 1.0} if kind == "poisson" else {})


def _latency(metrics: _Metrics, name: str, unit_s: float) -> Latency:
    by_status: _ByStatus | None = getattr(metrics, name)
    x = None if by_status is None else by_status.successful
    # GuideLLM writes 0.0 for the statistics of nothing.
    if x is None or x.count == 0 or not x.mean:
        return Latency()
    values = {"mean": x.mean, "std": x.std_dev}
    if x.percentiles is not None:
        values |= x.percentiles.model_dump()
    try:
        return Latency(**{k: v * unit_s for k, v in values.items() if v is not None})
    except ValidationError as error:
        raise InputError(f"metrics.{name}.successful: {sentence(error)}") from None


def _mean(by_status: _ByStatus | None, name: str) -> float:
    x = None if by_status is None else by_status.successful
    if x is None or x.count == 0 or x.mean is None:
        raise InputError(f"metrics.{name}.successful.mean is missing")
    return x.mean


def _single(b: _Benchmark, succeeded: int) -> Requests | None:
    """The successful requests, or None where the report keeps only a sample of them."""
    listed = b.requests.successful or []
    if len(listed) != succeeded:
        return None
    needed = ("request_start_time", "request_latency", "prompt_tokens", "output_tokens")
    if any(getattr(r, name) is None for r in listed for name in needed):
        return None
    ttft = [r.time_to_first_token_ms for r in listed]
    return Requests(
        start=np.array([r.request_start_time for r in listed], dtype=float),
        e2e=np.array([r.request_latency for r in listed], dtype=float),
        ttft=np.array([math.nan if t is None else t / 1000 for t in ttft]),
        prompt=np.array([r.prompt_tokens for r in listed], dtype=float),
        output=np.array([r.output_tokens for r in listed], dtype=float),
    )


def _span(b: _Benchmark) -> float:
    """From the first arrival to the last; 0 where only a sample of requests is listed."""
    r = b.requests
    listed = [x for status in (r.successful, r.incomplete, r.errored) for x in status or ()]
    starts = [x.request_start_time for x in listed if x.request_start_time is not None]
    complete = len(r.successful or []) == b.metrics.request_totals.successful
    return max(starts) - min(starts) if starts and complete else 0.0
