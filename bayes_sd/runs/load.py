"""Loads to ask about: a grid of rates or concurrencies and lengths, or traffic over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.errors import LARGEST, SMALLEST, InputError, require, shown
from bayes_sd.runs import log_files, logs
from bayes_sd.runs.read import find_files
from bayes_sd.runs.table import LENGTHS, Mapped, Source, checked, factors_of, read_windows

if TYPE_CHECKING:
    import xarray as xr

Numbers = float | Sequence[float] | np.ndarray


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Load:
    """What is asked of a server: how many requests, and how long prompts and answers are.

    Every list becomes a dimension, every number holds everywhere. `Load.read` makes a load of
    windows of time instead, from a table or a log of requests.

    Parameters
    ----------
    rps, concurrency : float or sequence
        Either the offered rate, requests/s, or the requests kept in flight, at least 1.
    prompt, output : float or sequence
        Prompt and output tokens of a request, at least 1.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> load = bsd.Load(rps=[1, 2, 4], prompt=512, output=[64, 256])
    >>> print(load)
    1, 2, 4 requests/s of 512 + 64, 256 tokens
    >>> dict(load.cells.sizes)
    {'rate_rps': 3, 'output_tokens': 2}
    """

    name: str
    _cells: "xr.Dataset"
    _windows: pd.DataFrame  # empty unless traffic

    def __init__(
        self,
        *,
        rps: Numbers | None = None,
        concurrency: Numbers | None = None,
        prompt: Numbers,
        output: Numbers,
    ) -> None:
        if (rps is None) == (concurrency is None):
            units = "rps (requests/s) and concurrency (requests in flight)"
            raise InputError(f"a load needs exactly one of {units}")
        axes = [("rate_rps", "rps", rps, 0.0), ("concurrency", "concurrency", concurrency, 1.0)]
        axes = [axis for axis in axes if axis[2] is not None]
        axes += [("prompt_tokens", "prompt", prompt, 1.0), ("output_tokens", "output", output, 1.0)]
        self._set("", {axis[0]: _axis(*axis) for axis in axes}, pd.DataFrame())

    def _set(self, name: str, cells: Mapping[str, Any], windows: pd.DataFrame) -> "Load":
        import xarray as xr

        vars(self).update(name=name, _cells=xr.Dataset(cells), _windows=windows)
        return self

    @classmethod
    def read(
        cls, source: Source, window_s: float = 60.0, columns: Mapping[str, Mapped] | None = None
    ) -> "Load":
        """Read traffic from a table of windows or a log of requests.

        Parameters
        ----------
        source : path, folder, pattern, pandas.DataFrame or ibis.Table
            Files (Parquet, CSV or JSON lines) or a table. With a column ``rate_rps`` it has a
            window a row, with ``prompt_tokens`` and ``output_tokens`` (means, missing only where
            the rate is 0) and, if known, ``prompt_tokens_sd``, ``output_tokens_sd`` and ``seconds``
            (by default all windows are alike). Otherwise it has a request a row: ``timestamp`` (ISO
            8601, or seconds; ms, us or ns where its header ends so, or where times since 1970 have
            that size) and both lengths. What is no request is left out with a warning, and refused
            where it is over 5%. The public logs of Azure, BurstGPT and Mooncake are read as they
            are.
        window_s : float
            Seconds of the windows a log is cut into; the load is taken to be steady in each.
        columns : mapping, optional
            Our column name to theirs, or to (theirs, unit) as in :func:`bayes_sd.read`.

        Examples
        --------
        >>> log = pd.DataFrame({"timestamp": [0, 1, 2, 9], "in": [100, 300, 200, 50], "out": 20})
        >>> traffic = Load.read(log, 4, {"prompt_tokens": "in", "output_tokens": "out"})
        >>> traffic.windows[["rate_rps", "prompt_tokens", "seconds"]]
           rate_rps  prompt_tokens  seconds
        0      0.75          200.0      4.0
        1      0.00            NaN      4.0
        2      0.25           50.0      4.0
        """
        if not (isinstance(window_s, Real) and 0 < window_s <= LARGEST):
            raise InputError(f"window_s must be a positive number of seconds, got {window_s!r}")
        sources, name, mapping = [source], "table", factors_of(columns)
        if isinstance(source, str | Path):
            sources, name = find_files(source), shown(str(source))
        there = log_files.columns_of(sources[0])
        if not there or "rate_rps" in (*there, *mapping):
            if there and len(sources) > 1:
                raise InputError(f"{name}: has {len(sources)} files; a table of windows is one")
            first = name if len(sources) == 1 else shown(str(sources[0]))
            return cls._traffic(name, read_windows(sources[0], first, mapping))
        log = logs.Log(name, sources, mapping)
        return cls._traffic(name, checked(log.traffic(window_s), name))

    @classmethod
    def _traffic(cls, name: str, windows: pd.DataFrame) -> "Load":
        busy = _with_requests(windows)
        cells = {c: ("window", busy[c].to_numpy(float)) for c in ("rate_rps", *LENGTHS)}
        for length in LENGTHS:
            if (cv := _relative_spread(busy, length)) is not None:
                cells[length.replace("tokens", "cv")] = ("window", cv)
        return object.__new__(cls)._set(name, cells, windows)

    def __str__(self) -> str:
        if not self.is_traffic:
            unit = "requests/s" if self.axis == "rate_rps" else "requests in flight"
            load, prompt, output = (_list(self._cells[n].values) for n in (self.axis, *LENGTHS))
            return f"{load} {unit} of {prompt} + {output} tokens"
        rate = self._windows["rate_rps"]
        prompt, output = (f"{self.shares @ self._busy[name]:.0f}" for name in LENGTHS)
        idle = f", {(rate == 0).sum()} of them without requests" if (rate == 0).any() else ""
        return (
            f"{self.name}: {self.requests:.0f} requests in {self.seconds:.0f} s, "
            f"{self.mean_rps:.3g} requests/s (peak {rate.max():.3g}), "
            f"{prompt} + {output} tokens, {len(rate)} windows{idle}"
        )

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Load) or self.name != other.name:
            return False
        return self._cells.equals(other._cells) and self._windows.equals(other._windows)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def cells(self) -> "xr.Dataset":
        """Rate or concurrency and lengths of every cell; ``prompt_cv``, ``output_cv`` if known."""
        return self._cells.copy(deep=True)

    @property
    def table(self) -> pd.DataFrame:
        """A row a cell."""
        names = [n for n in (self.axis, *LENGTHS, "prompt_cv", "output_cv") if n in self._cells]
        return self._cells.expand_dims("cell").to_dataframe().reset_index()[names]

    @property
    def axis(self) -> str:
        """``rate_rps`` or ``concurrency``."""
        return "rate_rps" if "rate_rps" in self._cells else "concurrency"

    @property
    def is_traffic(self) -> bool:
        """Whether the cells are windows of time, not a grid."""
        return not self._windows.empty

    @property
    def lengths(self) -> tuple[float, float]:
        """Prompt and output tokens, where all cells have the same."""
        prompt, output = (np.unique(self._cells[name].values) for name in LENGTHS)
        if len(prompt) > 1 or len(output) > 1:
            raise InputError(f"{self}: one prompt and one output length are needed here")
        return float(prompt[0]), float(output[0])

    @property
    def windows(self) -> pd.DataFrame:
        """Windows of traffic, those without requests included; a single rate is one of 1 s."""
        if self.is_traffic:
            return self._windows.copy()
        if self.axis != "rate_rps" or self._cells.sizes:
            raise InputError(f"{self}: traffic over time, or one rate and one length, is needed")
        return self.table.assign(seconds=1.0)

    @property
    def _busy(self) -> pd.DataFrame:
        return _with_requests(self.windows)

    @property
    def seconds(self) -> float:
        """Time covered by traffic, windows without requests included."""
        return float(self.windows["seconds"].sum())

    @property
    def requests(self) -> float:
        """Requests in that time."""
        return float(self._busy["requests"].sum())

    @property
    def mean_rps(self) -> float:
        """Requests/s over all the time."""
        return self.requests / self.seconds

    @property
    def output_tokens_total(self) -> float:
        """Tokens of all answers together."""
        return self.requests * float(self.shares @ self._busy["output_tokens"])

    @property
    def shares(self) -> np.ndarray:
        """Share of all requests by window with requests."""
        requests = self._busy["requests"].to_numpy()
        return requests / requests.sum()

    def with_axis(self, values: Numbers) -> "Load":
        """The same lengths at other rates (or concurrencies, where this load has those)."""
        prompt, output = self.lengths
        axis = "rps" if self.axis == "rate_rps" else "concurrency"
        return Load(**{axis: values}, prompt=prompt, output=output)

    def thin(self, windows: int) -> "Load":
        """At most so many windows with requests; time, requests, tokens, spread and peak stay.

        Equal windows count as one, so that traffic repeated has the windows of the traffic.
        """
        if not (isinstance(windows, int) and windows >= 2):
            raise InputError(f"windows must be a whole number of at least 2, got {windows!r}")
        alike = [name for name in self._busy if name not in ("seconds", "requests")]
        busy = self._busy.groupby(alike, dropna=False, as_index=False).sum()
        if len(busy) == len(self._busy) <= windows:
            return self
        joined = _joined(busy, windows) if len(busy) > windows else busy
        joined = joined.drop(columns="requests")
        idle_s = self._windows.loc[self._windows["rate_rps"] == 0, "seconds"].sum()
        if idle_s > 0:
            idle = pd.DataFrame([{"seconds": idle_s, "rate_rps": 0.0}])
            joined = pd.concat([joined, idle], ignore_index=True)
        return Load._traffic(self.name, joined)


def _axis(name: str, argument: str, values: Any, least: float) -> "xr.DataArray":
    """A number, or a list of them as a dimension of its own."""
    import xarray as xr

    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.empty(0)
    is_number = array.dtype.kind in "iuf" and array.ndim <= 1 and array.size > 0
    array = array.astype(float) if is_number else array
    fine = is_number and bool(np.isfinite(array).all() and (array >= least).all())
    require(argument, values, fine, f"finite numbers of at least {least:g}")
    sized = bool(((array == 0) | (array >= SMALLEST) & (array <= LARGEST)).all())
    lowest = f"from {least:g}" if least else f"0 or from {SMALLEST:g}"
    require(argument, values, sized, f"{lowest} to {LARGEST:g}")
    return xr.DataArray(array) if array.ndim == 0 else xr.DataArray(array, {name: array}, [name])


def _with_requests(windows: pd.DataFrame) -> pd.DataFrame:
    """Windows in which there are requests, and how many."""
    busy = windows[windows["rate_rps"] > 0]
    return busy.assign(requests=busy["rate_rps"] * busy["seconds"])


def _list(values: np.ndarray) -> str:
    values = np.atleast_1d(values)
    if len(values) > 5:
        return f"{values.min():g} to {values.max():g}"
    return ", ".join(f"{v:g}" for v in values)


def _joined(busy: pd.DataFrame, windows: int) -> pd.DataFrame:
    """Windows joined in order of their tokens/s; the fullest stays alone: it saturates first."""
    requests, sums = busy["requests"], busy[["seconds", "requests"]].copy()
    for name in LENGTHS:
        cv = _relative_spread(busy, name)
        square = busy[name] ** 2 * (1 + (0.0 if cv is None else cv**2))
        sums[name], sums[f"{name}_sd"] = requests * busy[name], requests * square
    tokens_per_s = busy["rate_rps"] * (busy["prompt_tokens"] + busy["output_tokens"])
    order = np.argsort(tokens_per_s.to_numpy(), kind="stable")
    before = requests.to_numpy()[order][:-1]
    middle = (np.cumsum(before) - before / 2) / before.sum()
    # Rounded, so that the last digits of a sum move no window.
    group = np.append(np.floor(np.round(middle * (windows - 1), 9)), windows)
    total = sums.iloc[order].groupby(group).sum()
    joined = total.div(total["requests"], axis=0)
    for name in LENGTHS:
        variance = joined[f"{name}_sd"] - joined[name] ** 2
        joined[f"{name}_sd"] = np.sqrt(variance.clip(lower=0.0))
    rate = total["requests"] / total["seconds"]
    return joined.assign(seconds=total["seconds"], rate_rps=rate)


def _relative_spread(busy: pd.DataFrame, name: str) -> np.ndarray | None:
    """Sd of a length over its mean by window, the usual one where unknown; None if all are."""
    if f"{name}_sd" not in busy or busy[f"{name}_sd"].isna().all():
        return None
    mean, sd = busy[name].to_numpy(), busy[f"{name}_sd"].to_numpy()
    requests = busy["requests"].to_numpy() * ~np.isnan(sd)
    usual = np.sqrt((requests * np.nan_to_num(sd) ** 2).sum() / (requests * mean**2).sum())
    return np.where(np.isnan(sd), usual, sd / mean)
