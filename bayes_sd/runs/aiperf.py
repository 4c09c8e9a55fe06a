"""A run from an export of AIPerf, ``profile_export_aiperf.json``, and the records beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.rows import Latency, Requests, Rows, Statistics, called, counted, run_row

METRICS = {"e2e": "request_latency", "ttft": "time_to_first_token", "tpot": "inter_token_latency"}
UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RATES = ("constant", "poisson", "gamma")
# AIPerf's other files; none of them is a run of its own.
COMPANIONS = ("inputs", "outputs", "run_config", "phase_manifest", "server_metrics_export")
OF_SEVERAL_RUNS = ("_aggregate", "_collated")


class _Time(Statistics):
    mean: c.Number = called("avg", "value", default=...)
    unit: Literal["s", "sec", "ms", "us", "ns"]

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""
        return self.mean * UNITS_S[self.unit]


class _Export(c.Record):
    request_latency: _Time
    time_to_first_token: _Time | None = None
    inter_token_latency: _Time | None = None
    benchmark_duration: _Time
    succeeded: c.Count = called("request_count.avg", default=...)
    failed: c.Count | None = called("error_request_count.avg")
    prompt_tokens: c.NonNegative = called("input_sequence_length.avg", default=...)
    output_tokens: c.NonNegative = called("output_sequence_length.avg", default=...)
    in_flight: c.Finite | None = called("effective_concurrency.avg")


class _Load(c.Record):
    type: str | None = None
    arrival_pattern: str = "poisson"
    rate: c.Positive | None = called("rate", "request_rate")
    smoothness: c.Positive | None = called("smoothness", "arrival_smoothness")
    concurrency: c.PositiveCount | None = None


class _Record(c.Record):
    start_ns: c.Count = called("metadata.request_start_ns", default=...)
    e2e: _Time = called("metrics.request_latency", default=...)
    ttft: _Time | None = called("metrics.time_to_first_token")
    prompt: c.NonNegative = called("metrics.input_sequence_length.value", default=...)
    output: c.NonNegative = called("metrics.output_sequence_length.value", default=...)


def is_result(data: c.Values) -> bool:
    """Whether a JSON object looks like a summary exported by AIPerf."""
    load = {"phases", "loadgen"} & c.mapping(data.get("input_config")).keys()
    return "aiperf_version" in data or bool(load)


def companion(path: Path) -> bool:
    """Whether a file is one that AIPerf writes beside its export, and not a run."""
    named = path.stem in COMPANIONS or path.suffix == ".jsonl"
    beside = named and any(path.parent.glob("*_aiperf.json"))
    # Below phases/ lie the parts of the export above it, the warm-up among them.
    phase = path.parent.parent.name == "phases" and any(path.parents[2].glob("*_aiperf.json"))
    return beside or phase or path.name.startswith(".aiperf") or path.stem.endswith(OF_SEVERAL_RUNS)


def stated(data: c.Values) -> dict[str, Any]:
    """Nothing: AIPerf has no place for the server's configuration."""
    return {}


def runs_of(data: c.Values, configuration: c.Values, path: Path) -> Rows:
    """Row of the one run of an export, with the records of single requests beside its path."""
    export = c.record(_Export, data)
    wanted = data.get("input_config")
    if not isinstance(wanted, Mapping):
        raise InputError("input_config is missing; it says what load was offered")
    load = {
        **_load(wanted),
        **counted(export.succeeded, export.failed, export.benchmark_duration.mean_s),
        "prompt_tokens": export.prompt_tokens,
        "output_tokens": export.output_tokens,
        "in_flight": export.in_flight or None,
    }
    requests, records = None, path.with_name(f"{path.stem.removesuffix('_aiperf')}.jsonl")
    if records.is_file():
        listed = _records(records)
        if len(listed) != export.succeeded:
            counts = f"{len(listed)} successful requests but {path.name} counts {export.succeeded}"
            raise InputError(f"{records.name} lists {counts}; is it cut off?")
        ttft_s = (r.ttft.mean_s if r.ttft else math.nan for r in listed)
        table = [(r.e2e.mean_s, x, r.prompt, r.output) for r, x in zip(listed, ttft_s, strict=True)]
        requests = Requests(*np.array(table).T)
        load["span_s"] = float(np.ptp([r.start_ns * 1e-9 for r in listed])) or None
    latencies = {
        metric: x.latency(UNITS_S[x.unit], name) if (x := getattr(export, name)) else Latency()
        for metric, name in METRICS.items()
    }
    server = {"verifier": _model(wanted), **configuration}
    yield -1, run_row(server, load, latencies, requests=requests)


def _model(wanted: c.Values) -> str | None:
    """Name of the one model that was asked: ``models.items`` or ``endpoint.model_names``."""
    items = c.mapping(wanted.get("models")).get("items")
    names = [c.mapping(item).get("name") for item in items] if isinstance(items, list) else []
    names = names or c.mapping(wanted.get("endpoint")).get("model_names") or []
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else None


def _load(wanted: c.Values) -> dict[str, Any]:
    given = _phase(wanted)
    for key, value in given.items():
        changes = ("ramp" in key and "warmup" not in key) or key == "rate_series"
        if changes and not c.absent(value):
            raise InputError(f"{key} is set; only runs at a constant load are read")
    load = c.record(_Load, given, "input_config: ")
    kind = load.type or ("concurrency" if load.rate is None else load.arrival_pattern)
    if kind == "concurrency":
        return {"loop": "closed", "concurrency": load.concurrency or 1}
    if kind not in RATES:
        read = ", ".join(("concurrency", *RATES))
        raise InputError(f"load {kind!r} has no constant rate; read are {read}")
    shape = {"poisson": 1.0, "gamma": load.smoothness}.get(kind)
    limit = {"concurrency": load.concurrency, "burstiness": shape}
    return {"loop": "open", "rate_rps": load.rate, **limit}


def _phase(wanted: c.Values) -> c.Values:
    """The one phase that was measured, or what was before AIPerf 0.9."""
    if isinstance(wanted.get("phases"), list):
        phases = [c.mapping(phase) for phase in wanted["phases"]]
        # Before 0.13 a phase has no kind and its name tells.
        measured = [p for p in phases if (p.get("kind") or p.get("name")) != "warmup"]
        if len(measured) != 1:
            raise InputError(f"input_config has {len(measured)} profiling phases; a run has one")
        return measured[0]
    if not isinstance(old := wanted.get("loadgen"), Mapping):
        raise InputError("input_config has neither phases nor loadgen, so the load is unknown")
    return old


def _records(path: Path) -> list[_Record]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} beside it cannot be read ({error})") from None
    records = []
    for i, line in enumerate(lines, start=1):
        try:
            data = json.loads(line) if line.strip() else {"error": "no request"}
        except ValueError as error:
            problem = f"{path.name} line {i} is not complete JSON ({str(error)[:60]})"
            raise InputError(f"{problem}; without that file the export's means are read") from None
        about = c.mapping(c.mapping(data).get("metadata"))
        left_out = about.get("benchmark_phase") == "warmup" or about.get("was_cancelled")
        if not (left_out or c.mapping(data).get("error")):
            records.append(c.record(_Record, data, f"{path.name} line {i}: "))
    return records
