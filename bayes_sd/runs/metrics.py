"""Runs from a server's own metrics: one a window of steady load.

Scrapes of ``/metrics`` or answers of Prometheus to ``query_range``; rates are of finished requests.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs import windows as w
from bayes_sd.runs.drafting import Drafting
from bayes_sd.runs.rows import Latency, Rows, counted, rows_of, run_id, run_row
from bayes_sd.runs.windows import E2E, HISTOGRAMS, in_flight, series

LENGTHS = {
    "prompt_tokens": ("vllm:request_prompt_tokens", "vllm:prompt_tokens_total"),
    "output_tokens": ("vllm:request_generation_tokens", "vllm:generation_tokens_total"),
}
DRAFTING = {
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
    | {*w.GAUGES, *DRAFTING.values(), PER_POSITION, FINISHED}
)
# Labels of the series of one server, whose engines (of data parallelism) are summed.
WITHIN = {"le", "position", "finished_reason", "engine"}
SCRAPE = re.compile(r"^(# (time|HELP|TYPE) |vllm:)", re.MULTILINE)
TIME_LINE = re.compile(r"^# time (\S+)\s*$", re.MULTILINE)
TIME_NAME = re.compile(r"(?<!\d)\d{10}(\.\d+)?(?!\d)")
NEEDED = f"needed is {E2E}"
HOW_TO = 'put a line "# time SECONDS" before it or name the file by them (date +%s)'

Sample = tuple[float, str, Mapping[str, str], float]  # time_s, name, labels, value
Labels = tuple[tuple[str, str], ...]  # of a server


def is_answer(data: c.Values) -> bool:
    """Whether a JSON object looks like an answer of Prometheus."""
    return "status" in data and bool({"data", "error"} & set(data))


def samples(text: str) -> Iterator[Any]:
    """The metrics of vLLM that are read, out of one ``/metrics`` text."""
    from prometheus_client.parser import text_string_to_metric_families

    # Parsing all of it would take fifty times as long.
    lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] in USED]
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            yield from family.samples
    except (ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:60]
        raise InputError(f"is cut off or no text of a metrics endpoint ({reason})") from None


def runs_of(contents: Mapping[Path, Any], configuration: c.Values, window_s: float) -> Rows:
    """Run of each window of all files together (texts, or JSON objects), or why it has none."""
    servers, faults = servers_of(contents)
    windows = ((labels, each) for labels, x in servers.items() for each in w.windows(x, window_s))
    found = enumerate([*(((), fault) for fault in faults), *windows])
    return rows_of(found, lambda found: _run(*found, configuration))


def servers_of(contents: Mapping[Path, Any]) -> tuple[dict[Labels, pd.DataFrame], list[InputError]]:
    """Readings of all files, a table (see `windows`) for each server, its engines together; and
    what is wrong with the scrapes that are not read."""
    servers: dict[Any, dict[tuple[str, str], dict[str, dict[float, float]]]] = {}
    faults = list[InputError]()
    for file, content in contents.items():
        parts = _scrapes(content, file) if isinstance(content, str) else [("", _range(content))]
        for of, parsed in parts:
            try:
                for time_s, name, labels, value in list(parsed):
                    key = tuple(sorted((k, v) for k, v in labels.items() if k not in WITHIN))
                    column = name, _own(name, labels)
                    engines = servers.setdefault(key, {}).setdefault(column, {})
                    values = engines.setdefault(labels.get("engine", ""), {})
                    if values.setdefault(time_s, value) != value and not math.isnan(value):
                        raise InputError(f"has a second and other value of {name} at {time_s:.3f}")
            except InputError as error:
                faults.append(InputError(f"{file}: {of}{error}"))
    if not servers:
        raise faults[0] if faults else InputError(f"no metric of vLLM is in these files; {NEEDED}")
    tables = {}
    for key, metrics in sorted(servers.items()):
        # Where one engine was not read the sum is unknown: adding leaves NaN there.
        sums = {column: sum(map(pd.Series, each.values())) for column, each in metrics.items()}
        table = pd.DataFrame(sums).rename_axis(columns=["name", "label"])
        tables[key] = table.sort_index().sort_index(axis=1)
    return tables, faults


def _own(name: str, labels: Mapping[str, str]) -> str:
    """What tells a series from the others of its metric."""
    if name.endswith("_bucket"):
        try:
            return f"{float(labels['le']):g}"
        except (KeyError, ValueError):
            le = labels.get("le")
            raise InputError(f"has a bucket with le {le!r}; a number is needed") from None
    return labels.get("position", labels.get("finished_reason", ""))


def _range(answer: c.Values) -> Iterator[Sample]:
    """Samples of an answer to query_range."""
    if answer["status"] != "success":
        raise InputError(f"is an error of Prometheus: {answer.get('error', answer['status'])}")
    data = c.mapping(answer.get("data"))
    if (kind := data.get("resultType")) != "matrix":
        raise InputError(f"data.resultType is {kind!r}; query_range gives 'matrix'")
    result = data.get("result") or ()
    if not isinstance(result, list | tuple):
        raise InputError(f"data.result is {str(result)[:40]!r}; query_range gives a list of series")
    for i, one in enumerate(result):
        try:
            labels = {str(k): c.text(v) for k, v in one["metric"].items()}
            values = [(c.number(t), c.number(v)) for t, v in one["values"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            what = "lacks metric or values [[seconds, number], ...]"
            raise InputError(f"data.result[{i}] {what}") from None
        if (name := labels.pop("__name__", None)) is None:
            raise InputError(f"data.result[{i}] has no __name__; export the metric, not a rate()")
        if name in USED:
            yield from (_possible(t, name, labels, v) for t, v in values)


def _scrapes(text: str, file: Path) -> Iterator[tuple[str, Iterator[Sample]]]:
    """The scrapes of a file, one after the other: which one, if several, and its samples."""
    parts = TIME_LINE.split(text)
    named = TIME_NAME.search(file.name)
    scrapes = list(zip(parts[1::2], parts[2::2], strict=True)) or [(named and named[0], text)]
    for stamp, scrape in scrapes:
        yield f"the scrape of '# time {stamp}' " * (len(scrapes) > 1), _scrape(stamp, scrape)


def _scrape(stamp: str | None, text: str) -> Iterator[Sample]:
    """Samples with the time they were made."""
    try:
        time_s = None if stamp is None else float(stamp)
    except ValueError:
        raise InputError(f"has a line '# time {stamp}'; seconds are needed") from None
    for s in samples(text):
        own = time_s if s.timestamp is None else float(s.timestamp)
        yield _possible(own, s.name, s.labels, s.value)


def _possible(time_s: float | None, name: str, labels: Mapping[str, str], value: float) -> Sample:
    """A sample, checked."""
    if time_s is None:
        raise InputError(f"does not say when it was scraped; {HOW_TO}")
    if not (math.isfinite(time_s) and (value != value or 0 <= value <= c.LARGEST)):
        raise InputError(f"has an impossible value {value!s:.40} of {name} at {time_s:g}")
    return time_s, name, labels, value


def _gain(window: pd.DataFrame, name: str, label: str = "") -> float:
    """By how much a counter grew; NaN if it was not read at both ends."""
    values = series(window, name, label)
    return float(values[-1] - values[0])


def _run(
    labels: Labels, window: pd.DataFrame | InputError, configuration: c.Values
) -> dict[str, Any]:
    if isinstance(window, InputError):
        raise window
    times = window.index.to_numpy(float)
    w.check_steady(times, series(window, f"{E2E}_count"), in_flight(window))
    server = {"verifier": dict(labels).get("model_name"), **configuration}
    (requests, lost), duration_s = _finished(window), float(times[-1] - times[0])
    mean = float(np.trapezoid(in_flight(window), times) / duration_s)
    load = {
        **counted(requests, lost, duration_s),
        **{quantity: _length(window, *names) for quantity, names in LENGTHS.items()},
        "loop": "open",
        "rate_rps": requests / duration_s,
        "span_s": duration_s,
        "in_flight": mean if mean > 0 else None,
    }
    latencies = {metric: _latency(window, name) for metric, name in HISTOGRAMS.items()}
    if math.isnan(latencies["e2e"].mean_s):
        raise InputError(f"{E2E}_sum is missing, so mean latency is unknown")
    flags = frozenset({"rate-from-achieved"})
    row = run_row(server, load, latencies, drafting=_drafting(window), flags=flags)
    return row | {"run_id": run_id(row, float(times[0]))}


def _finished(window: pd.DataFrame) -> tuple[float, float | None]:
    """Requests that were answered, and those aborted or failed (None: not counted)."""
    timed = _gain(window, f"{E2E}_count")
    if FINISHED not in window:
        return timed, None
    # A reason is listed from its first request on.
    by_reason = window[FINISHED].ffill().fillna(0.0)
    gains = by_reason.iloc[-1] - by_reason.iloc[0]
    lost = gains[gains.index.isin(("abort", "error"))].sum()
    # Lost requests may be among those timed; there are no more answers than the rest.
    return min(timed, gains.sum() - lost) if lost else timed, float(lost)


def _latency(window: pd.DataFrame, name: str) -> Latency:
    n, total = _gain(window, f"{name}_count"), _gain(window, f"{name}_sum")
    if not (n > 0 and total > 0):
        return Latency()
    bounds, after = _buckets(window.iloc[-1], name)
    same, before = _buckets(window.iloc[0], name)
    if not len(bounds) or not np.array_equal(bounds, same):
        return Latency(mean_s=total / n)
    upto = after - before
    finite = bounds[:-1]
    if not (np.isfinite(finite).all() and (np.diff(bounds, prepend=0.0) > 0).all()):
        raise InputError(f"the buckets of {name} have impossible bounds")
    if not math.isinf(bounds[-1]) or (np.diff(upto) < 0).any() or upto[-1] != n:
        raise InputError(f"the buckets of {name} do not add up to its count of {n:.0f}")
    counts = np.diff(upto, prepend=0.0)
    lowest = counts @ np.concatenate([[0.0], finite])
    highest = counts[counts > 0] @ bounds[counts > 0]
    if not lowest * (1 - 1e-9) <= total <= highest * (1 + 1e-9):
        limits = f"{lowest:g} to {highest:g}"
        raise InputError(f"{name} sums to {total:g} s, but its buckets allow {limits}")
    return Latency(mean_s=total / n, **w.fit_lognormal(bounds, counts, total))


def _buckets(reading: pd.Series, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Upper bounds and counts of values up to them, at one time."""
    known = reading.get(f"{name}_bucket", pd.Series()).dropna().rename(float).sort_index()
    return known.index.to_numpy(float), known.to_numpy(float)


def _length(window: pd.DataFrame, histogram: str, counter: str) -> float:
    """Mean tokens of a finished request; of all requests where only the counter is there."""
    mean = _gain(window, f"{histogram}_sum") / (_gain(window, f"{histogram}_count") or math.nan)
    return _gain(window, counter) / _gain(window, f"{E2E}_count") if math.isnan(mean) else mean


def _drafting(window: pd.DataFrame) -> Drafting:
    """What was drafted and accepted; nothing of positions where one is unknown."""
    gains: dict[str, Any] = {quantity: _gain(window, name) for quantity, name in DRAFTING.items()}
    known = {name: gain for name, gain in gains.items() if not math.isnan(gain)}
    positions = window[PER_POSITION].columns if PER_POSITION in window else ()
    places = [str(j) for j in range(len(positions))]
    accepted = [_gain(window, PER_POSITION, place) for place in places if place in positions]
    if len(accepted) == len(places) and not np.isnan(accepted).any():
        known["positions"] = accepted
    return c.record(Drafting, known)
