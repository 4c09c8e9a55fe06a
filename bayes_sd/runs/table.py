"""Tables, CSV or JSON lines: one run a row, and windows or single requests of traffic."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import LARGEST, SMALLEST, InputError
from bayes_sd.runs.config import NAMES, Positive, Record, Values, absent, number, record
from bayes_sd.runs.drafting import Drafting
from bayes_sd.runs.rows import METRICS, Latency, Rows, Workload, fingerprint, rows_of, run_row

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "%": 1e-2, "1": 1.0}
FIELDS = tuple(Latency.model_fields)
LATENCIES = tuple(f"{metric}_{name}" for metric in METRICS for name in FIELDS)
LENGTHS = ("prompt_tokens", "output_tokens")
Source = Any  # a path, a data frame or an Ibis table
WORKLOAD = tuple(Workload.model_fields)
COUNTS = ("drafts", "drafted_tokens", "accepted_tokens", "acceptance_length")
POSITIONS = tuple(f"accepted_{j}" for j in range(1, 65))
THROUGHPUT = "output_tokens_per_s"  # of all requests together, at a concurrency
INPUTS = (*NAMES, *WORKLOAD, *LATENCIES, *COUNTS, THROUGHPUT, "saturated")
REQUIRED = ("verifier", "draft_tokens", *LENGTHS, "requests")
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
BROKEN = (OSError, EOFError, zlib.error)
Mapped = str | tuple[str, str]
Columns = Mapping[str, tuple[str, float | None]]  # ours to theirs, and to a factor to our unit

WINDOW = ("rate_rps", *LENGTHS)
TRAFFIC = (*WINDOW, *(f"{name}_sd" for name in LENGTHS), "seconds")


def packed(path: Path) -> bool:
    """Whether a file is in gzip's format."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def opened(path: Path) -> gzip.GzipFile | BufferedReader:
    """A file, unpacked as it is read."""
    return gzip.open(path) if packed(path) else path.open("rb")


def why(error: Exception) -> str:
    """Why a file is :data:`BROKEN`."""
    return getattr(error, "strerror", None) or str(error)


def load_table(source: Source, name: str, **options: Any) -> pd.DataFrame:
    """A table, which messages call by `name`, as it is given; options of read_csv."""
    header: list[str] = []
    if isinstance(source, pd.DataFrame):
        table = source
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{name}: no such file; a CSV file or a table is needed")
        try:
            with opened(path) as file:
                is_json = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
                file.seek(0)
                if is_json:
                    table = pd.DataFrame(json_objects(file.read().decode("utf-8-sig")))
                else:
                    head = file.readline().decode("utf-8-sig")  # pandas renames the second of two
                    header = [x for x in next(csv.reader([head]), []) if x]
                    file.seek(0)
                    table = pd.read_csv(file, low_memory=False, **options)
        except BROKEN as error:
            raise InputError(f"{name}: cannot be read ({why(error)})") from None
        except (ValueError, csv.Error) as error:
            reason = (str(error).strip().splitlines() or ["no table"])[0]
            raise InputError(f"{name}: is no table in CSV or JSON lines ({reason})") from None
    differ(header or table.columns, name)
    return table


def differ(columns: Iterable[Any], name: str) -> None:
    """Refuse a table with two columns of one name."""
    names = pd.Index(list(columns))
    if not names.is_unique:
        twice = ", ".join(map(str, names[names.duplicated()]))
        raise InputError(f"{name}: two columns are called {twice}; names must differ")


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text: one, a list, or one after the other."""
    decoder, values, end = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while end < len(text):
            value, end = decoder.raw_decode(text, end)
            values += value if isinstance(value, list) else [value]
            while end < len(text) and text[end].isspace():
                end += 1
    except json.JSONDecodeError as error:
        raise InputError(f"is not complete JSON ({error.msg} at line {error.lineno})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise InputError("is JSON of an absurd size or depth") from None
    if not values or not all(isinstance(value, dict) for value in values):
        raise InputError("is not a JSON object or several")
    return values


def factors_of(columns: Mapping[str, Mapped] | None) -> Columns:
    """What a caller says of columns, with factors to our units where a unit is given."""
    found: dict[str, tuple[str, float | None]] = {}
    for ours, given in (columns or {}).items():
        pair = (given,) if isinstance(given, str) else given
        if not isinstance(pair, list | tuple) or len(pair) not in (1, 2):
            raise InputError(f"columns: {ours} is {given!r}; allowed are a name or (name, unit)")
        header, *unit = pair
        units = ["1", "%"] if ours == "acceptance_imposed" else ["1"]
        if ours in ("timestamp", "seconds") or re.search("(?<!_per)_s$", ours):
            units = ["s", "ms", "us", "ns"]
        if unit and unit[0] not in units:
            rule = f"allowed are {', '.join(units)}"
            raise InputError(f"columns: {ours} has unit {unit[0]!r}; {rule}")
        found[ours] = header, UNITS[unit[0]] if unit else None
    return found


def require(columns: Columns, known: Sequence[str], there: Iterable[Any]) -> None:
    """Refuse entries of `columns` whose name is not ours, or whose header is not there."""
    there = list(there)
    for ours, (header, _) in columns.items():
        if ours not in known:
            names = [name for name in known if name not in POSITIONS[1:]]
            raise InputError(f"columns has the unknown name {ours!r}; known are {', '.join(names)}")
        if header not in there:
            raise InputError(f"columns: {ours} names {header!r}, but {has(there)}")


def has(columns: Iterable[Any]) -> str:
    """Columns of a table for a message."""
    return f"the table has {', '.join(map(str, columns))}"


def runs_of(table: pd.DataFrame, columns: Columns, constants: Values) -> Rows:
    """Run of each row, or why it has none; `constants` hold in all rows, in our units."""
    headers, factors = _mapping(table, columns, constants)
    given = {*headers, *constants}
    missing = [c for c in REQUIRED if c not in given]
    if not {"e2e_mean_s", THROUGHPUT} & given:
        missing.append(f"e2e_mean_s (or {THROUGHPUT})")
    if not {"rate_rps", "achieved_rps", "concurrency"} & given:
        missing.append("rate_rps (or achieved_rps, or concurrency)")
    if missing:
        raise InputError(f"no column is given for {', '.join(missing)}; {has(table)}")
    if table.empty:
        raise InputError("has no rows; one run a row is needed")
    ours = pd.DataFrame({name: table[header] for name, header in headers.items()})
    rows = ours.astype(object).where(ours.notna(), None).to_dict("records")
    return rows_of(enumerate(rows), lambda cells: _row(cells, factors, constants))


def _mapping(
    table: pd.DataFrame, columns: Columns, constants: Values
) -> tuple[dict[str, Hashable], dict[str, float]]:
    """Our columns to theirs, and to the factors to our units where a unit is given."""
    known = (*INPUTS, *POSITIONS)
    headers: dict[str, Hashable] = {c: c for c in table if c in known and c not in constants}
    factors: dict[str, float] = {}
    require(columns, known, table)
    for name, (header, factor) in columns.items():
        if name in constants:
            raise InputError(f"{name} is given in columns and as an argument; give it once")
        headers[name] = header
        if factor is not None:
            factors[name] = factor
    return headers, factors


def _row(
    cells: Mapping[Any, Any], factors: Mapping[str, float], constants: Values
) -> dict[str, Any]:
    values = {name: cell for name, cell in cells.items() if not absent(cell)}
    for name in (name for name in factors if name in values):
        try:
            values[name] = number(values[name]) * factors[name]
        except ValueError as error:
            raise InputError(f"{name} {error}") from None
    values |= constants
    flags: frozenset[str] = frozenset()
    if THROUGHPUT in values and "e2e_mean_s" not in values:
        values = _of_throughput(values)
    load = {"loop": "open"} | {c: values[c] for c in WORKLOAD if c in values}
    if load["loop"] == "open" and "rate_rps" not in load and "achieved_rps" in load:
        load["rate_rps"] = load["achieved_rps"]
        flags = frozenset({"rate-from-achieved"})
    if "duration_s" in load:
        load.setdefault("span_s", load["duration_s"])
    accepted = [values[c] for c in POSITIONS if c in values]
    if not all(c in values for c in POSITIONS[: len(accepted)]):
        raise InputError("accepted_1 .. accepted_k are incomplete; give all or none")
    counts = {c: values[c] for c in COUNTS if c in values}
    latencies = {
        m: record(Latency, {c: values[f"{m}_{c}"] for c in FIELDS if f"{m}_{c}" in values}, f"{m}_")
        for m in METRICS
    }
    saturated = str(values.get("saturated", False)).strip().lower()
    if saturated not in TRUTH:
        raise InputError(f"saturated must be true or false, got {values['saturated']!r}")
    server = {c: values[c] for c in NAMES if c in values}
    drafting = record(Drafting, counts | {"positions": accepted})
    known: dict[str, Any] = {"saturated": TRUTH[saturated], "flags": flags}
    row = run_row(server, load, latencies, drafting=drafting, **known)
    content = {k: v for k, v in row.items() if k not in ("flags", "saturated")}
    return row | {"run_id": fingerprint(content)}


class Throughput(Record):
    """What tells a latency where none is given."""

    output_tokens_per_s: Positive
    concurrency: Positive
    output_tokens: Positive


def _of_throughput(values: Values) -> dict[str, Any]:
    """Mean latency of so many requests in flight that get so many tokens/s together (Little)."""
    t = record(Throughput, values, f"e2e_mean_s is not given and {THROUGHPUT} tells it only if ")
    rate_rps = t.output_tokens_per_s / t.output_tokens
    mean_s = t.concurrency / rate_rps
    return {"e2e_mean_s": mean_s, "achieved_rps": rate_rps, "loop": "closed", **values}


def read_windows(source: Source, name: str, columns: Columns) -> pd.DataFrame:
    """Checked windows of a table of them, see `Load.read`."""
    table = load_table(source, name)
    require(columns, TRAFFIC, table)
    headers = {c: c for c in TRAFFIC} | {c: header for c, (header, _) in columns.items()}
    renamed = pd.DataFrame({c: table[header] for c, header in headers.items() if header in table})
    if missing := [c for c in WINDOW if c not in renamed]:
        needed = f"a table of windows has {', '.join(WINDOW)}"
        raise InputError(f"{name}: no column {', '.join(missing)}; {needed}; {has(table)}")
    if renamed.empty:
        raise InputError(f"{name}: has no rows; a window or two requests at least are needed")
    _, factor = columns.get("seconds", ("", None))
    windows = checked(renamed, name)
    return windows.assign(seconds=windows["seconds"] * (factor or 1.0))


def _numbers(
    column: pd.Series, what: str, least: float, missing_ok: np.ndarray | bool = False
) -> np.ndarray:
    """Numbers of at least `least`, not absurdly large, missing only where that is allowed."""
    try:
        values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    except OverflowError:
        raise InputError(f"{what} has a number of hundreds of digits") from None
    size = np.abs(values)
    fits = (values == 0) | (size >= SMALLEST) & (size <= LARGEST)
    allowed = (values >= least) & fits | column.isna().to_numpy() & missing_ok
    if not allowed.all():
        row = int((~allowed).argmax())
        given = "missing" if pd.isna(column.iloc[row]) else str(column.iloc[row])[:40]
        rule = f"it must be a finite number of at least {least:g}"
        raise InputError(f"{what} in row {row} is {given}; {rule}")
    return values


def checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of windows with every column checked."""
    rate = _numbers(table["rate_rps"], f"{name}: rate_rps", 0.0)
    result = {"rate_rps": rate}
    for c in LENGTHS:
        result[c] = _numbers(table[c], f"{name}: {c}", 1.0, missing_ok=rate == 0)
        if f"{c}_sd" in table:
            result[f"{c}_sd"] = _numbers(table[f"{c}_sd"], f"{name}: {c}_sd", 0.0, missing_ok=True)
    seconds = table["seconds"] if "seconds" in table else pd.Series(1.0, table.index)
    result["seconds"] = _numbers(seconds, f"{name}: seconds", 1e-9)
    if not rate.any():
        raise InputError(f"{name}: rate_rps is 0 in every row; one window must have requests")
    return pd.DataFrame(result)
