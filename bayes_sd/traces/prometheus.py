"""Runs from a production server's own metrics: one a window of steady load."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from bayes_sd.errors import InputError
from bayes_sd.traces.config import KNOWN, canonical, configure, merge
from bayes_sd.traces.histogram import fit_lognormal
from bayes_sd.traces.numbers import absent, sentence
from bayes_sd.traces.read import NOT_MEASURED, PathLike, find_files
from bayes_sd.traces.records import Drafting, Latency, Workload
from bayes_sd.traces.rows import fingerprint, run_row
from bayes_sd.traces.schema import Traces, tidy
from bayes_sd.traces.scrapes import (
    FINISHED,
    HISTOGRAMS,
    LENGTHS,
    PER_POSITION,
    SPECULATIVE,
    Server,
    buckets,
    read_servers,
)
from bayes_sd.traces.sidecar import read_sidecar
from bayes_sd.traces.windows import E2E, Window, check_steady, windows

PATTERNS = ("*.prom", "*.txt", "*.json")


def read_metrics(
    paths: PathLike | Iterable[PathLike],
    *,
    window_s: float = 300.0,
    config: PathLike | None = None,
    environment: str | None = None,
    **arguments: Any,
) -> Traces:
    """Read a vLLM server's Prometheus metrics over time, without a benchmark.

    Parameters
    ----------
    paths : path, folder, glob pattern, or several of them
        Scrapes of ``/metrics``, each timed by its file name (seconds since 1970) or a line
        ``# time SECONDS`` before it, or answers of Prometheus to ``query_range``. All of them
        together are one record; label sets tell servers and engines apart. A folder means its
        ``*.prom``, ``*.txt`` and ``*.json``.
    window_s : float
        Length of a window in seconds, each of them a run at an open loop.
    config, environment, **arguments
        As in `read_traces`: what was served.

    Returns
    -------
    Traces
        The offered rate is that of finished requests. Mean latencies are exact; mean and
        variance of their log are those of a lognormal fitted to the interval counts and the sum
        (`bayes_sd.traces.histogram`). Windows whose load changed are in ``set_aside``, with the
        reason; `bayes_sd.traces.windows` says what steady means.

    Raises
    ------
    InputError
        If a file cannot be read, or no window can be used.

    Examples
    --------
    >>> traces = read_metrics("scrapes/", verifier_params=8e9, environment="H100")
    """
    if not (math.isfinite(window_s) and window_s > 0):
        raise InputError(f"window_s must be a positive number of seconds, got {window_s!r}")
    for name in arguments:
        if name not in KNOWN:
            raise InputError(f"unknown argument {name!r}; known are {', '.join(KNOWN)}")
    files = _files(paths)
    layers: list[tuple[str, Mapping[str, Any]]] = [("the arguments", canonical(arguments))]
    if config is not None:
        sidecar = read_sidecar(config, files)
        layers += [
            (f"the sidecar's {pattern!r}", keys) for f in files for pattern, keys in sidecar.of(f)
        ]
    values = merge(layers)
    if environment is not None:
        values["environment"] = environment
    source = str(files[0] if len(files) == 1 else files[0].parent)
    rows: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    number = -1
    for server in read_servers(files):
        for window in windows(server, window_s):
            number += 1
            where = {"source": source, "row": number}
            try:
                if isinstance(window, InputError):
                    raise window
                check_steady(window)
                row = _run(window, server, values)
            except InputError as error:
                aside.append({**where, "reason": str(error)})
            else:
                # Two windows may have the same numbers: when they were tells them apart.
                run_id = fingerprint({**row, "at": window.start_s}, ignore=NOT_MEASURED)
                rows.append({**row, "run_id": run_id, **where})
    if not rows:
        reasons = "; ".join(str(bad["reason"]) for bad in aside[:3]) or "there is no window"
        raise InputError(f"{source}: no window of {window_s:g} s can be used: {reasons}")
    return tidy(rows, aside)


def _files(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    found: list[PathLike] = []
    for item in [paths] if isinstance(paths, str | Path) else paths:
        if Path(item).is_dir():
            inside = [p for pattern in PATTERNS for p in sorted(Path(item).glob(pattern))]
            if not inside:
                raise InputError(f"{item}: the folder has no {', '.join(PATTERNS)}")
            found += inside
        else:
            found.append(item)
    return find_files(found)


def _run(window: Window, server: Server, given: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(given)
    if not absent(server.labels.get("model_name")):
        values.setdefault("verifier", server.labels["model_name"])
    positions = _positions(window)
    values.setdefault("draft_tokens", len(positions))
    config = configure(values)
    requests = window.gain(f"{E2E}_count")
    fits = {m: _latency(window, m) for m in HISTOGRAMS}
    latencies = {m: latency for m, (latency, _) in fits.items()}
    if math.isnan(latencies["e2e"].mean):
        raise InputError(f"{E2E}_sum is missing, so mean latency is unknown")
    in_flight = window.in_flight()
    times = in_flight.index.to_numpy(float)
    load: dict[str, Any] = {
        "loop": "open",
        "rate_rps": requests / window.duration_s,
        "achieved_rps": requests / window.duration_s,
        "in_flight": float(np.trapezoid(in_flight, times) / window.duration_s),
        "requests": requests,
        "failed": _or_zero(window.gain(FINISHED, "abort") + window.gain(FINISHED, "error")),
        "span_s": window.duration_s,
        "duration_s": window.duration_s,
        **{ours: _length(window, *names) for ours, names in LENGTHS.items()},
    }
    unknown = ("in_flight",) if not load["in_flight"] > 0 else ()
    try:
        workload = Workload(**{k: v for k, v in load.items() if k not in unknown})
        drafting = _drafting(window, positions) if config.draft_tokens else Drafting()
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    flags = frozenset({"rate-from-achieved"})
    row = run_row(config, workload, latencies, drafting, detail=False, flags=flags)
    return row | {f"{m}_log_var_requests": worth for m, (_, worth) in fits.items()}


def _latency(window: Window, metric: str) -> tuple[Latency, float]:
    """Latency of a histogram, and how many single values its log-variance is worth."""
    name = HISTOGRAMS[metric]
    n, total = window.gain(f"{name}_count"), window.gain(f"{name}_sum")
    if not (n > 0 and total > 0):
        return Latency(), math.nan
    mean = total / n
    bounds, after = buckets(window.table.iloc[-1], name)
    same, before = buckets(window.table.iloc[0], name)
    if not len(bounds) or not np.array_equal(bounds, same):
        return Latency(mean=mean), math.nan
    upto = after - before
    if not math.isinf(bounds[-1]) or (np.diff(upto) < 0).any() or upto[-1] != n:
        raise InputError(f"the buckets of {name} do not add up to its count of {n:.0f}")
    counts = np.diff(upto, prepend=0.0)
    lowest = counts @ np.concatenate([[0.0], bounds[:-1]])
    highest = counts[counts > 0] @ bounds[counts > 0]
    if not lowest * (1 - 1e-9) <= total <= highest * (1 + 1e-9):
        raise InputError(
            f"{name} sums to {total:g} s, but its buckets allow {lowest:g} to {highest:g}"
        )
    fit = fit_lognormal(bounds, counts, total)
    if fit is None:
        return Latency(mean=mean), math.nan
    latency = Latency(mean=mean, log_mean=fit.log_mean, log_var=fit.log_var)
    return latency, fit.spread_requests


def _length(window: Window, histogram: str, counter: str) -> float:
    """Mean tokens of a finished request; of all requests where only the counter is there."""
    mean = window.gain(f"{histogram}_sum") / (window.gain(f"{histogram}_count") or math.nan)
    return window.gain(counter) / window.gain(f"{E2E}_count") if math.isnan(mean) else mean


def _positions(window: Window) -> list[str]:
    if PER_POSITION not in window.table:
        return []
    return sorted(filter(str.isdigit, window.table[PER_POSITION].columns), key=int)


def _drafting(window: Window, positions: list[str]) -> Drafting:
    gains = {ours: window.gain(name) for ours, name in SPECULATIVE.items()}
    accepted = [window.gain(PER_POSITION, p) for p in positions]
    known: dict[str, Any] = {k: v for k, v in gains.items() if not math.isnan(v)}
    if not np.isnan(accepted).any():
        known["positions"] = accepted
    return Drafting(**known)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
