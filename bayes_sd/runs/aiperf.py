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
from pydantic import ValidationError

from bayes_sd.errors import InputError
from bayes_sd.runs.config import (
    Count,
    NonNegative,
    Number,
    Positive,
    PositiveCount,
    Record,
    absent,
    sentence,
)
from bayes_sd.runs.rows import ALL_FAILED, Latency, Requests, tool_row

METRICS = {"e2e": "request_latency", "ttft": "time_to_first_token", "tpot": "inter_token_latency"}
LENGTHS = {"prompt_tokens": "input_sequence_length", "output_tokens": "output_sequence_length"}
UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RATES = ("constant", "poisson", "gamma")
# AIPerf's other JSON files; none of them is a run of its own.
COMPANIONS = ("inputs.json", "server_metrics_export.json", "outputs.json", "run_config.json")


class _Metric(Record):
    unit: str
    avg: Number
    std: NonNegative | None = None
    p50: Number | None = None
    p90: Number | None = None
    p95: Number | None = None
    p99: Number | None = None


class _Export(Record):
    request_latency: _Metric
    request_count: _Metric
    benchmark_duration: _Metric
    input_sequence_length: _Metric
    output_sequence_length: _Metric
    time_to_first_token: _Metric | None = None
    inter_token_latency: _Metric | None = None
    error_request_count: _Metric | None = None
    effective_concurrency: _Metric | None = None


class _Load(Record):
    type: str
    rate: Positive | None = None
    smoothness: Positive | None = None
    concurrency: PositiveCount | None = None


class _Value(Record):
    value: Number
    unit: str


class _Values(Record):
    request_latency: _Value
    input_sequence_length: _Value
    output_sequence_length: _Value
    time_to_first_token: _Value | None = None


class _Sent(Record):
    request_start_ns: Count


class _Request(Record):
    metadata: _Sent
    metrics: _Values


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
    try:
        export = _Export.model_validate(data)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    wanted = data.get("input_config")
    if not isinstance(wanted, Mapping):
        raise InputError("input_config is missing; it says what load was offered")
    succeeded = int(export.request_count.avg)
    if succeeded == 0:
        raise InputError(ALL_FAILED)
    duration_s = _seconds("benchmark_duration", export.benchmark_duration, "avg")
    load = _load(wanted) | {
        "requests": succeeded,
        "failed": int(export.error_request_count.avg) if export.error_request_count else 0,
        "duration_s": duration_s,
        "achieved_rps": succeeded / duration_s,
        **{ours: getattr(export, theirs).avg for ours, theirs in LENGTHS.items()},
    }
    if export.effective_concurrency is not None and export.effective_concurrency.avg > 0:
        load["in_flight"] = export.effective_concurrency.avg
    requests, records = None, path.with_name(f"{path.stem.removesuffix('_aiperf')}.jsonl")
    if records.is_file():
        requests = _single(records)
        if len(requests) != succeeded:
            raise InputError(
                f"{records.name} lists {len(requests)} successful requests but {path.name} "
                f"counts {succeeded}; they are not of one run, or the list is cut off"
            )
        if (span_s := float(np.ptp(requests.start))) > 0:
            load["span_s"] = span_s
    reported = {m: _latency(name, getattr(export, name)) for m, name in METRICS.items()}
    yield -1, tool_row(configuration, _model(wanted), load, reported, requests)


def _model(wanted: Mapping[str, Any]) -> str | None:
    """Name of the one model that was asked: ``models.items`` or ``endpoint.model_names``."""
    models, endpoint = wanted.get("models"), wanted.get("endpoint")
    items = models.get("items") if isinstance(models, Mapping) else None
    names = [item.get("name") for item in items or () if isinstance(item, Mapping)]
    if not names and isinstance(endpoint, Mapping):
        names = endpoint.get("model_names") or []
    return str(names[0]) if len(names) == 1 else None


def _load(wanted: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(wanted.get("phases"), list):
        phases = [p for p in wanted["phases"] if isinstance(p, Mapping)]
        measured = [p for p in phases if p.get("kind", "profiling") != "warmup"]
        if len(measured) != 1:
            raise InputError(
                f"input_config.phases has {len(measured)} profiling phases; a run has one load"
            )
        given = dict(measured[0])
    elif isinstance(wanted.get("loadgen"), Mapping):
        old = wanted["loadgen"]
        rate = old.get("request_rate")
        given = {
            "type": "concurrency" if rate is None else old.get("arrival_pattern", "poisson"),
            "rate": rate,
            "smoothness": old.get("arrival_smoothness"),
            "concurrency": old.get("concurrency"),
        }
        given |= {k: v for k, v in old.items() if "ramp" in k and "warmup" not in k}
    else:
        raise InputError("input_config has neither phases nor loadgen, so the load is unknown")
    for key, value in given.items():
        if ("ramp" in key or key == "rate_series") and not absent(value):
            raise InputError(f"{key} is set; only runs at a constant load are read")
    try:
        load = _Load.model_validate(given)
    except ValidationError as error:
        raise InputError(f"input_config: {sentence(error)}") from None
    if load.type == "concurrency":
        return {"loop": "closed", "concurrency": load.concurrency or 1}
    if load.type not in RATES:
        raise InputError(
            f"load {load.type!r} has no constant rate; read are concurrency, {', '.join(RATES)}"
        )
    if load.rate is None:
        raise InputError(f"the rate of the {load.type} load is missing in input_config")
    shape = {"poisson": 1.0, "gamma": load.smoothness}.get(load.type)
    known = {"rate_rps": load.rate, "concurrency": load.concurrency, "burstiness": shape}
    return {"loop": "open"} | {k: v for k, v in known.items() if v is not None}


def _seconds(name: str, metric: _Metric | _Value, field: str) -> float:
    if metric.unit not in UNITS_S:
        raise InputError(f"{name} has unit {metric.unit!r}; units of time are {', '.join(UNITS_S)}")
    return getattr(metric, field) * UNITS_S[metric.unit]


def _latency(name: str, metric: _Metric | None) -> Latency:
    if metric is None or not metric.avg > 0:
        return Latency()
    fields = {"avg": "mean", "std": "std", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
    known = {theirs: ours for theirs, ours in fields.items() if getattr(metric, theirs) is not None}
    try:
        return Latency(**{ours: _seconds(name, metric, theirs) for theirs, ours in known.items()})
    except ValidationError as error:
        raise InputError(f"{name}: {sentence(error)}") from None


def _single(path: Path) -> Requests:
    """Successful requests of the profiling phase."""
    values: list[_Values] = []
    start_s = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} beside it cannot be read ({error})") from None
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            about = data.get("metadata") or {}
            left_out = about.get("benchmark_phase") == "warmup" or about.get("was_cancelled")
            if left_out or data.get("error"):
                continue
            record = _Request.model_validate(data)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path.name} line {i} is not complete JSON ({error.msg}); without that "
                "file the export's own means are read"
            ) from None
        except AttributeError:
            raise InputError(f"{path.name} line {i} is not a record of a request") from None
        except ValidationError as error:
            raise InputError(f"{path.name} line {i}: {sentence(error)}") from None
        values.append(record.metrics)
        start_s.append(record.metadata.request_start_ns * 1e-9)
    first = [v.time_to_first_token for v in values]
    return Requests(
        start=np.array(start_s),
        e2e=np.array([_seconds("request_latency", v.request_latency, "value") for v in values]),
        ttft=np.array(
            [math.nan if t is None else _seconds("time_to_first_token", t, "value") for t in first]
        ),  # fmt: skip
        prompt=np.array([v.input_sequence_length.value for v in values]),
        output=np.array([v.output_sequence_length.value for v in values]),
    )
