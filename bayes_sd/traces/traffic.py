"""Traffic as windows of time: how many requests come, and how long prompts and answers are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.traces.table import Source, load_table

if TYPE_CHECKING:
    import xarray as xr

LENGTHS = ("prompt_tokens", "output_tokens")
TABLE = ("rate_rps", *LENGTHS)
LOG = ("timestamp", *LENGTHS)
SPREADS = tuple(f"{name}_sd" for name in LENGTHS)
COLUMNS = (*TABLE, *SPREADS, "seconds")
# Azure's public logs are read as they are.
HEADERS = {
    "timestamp": "TIMESTAMP",
    "prompt_tokens": "ContextTokens",
    "output_tokens": "GeneratedTokens",
}
WINDOWS_MAX = 1_000_000


@dataclass(frozen=True, eq=False, repr=False)
class Traffic:
    """Requests over time, as windows in each of which the load is steady.

    Parameters
    ----------
    windows : pandas.DataFrame
        A row a window: ``rate_rps``; ``prompt_tokens`` and ``output_tokens`` (means; missing only
        where the rate is 0); and if known ``prompt_tokens_sd``, ``output_tokens_sd`` (between the
        requests of a window) and ``seconds`` (by default all windows are alike: 1). A window at
        rate 0 brings no request, but its time is paid for.
    name : str
        What errors and answers call it.

    Raises
    ------
    InputError
        If a column is missing or a value is out of range; names the column and the row, counted
        from 0.

    Examples
    --------
    >>> import pandas as pd
    >>> day_and_night = pd.DataFrame(
    ...     {"rate_rps": [8.0, 1.0], "prompt_tokens": 500, "output_tokens": 200, "seconds": 43200}
    ... )
    >>> Traffic(day_and_night, "a day")
    a day: 388800 requests in 86400 s, 4.5 requests/s (peak 8), 500 + 200 tokens, 2 windows
    """

    windows: pd.DataFrame
    name: str = "traffic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", _checked(self.windows, self.name))

    def __repr__(self) -> str:
        w, prompt, output = self.windows, *(self._mean(name) for name in LENGTHS)
        idle = int((w["rate_rps"] == 0).sum())
        return (
            f"{self.name}: {self.requests:.0f} requests in {self.seconds:.0f} s, "
            f"{self.mean_rps:.3g} requests/s (peak {w['rate_rps'].max():.3g}), "
            f"{prompt:.0f} + {output:.0f} tokens, {len(w)} windows"
            + (f", {idle} of them without requests" if idle else "")
        )

    @staticmethod
    def constant(rps: float, prompt: float, output: float) -> "Traffic":
        """One load all the time.

        Parameters
        ----------
        rps : float
            Requests/s, above 0.
        prompt, output : float
            Tokens of a request.

        Examples
        --------
        >>> Traffic.constant(2.0, prompt=500, output=200).requests
        2.0
        """
        row = {"rate_rps": rps, "prompt_tokens": prompt, "output_tokens": output, "seconds": 1.0}
        return Traffic(pd.DataFrame([row]), f"{rps:g} requests/s")

    @property
    def seconds(self) -> float:
        """Time covered, windows without requests included."""
        return float(self.windows["seconds"].sum())

    @property
    def requests(self) -> float:
        """Requests in that time."""
        return float((self.windows["rate_rps"] * self.windows["seconds"]).sum())

    @property
    def mean_rps(self) -> float:
        """Requests/s over all the time."""
        return self.requests / self.seconds

    @property
    def output_tokens(self) -> float:
        """Tokens of all answers together."""
        return self.requests * self._mean("output_tokens")

    @property
    def shares(self) -> np.ndarray:
        """Share of all requests by window of :meth:`load`."""
        busy = self._busy()
        requests = busy["rate_rps"] * busy["seconds"]
        return (requests / requests.sum()).to_numpy()

    def load(self) -> "xr.Dataset":
        """The windows with requests, as a load to ask a fit about; dim ``window``.

        A window whose spread of lengths is not known (a single request has none) gets the relative
        spread of those where it is; where none is known it is left out.
        """
        import xarray as xr

        busy = self._busy()
        data = {name: ("window", busy[name].to_numpy(float)) for name in TABLE}
        for name in LENGTHS:
            cv = _relative_spread(busy, name)
            if cv is not None:
                data[name.replace("tokens", "cv")] = ("window", cv)
        return xr.Dataset(data)

    def scaled(self, factor: float) -> "Traffic":
        """The same traffic at `factor` times the rates.

        Examples
        --------
        >>> Traffic.constant(2.0, prompt=500, output=200).scaled(1.5).mean_rps
        3.0
        """
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(f"factor = {factor!r}: must be a positive number.")
        w = self.windows.assign(rate_rps=self.windows["rate_rps"] * factor)
        return Traffic(w, f"{factor:g} x {self.name}")

    def thin(self, windows: int) -> "Traffic":
        """Fewer windows that stand for all: time, requests and tokens stay what they are.

        Windows are sorted by their tokens a second and joined in groups of equal numbers of
        requests. What lengths differ between the windows of a group becomes part of its spread of
        lengths. The fullest window stays alone, since it saturates first, and all the time without
        requests becomes one window.

        Parameters
        ----------
        windows : int
            With requests, at least 2.
        """
        busy = self._busy()
        if not (isinstance(windows, int) and windows >= 2):
            raise InputError(f"windows = {windows!r}: must be a whole number of at least 2.")
        if len(busy) <= windows:
            return self
        tokens_per_s = busy["rate_rps"] * (busy["prompt_tokens"] + busy["output_tokens"])
        busy = busy.assign(
            **{f"{name}_cv": _relative_spread(busy, name) for name in LENGTHS},
            requests=busy["rate_rps"] * busy["seconds"],
        ).iloc[np.argsort(tokens_per_s.to_numpy(), kind="stable")]
        requests = busy["requests"].to_numpy()[:-1]
        middle = (np.cumsum(requests) - requests / 2) / requests.sum()
        group = np.append(np.floor(middle * (windows - 1)), windows)
        parts: dict[str, Any] = {"seconds": busy["seconds"], "requests": busy["requests"]}
        for name in LENGTHS:
            square = busy[name] ** 2 * (1 + busy[f"{name}_cv"].fillna(0.0).astype(float) ** 2)
            parts |= {name: busy["requests"] * busy[name], f"{name}_sd": busy["requests"] * square}
        total = pd.DataFrame(parts).groupby(group).sum()
        joined = pd.DataFrame(
            {"seconds": total["seconds"], "rate_rps": total["requests"] / total["seconds"]}
        )
        for name in LENGTHS:
            joined[name] = total[name] / total["requests"]
            variance = total[f"{name}_sd"] / total["requests"] - joined[name] ** 2
            joined[f"{name}_sd"] = np.sqrt(variance.clip(lower=0.0))
        idle = self.windows.loc[self.windows["rate_rps"] == 0, "seconds"].sum()
        if idle > 0:
            joined = pd.concat(
                [joined, pd.DataFrame([{"seconds": idle, "rate_rps": 0.0}])], ignore_index=True
            )
        return Traffic(joined, self.name)

    def _busy(self) -> pd.DataFrame:
        return self.windows[self.windows["rate_rps"] > 0]

    def _mean(self, name: str) -> float:
        """Of a length, over requests."""
        busy = self._busy()
        return float(np.average(busy[name], weights=busy["rate_rps"] * busy["seconds"]))


def read_traffic(
    source: Source, window_s: float = 60.0, columns: Mapping[str, str] | None = None
) -> Traffic:
    """Read traffic from a table of windows or a log of requests.

    Parameters
    ----------
    source : path or pandas.DataFrame
        A CSV file or a table. With a column ``rate_rps`` it has a window a row, see
        :class:`Traffic`. Otherwise it has a request a row, in order of ``timestamp`` (seconds, or
        ISO 8601), with ``prompt_tokens`` and ``output_tokens``; Azure's public logs are read as
        they are.
    window_s : float
        Length of the windows a log is cut into, seconds; changed as little as makes a whole number
        of them cover the log. Load is taken to be steady in a window, so it should be longer than
        requests are served; the shorter, the more of chance in arrivals counts as load.
    columns : mapping, optional
        Our column name to theirs.

    Returns
    -------
    Traffic

    Raises
    ------
    InputError
        If the file cannot be used; names the column and the row, counted from 0.

    Examples
    --------
    >>> log = pd.DataFrame({"timestamp": [0, 1, 2, 9], "in": [100, 300, 200, 50], "out": 20})
    >>> found = read_traffic(log, 4, {"prompt_tokens": "in", "output_tokens": "out"})
    >>> found.windows[["rate_rps", "prompt_tokens", "seconds"]]
       rate_rps  prompt_tokens  seconds
    0      0.75          200.0      4.0
    1      0.00            NaN      4.0
    2      0.25           50.0      4.0
    """
    if not (np.isfinite(window_s) and window_s > 0):
        raise InputError(f"window_s = {window_s!r}: must be a positive number of seconds.")
    table, name = load_table(source)
    if not table.columns.is_unique:
        twice = ", ".join(map(str, table.columns[table.columns.duplicated()]))
        raise InputError(f"{name}: two columns are called {twice}; names must differ.")
    names = dict(columns or {})
    for ours, theirs in names.items():
        if ours not in (*COLUMNS, "timestamp"):
            known = ", ".join((*COLUMNS, "timestamp"))
            raise InputError(f"columns has the unknown name {ours!r}; known are {known}.")
        if theirs not in table.columns:
            raise InputError(f"{name}: no column {theirs!r}, which columns names; {_has(table)}.")
    for ours, theirs in HEADERS.items():
        if ours not in table.columns and theirs in table.columns:
            names.setdefault(ours, theirs)
    own = pd.DataFrame(
        {c: table[names.get(c, c)] for c in (*COLUMNS, "timestamp") if names.get(c, c) in table}
    )
    if "rate_rps" in own:
        return Traffic(own.drop(columns="timestamp", errors="ignore"), name)
    missing = [c for c in LOG if c not in own]
    if missing:
        raise InputError(
            f"{name}: no column {', '.join(missing)}; a log of requests has {', '.join(LOG)}, a "
            f"table of windows {', '.join(TABLE)}; {_has(table)}."
        )
    return Traffic(_windows(own, window_s, name), name)


def _has(table: pd.DataFrame) -> str:
    return f"the table has {', '.join(map(str, table.columns))}"


def _windows(log: pd.DataFrame, window_s: float, name: str) -> pd.DataFrame:
    """Requests counted and averaged by window."""
    if log.empty:
        raise InputError(f"{name}: has no rows; at least two requests are needed.")
    at = _seconds(log["timestamp"], name)
    back = np.flatnonzero(np.diff(at) < 0)
    if back.size:
        raise InputError(
            f"{name}: timestamp in row {back[0] + 1} is before that of the row above; "
            "rows must be in order of time."
        )
    lengths = {c: _numbers(log[c], c, name, 1.0) for c in LENGTHS}
    if at[-1] == at[0]:
        raise InputError(f"{name}: all timestamps are equal; a rate needs two times at least.")
    # The first request opens the log, so that n of them bound only n - 1 of the n gaps.
    span = (at[-1] - at[0]) * len(at) / (len(at) - 1)
    count = max(1, round(span / window_s))
    if count > WINDOWS_MAX:
        raise InputError(
            f"{name}: timestamp spans {span:.4g} s, which are {count} windows of {window_s:g} s; "
            f"at most {WINDOWS_MAX} are allowed (are the timestamps in seconds?)."
        )
    width = span / count
    own = np.minimum(((at - at[0]) / width).astype(int), count - 1)
    requests = np.bincount(own, minlength=count)
    result = pd.DataFrame({"rate_rps": requests / width, "seconds": width})
    with np.errstate(invalid="ignore", divide="ignore"):
        for c, values in lengths.items():
            mean = np.bincount(own, values, count) / requests
            squares = np.bincount(own, (values - mean[own]) ** 2, count)
            result[c] = mean
            result[f"{c}_sd"] = np.where(requests > 1, np.sqrt(squares / (requests - 1)), np.nan)
    return result


def _seconds(column: pd.Series, name: str) -> np.ndarray:
    """Times in seconds, of numbers or of dates."""
    if pd.api.types.is_datetime64_any_dtype(column):
        number = pd.Series(np.nan, column.index)
    else:
        number = pd.to_numeric(column, errors="coerce")
    if number.notna().any():
        return _numbers(column, "timestamp", name, -np.inf)
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise InputError(
            f"{name}: timestamp in row {row} is {column.iloc[row]!r}; it must be seconds, or a "
            "date and time as in 2026-01-31 12:00:00.5."
        )
    return (dates - dates.iloc[0]).dt.total_seconds().to_numpy()


def _numbers(
    column: pd.Series,
    field: str,
    name: str,
    least: float,
    above: bool = False,
    may_lack: np.ndarray | None = None,
) -> np.ndarray:
    """Finite numbers of at least `least` (or `above` it), missing only where that is allowed."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    within = np.isfinite(values) & ((values > least) if above else (values >= least))
    if may_lack is not None:
        within |= column.isna().to_numpy() & may_lack
    if not within.all():
        row = int((~within).argmax())
        bound = f" {'above' if above else 'of at least'} {least:g}" if np.isfinite(least) else ""
        given = "missing" if pd.isna(column.iloc[row]) else str(column.iloc[row])
        raise InputError(
            f"{name}: {field} in row {row} is {given}; it must be a finite number{bound}."
        )
    return values


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    missing = [c for c in TABLE if c not in table]
    if missing:
        raise InputError(
            f"{name}: no column {', '.join(missing)}; a table of windows has {', '.join(TABLE)} "
            f"and may have {', '.join((*SPREADS, 'seconds'))}."
        )
    if table.empty:
        raise InputError(f"{name}: has no rows; at least one window with requests is needed.")
    rate = _numbers(table["rate_rps"], "rate_rps", name, 0.0)
    result = {"rate_rps": rate}
    for c in LENGTHS:
        result[c] = _numbers(table[c], c, name, 1.0, may_lack=rate == 0)
        sd = f"{c}_sd"
        if sd in table:
            result[sd] = _numbers(table[sd], sd, name, 0.0, may_lack=np.ones(len(rate), bool))
    seconds = table["seconds"] if "seconds" in table else pd.Series(1.0, table.index)
    result["seconds"] = _numbers(seconds, "seconds", name, 0.0, above=True)
    if not rate.any():
        raise InputError(f"{name}: rate_rps is 0 in every row; one window must have requests.")
    return pd.DataFrame(result)


def _relative_spread(busy: pd.DataFrame, name: str) -> np.ndarray | None:
    """Standard deviation of a length over its mean by window; None where no window knows it."""
    if f"{name}_sd" not in busy or busy[f"{name}_sd"].isna().all():
        return None
    mean, sd = busy[name].to_numpy(), busy[f"{name}_sd"].to_numpy()
    requests = (busy["rate_rps"] * busy["seconds"]).to_numpy() * ~np.isnan(sd)
    typical = np.sqrt((requests * np.nan_to_num(sd) ** 2).sum() / (requests * mean**2).sum())
    return np.where(np.isnan(sd), typical, sd / mean)
