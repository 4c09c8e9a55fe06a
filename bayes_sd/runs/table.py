"""Tables: one run a row, and windows or single requests of traffic."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from bayes_sd.errors import InputError
from bayes_sd.runs.config import NAMES, absent, configure, number, record, sentence
from bayes_sd.runs.load import LENGTHS, Source
from bayes_sd.runs.rows import METRICS, Drafting, Latency, Workload, fingerprint, run_row

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "%": 1e-2, "1": 1.0}
STATISTICS = ("mean_s", "std_s", "log_mean", "log_var", "p50_s", "p90_s", "p95_s", "p99_s")
LATENCIES = {f"{m}_{name}": (m, name.removesuffix("_s")) for m in METRICS for name in STATISTICS}
WORKLOAD = tuple(Workload.model_fields)
COUNTS = ("drafts", "drafted_tokens", "accepted_tokens")
POSITIONS = tuple(f"accepted_{j}" for j in range(1, 65))
INPUTS = (*NAMES, *WORKLOAD, *LATENCIES, *COUNTS, "saturated")
KNOWN = f"{', '.join(INPUTS)}, accepted_1 .. accepted_k"
REQUIRED = (
    *("verifier", "verifier_params", "draft_tokens", "prompt_tokens", "output_tokens"),
    *("requests", "e2e_mean_s"),
)
Mapped = str | tuple[str, str]

WINDOW = ("rate_rps", *LENGTHS)
LOG = ("timestamp", *LENGTHS)
SPREADS = tuple(f"{name}_sd" for name in LENGTHS)
TRAFFIC = (*WINDOW, *SPREADS, "seconds", "timestamp")
# Azure's public logs are read as they are.
HEADERS = dict(zip(LOG, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), strict=True))
WINDOWS_MAX = 1_000_000


def load_table(source: Source) -> tuple[pd.DataFrame, str]:
    """A table as it is given, and the name by which messages call it."""
    if isinstance(source, pd.DataFrame):
        table, name = source, "table"
    else:
        path, name = Path(source), str(source)
        if not path.is_file():
            raise InputError(f"{path}: no such file; a CSV file or a table is needed")
        try:
            table = pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: is not a CSV table ({reason})") from None
    if not table.columns.is_unique:
        twice = ", ".join(map(str, table.columns[table.columns.duplicated()]))
        raise InputError(f"{name}: two columns are called {twice}; names must differ")
    return table, name


def runs_of(
    table: pd.DataFrame, columns: Mapping[str, Mapped], constants: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Run of each row, or why it has none; `constants` hold in all rows, in our units."""
    mapping = _mapping(table, columns, constants)
    missing = [c for c in REQUIRED if c not in mapping and c not in constants]
    if not {"rate_rps", "achieved_rps", "concurrency"} & {*mapping, *constants}:
        missing.append("rate_rps (or achieved_rps, or concurrency)")
    if missing:
        raise InputError(f"no column is given for {', '.join(missing)}; {_has(table)}")
    if table.empty:
        raise InputError("has no rows; one run a row is needed")
    # Not a selection of columns: two of our names may share one of theirs.
    blank = table.astype(object).where(table.notna(), None)
    cells_of = [blank[header].tolist() for header, _ in mapping.values()]
    for i, cells in enumerate(zip(*cells_of, strict=True)):
        try:
            row = _row({**_converted(mapping, cells), **constants})
            derived = ("flags", "saturated")
            yield i, row | {"run_id": fingerprint({k: row[k] for k in row if k not in derived})}
        except InputError as error:
            yield i, error


def _has(table: pd.DataFrame) -> str:
    return f"the table has {', '.join(map(str, table.columns))}"


def _mapping(
    table: pd.DataFrame, columns: Mapping[str, Mapped], constants: Mapping[str, Any]
) -> dict[str, tuple[Hashable, float | None]]:
    """Our column to theirs and the factor to our unit (None: take the cell as it is)."""
    known = [c for c in table.columns if (c in INPUTS or c in POSITIONS) and c not in constants]
    mapping: dict[str, tuple[Hashable, float | None]] = {c: (c, None) for c in known}
    for name, given in columns.items():
        if name not in INPUTS and name not in POSITIONS:
            raise InputError(f"columns has the unknown name {name!r}; known are {KNOWN}")
        if name in constants:
            raise InputError(f"{name} is given in columns and as an argument; give it once")
        header, unit = (given, None) if isinstance(given, str) else given
        if header not in table.columns:
            raise InputError(f"columns: {name} names {header!r}, but {_has(table)}")
        mapping[name] = (header, None if unit is None else _factor(name, unit))
    return mapping


def _factor(name: str, unit: str) -> float:
    """What a number in this unit is multiplied by."""
    allowed = {"s": ("s", "ms", "us"), "acceptance_imposed": ("%", "1")}
    units = allowed.get(name, allowed["s"] if name.endswith("_s") else ("1",))
    if unit not in units:
        raise InputError(f"columns: {name} has unit {unit!r}; allowed are {', '.join(units)}")
    return UNITS[unit]


def _converted(
    mapping: Mapping[str, tuple[Hashable, float | None]], cells: Sequence[Any]
) -> dict[str, Any]:
    """Cells of a row under our names and in our units, blanks dropped."""
    row = {}
    for (name, (_, factor)), cell in zip(mapping.items(), cells, strict=True):
        if absent(cell):
            continue
        try:
            row[name] = cell if factor is None else number(cell) * factor
        except ValueError as error:
            raise InputError(f"{name} {error}") from None
    return row


def _row(values: dict[str, Any]) -> dict[str, Any]:
    flags: frozenset[str] = frozenset()
    load = {"loop": "open"} | {c: values[c] for c in WORKLOAD if c in values}
    if load["loop"] == "open" and "rate_rps" not in load and "achieved_rps" in load:
        load["rate_rps"] = load["achieved_rps"]
        flags = frozenset({"rate-from-achieved"})
    if "span_s" not in load and "duration_s" in load:
        load["span_s"] = load["duration_s"]
    config = configure({c: values[c] for c in NAMES if c in values})
    positions = [c for c in POSITIONS if c in values]
    if positions and positions != list(POSITIONS[: len(positions)]):
        raise InputError("accepted_1 .. accepted_k are incomplete; give all or none")
    workload = record(Workload, load)
    counts = {c: values[c] for c in COUNTS if c in values}
    drafting = record(Drafting, counts | {"positions": [values[c] for c in positions]})
    latencies = {m: _latency(values, m) for m in METRICS}
    e2e = latencies["e2e"]
    if math.isnan(e2e.mean):
        raise InputError("e2e_mean_s is missing; a positive finite number is needed")
    if workload.requests > 1 and math.isnan(e2e.std) and math.isnan(e2e.log_mean):
        raise InputError("e2e_std_s is missing; more than one request needs it, or e2e_log_mean")
    saturated = str(values.get("saturated", False)).strip().lower()
    if saturated not in ("true", "1", "1.0", "false", "0", "0.0"):
        raise InputError(f"saturated must be true or false, got {values['saturated']!r}")
    is_saturated = saturated in ("true", "1", "1.0")
    return run_row(
        config, workload, latencies, drafting, detail=False, saturated=is_saturated, flags=flags
    )


def _latency(values: Mapping[str, Any], metric: str) -> Latency:
    columns = {field: column for column, (m, field) in LATENCIES.items() if m == metric}
    try:
        return Latency(**{name: values[c] for name, c in columns.items() if c in values})
    except ValidationError as error:
        field, text = sentence(error).split(" ", 1)
        raise InputError(f"{columns.get(field, f'{metric} {field}')} {text}") from None


def read_windows(
    source: Source, window_s: float, columns: Mapping[str, str]
) -> tuple[str, pd.DataFrame]:
    """Name and checked windows of a table of windows or of requests, see `Load.read`."""
    if not (np.isfinite(window_s) and window_s > 0):
        raise InputError(f"window_s must be a positive number of seconds, got {window_s!r}")
    table, name = load_table(source)
    for column, header in columns.items():
        if column not in TRAFFIC:
            known = ", ".join(TRAFFIC)
            raise InputError(f"columns has the unknown name {column!r}; known are {known}")
        if header not in table.columns:
            raise InputError(f"{name}: no column {header!r}, which columns names; {_has(table)}")
    headers = {c: c if c in table else HEADERS.get(c, c) for c in TRAFFIC} | dict(columns)
    renamed = pd.DataFrame({c: table[header] for c, header in headers.items() if header in table})
    if "rate_rps" in renamed:
        return name, _checked(renamed, name)
    missing = [c for c in LOG if c not in renamed]
    if missing:
        needed = f"a log of requests has {', '.join(LOG)}, a table of windows {', '.join(WINDOW)}"
        raise InputError(f"{name}: no column {', '.join(missing)}; {needed}; {_has(table)}")
    return name, _checked(_windows_of_log(renamed, window_s, name), name)


def _windows_of_log(log: pd.DataFrame, window_s: float, name: str) -> pd.DataFrame:
    """Requests counted and averaged by window."""
    if log.empty:
        raise InputError(f"{name}: has no rows; at least two requests are needed")
    time_s = _times(log["timestamp"], name)
    back = np.flatnonzero(np.diff(time_s) < 0)
    if back.size:
        problem = f"timestamp in row {back[0] + 1} is before that of the row above"
        raise InputError(f"{name}: {problem}; rows must be in order of time")
    if time_s[-1] == time_s[0]:
        raise InputError(f"{name}: all timestamps are equal; a rate needs at least two times")
    # The first request opens the log, so that n of them bound only n - 1 of the n gaps.
    span_s = (time_s[-1] - time_s[0]) * len(time_s) / (len(time_s) - 1)
    count = max(1, round(span_s / window_s))
    if count > WINDOWS_MAX:
        problem = f"timestamp spans {span_s:.4g} s, which are {count} windows of {window_s:g} s"
        allowed = f"at most {WINDOWS_MAX} are allowed (are the timestamps in seconds?)"
        raise InputError(f"{name}: {problem}; {allowed}")
    width_s = span_s / count
    window = np.minimum(((time_s - time_s[0]) / width_s).astype(int), count - 1)
    requests = np.bincount(window, minlength=count)
    result = pd.DataFrame({"rate_rps": requests / width_s, "seconds": width_s})
    with np.errstate(invalid="ignore", divide="ignore"):
        for c in LENGTHS:
            values = _numbers(log[c], f"{name}: {c}", 1.0)
            result[c] = mean = np.bincount(window, values, count) / requests
            squares = np.bincount(window, (values - mean[window]) ** 2, count)
            result[f"{c}_sd"] = np.where(requests > 1, np.sqrt(squares / (requests - 1)), np.nan)
    return result


def _times(column: pd.Series, name: str) -> np.ndarray:
    """Times in seconds, of numbers or of dates."""
    is_date = pd.api.types.is_datetime64_any_dtype(column)
    if not is_date and pd.to_numeric(column, errors="coerce").notna().any():
        return _numbers(column, f"{name}: timestamp", -np.inf)
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        rule = "it must be seconds, or a date and time as in 2026-01-31 12:00:00.5"
        raise InputError(f"{name}: timestamp in row {row} is {column.iloc[row]!r}; {rule}")
    return (dates - dates.iloc[0]).dt.total_seconds().to_numpy()


def _numbers(
    column: pd.Series, what: str, least: float, missing_ok: np.ndarray | bool = False
) -> np.ndarray:
    """Finite numbers of at least `least`, missing only where that is allowed."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    allowed = np.isfinite(values) & (values >= least) | column.isna().to_numpy() & missing_ok
    if not allowed.all():
        row = int((~allowed).argmax())
        bound = f" of at least {least:g}" if np.isfinite(least) else ""
        given = "missing" if pd.isna(column.iloc[row]) else str(column.iloc[row])
        raise InputError(f"{what} in row {row} is {given}; it must be a finite number{bound}")
    return values


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of windows with every column checked."""
    missing = [c for c in WINDOW if c not in table]
    if missing:
        needed = f"has {', '.join(WINDOW)} and may have {', '.join((*SPREADS, 'seconds'))}"
        raise InputError(f"{name}: no column {', '.join(missing)}; a table of windows {needed}")
    if table.empty:
        raise InputError(f"{name}: has no rows; at least one window with requests is needed")
    rate = _numbers(table["rate_rps"], f"{name}: rate_rps", 0.0)
    result = {"rate_rps": rate}
    for c in LENGTHS:
        result[c] = _numbers(table[c], f"{name}: {c}", 1.0, missing_ok=rate == 0)
        if f"{c}_sd" in table:
            result[f"{c}_sd"] = _numbers(table[f"{c}_sd"], f"{name}: {c}_sd", 0.0, missing_ok=True)
    seconds = table["seconds"] if "seconds" in table else pd.Series(1.0, table.index)
    result["seconds"] = _numbers(seconds, f"{name}: seconds", 0.0)
    if not result["seconds"].all():
        row = int(np.argmin(result["seconds"]))
        raise InputError(f"{name}: seconds in row {row} is 0; it must be a number above 0")
    if not rate.any():
        raise InputError(f"{name}: rate_rps is 0 in every row; one window must have requests")
    return pd.DataFrame(result)
