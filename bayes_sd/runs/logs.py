"""Logs of single requests, of any size: one Ibis expression cuts them into windows in any engine.

DuckDB reads files, out of core; of a table in a warehouse only the statistics leave its engine.
"""

import csv
import json
import math
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import LARGEST, EvidenceWarning, InputError, shown
from bayes_sd.runs import config as c
from bayes_sd.runs.consistency import QUANTILES
from bayes_sd.runs.drafting import Drafting
from bayes_sd.runs.rows import FAILED_SHARE, METRICS, Latency, Rows, fingerprint, run_id, run_row
from bayes_sd.runs.table import LENGTHS, UNITS, WINDOW, has
from bayes_sd.runs.windows import E2E, GAUGES, QUARTERS, Window, check_steady

LOG = ("timestamp", *LENGTHS)
COUNTS = ("drafts", "drafted_tokens", "accepted_tokens")
NUMBERS = (*LOG, "e2e_s", "ttft_s", *COUNTS)
INPUTS = (*NUMBERS, "request_id")
LEAST = {"prompt_tokens": 1.0, "output_tokens": 1.0, "e2e_s": 1e-9, "ttft_s": 1e-9}
RULES = {
    "timestamp": "must be seconds, or a date and time as in 2026-01-31 12:00:00.5",
    "output_tokens": "must be 0 or a finite number of at least 1",
    "ttft_s": "must be a number above 0 and at most e2e_s",
}
# A row is a request that was answered, not at all, or not yet; all else has a fault in a column.
DONE, EMPTY, OPEN, MALFORMED = "", "no output", "in flight", "malformed"
# Public logs that are read as they are: Azure's, BurstGPT's, Mooncake's (in milliseconds).
PUBLIC = (
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
    ("timestamp", "input_length", "output_length"),
)
NAMED_UNIT = re.compile(r"[_ (](ms|us|ns)\)?$")
# Times since 1970 up to the year 5000 are below each of these in its unit.
EPOCHS = {1e11: 1.0, 1e14: 1e-3, 1e17: 1e-6, np.inf: 1e-9}
WINDOWS_MAX = 1_000_000
# Of DuckDB; and requests cut at a time, for exact percentiles keep all their values in memory.
MEMORY, AT_A_TIME = "500MB", 4_000_000
PARQUET, HEAD = b"PAR1", 1 << 16  # bytes that show what is in a file
HAS_REJECTED = "FROM duckdb_tables() WHERE table_name = 'reject_errors'"
REJECTED = "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) ORDER BY line"


def is_lazy(source: Any) -> bool:
    """Whether it is an Ibis table."""
    return hasattr(source, "to_pyarrow_batches")


def is_log(source: Any, mapping: Mapping[str, Any]) -> bool:
    """Whether a source of runs has a request a row."""
    if is_lazy(source) or (isinstance(source, Path) and _head(source).startswith(PARQUET)):
        return True
    names = names_of(columns := columns_of(source), mapping)
    return "timestamp" in names and len(names) > 1 and "requests" not in (*columns, *mapping)


def columns_of(source: Any) -> list[str]:
    """Columns of a table, or those that the first bytes of a file show; [] if they do not."""
    if not isinstance(source, Path):
        return list(map(str, source.columns))
    if (head := _head(source)).startswith(PARQUET):
        ibis = _ibis()
        try:
            return list(ibis.duckdb.connect().read_parquet(source).columns)
        except Exception as error:
            raise InputError(f"{source}: is no whole Parquet file ({_first(error)})") from None
    text = head.decode("utf-8", "replace")
    try:
        if text[:1] in ("{", "["):
            return list(json.JSONDecoder().raw_decode(text, text.index("{"))[0])
        header = next(csv.reader(text.splitlines()))
        return [name or f"column {i}" for i, name in enumerate(header)]
    except (StopIteration, ValueError, RecursionError, csv.Error):
        return []  # whoever reads all of the file says what is wrong with it


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def names_of(columns: Sequence[str], mapping: Mapping[str, Any]) -> dict[str, str]:
    """Our columns of a log to theirs, those of public logs among them."""
    public = next((names for names in PUBLIC if {*names} <= {*columns}), LOG)
    names = {k: k for k in INPUTS} | dict(zip(LOG, public, strict=True))
    names |= {k: k for k in LOG if k in columns}
    names |= {k: v if isinstance(v, str) else v[0] for k, v in mapping.items()}
    return {k: names[k] for k in INPUTS if names[k] in columns}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ibis, its engines and pandas say about each other's next versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _ibis() -> Any:
    try:
        import ibis
        import ibis.backends.duckdb
    except ImportError:
        needed = "Ibis with DuckDB: pip install 'bayes-sd[logs]'"
        raise InputError(f"logs of requests and Parquet files need {needed}") from None
    return ibis


class Log:
    """A log of requests: files of one format, a data frame or an Ibis table.

    `aside` has source, first row, number and reason of each kind of fault.
    """

    def __init__(
        self, name: str, sources: Sequence[Any], mapping: Mapping[str, Any], *needed: str
    ) -> None:
        columns = columns_of(sources[0])
        self.name, self.names = name, names_of(columns, mapping)
        if missing := [k for k in (*LOG, *needed) if k not in self.names]:
            rule = f"a log of requests has {', '.join((*LOG, *needed))}"
            rule += "" if needed else f", a table of windows {', '.join(WINDOW)}"
            raise InputError(f"{name}: no column {', '.join(missing)}; {rule}; {has(columns)}")
        self.aside: list[dict[str, Any]] = []
        units = {k: UNITS[v[1]] for k, v in mapping.items() if not isinstance(v, str)}
        try:
            with _quiet():
                self._open(sources, units)
                self._find_faults([str(x) for x in sources if isinstance(x, Path)])
        except Exception as error:  # of DuckDB, Arrow or Ibis
            raise InputError(f"{name}: is no log of requests ({_first(error)})") from None
        named = NAMED_UNIT.search(self.names["timestamp"])
        mooncake = "ms" if "hash_ids" in columns else None
        size = self.survey.loc[self.survey["kind"].isin((DONE, EMPTY, OPEN)), "size"].max()
        by_size = next((s for most, s in EPOCHS.items() if size < most), 1.0)
        unit = named[1] if named else mooncake
        self.unit_s = units.get("timestamp", UNITS[unit] if unit else by_size)
        late = self.survey[self.survey["late"] > 0]
        if len(late):
            n, back_s = late["late"].sum(), late["back"].max() * self.unit_s
            by = f"by up to {back_s:.4g} s, first in row {late['late_row'].iloc[0]:.0f}"
            what = f"{n:.0f} requests are earlier than the one above them ({by})"
            _warn(f"{shown(late['file'].iloc[0])}: {what}; each counts at its own time")

    def _open(self, sources: Sequence[Any], units: Mapping[str, float]) -> None:
        """Set the engine, the checked rows and how many there are of each kind."""
        ibis = _ibis()
        if is_lazy(sources[0]):
            self.engine = sources[0].get_backend()
            raw = sources[0].mutate(file=ibis.literal(self.name), row=ibis.null("int64"))
        else:
            options = {"memory_limit": MEMORY, "temp_directory": tempfile.gettempdir()}
            self.engine = ibis.duckdb.connect(**options)
            self.engine.raw_sql("SET TimeZone = 'UTC'")
            raw = self._read(sources)
        self.rows = _checked(raw, self.names, units)
        if "filename" not in raw.columns and not is_lazy(sources[0]):  # texts are parsed once
            self.rows = self.engine.create_table("requests", self.rows, temp=True)
        self.survey = self._execute(_survey(self.rows)).sort_values(["file", "row"])

    def _execute(self, expression: Any) -> pd.DataFrame:
        with _quiet():
            return self.engine.execute(expression)

    def _read(self, sources: Sequence[Any]) -> Any:
        """Rows of files or of a data frame as they are, with ``file`` and ``row``."""
        ibis, used = _ibis(), dict.fromkeys(self.names.values(), "VARCHAR")
        if isinstance(sources[0], pd.DataFrame):
            frame = sources[0][list(used)]
            texts = {k: x.astype("string") for k, x in frame.items() if x.dtype == object}
            rows = np.arange(len(frame))
            return ibis.memtable(frame.assign(**texts, file=self.name, row=rows))
        if (head := _head(sources[0])).startswith(PARQUET):
            how = {"filename": True, "file_row_number": True, "union_by_name": True}
            found = self.engine.read_parquet(list(map(str, sources)), **how)
            return found.mutate(file=found.filename, row=found.file_row_number)
        tables = []
        for path in sources:
            if head[:1] in b"{[":
                lines = not head.startswith(b"[")
                kind = "newline_delimited" if lines else "array"
                how = {"format": kind, "ignore_errors": lines, "columns": used}
                found = self.engine.read_json(str(path), **how)
            else:
                quote = '"' if b'"' in head else ""  # a stray one would swallow many lines
                how = {"header": True, "delim": ",", "quote": quote, "escape": quote}
                how |= {"auto_detect": False, "null_padding": True, "parallel": False}
                how |= {"ignore_errors": True, "store_rejects": True}
                types = dict.fromkeys(columns_of(path), "VARCHAR")
                found = self.engine.read_csv(str(path), columns=types, **how)
            cells = {k: found[k] if k in found.columns else ibis.null("string") for k in used}
            file = ibis.literal(str(path))
            tables.append(found.select(**cells, file=file, row=ibis.row_number()))
        return ibis.union(*tables) if len(tables) > 1 else tables[0]

    def _find_faults(self, files: Collection[str]) -> None:
        """Say what is no request and where, and whether the order is that of the times."""
        for file in sorted({*files} - {*self.survey["file"]}):
            self._leave_out(file, -1, 0, "has no requests")
        if files and self.engine.raw_sql(HAS_REJECTED).fetchall():
            lines = self.engine.raw_sql(REJECTED).df().drop_duplicates(["file_path", "line"])
            for file, bad in lines.groupby("file_path"):
                reason = f"line {bad['line'].iloc[0]} is malformed: {bad['error_message'].iloc[0]}"
                self._leave_out(file, -1, len(bad), reason)
        for bad in self.survey[~self.survey["kind"].isin((DONE, EMPTY, OPEN))].to_dict("records"):
            kind, row = bad["kind"], -1 if pd.isna(bad["row"]) else int(bad["row"])
            where = kind if row < 0 else f"{kind} in row {row}"
            given = "missing" if pd.isna(bad["given"]) else _quoted(bad["given"])
            rule = RULES.get(kind, f"must be a finite number of at least {LEAST.get(kind, 0):g}")
            reason = f"{where} is {given}; it {rule}"
            if kind == MALFORMED:
                reason = f"{where}: nothing is in its columns"
            self._leave_out(bad["file"], row, bad["n"], reason)

    def _leave_out(self, file: str, row: int, n: int, reason: str) -> None:
        more = f"; {n} rows are like this" if n > 1 else ""
        self.aside.append({"source": shown(file), "row": row, "n": n, "reason": reason + more})

    def traffic(self, window_s: float) -> pd.DataFrame:
        """Rate and lengths of each window of the log, for :meth:`bayes_sd.Load.read`."""
        n = self.survey.groupby("kind")["n"].sum()
        if DONE not in n and EMPTY in n:
            raise InputError(f"{self.name}: output_tokens is 0 in every row; answers have tokens")
        for bad in self.aside:
            if DONE not in n or bad["n"] > FAILED_SHARE * n.sum():
                raise InputError(f"{bad['source']}: {bad['reason']}")
        windows = self.windows(window_s, (DONE, OPEN))
        for bad in self.aside:
            _warn(f"{bad['source']}: {bad['n']} of {n.sum()} rows left out: {bad['reason']}")
        for kind, does in ((EMPTY, "no output tokens and are left out"), (OPEN, "no answer yet")):
            if kind in n:
                _warn(f"{self.name}: {n[kind]} of {n.sum()} requests have {does}")
        return windows.assign(rate_rps=windows["n"].fillna(0.0) / windows["seconds"])

    def runs(self, configuration: c.Values, window_s: float) -> Rows:
        """Run of each steady window, or why it has none."""
        windows = self.windows(window_s, (DONE, EMPTY, OPEN))
        idle = windows["n"].isna()
        if idle.any():
            first = windows["start_s"][idle].iloc[0]
            yield -1, InputError(f"{idle.sum()} windows, the first from {first:.0f}, are empty")
        for i, window in windows[~idle].iterrows():
            try:
                yield int(i), _run(window, configuration)
            except InputError as error:
                yield int(i), error

    def windows(self, window_s: float, kinds: Collection[str]) -> pd.DataFrame:
        """Statistics of windows of equal length that cover all requests of some kinds."""
        s = self.survey[self.survey["kind"].isin(kinds)]
        n, unit_s = int(s["n"].sum()), self.unit_s
        if not n:
            raise InputError(f"{self.name}: has no rows; two requests at least are needed")
        first_s, last_s = float(s["first"].min()) * unit_s, float(s["last"].max()) * unit_s
        if last_s == first_s:
            says = "all timestamps are equal; a rate needs at least two times"
            raise InputError(f"{self.name}: {says}")
        # The first request opens the log, so that n of them bound only n - 1 of the n gaps.
        span_s = (last_s - first_s) * n / (n - 1)
        if span_s > WINDOWS_MAX * window_s:
            problem = f"more than {WINDOWS_MAX} windows of {window_s:g} s"
            says = f"{span_s:.4g} s are {problem}; are the timestamps in seconds?"
            raise InputError(f"{self.name}: {says}")
        count = max(1, round(span_s / window_s))
        width_s = span_s / count
        grid = Grid(first_s, width_s, count, unit_s)
        rows, ends = self.rows.filter(self.rows.kind.isin(kinds)), [0, count]
        if n > AT_A_TIME:
            sizes = self._execute(rows.group_by(window=grid.window(rows)).agg(n=rows.count()))
            filled = sizes.set_index("window")["n"].reindex(range(count), fill_value=0).cumsum()
            ends = [*np.flatnonzero(np.diff(filled // AT_A_TIME, prepend=-1)), count]
        parts = []
        for start, end in pairwise(map(int, ends)):
            part = rows.filter(grid.between(rows, start, end))
            parts.append(self._execute(statistics(part, grid)))
            if parts[-1]["again"].sum():
                self._leave_out_copies(part)
        windows = pd.concat(parts).set_index("window").reindex(range(count))
        return windows.assign(seconds=width_s, start_s=first_s + width_s * np.arange(count))

    def _leave_out_copies(self, part: Any) -> None:
        """Say which requests are there more than once; :func:`statistics` counts them once."""
        t = part.group_by(_same(part)).agg(n=part.count(), row=part.row.max(), file=part.file.max())
        t = t.filter(t.n > 1).agg(n=(t.n - 1).sum(), row=t.row.min(), file=t.file.min())
        n, row, file = self._execute(t).iloc[0]
        where = "" if pd.isna(row) else f", first in row {row:.0f}"
        reason = f"requests are there twice with the same values{where}; each counts once"
        self._leave_out(file, -1 if pd.isna(row) else int(row), int(n), reason)


def _same(rows: Any) -> list[str]:
    """Columns in which two copies of one request agree."""
    return [k for k in rows.columns if k not in ("file", "row", "given")]


def _number(column: Any) -> Any:
    return column.try_cast("float64") if column.type().is_string() else column.cast("float64")


def _time(column: Any) -> Any:
    """Seconds of dates; numbers as they are; of texts, whichever they hold."""
    kind = column.type()
    if kind.is_string():
        return _number(column).coalesce(_time(column.try_cast("timestamp('UTC')")))
    if kind.is_timestamp() or kind.is_date():
        origin = _ibis().timestamp("1970-01-01")
        return column.cast("timestamp").delta(origin, unit="microsecond") / 1e6
    return _number(column)


def _blank(column: Any) -> Any:
    return column.isnull() | column.isnan() if column.type().is_floating() else column.isnull()


def _checked(raw: Any, names: Mapping[str, str], units: Mapping[str, float]) -> Any:
    """Rows in our columns and units; `kind` says what each is, `given` what its fault is."""
    ibis = _ibis()
    given = {k: raw[theirs] for k, theirs in names.items()}
    blank = {k: _blank(x) for k, x in given.items()}
    value = {k: _number(x) * units.get(k, 1.0) for k, x in given.items() if k in NUMBERS}
    value["timestamp"] = _time(given["timestamp"])
    no = ibis.literal(False)
    running = blank["e2e_s"] if "e2e_s" in given else no
    fits = {k: x.between(LEAST.get(k, 0.0), LARGEST) for k, x in value.items()}
    fits["timestamp"] = value["timestamp"].abs() <= LARGEST
    fits["output_tokens"] |= value["output_tokens"] == 0
    if {"e2e_s", "ttft_s"} <= {*given}:
        fits["ttft_s"] &= (value["ttft_s"] <= value["e2e_s"] * c.ROUNDING).fill_null(True)
    missing = {k: no if k in LOG else blank[k] for k in fits} | {"output_tokens": running}
    bad = {k: ~fit.fill_null(False) & ~(blank[k] & missing[k]) for k, fit in fits.items()}
    kinds = [(ibis.and_(*blank.values()), MALFORMED), *((bad[k], k) for k in INPUTS if k in bad)]
    kinds += [(running, OPEN), (value["output_tokens"] == 0, EMPTY)]
    texts = [(bad[k], given[k].cast("string")) for k in INPUTS if k in bad]
    kind, text = ibis.cases(*kinds, else_=DONE), ibis.cases(*texts, else_=None)
    if "request_id" in given:
        value["request_id"] = given["request_id"].cast("string")
    return raw.select("file", "row", **value, kind=kind, given=text)


def _survey(rows: Any) -> Any:
    """How many rows of each kind there are in each file, where the first is, and when they were."""
    t = rows.mutate(before=rows.timestamp.lag())
    late = (t.timestamp < t.before) & (t.row > 0)
    return t.group_by("file", "kind").agg(
        n=t.count(),
        row=t.row.min(),
        given=t.given.argmin(t.row, where=t.given.notnull()),
        first=t.timestamp.min(),
        last=t.timestamp.max(),
        size=t.timestamp.abs().max(),
        late=late.sum(),
        late_row=t.row.min(where=late),
        back=(t.before - t.timestamp).max(where=late),
    )


@dataclass(frozen=True)
class Grid:
    """Windows of equal width, from the first request on, of times in some unit."""

    first_s: float
    width_s: float
    count: int
    unit_s: float

    def at(self, rows: Any) -> Any:
        """When a request arrived, in windows."""
        return (rows.timestamp * self.unit_s - self.first_s) / self.width_s

    def window(self, rows: Any) -> Any:
        """The window it arrived in."""
        return _ibis().least(self.at(rows).floor().cast("int64"), self.count - 1)

    def between(self, rows: Any, start: int, end: int) -> Any:
        """Whether it arrived in one of some windows; times alone let engines skip the rest."""
        edges = ((self.first_s + k * self.width_s) / self.unit_s for k in (start - 1, end + 1))
        return rows.timestamp.between(*edges) & self.window(rows).between(start, end - 1)


def statistics(rows: Any, grid: Grid) -> Any:
    """All that is kept of the requests of each window, those that are the same row counted once.

    Lengths of answered requests (mean, sample sd), latencies (mean, moments of the log, exact
    percentiles), sums of counts; for each quarter of a window, arrivals and seconds in flight.
    """
    ibis = _ibis()
    t = rows.mutate(copies=1)
    if {"e2e_s", "request_id"} & {*rows.columns}:  # two requests may have one time and lengths
        t = rows.group_by(_same(rows)).agg(copies=rows.count())
    t = t.mutate(window=grid.window(t))
    done = t.kind == DONE
    part = ((grid.at(t) - t.window) * QUARTERS).floor().clip(0, QUARTERS - 1)
    found = {"n": t.count(), "requests": done.sum(), "failed": (t.kind == EMPTY).sum()}
    found["incomplete"] = (t.kind == OPEN).sum()
    found["again"] = (t.copies - 1).sum()
    for name in LENGTHS:
        found |= {name: t[name].mean(where=done), f"{name}_sd": t[name].std(where=done)}
    found |= {k: t[k].sum(where=done) for k in COUNTS if k in t.columns}
    if "e2e_s" in t.columns:
        metrics = {"e2e": t.e2e_s}
        if "ttft_s" in t.columns:
            decode = t.e2e_s - t.ttft_s
            measured = (t.output_tokens > 1) & (decode > 0)
            metrics["ttft"] = t.ttft_s
            metrics["tpot"] = ibis.ifelse(measured, decode / (t.output_tokens - 1), None)
        for m, x in metrics.items():
            log = x.ln()
            found |= {f"{m}_mean_s": x.mean(where=done), f"{m}_log_mean": log.mean(where=done)}
            found |= {f"{m}_log_var": log.var(where=done)}
            found[f"{m}_quantiles"] = x.quantile(list(QUANTILES.values()), where=done)
        for i in range(QUARTERS):
            found |= {
                f"n_{i}": (part == i).sum(),
                f"busy_{i}": t.e2e_s.sum(where=done & (part == i)),
            }
    return t.group_by("window").agg(**found)


def _run(w: pd.Series, configuration: c.Values) -> dict[str, Any]:
    """Row of the run table of one window."""
    parts, width_s, start_s = range(QUARTERS), float(w["seconds"]), float(w["start_s"])
    in_flight = [np.nan, *(np.nan_to_num(w[f"busy_{i}"]) * QUARTERS / width_s for i in parts)]
    arrived = np.cumsum([0, *(w[f"n_{i}"] for i in parts)])
    readings = {(f"{E2E}_count", ""): arrived, (GAUGES[0], ""): in_flight, (GAUGES[1], ""): 0.0}
    times = start_s + width_s / QUARTERS * np.arange(QUARTERS + 1)
    check_steady(Window(pd.DataFrame(readings, times)))
    n = int(w["requests"])
    latencies = {}
    for m in METRICS:
        known = {k: w.get(f"{m}_{k}") for k in ("mean_s", "log_mean", "log_var")}
        known |= dict(zip(QUANTILES, w.get(f"{m}_quantiles"), strict=True))
        latencies[m] = c.record(Latency, {k: x for k, x in known.items() if not c.absent(x)})
    load = {name: w[name] for name in LENGTHS} | {k: int(w[k]) for k in ("failed", "incomplete")}
    if n > 1:
        load |= {f"{name}_sd": w[f"{name}_sd"] * ((n - 1) / n) ** 0.5 for name in LENGTHS}
    load |= {"loop": "open", "rate_rps": w["n"] / width_s, "span_s": width_s}
    load |= {"duration_s": width_s, "requests": n}
    drafting = c.record(Drafting, {k: w[k] for k in COUNTS if not c.absent(w.get(k))})
    row = run_row(configuration, load, latencies, drafting=drafting) | {"detail": True}
    # Two windows may have the same numbers: when they were tells them apart.
    return row | {"run_id": fingerprint({"run": run_id(row), "start_s": start_s})}


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _quoted(given: str) -> str:
    """A cell of a table in a message."""
    try:
        return given[:40] if math.isfinite(float(given)) else given
    except ValueError:
        return repr(given[:40])


def _warn(message: str) -> None:
    warnings.warn(message, EvidenceWarning, stacklevel=4)
