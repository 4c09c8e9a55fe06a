"""Windows of steady load in the readings of one server."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.traces.scrapes import GAUGES, HISTOGRAMS, Server

E2E = HISTOGRAMS["e2e"]
# In each quarter of a window as many requests must finish as in the others, but for a quarter
# more or less and three standard deviations of a Poisson count.
QUARTERS = 4
DRIFT = 0.25
CHANCE_SD = 3.0
# As many must arrive as finish: requests in flight may grow or fall by a tenth of the finished.
GROWTH = 0.1
GROWTH_REQUESTS = 3


@dataclass(frozen=True)
class Window:
    """Readings from the start to the end of a window, both included."""

    table: pd.DataFrame

    @property
    def start_s(self) -> float:
        """Time of the first reading, seconds since 1970."""
        return float(self.table.index[0])

    @property
    def duration_s(self) -> float:
        """From the first reading to the last."""
        return float(self.table.index[-1] - self.table.index[0])

    def gain(self, name: str, label: str = "") -> float:
        """By how much a counter grew; NaN if it was not read at both ends."""
        if (name, label) not in self.table:
            return float("nan")
        values = self.table[name, label]
        return float(values.iloc[-1] - values.iloc[0])

    def in_flight(self) -> pd.Series:
        """Requests running or waiting, at each reading."""
        found = [self.table[name, ""] for name in GAUGES if (name, "") in self.table]
        if len(found) < len(GAUGES):
            return pd.Series(np.nan, index=self.table.index)
        return found[0] + found[1]


def windows(server: Server, window_s: float) -> Iterator[Window | InputError]:
    """Consecutive windows, and why the rest of the readings is in none.

    No window goes over a restart (a counter went backwards), a change of buckets, or a third of
    a window (and two usual intervals) without a reading.
    """
    table = server.table
    if (f"{E2E}_count", "") not in table:
        yield InputError(f"{E2E}_count is missing; it counts the requests")
        return
    table = table[table[f"{E2E}_count", ""].notna()]
    times = table.index.to_numpy(float)
    interval_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    breaks = _breaks(table, max(window_s / 3, 2 * interval_s))
    breaks[len(times)] = "the readings end"
    # A reading that comes half an interval early still ends a window.
    slack = interval_s / 2
    start = 0
    for end, why in sorted(breaks.items()):
        while True:
            reach = times[start:end] - times[start] >= window_s - slack
            if not reach.any():
                break
            last = start + int(np.argmax(reach))
            yield Window(table.iloc[start : last + 1])
            start = last
        left_s = times[end - 1] - times[start]
        if left_s > 0 or end < len(times):
            yield InputError(
                f"{left_s:.0f} s from {times[start]:.0f} are no window of {window_s:g} s: {why}"
            )
        start = end


def _breaks(table: pd.DataFrame, longest_gap_s: float) -> dict[int, str]:
    """Rows that no window may include together with the one before, and why."""
    found: dict[int, str] = {}
    times = table.index.to_numpy(float)
    for k in np.flatnonzero(np.diff(times) > longest_gap_s) + 1:
        gap_s = times[k] - times[k - 1]
        found[int(k)] = f"then comes a gap of {gap_s:.0f} s without a reading"
    for name in HISTOGRAMS.values():
        if f"{name}_bucket" not in table:
            continue
        present = table[f"{name}_bucket"].notna().to_numpy()
        changed = (present[1:] != present[:-1]).any(axis=1) & present[1:].any(axis=1)
        for k in np.flatnonzero(changed & present[:-1].any(axis=1)) + 1:
            n, m = present[k - 1].sum(), present[k].sum()
            found[int(k)] = f"then the buckets of {name} change ({n} before, {m} after)"
    counters = [c for c in table.columns if c[0] not in GAUGES]
    back = table[counters].ffill().diff() < 0
    for k in np.flatnonzero(back.any(axis=1)):
        name = back.columns[int(np.argmax(back.iloc[k]))][0]
        found[int(k)] = f"then {name} goes backwards, as after a restart"
    return found


def check_steady(window: Window) -> None:
    """Refuse a window in which the load changed.

    Raises
    ------
    InputError
        If no request finished, too few readings tell, finished requests are not spread evenly
        over the quarters of the window, or the queue grew or fell.
    """
    where = f"window of {window.duration_s:.0f} s from {window.start_s:.0f}"
    times = window.table.index.to_numpy(float)
    count = window.table[f"{E2E}_count", ""].to_numpy(float)
    finished = count[-1] - count[0]
    if finished == 0:
        raise InputError(f"{where}: no request finished")
    if len(times) <= QUARTERS:
        raise InputError(
            f"{where}: has {len(times)} readings; {QUARTERS + 1} or more tell whether it is steady"
        )
    cuts = np.linspace(times[0], times[-1], QUARTERS + 1)
    edges = [int(np.argmin(np.abs(times - t))) for t in cuts]
    for a, b in pairwise(edges):
        expected = finished * (times[b] - times[a]) / window.duration_s
        off = abs(count[b] - count[a] - expected)
        if off > DRIFT * expected + CHANCE_SD * expected**0.5:
            raise InputError(
                f"{where}: the load is not steady, {count[b] - count[a]:.0f} requests finished in "
                f"{times[b] - times[a]:.0f} s where {expected:.0f} would at the mean rate"
            )
    in_flight = window.in_flight().dropna()
    growth = in_flight.iloc[-1] - in_flight.iloc[0] if len(in_flight) else 0.0
    if abs(growth) > GROWTH * finished + GROWTH_REQUESTS:
        raise InputError(
            f"{where}: requests in flight went from {in_flight.iloc[0]:.0f} to "
            f"{in_flight.iloc[-1]:.0f} while {finished:.0f} finished, so the load is not steady"
        )
