"""Where logs of requests are: files of several formats, data frames, tables of an Ibis engine."""

import csv
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.runs.table import BROKEN, LENGTHS, Columns, opened, packed, why

LOG = ("timestamp", *LENGTHS)
COUNTS = ("drafts", "drafted_tokens", "accepted_tokens")
NUMBERS = (*LOG, "e2e_s", "ttft_s", *COUNTS)
INPUTS = (*NUMBERS, "request_id")
# Public logs that are read as they are: Azure's, BurstGPT's, Mooncake's (in milliseconds).
PUBLIC = (
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
    ("timestamp", "input_length", "output_length"),
)
MEMORY = "500MB"  # of DuckDB, which goes on on disk
HEAD = 1 << 16  # bytes that show what is in a file
QUOTED = re.compile(rb'(^|,)"([^"\r\n]|"")*"(,|\r?$)', re.MULTILINE)
CSV = {"header": True, "delim": ",", "auto_detect": False, "null_padding": True, "parallel": False}
CSV |= {"ignore_errors": True, "store_rejects": True}
PLACES: dict[str, Any] = {"filename": True, "file_row_number": True, "union_by_name": True}
HAS_REJECTED = "FROM duckdb_tables() WHERE table_name = 'reject_errors'"
SCHEMA = "SELECT file_name, name FROM parquet_schema(?)"
REJECTED = "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) ORDER BY line"


def is_lazy(source: Any) -> bool:
    """Whether it is an Ibis table."""
    return hasattr(source, "to_pyarrow_batches")


def is_parquet(source: Any) -> bool:
    """Whether it is a Parquet file."""
    return isinstance(source, Path) and _format(source) == "Parquet"


def is_log(source: Any, mapping: Columns) -> bool:
    """Whether a source of runs has a request a row."""
    if is_lazy(source) or is_parquet(source):
        return True
    names = names_of(columns := columns_of(source), mapping)
    return "timestamp" in names and len(names) > 1 and "requests" not in (*columns, *mapping)


def columns_of(source: Any) -> list[str]:
    """Columns of a table, or those that the first bytes of a file show; [] if they do not."""
    if not isinstance(source, Path):
        return list(map(str, source.columns))
    if is_parquet(source):
        with in_words(str(source)):
            return list(duckdb().read_parquet(source).columns)
    text = _head(source).decode("utf-8", "replace")
    try:
        if text[:1] in ("{", "["):
            return list(_keys(text))
        return [x or f"column {i}" for i, x in enumerate(next(csv.reader(text.splitlines())))]
    except (StopIteration, ValueError, RecursionError, csv.Error):
        return []  # whoever reads all of the file says what is wrong with it


def _keys(text: str) -> dict[str, None]:
    """Keys of the objects that a text begins with: one in flight may have no latency."""
    decoder, keys, start = json.JSONDecoder(), dict[str, None](), text.index("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except ValueError:
            break  # cut off where the text ends, or malformed
        keys |= dict.fromkeys(found)
        start = text.find("{", end)
    return keys


def _head(path: Path) -> bytes:
    with in_words(str(path)), opened(path) as file:
        return file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()


def names_of(columns: Sequence[str], mapping: Columns) -> dict[str, str]:
    """Our columns of a log to theirs, those of public logs among them."""
    public = next((names for names in PUBLIC if {*names} <= {*columns}), LOG)
    names = dict(zip(LOG, public, strict=True)) | {k: k for k in INPUTS if k in columns}
    names |= {k: header for k, (header, _) in mapping.items() if k in INPUTS}
    return {k: v for k, v in names.items() if v in columns}


def need_alike(engine: Any, sources: Sequence[Any], needed: Collection[str]) -> None:
    """Refuse a file of another format than the first, or a table without what it must have."""
    first, rest = sources[0], list(map(str, sources[1:]))
    theirs = _format(first) if rest else ""
    for path in rest:
        if (ours := _format(Path(path))) != theirs:
            raise InputError(f"{path}: is {ours} but {first} is {theirs}; read them apart")
    columns = {path: set[str]() for path in rest}
    if theirs == "Parquet":
        for path, column in engine.con.execute(SCHEMA, [rest]).fetchall():
            columns[path].add(column)
    elif theirs == "CSV":  # JSON leaves out what is missing
        columns = {path: {*columns_of(Path(path))} for path in rest}
    else:
        return
    for path, there in columns.items():
        if lost := [name for name in needed if name not in there]:
            raise InputError(f"{path}: no column {', '.join(lost)}, which {first} has")


def _format(path: Path) -> str:
    head = _head(path)
    if not head:
        return "empty"
    return "Parquet" if head[:4] == b"PAR1" else "JSON" if head[:1] in (b"{", b"[") else "CSV"


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """Errors of files and engines in one sentence; what they warn each other of is left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{name}: cannot be read ({why(error)})") from None
    except Exception as error:  # of DuckDB, Arrow, Ibis, Spark ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{name}: is no log of requests ({reason})") from None


def duckdb() -> Any:
    """DuckDB as an engine of Ibis, of its own."""
    try:
        import ibis

        engine = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=tempfile.gettempdir())
    except ImportError:
        needed = "Ibis with DuckDB: pip install 'bayes-sd[logs]'"
        raise InputError(f"logs of requests and Parquet files need {needed}") from None
    engine.raw_sql("SET TimeZone = 'UTC'")
    own_bar(engine, True)
    return engine


def own_bar(engine: Any, drawn: bool) -> None:
    """Whether DuckDB draws its bar of what takes over 2 s, with the time left, on a terminal."""
    engine.raw_sql(f"SET enable_progress_bar = {drawn and sys.stdout.isatty()}")


def read(engine: Any, name: str, sources: Sequence[Any], names: Mapping[str, str]) -> Any:
    """Rows as they are, with ``file`` and ``row``."""
    import ibis

    first, used = sources[0], dict.fromkeys(names.values(), "VARCHAR")
    if is_lazy(first):
        return first.mutate(file=ibis.literal(name), row=ibis.null("int64"))
    if isinstance(first, pd.DataFrame):
        ours = first[list(used)].assign(file=name, row=np.arange(len(first)))
        ours = ours.astype(dict.fromkeys(ours.columns[ours.dtypes == "O"], "string"))
        dates = ours.select_dtypes(["datetime", "datetimetz"])  # an engine refuses nanoseconds
        return ibis.memtable(ours.assign(**dates.apply(lambda x: x.dt.as_unit("us"))))
    if is_parquet(first):
        found = engine.read_parquet(list(map(str, sources)), **PLACES)
        return found.mutate(file=found.filename, row=found.file_row_number)
    tables = []
    for path in map(str, sources):
        head = _head(Path(path))
        how: dict[str, Any] = {"compression": "gzip" if packed(Path(path)) else "none"}
        if head[:1] in b"{[":
            kind = "array" if head[:1] == b"[" else "newline_delimited"
            how |= {"columns": used, "format": kind, "ignore_errors": kind != "array"}
            found = engine.read_json(path, **how)
        else:
            # Where no first cell has quotes, a stray one is part of it and swallows no lines.
            how |= dict.fromkeys(("quote", "escape"), '"' if QUOTED.search(head) else "")
            how |= {"columns": dict.fromkeys(columns_of(Path(path)), "VARCHAR")}
            found = engine.read_csv(path, **how, **CSV)
        cells = {k: found[k] if k in found.columns else ibis.null("string") for k in used}
        tables.append(found.select(**cells, file=ibis.literal(path), row=ibis.row_number()))
    return ibis.union(*tables) if len(tables) > 1 else tables[0]


def malformed_lines(engine: Any) -> pd.DataFrame:
    """Lines of CSV files that are no row: file_path, line, error_message, n (lines swallowed)."""
    if engine is None or not engine.raw_sql(HAS_REJECTED).fetchall():
        return pd.DataFrame({"file_path": [], "line": [], "error_message": [], "n": []})
    lines = engine.raw_sql(REJECTED).df().drop_duplicates(["file_path", "line"])
    return lines.assign(n=lines["csv_line"].str.strip().str.count("\n") + 1)
