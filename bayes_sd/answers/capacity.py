"""Servers at one traffic: the most each sustains within a target, replicas, cost, who wins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.latency import Arm, arm_of, scatter
from bayes_sd.answers.servers import Server, listed
from bayes_sd.errors import EvidenceError, InputError, require, whole
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.law import Outcome
from bayes_sd.physics.noise import request_quantile_s, share_within
from bayes_sd.physics.roots import find_roots
from bayes_sd.runs.load import Load

DRAWS = 2000
WINDOWS = 24  # that stand for all of a traffic, see Load.thin; rates move by less than 1%
HALVINGS = 20  # of a latency, in its range over windows
WIDEST = 1e6  # times the concurrency asked about, the largest that is looked at
HOUR_S, MILLION = 3600.0, 1e6

Servers = Server | Sequence[Server] | Mapping[str, Server]
Prices = float | Mapping[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Capacity(answer.Answer):
    """What servers sustain of a load within a latency target.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, server): ``scale``, the multiple of the load at which one server just
        meets the target, 0 where it does not even at rest; ``mean_s`` of the table's replicas.
    rows : pandas.DataFrame
        A row a server: ``max_rps`` or ``max_concurrency`` (with the asked confidence; NaN where the
        target is kept at no load), its median, ``replicas`` (the fewest that keep the target, or
        those asked for), ``prob_kept``, ``mean_p50_s`` with its 90% interval, ``prob_saturated``
        (in any window), ``needed``, ``prob_possible`` and ``idle_s`` (chance that an idle server
        keeps the target, and its percentile), ``prob_best``, ``regret_ms`` (mean latency lost to
        the best server had it been known), ``support``; with prices ``per_hour``,
        ``price_per_million_tokens`` (output), ``prob_cheapest``, ``regret_per_hour``.
    beats : pandas.DataFrame
        Chance that the server of the row has the lower mean latency than that of the column.
    prob_all_saturated : float
        Chance that every server saturates in some window; with all ``prob_best`` it sums to 1.
    load, slo_s, percentile, confidence
        As asked.
    """

    draws: xr.Dataset
    rows: pd.DataFrame
    beats: pd.DataFrame
    prob_all_saturated: float
    load: Load
    slo_s: float
    percentile: float
    confidence: float

    @property
    def target(self) -> str:
        """The target in words."""
        return f"p{self.percentile:g} <= {self.slo_s:g} s"

    def __str__(self) -> str:
        able = self.rows[self.rows["replicas"].notna()]
        kept = able[able["prob_kept"] >= self.confidence]
        parts, none = [], self.prob_all_saturated
        if len(able) and none < 0.5:
            best = (kept if len(kept) else able).sort_values("regret_ms").iloc[0]
            keeps = f"keeps {self.target} and " if len(kept) else ""
            parts.append(
                f"{_on(best)} {keeps}has the lowest expected latency, {best['mean_p50_s']:.3g} s "
                f"in the mean; it is the fastest with probability {best['prob_best']:.2f}, past "
                f"capacity in some window with probability {best['prob_saturated']:.2f} "
                f"({best['support']})."
            )
        elif len(able):
            those = ", ".join(_on(row) for _, row in kept.iterrows()) or "none"
            parts.append(
                "Every server is past capacity in some window with probability "
                f"{none:.2f}, so none is the fastest; {self.target} is kept by {those}."
            )
        if len(kept) and "per_hour" in kept:
            low = kept.sort_values("regret_per_hour").iloc[0]
            parts.append(
                f"The cheapest is {_on(low)}, with probability {low['prob_cheapest']:.2f}: "
                f"{low['per_hour']:.4g} an hour, {low['price_per_million_tokens']:.3g} a million "
                f"output tokens ({low['support']})."
            )
        for _, row in able[able["prob_kept"] < self.confidence].dropna(subset="needed").iterrows():
            only = f"keeps {self.target} with probability {row['prob_kept']:.2f} only"
            parts.append(f"{_on(row)} {only} and needs {row['needed']:.0f}.")
        for _, row in self.rows[self.rows["needed"].isna()].iterrows():
            parts.append(
                f"{row['server']}: {self.target} is impossible at any load with this confidence: "
                f"an idle server keeps the target with probability {row['prob_possible']:.2f}, its "
                f"p{self.percentile:g} is about {row['idle_s']:.3g} s."
            )
        return " ".join(parts)

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """Median and 90% interval of what a server sustains."""
        ax = answer.axes_of(ax)
        values = self.draws["scale"] * _amount(self.load)
        low, middle, high = answer.quantile(values, [0.05, 0.5, 0.95]).values
        y, bars = np.arange(middle.size), (middle - low, high - middle)
        ax.errorbar(middle, y, xerr=bars, fmt="o", color=answer.COLORS[1])
        ax.set_yticks(y, self.draws["server"].values)
        return answer.finish(ax, f"{answer.UNITS[self.load.axis]} with {self.target}", "")


def capacity(
    fit: Posterior,
    load: Load,
    servers: Servers,
    *,
    slo_s: float,
    percentile: float = 95.0,
    confidence: float = 0.9,
    replicas: int | None = None,
    price_per_hour: Prices | None = None,
    extrapolate: bool = False,
    seed: int = 0,
) -> Capacity:
    r"""The most that servers sustain within a latency target, replicas, cost, and who wins.

    The load is split evenly among `n` replicas. In a draw :math:`\theta` a server serves

    .. math:: s_n(\theta) = \frac{\sum_w \lambda_w T_w\,
        P(\text{latency} \le \text{SLO} \mid \lambda_w / n, P_w, g_w, \theta)}
        {\sum_w \lambda_w T_w}

    of all requests in time, over windows `w` of `T` seconds; it gets the fewest replicas with
    :math:`P(s_n \ge \text{percentile}) \ge \text{confidence}`. Requests of a saturated window are
    late; its backlog is not carried into the next one, so look at ``prob_saturated``.

    Parameters
    ----------
    load : Load
        One rate or concurrency, or traffic over time from :meth:`bayes_sd.Load.read`.
    servers : Server, sequence of Server, or mapping of names to Server
    slo_s : float
        Target for the percentile of end-to-end latency of all requests, seconds.
    percentile : float
        Of single requests.
    confidence : float
        Probability that the target is kept, in (0, 1).
    replicas : int, optional
        Compare so many of each, whether or not they keep the target.
    price_per_hour : float or mapping, optional
        Of one replica; by name where they differ.
    extrapolate, seed
        See :class:`bayes_sd.Fit`.

    Returns
    -------
    Capacity
        In regrets a latency or a bill counts as 20 times the best one's at most, since that of a
        saturated server has no bound.

    Raises
    ------
    InputError, EvidenceError
        If an argument is out of range, or a server lies far outside of what was measured.
    """
    answer.positive("slo_s", slo_s)
    require("percentile", percentile, 0 < percentile < 100, "between 0 and 100")
    answer.probability("confidence", confidence)
    if replicas is not None:
        whole("replicas", replicas, 1)
    named = dict(servers) if isinstance(servers, Mapping) else {str(s): s for s in listed(servers)}
    listed(list(named.values()))
    prices = {} if price_per_hour is None else _prices(price_per_hour, list(named))
    if not load.is_traffic and load.cells.sizes and max(load.cells.sizes.values()) > 1:
        raise InputError("Capacity is asked for one load, or a traffic over time; give one.")
    few = load.thin(WINDOWS) if load.is_traffic else load
    thin, share = fit.thin(DRAWS), percentile / 100
    unit, rows, drawn = load.axis.removeprefix("rate_"), [], []
    for name, server in named.items():
        try:
            windows = _Windows(arm_of(thin, server, few, seed, extrapolate), few)
        except (InputError, EvidenceError) as error:
            raise type(error)(f"{name}: {error.message}") from None
        scale, at_rest = windows.sustained(slo_s, share)
        sustained = float(np.quantile(scale, 1 - confidence, method="inverted_cdf"))
        # So many servers share the load that each one sustains its part.
        needed = float(math.ceil(1 / sustained - 1e-9)) if sustained > 0 else math.nan
        count = needed if replicas is None else float(replicas)
        about, mean, support = windows.with_replicas(count, slo_s, share)
        row = {
            "server": name,
            f"max_{unit}": sustained * _amount(load) if sustained > 0 else math.nan,
            f"median_{unit}": float(np.median(scale)) * _amount(load),
        }
        rows.append(row | about | {"needed": needed} | at_rest | {"support": support})
        with np.errstate(divide="ignore"):
            wanted = np.ceil(1 / scale) if replicas is None else np.full_like(scale, count)
        drawn.append((scale, mean, wanted * prices.get(name, math.nan)))
    table, names = pd.DataFrame(rows), list(named)
    scales, every, bills = (np.stack(values) for values in zip(*drawn, strict=True))
    able = table["replicas"].notna().to_numpy()
    table["prob_best"], regret, none = answer.best_of(every, able)
    table["regret_ms"] = 1e3 * regret
    if prices:
        table["per_hour"] = table["replicas"] * table["server"].map(prices)
        serves = (table["prob_saturated"] <= 0.5).to_numpy()  # else nobody gets the tokens
        price = table["per_hour"] * MILLION / _tokens_per_hour(few, every)
        table["price_per_million_tokens"] = price.where(serves)
        table["prob_cheapest"], table["regret_per_hour"], _ = answer.best_of(bills, able & serves)
    table["support"] = table.pop("support")  # last
    dims, shape = (*answer.SAMPLE, "server"), (*thin.shape, len(names))
    values = {"scale": (dims, scales.T.reshape(shape)), "mean_s": (dims, every.T.reshape(shape))}
    both_able = able[:, None] & able[None] & ~np.eye(len(names), dtype=bool)
    faster = np.where(both_able, (every[:, None] < every[None]).mean(axis=-1), np.nan)
    told = xr.Dataset(values, {"server": names}), table, pd.DataFrame(faster, names, names)
    return Capacity(*told, none, load, slo_s, percentile, confidence)


class _Windows:
    """One server at the windows of a load, each counting by its requests."""

    def __init__(self, arm: Arm, load: Load) -> None:
        self.arm, self.axis = arm, load.axis
        self.shares = load.shares if load.is_traffic else np.ones(1)
        self.values = arm.cells[load.axis]

    def scaled(self, scale: Any) -> np.ndarray:
        """The load times `scale`; a server has at least one request in flight."""
        return np.maximum(self.values * scale, float(self.axis == "concurrency"))

    def at(self, scale: np.ndarray) -> tuple[Outcome, np.ndarray]:
        """The law at `scale` (draws, 1) times the load, and the variance of log latency."""
        said, inputs = self.arm.outcome(self.scaled(scale))
        return said, scatter(self.arm.fit, said, inputs)[1]

    def within(self, said: Outcome, variance: np.ndarray, seconds: Any) -> np.ndarray:
        """Share of all requests served within so many seconds; none of a saturated window."""
        return np.asarray((share_within(seconds, said.e2e_s, variance) * self.shares).sum(axis=1))

    def sustained(self, slo_s: float, share: float) -> tuple[np.ndarray, dict[str, float]]:
        """The multiple of the load at which the target is met exactly, 0 where never; at rest."""
        draws = self.arm.fit.draws
        said, variance = self.at(np.zeros((draws, 1)))
        rows = np.flatnonzero(self.within(said, variance, slo_s) >= share)

        def missed(value: np.ndarray, index: np.ndarray) -> np.ndarray:
            every = np.zeros((draws, 1))
            every[rows[index], 0] = value
            return (self.within(*self.at(every), slo_s) - share)[rows[index]]

        # Where every window saturates, nobody is served in time.
        c2 = np.broadcast_to(said.c2_s, said.e2e_s.shape)
        full = np.full(draws, WIDEST)
        top = full if self.axis == "concurrency" else (1 / (c2 * self.values)).max(axis=1)
        scale = np.zeros(draws)
        if rows.size:
            scale[rows] = find_roots(missed, np.zeros(rows.size), top[rows])
        tail = request_quantile_s(said.e2e_s, variance, share)
        low, high = tail.min(axis=1), tail.max(axis=1)
        for _ in range(HALVINGS if tail.shape[1] > 1 else 0):
            middle = (low * high) ** 0.5
            enough = self.within(said, variance, middle[:, None]) >= share
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return scale, {"prob_possible": rows.size / draws, "idle_s": float(np.median(high))}

    def with_replicas(self, count: float, slo_s: float, share: float) -> tuple[dict, Any, str]:
        """What so many replicas do, draws of their mean latency (s), and their farthest support.

        Where no number of them would do, all is missing but the support of one at rest.
        """
        none = math.isnan(count)
        values = self.scaled(0.0 if none else 1 / count)
        arm = replace(self.arm, cells=self.arm.cells | {self.axis: values})
        said, inputs = arm.outcome()
        mean = (said.e2e_s * self.shares).sum(axis=1)
        kept = self.within(said, scatter(arm.fit, said, inputs)[1], slo_s) >= share
        low, middle, high = np.quantile(mean, [0.05, 0.5, 0.95], method="inverted_cdf")
        row = {"replicas": count, "prob_kept": kept.mean()}
        row |= {"mean_p05_s": low, "mean_p50_s": middle, "mean_p95_s": high}
        row |= {"prob_saturated": (said.utilization >= 1).any(axis=1).mean()}
        if none:
            row, mean = dict.fromkeys(row, math.nan), np.full_like(mean, np.nan)
        return row, mean, answer.farthest(arm.support(said).ravel())


def _prices(given: Prices, names: list[str]) -> dict[str, float]:
    prices = dict(given) if isinstance(given, Mapping) else dict.fromkeys(names, given)
    for name in (*sorted({*names} - {*prices}), *sorted({*prices} - {*names})):
        raise InputError(
            "price_per_hour must name every server and no other; "
            f"{name} is {'missing' if name in names else 'unknown'}."
        )
    for name, price in prices.items():
        answer.positive(f"price_per_hour of {name}", price)
    return prices


def _amount(load: Load) -> float:
    """The load in one number: mean rate, or concurrency."""
    return load.mean_rps if load.is_traffic else float(load.cells[load.axis].values.ravel()[0])


def _tokens_per_hour(load: Load, means: np.ndarray) -> Any:
    """Output tokens an hour that the load asks for; of a concurrency, what each server makes."""
    if load.is_traffic:
        return load.output_tokens_total / load.seconds * HOUR_S
    requests_s = _amount(load) / (1 if load.axis == "rate_rps" else np.median(means, axis=1))
    return requests_s * load.lengths[1] * HOUR_S


def _on(row: pd.Series) -> str:
    count = row["replicas"]
    return f"{row['server']} on {count:.0f} replica{'' if count == 1 else 's'}"
