"""A run from an export of AIPerf: ``profile_export_aiperf.json``.

The records of single requests, ``profile_export.jsonl``, are used where they lie beside it. What
load was asked for stands in ``input_config``, as ``phases`` since 0.9 and as ``loadgen`` before.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasPath, Field

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.rows import ALL_FAILED, Latency, Requests, tool_row

METRICS = {"e2e": "request_latency", "ttft": "time_to_first_token", "tpot": "inter_token_latency"}
STATISTICS = {"avg": "mean", **{name: name for name in ("std", "p50", "p90", "p95", "p99")}}
UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RATES = ("constant", "poisson", "gamma")
# AIPerf's other JSON files; none of them is a run of its own.
COMPANIONS = ("inputs.json", "server_metrics_export.json", "outputs.json", "run_config.json")


class _Metric(c.Record):
    unit: str
    avg: c.Number
    std: c.NonNegative | None = None
    p50: c.Number | None = None
    p90: c.Number | None = None
    p95: c.Number | None = None
    p99: c.Number | None = None


class _Export(c.Record):
    request_latency: _Metric
    request_count: _Metric
    benchmark_duration: _Metric
    input_sequence_length: _Metric
    output_sequence_length: _Metric
    time_to_first_token: _Metric | None = None
    inter_token_latency: _Metric | None = None
    error_request_count: _Metric | None = None
    effective_concurrency: _Metric | None = None


class _Load(c.Record):
    type: str
    rate: c.Positive | None = None
    smoothness: c.Positive | None = None
    concurrency: c.PositiveCount | None = None


class _Value(c.Record):
    value: c.Number
    unit: str


class _Request(c.Record):
    start_ns: c.Count = Field(validation_alias=AliasPath("metadata", "request_start_ns"))
    e2e: _Value = Field(validation_alias=AliasPath("metrics", "request_latency"))
    ttft: _Value | None = Field(None, validation_alias=AliasPath("metrics", "time_to_first_token"))
    prompt: _Value = Field(validation_alias=AliasPath("metrics", "input_sequence_length"))
    output: _Value = Field(validation_alias=AliasPath("metrics", "output_sequence_length"))


def is_result(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a summary exported by AIPerf."""
    return "aiperf_version" in data or {"input_config", "request_latency"} <= set(data)


def companion(path: Path) -> bool:
    """Whether a file is one that AIPerf writes beside its export, and not a run."""
    beside = path.name in COMPANIONS and bool(list(path.parent.glob("*_aiperf.json")))
    return beside or path.name.startswith(".aiperf")


def stated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: AIPerf has no place for the server's configuration."""
    return {}


def runs_of(
    data: Mapping[str, Any], configuration: Mapping[str, Any], path: Path
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Row of the one run of an export, with the records of single requests beside its path."""
    export = c.record(_Export, data)
    wanted = data.get("input_config")
    if not isinstance(wanted, Mapping):
        raise InputError("input_config is missing; it says what load was offered")
    succeeded = int(export.request_count.avg)
    if succeeded == 0:
        raise InputError(ALL_FAILED)
    duration_s = _seconds("benchmark_duration", export.benchmark_duration)
    load = _load(wanted) | {
        "requests": succeeded,
        "failed": int(export.error_request_count.avg) if export.error_request_count else 0,
        "duration_s": duration_s,
        "achieved_rps": succeeded / duration_s,
        "prompt_tokens": export.input_sequence_length.avg,
        "output_tokens": export.output_sequence_length.avg,
    }
    if export.effective_concurrency is not None and export.effective_concurrency.avg > 0:
        load["in_flight"] = export.effective_concurrency.avg
    requests, records = None, path.with_name(f"{path.stem.removesuffix('_aiperf')}.jsonl")
    if records.is_file():
        requests = _single(records)
        if len(requests) != succeeded:
            counts = f"{len(requests)} successful requests but {path.name} counts {succeeded}"
            raise InputError(f"{records.name} lists {counts}; it is cut off or of another run")
        if (span_s := float(np.ptp(requests.start))) > 0:
            load["span_s"] = span_s
    reported = {m: _latency(name, getattr(export, name)) for m, name in METRICS.items()}
    yield -1, tool_row(configuration, _model(wanted), load, reported, requests)


def _model(wanted: Mapping[str, Any]) -> str | None:
    """Name of the one model that was asked: ``models.items`` or ``endpoint.model_names``."""
    models, endpoint = wanted.get("models"), wanted.get("endpoint")
    items = models.get("items") if isinstance(models, Mapping) else None
    items = items if isinstance(items, list) else []
    names: Any = [item.get("name") for item in items if isinstance(item, Mapping)]
    if not names and isinstance(endpoint, Mapping):
        names = endpoint.get("model_names")
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else None


def _load(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Loop, rate, concurrency and burstiness."""
    given = _phase(wanted)
    for key, value in given.items():
        if ("ramp" in key or key == "rate_series") and not c.absent(value):
            raise InputError(f"{key} is set; only runs at a constant load are read")
    load = c.record(_Load, given, "input_config: ")
    if load.type == "concurrency":
        return {"loop": "closed", "concurrency": load.concurrency or 1}
    if load.type not in RATES:
        read = ", ".join(("concurrency", *RATES))
        raise InputError(f"load {load.type!r} has no constant rate; read are {read}")
    if load.rate is None:
        raise InputError(f"the rate of the {load.type} load is missing in input_config")
    shape = {"poisson": 1.0, "gamma": load.smoothness}.get(load.type)
    known = {"rate_rps": load.rate, "concurrency": load.concurrency, "burstiness": shape}
    return {"loop": "open"} | {k: v for k, v in known.items() if v is not None}


def _phase(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The load as a phase of AIPerf 0.9, also where an earlier version wrote it."""
    if isinstance(wanted.get("phases"), list):
        phases = [p for p in wanted["phases"] if isinstance(p, Mapping)]
        measured = [p for p in phases if p.get("kind", "profiling") != "warmup"]
        if len(measured) != 1:
            problem = f"input_config.phases has {len(measured)} profiling phases"
            raise InputError(f"{problem}; a run has one load")
        return dict(measured[0])
    if not isinstance(old := wanted.get("loadgen"), Mapping):
        raise InputError("input_config has neither phases nor loadgen, so the load is unknown")
    rate = old.get("request_rate")
    return {
        "type": "concurrency" if rate is None else old.get("arrival_pattern", "poisson"),
        "rate": rate,
        "smoothness": old.get("arrival_smoothness"),
        "concurrency": old.get("concurrency"),
        **{k: v for k, v in old.items() if "ramp" in k and "warmup" not in k},
    }


def _seconds(name: str, metric: _Metric | _Value, field: str = "avg") -> float:
    if metric.unit not in UNITS_S:
        raise InputError(f"{name} has unit {metric.unit!r}; units of time are {', '.join(UNITS_S)}")
    return getattr(metric, field) * UNITS_S[metric.unit]


def _latency(name: str, metric: _Metric | None) -> Latency:
    if metric is None or not metric.avg > 0:
        return Latency()
    known = {k: statistic for k, statistic in STATISTICS.items() if getattr(metric, k) is not None}
    seconds = {statistic: _seconds(name, metric, k) for k, statistic in known.items()}
    return c.record(Latency, seconds, f"{name}: ")


def _single(path: Path) -> Requests:
    """Successful requests of the profiling phase."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} beside it cannot be read ({error})") from None
    requests = []
    for i, line in enumerate(lines, start=1):
        try:
            data = json.loads(line) if line.strip() else {"error": "no request"}
        except ValueError as error:
            problem = f"{path.name} line {i} is not complete JSON ({str(error)[:60]})"
            raise InputError(f"{problem}; without that file the export's means are read") from None
        about = data.get("metadata") if isinstance(data, dict) else None
        about = about if isinstance(about, dict) else {}
        if about.get("benchmark_phase") == "warmup" or about.get("was_cancelled"):
            continue
        if isinstance(data, dict) and data.get("error"):
            continue
        requests.append(c.record(_Request, data, f"{path.name} line {i}: "))
    first = [math.nan if r.ttft is None else _seconds("ttft", r.ttft, "value") for r in requests]
    return Requests(
        start=np.array([r.start_ns for r in requests]) * 1e-9,
        e2e=np.array([_seconds("request_latency", r.e2e, "value") for r in requests]),
        ttft=np.array(first),
        prompt=np.array([r.prompt.value for r in requests]),
        output=np.array([r.output.value for r in requests]),
    )
