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

NEEDED = "an export of AIPerf (profile_export_aiperf.json)"
METRICS = {"e2e": "request_latency", "ttft": "time_to_first_token", "tpot": "inter_token_latency"}
LENGTHS = {"prompt_tokens": "input_sequence_length", "output_tokens": "output_sequence_length"}
UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RATES = ("constant", "poisson", "gamma")
# AIPerf's other JSON files; none of them is a run of its own.
COMPANIONS = ("inputs.json", "server_metrics_export.json", "outputs.json", "run_config.json")


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Metric(_Record):
    unit: str
    avg: Number
    std: NonNegative | None = None
    p50: Number | None = None
    p90: Number | None = None
    p95: Number | None = None
    p99: Number | None = None


class _Export(_Record):
    request_latency: _Metric
    request_count: _Metric
    benchmark_duration: _Metric
    input_sequence_length: _Metric
    output_sequence_length: _Metric
    time_to_first_token: _Metric | None = None
    inter_token_latency: _Metric | None = None
    error_request_count: _Metric | None = None
    effective_concurrency: _Metric | None = None


class _Load(_Record):
    type: str
    rate: Positive | None = None
    smoothness: Positive | None = None
    concurrency: PositiveCount | None = None


class _Value(_Record):
    value: Number
    unit: str


class _Values(_Record):
    request_latency: _Value
    input_sequence_length: _Value
    output_sequence_length: _Value
    time_to_first_token: _Value | None = None


class _Sent(_Record):
    request_start_ns: Count


class _Request(_Record):
    metadata: _Sent
    metrics: _Values


def is_export(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a summary exported by AIPerf."""
    return "aiperf_version" in data or {"input_config", "request_latency"} <= set(data)


def companion(path: Path) -> bool:
    """Whether a file is one that AIPerf writes beside its export, and not a run."""
    beside = path.name in COMPANIONS and bool(list(path.parent.glob("*_aiperf.json")))
    return beside or path.name.startswith(".aiperf")


def runs_of(
    data: Mapping[str, Any], configuration: Mapping[str, Any], path: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row of the one run of an export.

    Parameters
    ----------
    data : mapping
        The file's JSON object.
    configuration : mapping
        Canonical configuration keys from sidecar and arguments together.
    path : Path
        Of the file, beside which the records of single requests may lie.

    Raises
    ------
    InputError
        If a value is missing, not allowed, or contradicts another.
    """
    try:
        export = _Export.model_validate(data)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    asked = data.get("input_config")
    if not isinstance(asked, Mapping):
        raise InputError("input_config is missing; it says what load was offered")
    values = dict(configuration)
    if model := _model(asked):
        values.setdefault("verifier", model)
    if absent(values.get("drafter")) or values["drafter"] == "none":
        values.setdefault("draft_tokens", 0)
    config = configure(values)
    succeeded = int(export.request_count.avg)
    if succeeded == 0:
        raise InputError("no request succeeded; at least one successful request is needed")
    duration_s = _seconds("benchmark_duration", export.benchmark_duration, "avg")
    reported = {m: _latency(name, getattr(export, name)) for m, name in METRICS.items()}
    load = _load(asked) | {
        "requests": succeeded,
        "failed": int(export.error_request_count.avg) if export.error_request_count else 0,
        "duration_s": duration_s,
        "achieved_rps": succeeded / duration_s,
        **{ours: getattr(export, theirs).avg for ours, theirs in LENGTHS.items()},
    }
    if export.effective_concurrency is not None and export.effective_concurrency.avg > 0:
        load["in_flight"] = export.effective_concurrency.avg
    records = _records_path(path)
    detail = records is not None
    latencies = reported
    if records is not None:
        requests = _single(records)
        if len(requests) != succeeded:
            raise InputError(
                f"{records.name} lists {len(requests)} successful requests but {path.name} "
                f"counts {succeeded}; they are not of one run, or the list is cut off"
            )
        latencies = latencies_of(requests, duration_s)
        compare_means(latencies, reported)
        load["prompt_tokens_sd"] = float(requests.prompt.std())
        load["output_tokens_sd"] = float(requests.output.std())
        if (span := float(np.ptp(requests.start))) > 0:
            load["span_s"] = span
    try:
        workload = Workload(**load)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    yield -1, run_row(config, workload, latencies, Drafting(), detail=detail)


def _model(asked: Mapping[str, Any]) -> str | None:
    """Name of the one model that was asked: ``models.items`` or ``endpoint.model_names``."""
    models, endpoint = asked.get("models"), asked.get("endpoint")
    items = models.get("items") if isinstance(models, Mapping) else None
    names = [item.get("name") for item in items or () if isinstance(item, Mapping)]
    if not names and isinstance(endpoint, Mapping):
        names = endpoint.get("model_names") or []
    return str(names[0]) if len(names) == 1 else None


def _load(asked: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(asked.get("phases"), list):
        phases = [p for p in asked["phases"] if isinstance(p, Mapping)]
        measured = [p for p in phases if p.get("kind", "profiling") != "warmup"]
        if len(measured) != 1:
            raise InputError(
                f"input_config.phases has {len(measured)} profiling phases; a run has one load"
            )
        given = dict(measured[0])
    elif isinstance(asked.get("loadgen"), Mapping):
        old = asked["loadgen"]
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
    found = {"rate_rps": load.rate, "concurrency": load.concurrency, "burstiness": shape}
    return {"loop": "open"} | {k: v for k, v in found.items() if v is not None}


def _seconds(name: str, metric: _Metric | _Value, field: str) -> float:
    if metric.unit not in UNITS_S:
        raise InputError(f"{name} has unit {metric.unit!r}; units of time are {', '.join(UNITS_S)}")
    return getattr(metric, field) * UNITS_S[metric.unit]


def _latency(name: str, metric: _Metric | None) -> Latency:
    if metric is None or not metric.avg > 0:
        return Latency()
    names = {"avg": "mean"} | {name: name for name in ("std", "p50", "p90", "p95", "p99")}
    given = {
        ours: _seconds(name, metric, theirs)
        for theirs, ours in names.items()
        if getattr(metric, theirs) is not None
    }
    try:
        return Latency(**given)
    except ValidationError as error:
        raise InputError(f"{name}: {sentence(error)}") from None


def _records_path(path: Path) -> Path | None:
    stem = path.stem.removesuffix("_aiperf")
    beside = path.with_name(f"{stem}.jsonl")
    return beside if beside.is_file() else None


def _single(path: Path) -> Requests:
    """Successful requests of the profiling phase."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} beside it cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path.name} line {number} is not complete JSON ({error.msg}); without that "
                "file the export's own means are read"
            ) from None
        about = data.get("metadata") if isinstance(data, dict) else None
        about = about if isinstance(about, dict) else {}
        left_out = about.get("benchmark_phase") == "warmup" or about.get("was_cancelled")
        if left_out or data.get("error"):
            continue
        try:
            rows.append(_Request.model_validate(data))
        except ValidationError as error:
            raise InputError(f"{path.name} line {number}: {sentence(error)}") from None
    m = [r.metrics for r in rows]
    return Requests(
        start=np.array([r.metadata.request_start_ns for r in rows]) * 1e-9,
        e2e=np.array([_seconds("request_latency", x.request_latency, "value") for x in m]),
        ttft=np.array(
            [
                _seconds("time_to_first_token", x.time_to_first_token, "value")
                if x.time_to_first_token
                else math.nan
                for x in m
            ]
        ),
        prompt=np.array([x.input_sequence_length.value for x in m]),
        output=np.array([x.output_sequence_length.value for x in m]),
    )
