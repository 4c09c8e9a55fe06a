"""One server against another: the loads at which it is faster, and where their order changes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.latency import arm_of
from bayes_sd.answers.servers import Server, listed
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.roots import find_roots
from bayes_sd.runs.load import Load

OUTCOMES = ("below", "never", "always", "above", "between", "several")
# Of the range of loads, to bracket changes of order: experts fill up at its low end.
NEAR_END = np.geomspace(1e-3, 1, 17)
GRID = np.unique([*np.linspace(0, 1, 25), *NEAR_END, *(1 - NEAR_END)])  # of rates, to both ends
EVEN = np.linspace(0, 1, 9)  # in flight, of dense models within captured graphs: hardly a bend
TURNS = 4  # of a draw, where its gain is asked for besides
TOP = 1 - 1e-9  # of the range of rates: where the first server saturates it serves no one
LOWEST = {"rate_rps": 0.0, "concurrency": 1.0}
UNUSUAL = 0.05  # probability of other orders than one change from which a sentence shows loads


@dataclass(frozen=True, eq=False, repr=False)
class BreakEven(answer.Answer):
    """The loads at which a server is faster than a baseline in the mean.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw): ``rate_rps`` or ``concurrency``, also by ``stretch`` and ``end`` ("from"
        and "to"): all stretches of loads at which it is faster, NaN where a draw has fewer, up to
        its capacity; ``outcome``: "below" (faster up to a load), "above" (from a load on),
        "between" (two loads), "several" (in several stretches), "always" or "never".
    server, baseline, support : str
    top : float
        Highest concurrency that was looked at; of rates NaN, since capacity bounds them.
    lengths : tuple of float
        Prompt and output tokens.
    """

    draws: xr.Dataset
    server: str
    baseline: str
    support: str
    top: float
    lengths: tuple[float, float]

    @property
    def axis(self) -> str:
        """``rate_rps`` or ``concurrency``."""
        return "rate_rps" if "rate_rps" in self.draws else "concurrency"

    def prob(self, outcome: str) -> float:
        """Probability of an outcome."""
        return float((self.draws["outcome"] == outcome).mean())

    def ends(self, end: str) -> xr.DataArray:
        """Where the first stretch begins or ends; NaN where it is never faster."""
        return self.draws[self.axis].isel(stretch=0).sel(end=end, drop=True)

    def quantile(self, q: float | list[float]) -> xr.DataArray:
        """Quantiles of the load up to which it is faster from the lowest on: "always" is infinite,
        where it is not faster at the lowest it is 0."""
        value = xr.where(self.ends("from") == LOWEST[self.axis], self.ends("to"), 0.0)
        return answer.quantile(xr.where(self.draws["outcome"] == "always", np.inf, value), q)

    def likely(self, prob: float = 0.5) -> list[tuple[float, float]]:
        """Stretches of loads at which it is faster with this probability or more."""
        begin, end = (self.draws[self.axis].sel(end=e).values.ravel() for e in ("from", "to"))
        begin, end = begin[~np.isnan(begin)], end[~np.isnan(end)]
        loads = np.unique([*begin, *end])
        faster = [np.searchsorted(np.sort(ends), loads, "right") for ends in (begin, end)]
        inside = faster[0] - faster[1] >= prob * self.draws["outcome"].size
        edges = loads[np.diff(inside, prepend=False)]
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))

    @property
    def table(self) -> pd.DataFrame:
        """One row: quantiles of the load up to which it is faster, the probability of each outcome,
        and at which loads it is faster more likely than not."""
        unit, quantiles = self.axis.removeprefix("rate_"), self.quantile([0.05, 0.5, 0.95]).values
        row: dict[str, Any] = {"server": self.server}
        row |= {f"{n}_{unit}": v for n, v in zip(("p05", "p50", "p95"), quantiles, strict=True)}
        row |= {f"prob_{o}": self.prob(o) for o in OUTCOMES}
        row |= {"likely_faster": self._stretches(), "support": self.support}
        return pd.DataFrame([row])

    def _stretches(self) -> str:
        """The loads at which it is faster more likely than not, in words."""
        lowest, joined = LOWEST[self.axis], list[tuple[float, float]]()
        for low, high in self.likely():
            # Near even chances draws cross one by one: gaps that no digit shows are none.
            if joined and f"{low:.3g}" == f"{joined[-1][1]:.3g}":
                low = joined.pop()[0]
            joined.append((low, high))
        said = [
            f"from {low:.3g} " * (low > lowest) + f"up to {np.fmin(high, self.top):.3g}"
            for low, high in joined
            if f"{low:.3g}" != f"{high:.3g}"
        ]
        return " and ".join(said) or "nowhere"

    def __str__(self) -> str:
        likely, unit = max(OUTCOMES, key=self.prob), answer.UNITS[self.axis]
        alike = self.draws["outcome"].values == likely

        def end(which: str) -> str:
            """Where the first stretch begins or ends in draws of that outcome."""
            of = self.ends(which).values[alike]
            low, middle, high = np.quantile(of, [0.05, 0.5, 0.95], method="inverted_cdf")
            return f"{middle:.3g} (90%: {low:.3g} to {high:.3g})"

        sustained = "that either sustains" if np.isnan(self.top) else f"up to {self.top:.3g} {unit}"
        values = self.quantile([0.05, 0.5, 0.95]).values
        low, middle, high = (f"{v:.3g}" if np.isfinite(v) else "no limit" for v in values)
        text = {
            "never": f"is slower at every load {sustained}",
            "always": f"is faster at every load {sustained}",
            "above": f"is slower at low loads and faster from {end('from')} {unit} on",
            "between": f"is faster from {end('from')} to {end('to')} {unit}",
            "below": f"is faster up to a break-even load of {middle} {unit} (90%: {low} to {high})",
            "several": "is faster in several stretches of loads",
        }[likely]
        about = f"{self.lengths[0]:g} + {self.lengths[1]:g} tokens, {self.support}"
        sure = f"with probability {self.prob(likely):.2f}, against {self.baseline}"
        said = f"{self.server} {text} {sure} ({about})."
        if sum(map(self.prob, ("above", "between", "several"))) < UNUSUAL:
            return said
        return f"{said} More likely than not it is faster {self._stretches()} {unit}."

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """P(faster at every load up to this one) against load."""
        ax = answer.axes_of(ax)
        q = np.linspace(0.0, 1.0, 201)
        ax.step(self.quantile(q.tolist()).values, 1 - q, color=answer.COLORS[1])
        ax.set_ylim(-0.03, 1.03)
        label = f"P(faster than {self.baseline} up to here)"
        return answer.finish(ax, answer.UNITS[self.axis], label, title=self.server)


def break_even(
    fit: Posterior,
    load: Load,
    server: Server,
    baseline: Server,
    *,
    extrapolate: bool = False,
    seed: int = 0,
) -> BreakEven:
    """The loads at which a server is faster in the mean, with the chances of never and always.

    Changes of order are bracketed by a grid of loads: a fine one at rates, of experts and with
    captured graphs, which bend the law, and else a coarse one.

    Parameters
    ----------
    load : Load
        Says the lengths, and whether a rate or a concurrency is looked for.
    server, baseline : Server
    extrapolate, seed
        See :class:`bayes_sd.Fit`.
    """
    both = listed([server, baseline], fewest=2)
    lengths, closed = load.lengths, load.axis == "concurrency"
    least = load.with_axis([LOWEST[load.axis]])
    arms = [arm_of(fit, each, least, seed, extrapolate) for each in both]

    def gain(value: np.ndarray) -> np.ndarray:
        """Requests a second that one place in the batch serves more at a load: (draws, loads)."""
        own, other = (1 / arm.outcome(value)[0].e2e_s for arm in arms)
        return np.asarray(own - other)

    shape = (fit.draws, 1)
    if closed:
        asked = float(load.cells["concurrency"].max())
        top = max(asked, answer.FACTOR * float(fit.runs["in_flight"].max()))
        low, high = np.ones(shape), np.full(shape, top)
        end = np.full(shape, np.inf)
    else:
        capacity = [np.broadcast_to(arm.capacity_rps, shape) for arm in arms]
        top, low, high = np.nan, np.zeros(shape), np.minimum(*capacity) * TOP
        end = capacity[0]
    sizes = [arm.resolved.sizes for arm in arms]
    bends = not closed or any(size["moe"] or np.isfinite(size["captured"]) for size in sizes)
    grid = low + (high - low) * (GRID if bends else EVEN)
    gained = gain(grid)
    more = turns(grid, gained)
    grid, gained = np.hstack([grid, more]), np.hstack([gained, gain(more)])
    order = np.argsort(grid, axis=1, kind="stable")
    grid, gained = (np.take_along_axis(x, order, axis=1) for x in (grid, gained))
    wins = gained > 0
    changed = wins[:, 1:] != wins[:, :-1]
    count = changed.sum(axis=1)

    def gain_of_some(value: np.ndarray, index: np.ndarray) -> np.ndarray:
        every = low.copy()
        every[row[index], 0] = value
        return gain(every)[row[index], 0]

    edges = [np.where(wins[:, :1], low, np.nan), np.where(wins[:, -1:], end, np.nan)]
    for nth in range(1, int(count.max()) + 1):
        row = np.flatnonzero(count >= nth)
        at = (changed[row].cumsum(axis=1) >= nth).argmax(axis=1)
        root = np.full(shape, np.nan)
        root[row, 0] = find_roots(gain_of_some, grid[row, at], grid[row, at + 1])
        edges.append(root)
    ordered = np.sort(np.hstack(edges), axis=1)  # missing ones last
    pairs = ordered[:, : 2 * (ordered.shape[1] // 2)].reshape(*fit.shape, -1, 2)
    at_rest, at_top, unchanged = wins[:, 0], wins[:, -1], count == 0
    several = count > 2 - at_rest - at_top
    cases = [unchanged & at_rest, unchanged, several, at_rest, at_top]
    outcome = np.select(cases, ["always", "never", "several", "below", "above"], "between")
    typical = float(np.nanmedian(edges[2]) if len(edges) > 2 else np.median(high) / 2)
    there = load.with_axis([max(typical, 1.0) if closed else typical])
    at_typical = [arm_of(fit, each, there, seed, extrapolate=True) for each in both]
    labels = [arm.support(arm.outcome()[0])[0] for arm in at_typical]
    faster = (*answer.SAMPLE, "stretch", "end"), pairs
    named = answer.SAMPLE, outcome.astype(object).reshape(fit.shape)
    draws = xr.Dataset({load.axis: faster, "outcome": named}, {"end": ["from", "to"]})
    return BreakEven(draws, str(server), str(baseline), answer.farthest(labels), top, lengths)


def turns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where parabolas through three neighbours turn: two changes of sign may hide beside them.

    Of each row those that come nearest to zero, or beyond, as seen from between them.
    """
    slope = np.diff(y) / np.diff(x)
    middle = (x[:, 1:] + x[:, :-1]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = np.diff(slope) / np.diff(middle)
        turn = np.where(bend == 0, x[:, 1:-1], middle[:, :-1] - slope[:, :-1] / bend)
        turn = np.clip(np.where(np.isnan(turn), x[:, 1:-1], turn), x[:, :-2], x[:, 2:])
        left = 1 - bend * (turn - x[:, 1:-1]) ** 2 / (2 * y[:, 1:-1])
    near = np.argsort(np.where(np.isnan(left), np.inf, left), axis=1)[:, :TURNS]
    return np.take_along_axis(turn, near, axis=1)
