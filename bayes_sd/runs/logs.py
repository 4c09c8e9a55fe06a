"""Logs of single requests, of any size: one Ibis expression cuts them into windows in any engine.

DuckDB reads files, out of core; of a table in a warehouse only the statistics leave its engine.
"""

import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import LARGEST, EvidenceWarning, InputError, shown
from bayes_sd.progress import with_time_left
from bayes_sd.runs import config as c
from bayes_sd.runs import log_files as f
from bayes_sd.runs.consistency import QUANTILES
from bayes_sd.runs.drafting import Drafting
from bayes_sd.runs.rows import (
    FAILED_SHARE,
    METRICS,
    Latency,
    Rows,
    counted,
    rows_of,
    run_id,
    run_row,
)
from bayes_sd.runs.table import LENGTHS, UNITS, WINDOW, Columns, differ, has, require
from bayes_sd.runs.windows import QUARTERS, check_steady

LEAST = {"timestamp": -LARGEST, **dict.fromkeys(LENGTHS, 1.0), "e2e_s": 1e-9, "ttft_s": 1e-9}
RULES = {
    "timestamp": "must be seconds, or a date and time as in 2026-01-31 12:00:00.5",
    "output_tokens": "must be 0 or a finite number of at least 1",
    "ttft_s": "must be a number above 0 and at most e2e_s",
    "malformed line": "has none of the columns",
}
# What a row is: a request that was answered, not at all, or not yet; else where its fault is.
REQUESTS = DONE, EMPTY, OPEN = "", "no output", "in flight"
NAMED_UNIT = re.compile(r"[_ (](ms|us|ns)\)?$")
# Times since 1970 up to the year 5000 are below each of these in its unit.
EPOCHS = {1e11: "s", 1e14: "ms", 1e17: "us", np.inf: "ns"}
WINDOWS_MAX = 1_000_000
AT_A_TIME = 4_000_000  # requests; exact percentiles keep all their values in memory


class Log:
    """A log of requests: files of one format, a data frame or an Ibis table.

    `aside` has source, first row, number and reason of each kind of fault.
    """

    def __init__(self, name: str, sources: Sequence[Any], mapping: Columns, *needed: str) -> None:
        columns = f.columns_of(sources[0])
        differ(columns, name)
        require(mapping, f.INPUTS, columns)
        self.name, names = name, f.names_of(columns, mapping)
        if missing := [k for k in (*f.LOG, *needed) if k not in names]:
            rule = f"a log of requests has {', '.join((*f.LOG, *needed))}"
            rule += "" if needed else f", a table of windows {', '.join(WINDOW)}"
            raise InputError(f"{name}: no column {', '.join(missing)}; {rule}; {has(columns)}")
        self.aside: list[dict[str, Any]] = []
        factors = {k: factor for k, (_, factor) in mapping.items() if factor is not None}
        kept = f.is_lazy(sources[0])
        self._own, self._engine = not kept, sources[0].get_backend() if kept else f.duckdb()
        with f.in_words(name):
            must = [names[k] for k in (*f.LOG, "e2e_s") if k in names]
            f.need_alike(self._engine, sources, must)
            self._rows = _checked(f.read(self._engine, name, sources, names), names, factors)
            if not (kept or f.is_parquet(sources[0])):  # texts are parsed once
                self._rows = self._engine.create_table("requests", self._rows, temp=True)
            self._survey = self._engine.execute(_survey(self._rows)).sort_values(["file", "row"])
            self._find_faults({str(x) for x in sources if isinstance(x, Path)})
        named = NAMED_UNIT.search(names["timestamp"])
        size = self._survey.loc[self._survey["kind"].isin(REQUESTS), "size"].max()
        unit = next((unit for most, unit in EPOCHS.items() if size < most), "s")
        unit = "ms" if "hash_ids" in columns else str(named[1]) if named else unit  # Mooncake's
        self._unit_s = factors.get("timestamp", UNITS[unit])
        if len(late := self._survey[self._survey["late"] > 0]):
            n, back_s = late["late"].sum(), late["back"].max() * self._unit_s
            file, row = late[["file", "late_row"]].iloc[0]
            what = f"{n:.0f} requests are earlier than the one above (by up to {back_s:.4g} s"
            where = f"first in row {self._row(file, row)}); each counts at its time"
            _warn(f"{file}: {what}, {where}")

    def _find_faults(self, files: Collection[str]) -> None:
        """Say what is no request, how often and where first."""
        for file in sorted({*files} - {*self._survey["file"]}):
            self._leave_out(file, math.nan, 0, "has no requests")
        self._lines = f.malformed_lines(self._engine if files else None)
        for path, bad in self._lines.groupby("file_path"):
            line, why = (bad[k].iloc[0] for k in ("line", "error_message"))
            self._leave_out(path, math.nan, bad["n"].sum(), f"line {line} is malformed: {why}")
        faults = self._survey[~self._survey["kind"].isin(REQUESTS)]
        for file, kind, n, row, given in faults[["file", "kind", "n", "row", "given"]].to_numpy():
            rule = f"must be a finite number of at least {LEAST.get(kind, 0.0):g}"
            what = "missing" if pd.isna(given) else given[:40]
            self._leave_out(file, row, n, f"{kind}{{}} is {what}; it {RULES.get(kind, rule)}")

    def _leave_out(self, file: Any, row: Any, n: Any, reason: str) -> None:
        """Set rows aside; ``{}`` in the reason is for where the first one is."""
        row = -1 if pd.isna(row) else self._row(file, row)
        reason = reason.replace("{}", f" in row {row}" if row >= 0 else "", 1)
        reason = shown(reason + (f"; {n} rows are like this" if n > 1 else ""))
        self.aside.append({"source": shown(file), "row": row, "n": int(n), "reason": reason})

    def _row(self, file: str, row: float) -> int:
        """Where a row of those that could be read is in its file."""
        for line in self._lines["line"][self._lines["file_path"] == file]:
            row += line - 2 <= row
        return int(row)

    def traffic(self, window_s: float) -> pd.DataFrame:
        """Rate and lengths of each window of the log, see :meth:`bayes_sd.Load.read`."""
        n = self._survey.groupby("kind")["n"].sum()
        if DONE not in n and EMPTY in n:
            raise InputError(f"{self.name}: output_tokens is 0 in every row; answers have tokens")
        if DONE not in n and OPEN in n:
            raise InputError(f"{self.name}: e2e_s is missing in every row; answers have a latency")
        for bad in self.aside:
            if DONE not in n or bad["n"] > FAILED_SHARE * n.sum():
                raise InputError(f"{bad['source']}: {bad['reason']}")
        windows = self.windows(window_s, (DONE, OPEN))
        busy, last = windows[windows["requests"] > 0], windows["requests"] == 0
        for k in LENGTHS:  # where no request has an answer yet
            windows.loc[last, k] = np.average(busy[k], weights=busy["requests"])
        for bad in self.aside:
            what = f"{bad['n']} of {n.sum()} rows are left out: " if bad["n"] else ""
            _warn(f"{bad['source']}: {what}{bad['reason']}")
        for kind, how in ((EMPTY, "no output tokens and are left out"), (OPEN, "no answer yet")):
            if kind in n:
                _warn(f"{self.name}: {n[kind]} of {n.sum()} requests have {how}")
        return windows.assign(rate_rps=windows["n"].fillna(0.0) / windows["seconds"])

    def runs(self, configuration: c.Values, window_s: float) -> Rows:
        """Run of each steady window, or why it has none."""
        faults = sum(bad["n"] for bad in self.aside)
        n = int(self._survey["n"].sum() + self._lines["n"].sum())
        if faults > FAILED_SHARE * n:
            yield -1, InputError(f"{faults} of {n} rows are no requests; its rates are not known")
            return
        windows = self.windows(window_s, REQUESTS)
        if len(idle := windows["start_s"][windows["n"].isna()]):
            first = f"the first from {idle.iloc[0]:.0f}"
            yield -1, InputError(f"{len(idle)} windows, {first}, have no requests")
        busy = ((i, x) for i, x in enumerate(windows.to_dict("records")) if x["n"] > 0)
        yield from rows_of(busy, lambda window: _run(window, configuration))

    def windows(self, window_s: float, kinds: Collection[str]) -> pd.DataFrame:
        """Statistics of windows of equal length that cover all requests of some kinds."""
        import ibis

        survey = self._survey[self._survey["kind"].isin(kinds)]
        n, unit_s = int(survey["n"].sum()), self._unit_s
        first_s, last_s = survey["first"].min() * unit_s, survey["last"].max() * unit_s
        if n < 2 or last_s == first_s:
            few = {0: "it has no requests", 1: "it has one request"}
            what = few.get(n, "all timestamps are equal")
            raise InputError(f"{self.name}: {what}; a rate needs at least two times")
        # The first request opens the log, so that n of them bound only n - 1 of the n gaps.
        span_s = (last_s - first_s) * n / (n - 1)
        if span_s > WINDOWS_MAX * window_s:
            what = f"timestamps from {first_s:.10g} to {last_s:.10g} s"
            what += f" are more than {WINDOWS_MAX} windows of {window_s:g} s"
            raise InputError(f"{self.name}: {what}; are they all in seconds?")
        count = max(1, round(span_s / window_s))
        width_s = span_s / count
        rows = self._rows.filter(self._rows.kind.isin(kinds))
        if (self._survey["kind"] == DONE).all():  # so it need not be found out again
            rows = self._rows.mutate(kind=ibis.literal(DONE))
        at = (rows.timestamp * unit_s - first_s) / width_s
        rows = rows.mutate(at=at, window=at.floor().cast("int64").clip(upper=count - 1))
        ends, parts = [0, count], []
        with f.in_words(self.name):
            copies = self._may_have_copies(rows)
            if n > AT_A_TIME:
                sizes = self._engine.execute(rows.group_by("window").agg(n=rows.count()))
                before = sizes.set_index("window")["n"].reindex(range(count), fill_value=0).cumsum()
                ends = [*np.flatnonzero(np.diff(before // AT_A_TIME, prepend=-1)), count]
                if self._own:  # the bar of all parts instead
                    f.own_bar(self._engine, False)
            spans = pairwise(map(int, ends))
            for start, end in with_time_left(spans, len(ends) - 1, f"reading {self.name}"):
                # The times themselves let an engine skip what is stored elsewhere.
                low, high = ((first_s + k * width_s) / unit_s for k in (start - 1, end + 1))
                near = rows.window.between(start, end - 1) & rows.timestamp.between(low, high)
                part = rows.filter(near)
                parts.append(self._engine.execute(statistics(part, copies)))
                if parts[-1]["again"].sum():
                    self._find_copies(part)
        windows = pd.concat(parts).set_index("window").reindex(range(count))
        return windows.assign(seconds=width_s, start_s=first_s + width_s * np.arange(count))

    def _may_have_copies(self, rows: Any) -> bool:
        """Whether to look for copies; in a log in order there are none without equal times."""
        if not {"e2e_s", "request_id"} & {*rows.columns}:
            return False  # two requests may have one time and the same lengths
        s = self._survey
        files = s.groupby("file").agg({"first": "min", "last": "max"}).sort_values("first")
        overlap = files["first"].shift(-1) <= files["last"].cummax()
        faults = s["row"].isna() | ~s["kind"].isin(REQUESTS)
        if faults.any() or s["late"].any() or overlap.any():
            return True
        t = rows.mutate(before=rows.timestamp.lag(), after=rows.timestamp.lead())
        t = t.filter((t.timestamp == t.before) | (t.timestamp == t.after))
        t = t.group_by(_same(rows)).agg(n=t.count())
        return bool(self._engine.execute((t.n > 1).any().fill_null(False)))

    def _find_copies(self, rows: Any) -> None:
        """Say which requests are there more than once; :func:`statistics` counts them once."""
        t = rows.group_by(_same(rows)).agg(n=rows.count(), row=rows.row.max(), file=rows.file.max())
        t = t.filter(t.n > 1).agg(n=(t.n - 1).sum(), row=t.row.min(), file=t.file.min())
        n, row, file = self._engine.execute(t).iloc[0]
        reason = "a request{} was there before with the same values; it counts once"
        self._leave_out(file, row, n, reason)


def _same(rows: Any) -> list[str]:
    """Columns in which two copies of one request agree."""
    return [k for k in rows.columns if k not in ("file", "row", "given")]


def _number(column: Any) -> Any:
    return column.try_cast("float64") if column.type().is_string() else column.cast("float64")


def _may_be_nan(kind: Any) -> bool:
    return kind.is_floating() or kind.is_string()


def _time(column: Any) -> Any:
    """Seconds of dates; numbers as they are; of texts, whichever they hold."""
    import ibis

    kind = column.type()
    if kind.is_string():
        return _number(column).coalesce(_time(column.try_cast("timestamp('UTC')")))
    if kind.is_timestamp() or kind.is_date() or kind.is_unknown():  # nanoseconds with a zone
        since = column.cast("timestamp").delta(ibis.timestamp("1970-01-01"), unit="microsecond")
        return since / 1e6
    return _number(column)


def _checked(raw: Any, names: Mapping[str, str], factors: Mapping[str, float]) -> Any:
    """Rows in our columns and units; `kind` says what each is, `given` what its fault is."""
    import ibis

    given = {k: raw[names[k]] for k in f.INPUTS if k in names}
    blank = {k: x.isnull() for k, x in given.items()}
    numbers = {k: x for k, x in given.items() if k in f.NUMBERS[1:]}  # Python writes NaN as text
    numbers = {k: _number(x) for k, x in numbers.items() if _may_be_nan(x.type())}
    blank |= {k: blank[k] | x.isnan().fill_null(False) for k, x in numbers.items()}
    value = {k: _number(x) * factors.get(k, 1.0) for k, x in given.items() if k in f.NUMBERS}
    value["timestamp"] = _time(given["timestamp"])
    open_ = blank.get("e2e_s", ibis.literal(False))
    fits = {k: x.between(LEAST.get(k, 0.0), LARGEST) for k, x in value.items()}
    fits["output_tokens"] |= value["output_tokens"] == 0
    if {"e2e_s", "ttft_s"} <= value.keys():
        fits["ttft_s"] &= open_ | (value["ttft_s"] <= value["e2e_s"] * c.ROUNDING)
    may = {**blank, "timestamp": False, "prompt_tokens": False}
    may["output_tokens"] = blank["output_tokens"] & open_
    bad = {k: ~(fit.fill_null(False) | may[k]) for k, fit in fits.items()}
    kinds = [(ibis.and_(*blank.values()), "malformed line"), *((bad[k], k) for k in bad)]
    kinds += [(open_, OPEN), (value["output_tokens"] == 0, EMPTY)]
    text = ibis.cases(*((bad[k], given[k].cast("string")) for k in bad), else_=None)
    value |= {k: given[k].cast("string") for k in given if k not in f.NUMBERS}
    return raw.select("file", "row", **value, kind=ibis.cases(*kinds, else_=DONE), given=text)


def _survey(rows: Any) -> Any:
    """How many rows of each kind each file has, where the first is, and when they were."""
    t = rows.mutate(before=rows.timestamp.lag())
    late, time = (t.timestamp < t.before) & (t.row > 0), t.timestamp
    found = {"n": t.count(), "row": t.row.min(), "late": late.sum()}
    found |= {"first": time.min(), "last": time.max(), "size": time.abs().max()}
    found |= {"late_row": t.row.min(where=late), "back": (t.before - time).max(where=late)}
    found["given"] = t.given.argmin(t.row.fill_null(0), where=t.given.notnull())
    return t.group_by("file", "kind").agg(**found)


def statistics(rows: Any, copies: bool = True) -> Any:
    """All that is kept of the requests of each window; where there may be copies they count once.

    Lengths of answered requests (mean, sample sd), latencies (mean, moments of the log, exact
    percentiles), sums of counts; for each quarter of a window, arrivals and seconds in flight.
    """
    import ibis

    t = rows.mutate(copies=1)
    if copies:
        t = rows.group_by(_same(rows)).agg(copies=rows.count())
    done = t.kind == DONE
    known = {k: ibis.ifelse(done, t[k], None) for k in f.NUMBERS[1:] if k in t.columns}
    quarter = ((t.at - t.window) * QUARTERS).floor().clip(upper=QUARTERS - 1)
    t = t.mutate(**known, quarter=quarter)
    timed = ("e2e", "ttft") if "e2e_s" in t.columns else ()
    metrics = {m: t[f"{m}_s"] for m in timed if f"{m}_s" in t.columns}
    if len(metrics) == 2:
        decode_s = t.e2e_s - t.ttft_s
        measured = (t.output_tokens > 1) & (decode_s > 0)
        metrics["tpot"] = ibis.ifelse(measured, decode_s / (t.output_tokens - 1), None)
    found = {"n": t.count(), "requests": (t.kind == DONE).sum(), "again": (t.copies - 1).sum()}
    found |= {"failed": (t.kind == EMPTY).sum(), "incomplete": (t.kind == OPEN).sum()}
    found |= {k: t[k].mean() for k in LENGTHS} | {f"{k}_sd": t[k].std() for k in LENGTHS}
    found |= {k: t[k].sum() for k in f.COUNTS if k in t.columns}
    for m, x in metrics.items():
        found |= {f"{m}_mean_s": x.mean(), f"{m}_log_mean": x.ln().mean()}
        found |= {f"{m}_log_var": x.ln().var(), f"{m}_at": x.quantile(list(QUANTILES.values()))}
        found |= {f"n_{i}": (t.quarter == i).sum() for i in range(QUARTERS)}
        found |= {f"busy_{i}": t.e2e_s.sum(where=t.quarter == i) for i in range(QUARTERS)}
    return t.group_by("window").agg(**found)


def _run(w: Mapping[Any, Any], configuration: c.Values) -> dict[str, Any]:
    """Row of the run table of one window."""
    width_s, start_s, n = w["seconds"], w["start_s"], int(w["requests"])
    arrived = np.cumsum([0, *(w[f"n_{i}"] for i in range(QUARTERS))])
    busy_s = np.nan_to_num([w[f"busy_{i}"] for i in range(QUARTERS)])
    times = start_s + width_s / QUARTERS * np.arange(QUARTERS + 1)
    check_steady(times, arrived, busy_s * QUARTERS / width_s)
    latencies = {}
    for m in METRICS:
        known = {k: w.get(f"{m}_{k}") for k in ("mean_s", "log_mean", "log_var")}
        if not c.absent(known["mean_s"]):
            known |= dict(zip(QUANTILES, w[f"{m}_at"], strict=True))
        latencies[m] = c.record(Latency, {k: x for k, x in known.items() if not c.absent(x)})
    load = counted(n, w["failed"], width_s) | {k: w[k] for k in (*LENGTHS, "incomplete")}
    load |= {f"{k}_sd": w[f"{k}_sd"] * (1 - 1 / n) ** 0.5 for k in LENGTHS if n > 1}
    load |= {"loop": "open", "rate_rps": w["n"] / width_s, "span_s": width_s}
    drafting = c.record(Drafting, {k: w[k] for k in f.COUNTS if not c.absent(w.get(k))})
    row = run_row(configuration, load, latencies, drafting=drafting) | {"detail": True}
    return row | {"run_id": run_id(row, start_s)}


def _warn(message: str) -> None:
    warnings.warn(shown(message), EvidenceWarning, stacklevel=4)
