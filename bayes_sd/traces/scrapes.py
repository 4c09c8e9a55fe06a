"""What a vLLM server's metrics were over time, from scrapes or a range query of Prometheus."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError

HISTOGRAMS = {
    "e2e": "vllm:e2e_request_latency_seconds",
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
}
LENGTHS = {
    "prompt_tokens": ("vllm:request_prompt_tokens", "vllm:prompt_tokens_total"),
    "output_tokens": ("vllm:request_generation_tokens", "vllm:generation_tokens_total"),
}
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")
SPECULATIVE = {
    "drafts": "vllm:spec_decode_num_drafts_total",
    "drafted_tokens": "vllm:spec_decode_num_draft_tokens_total",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens_total",
}
PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
FINISHED = "vllm:request_success_total"
USED = frozenset(
    {f"{name}_{part}" for name in HISTOGRAMS.values() for part in ("bucket", "sum", "count")}
    | {f"{name}_{part}" for name, _ in LENGTHS.values() for part in ("sum", "count")}
    | {total for _, total in LENGTHS.values()}
    | {*GAUGES, *SPECULATIVE.values(), PER_POSITION, FINISHED}
)
# Labels that tell apart the series of one metric; all others tell apart servers.
WITHIN = {"le", "position", "finished_reason"}
TIME_LINE = re.compile(r"^# time (\S+)\s*$", re.MULTILINE)
TIME_NAME = re.compile(r"(?<!\d)\d{10}(\.\d+)?(?!\d)")
HOW_TO = 'put a line "# time SECONDS" before it or name the file by them (date +%s)'

Reading = tuple[float, str, Mapping[str, str], float]


@dataclass(frozen=True)
class Server:
    """One server's readings.

    `table` has one row a time (seconds since 1970) and a column a series: its name and its own
    label (the bound of a bucket, a position, a reason, or nothing). NaN where there is no reading.
    """

    labels: Mapping[str, str]
    table: pd.DataFrame


def read_servers(files: Iterable[Path]) -> list[Server]:
    """All readings of some files, by server.

    Raises
    ------
    InputError
        If a file is neither scrapes nor a range export, or no vLLM metric is in them.
    """
    by_server: dict[frozenset[tuple[str, str]], dict[tuple[str, str], dict[float, float]]] = {}
    for file in files:
        try:
            for time, name, labels, value in _readings(file):
                key = frozenset((k, v) for k, v in labels.items() if k not in WITHIN)
                series = by_server.setdefault(key, {}).setdefault((name, _own(labels)), {})
                if series.setdefault(time, value) != value and not math.isnan(value):
                    raise InputError(f"has a second and other value of {name} at {time:.3f}")
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    if not by_server:
        raise InputError(f"no metric of vLLM is in these files; needed is {HISTOGRAMS['e2e']}")
    return [
        Server(dict(sorted(labels)), _table(series))
        for labels, series in sorted(by_server.items(), key=lambda item: sorted(item[0]))
    ]


def _own(labels: Mapping[str, str]) -> str:
    if "le" in labels:
        try:
            return f"{float(labels['le']):g}"
        except ValueError:
            raise InputError(f"has a bucket with le {labels['le']!r}; a number is needed") from None
    return labels.get("position", labels.get("finished_reason", ""))


def _table(series: Mapping[tuple[str, str], Mapping[float, float]]) -> pd.DataFrame:
    table = pd.DataFrame({key: pd.Series(values) for key, values in series.items()})
    table.columns = pd.MultiIndex.from_tuples(list(series), names=["name", "label"])
    return table.sort_index().sort_index(axis=1)


def _readings(file: Path) -> Iterator[Reading]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError("is not text; scrapes or JSON of query_range are needed") from None
    if not text.strip():
        raise InputError("is empty; scrapes or JSON of query_range are needed")
    return _range(text) if text.lstrip().startswith(("{", "[")) else _scrapes(text, file)


def _range(text: str) -> Iterator[Reading]:
    try:
        data: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not complete JSON ({error.msg} at line {error.lineno}); "
            "the answer of Prometheus to query_range is needed"
        ) from None
    if not isinstance(data, dict) or "status" not in data:
        raise InputError("is not an answer of Prometheus: it has no status")
    if data["status"] != "success":
        raise InputError(f"is an error of Prometheus: {data.get('error', data['status'])}")
    found: Any = data.get("data")
    found = found if isinstance(found, dict) else {}
    kind = found.get("resultType")
    if kind != "matrix":
        raise InputError(f"data.resultType is {kind!r}; query_range gives 'matrix'")
    for i, series in enumerate(found.get("result") or ()):
        try:
            labels = dict(series["metric"])
            values = [(float(t), float(v)) for t, v in series["values"]]
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"data.result[{i}] lacks metric or values [[seconds, number], ...]"
            ) from None
        name = labels.pop("__name__", None)
        if name is None:
            raise InputError(
                f"data.result[{i}] has no __name__; export the metric itself, "
                "not rate() or another function of it"
            )
        if name in USED:
            yield from ((t, name, labels, v) for t, v in values)


def _scrapes(text: str, file: Path) -> Iterator[Reading]:
    parts = TIME_LINE.split(text)
    if len(parts) == 1:
        named = TIME_NAME.search(file.name)
        yield from _scrape(text, float(named[0]) if named else None)
    for stamp, part in zip(parts[1::2], parts[2::2], strict=True):
        try:
            time = float(stamp)
        except ValueError:
            raise InputError(f"has a line '# time {stamp}'; seconds are needed") from None
        yield from _scrape(part, time)


def _scrape(text: str, time: float | None) -> Iterator[Reading]:
    from prometheus_client.parser import text_string_to_metric_families

    lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] in USED]
    try:
        families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError as error:
        raise InputError(
            f"is cut off or no text of a metrics endpoint ({' '.join(str(error).split())[:60]})"
        ) from None
    for family in families:
        for sample in family.samples:
            at = time if sample.timestamp is None else float(sample.timestamp)
            if at is None:
                raise InputError(f"does not say when it was scraped; {HOW_TO}")
            yield at, sample.name, sample.labels, float(sample.value)


def buckets(row: pd.Series, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Upper bounds and counts of values up to them, at one time."""
    found = row.get(f"{name}_bucket")
    found = pd.Series(dtype=float) if found is None else found.dropna()
    bounds = found.index.to_numpy().astype(float)
    order = np.argsort(bounds)
    return bounds[order], found.to_numpy(float)[order]
