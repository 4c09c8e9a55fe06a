"""Deployments side by side at one traffic: how many servers each takes, what it costs, who wins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.decide.capacity import (
    DRAWS,
    MILLION,
    Asked,
    at_scale,
    check,
    check_positive,
    impossible,
    label,
    over_requests,
    replicas,
    share_within,
    sustained,
    tokens_per_hour,
)
from bayes_sd.decide.schedule import require_measured
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import arms
from bayes_sd.predict.system import System
from bayes_sd.traces.traffic import Traffic

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

Candidates = Mapping[str, tuple[System, int]] | Sequence[tuple[System, int]]
Prices = float | Mapping[str, float]

WORST = 20.0  # latencies and bills count up to this many times the best: some have no bound
RARE = 0.05  # chance of saturation below which an answer does not mention it


@dataclass(frozen=True, eq=False, repr=False)
class Deployments:
    """Deployments compared.

    Parameters
    ----------
    table : pandas.DataFrame
        A row a candidate: ``name``, ``k``; ``replicas`` and ``prob_kept`` (the chance that they
        keep the target), ``needed`` (the fewest that keep it with enough confidence); ``mean_s``
        (median of the mean latency) with ``mean_p05_s`` and ``mean_p95_s``;
        ``prob_saturated`` (that any window is past capacity); ``prob_best`` and ``regret_ms``
        (mean latency expected to be lost to the best candidate had it been known);
        ``prob_possible`` and ``idle_s`` (chance that an idle server keeps the target, and the
        percentile there); ``support``, of the window farthest from the data. With prices also
        ``per_hour``, ``price_per_million_tokens`` (output tokens), ``prob_cheapest`` and
        ``regret_per_hour`` (the same of the bill for the replicas that a draw needs).
        Missing (NaN) where a candidate cannot keep the target with any number of replicas.
    beats : pandas.DataFrame
        Chance that the candidate of the row has the lower mean latency than that of the column.
    prob_none : float
        Chance that every candidate saturates in some window, so that none is best; with all
        ``prob_best`` it sums to 1.
    traffic : Traffic
    slo_s, percentile, confidence : float
    """

    table: pd.DataFrame
    beats: pd.DataFrame
    prob_none: float
    traffic: Traffic
    slo_s: float
    percentile: float
    confidence: float

    def __repr__(self) -> str:
        return f"{self.traffic}\n{self.table.to_string(index=False)}\n{self.sentence}"

    @property
    def sentence(self) -> str:
        """The answer in words."""
        target = f"p{self.percentile:g} <= {self.slo_s:g} s"
        able = self.table[self.table["replicas"].notna()]
        kept = able[able["prob_kept"] >= self.confidence]
        parts = []
        if len(able) and self.prob_none < 0.5:
            from_these = kept if len(kept) else able
            best = from_these.iloc[int(from_these["regret_ms"].argmin())]
            keeps = f"keeps {target} and " if len(kept) else ""
            parts.append(
                f"{best['name']} on {_servers(best['replicas'])} {keeps}has the lowest expected "
                f"latency, {best['mean_s']:.3g} s in the mean; it is the fastest with probability "
                f"{best['prob_best']:.2f} ({best['support']})."
            )
            if best["prob_saturated"] >= RARE:
                parts.append(
                    f"In some window it is past capacity with probability "
                    f"{best['prob_saturated']:.2f}; the backlog of one is not counted in the next."
                )
        elif len(kept):
            served = [
                f"{name} on {_servers(count)}"
                for name, count in zip(kept["name"], kept["replicas"], strict=True)
            ]
            parts.append(
                f"Every candidate is past capacity in some window with probability "
                f"{self.prob_none:.2f}, so none is the fastest; over all requests {target} is kept "
                f"by {', '.join(served)}."
            )
        elif len(able):
            parts.append(
                "This traffic is beyond the capacity of every candidate with probability "
                f"{self.prob_none:.2f}."
            )
        if len(kept) and "per_hour" in kept:
            low = kept.iloc[int(kept["regret_per_hour"].argmin())]
            parts.append(
                f"The cheapest is {low['name']} on {_servers(low['replicas'])}, with probability "
                f"{low['prob_cheapest']:.2f}: {low['per_hour']:.4g} an hour, "
                f"{low['price_per_million_tokens']:.3g} a million output tokens "
                f"({low['support']})."
            )
        short = able[(able["prob_kept"] < self.confidence) & able["needed"].notna()]
        parts += [
            f"{name} on {_servers(count)} keeps {target} with probability {prob:.2f} only and "
            f"needs {_servers(needed)}."
            for name, count, prob, needed in zip(
                *(short[c] for c in ("name", "replicas", "prob_kept", "needed")), strict=True
            )
        ]
        never = self.table[self.table["needed"].isna()]
        parts += [
            impossible(str(name), self.percentile, self.slo_s, prob, idle_s)
            for name, prob, idle_s in zip(
                *(never[c] for c in ("name", "prob_possible", "idle_s")), strict=True
            )
        ]
        return " ".join(parts)


def deployments(
    fit: "Fit",
    candidates: Candidates,
    traffic: Traffic,
    *,
    slo_s: float,
    percentile: float = 95.0,
    confidence: float = 0.9,
    replicas: int | None = None,
    price_per_hour: Prices | None = None,
    seed: int = 0,
) -> Deployments:
    r"""Compare deployments at one traffic, from the same posterior draws.

    The traffic is split evenly among `n` replicas. In a draw :math:`\theta` a candidate serves

    .. math:: s_n(\theta) = \frac{\sum_w \lambda_w T_w\,
        P(\text{latency} \le \text{SLO} \mid \lambda_w / n, P_w, g_w, \theta)}
        {\sum_w \lambda_w T_w}

    of all requests in time, over windows `w` of `T` seconds; it gets the fewest replicas with
    :math:`P(s_n \ge \text{percentile}) \ge \text{confidence}`. Requests of a saturated window are
    late; its backlog is not carried into the next one, so look at ``prob_saturated``.

    Parameters
    ----------
    fit : Fit
    candidates : mapping or sequence
        (System, draft tokens) by name, or without names; 0 is the plain server.
    traffic : Traffic
        From :func:`bayes_sd.read_traffic`; more than 24 windows are joined, see
        :meth:`bayes_sd.Traffic.thin`.
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
    seed : int

    Returns
    -------
    Deployments
        ``table``, ``beats``, ``sentence``. In regrets a latency or a bill counts as 20 times the
        best one's at most, since that of a saturated server has no bound.

    Raises
    ------
    InputError
        If an argument is out of range, or a draft length was not measured and its system does not
        say ``extrapolate=True``.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> small = bsd.System("llama-8b", "eagle")
    >>> traffic = bsd.read_traffic("requests.csv")  # doctest: +SKIP
    >>> deployments(
    ...     fit, {"plain": (small, 0), "eagle": (small, 3)}, traffic, slo_s=2.0, price_per_hour=2.5
    ... ).table  # doctest: +SKIP
    """
    check(slo_s, percentile, confidence)
    named = _named(candidates)
    prices = _prices(price_per_hour, list(named))
    if not isinstance(traffic, Traffic):
        raise InputError("traffic must be a Traffic: read_traffic(...) or Traffic.constant(...).")
    if replicas is not None and not (isinstance(replicas, int) and replicas >= 1):
        raise InputError(f"replicas = {replicas!r}: must be a whole number of at least 1.")
    thin, asked = fit.thin(DRAWS), Asked.of(traffic)
    rows, means, bills = [], [], []
    for name, (system, k) in named.items():
        try:
            if not system.extrapolate:
                require_measured(fit, system, [k])
            row, mean, needed = _candidate(
                thin, system, k, asked, slo_s, percentile, confidence, replicas, seed
            )
        except (InputError, EvidenceError) as error:
            raise type(error)(f"{name}: {error}") from None
        rows.append({"name": name, "k": k} | row)
        means.append(mean)
        bills.append(needed * prices.get(name, math.nan))
    table = pd.DataFrame(rows)
    able = table["replicas"].notna().to_numpy()
    best, regret, none = _compared(np.stack(means), able)
    table["prob_best"], table["regret_ms"] = best, 1e3 * regret
    if prices:
        table["per_hour"] = table["replicas"] * table["name"].map(prices)
        serves = (table["prob_saturated"] <= 0.5).to_numpy()  # else nobody gets the tokens
        price = table["per_hour"] * MILLION / tokens_per_hour(traffic)
        table["price_per_million_tokens"] = price.where(serves)
        cheapest, dearer, _ = _compared(np.stack(bills), able & serves)
        table["prob_cheapest"], table["regret_per_hour"] = cheapest, dearer
    # Labels last: they are words beside numbers.
    table = table[[c for c in table if c != "support"] + ["support"]]
    beats = _beats(np.stack(means), able, list(named))
    return Deployments(table, beats, none, traffic, slo_s, percentile, confidence)


def _named(candidates: Candidates) -> dict[str, tuple[System, int]]:
    if isinstance(candidates, Mapping):
        named = [(str(name), given) for name, given in candidates.items()]
    else:
        named = [("", given) for given in candidates]
    if not named:
        raise InputError("candidates is empty: give at least one (System, draft tokens).")
    result: dict[str, tuple[System, int]] = {}
    for name, given in named:
        whole = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], System)
        ks = arms(given[1]) if whole else []
        if len(ks) != 1:
            raise InputError(
                f"candidate {name or given!r}: must be (System, draft tokens), as in "
                "(bsd.System('llama-8b', 'eagle'), 3)."
            )
        name = name or _title(given[0], ks[0])
        if name in result:
            raise InputError(f"Two candidates are called {name!r}: give names, as a mapping.")
        result[name] = (given[0], ks[0])
    return result


def _title(system: System, k: int) -> str:
    models = [system.verifier] if k == 0 else [system.verifier, system.drafter]
    words = " + ".join(m if isinstance(m, str) else m.label for m in models if m is not None)
    words += f", k = {k}" if k else ", plain"
    given = [system.acceptance if k else None, system.environment]
    return ", ".join([words, *(str(g) for g in given if g is not None)])


def _prices(given: Prices | None, names: list[str]) -> dict[str, float]:
    if given is None:
        return {}
    prices = dict(given) if isinstance(given, Mapping) else dict.fromkeys(names, given)
    lacking, unknown = set(names) - set(prices), set(prices) - set(names)
    if lacking or unknown:
        raise InputError(
            "price_per_hour must name every candidate and no other; "
            f"{', '.join(sorted(lacking or unknown))} {'is missing' if lacking else 'is unknown'}."
        )
    for name, price in prices.items():
        check_positive(f"price_per_hour of {name}", price)
    return prices


def _candidate(
    fit: "Fit",
    system: System,
    k: int,
    asked: Asked,
    slo_s: float,
    percentile: float,
    confidence: float,
    fixed: int | None,
    seed: int,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """One row; draws of its mean latency (s) and of the replicas that would have been needed."""
    found = sustained(fit, system, k, asked, slo_s, percentile, seed)
    scale = found.sustained_with(confidence)
    needed = replicas(scale)
    count = needed if fixed is None else float(fixed)
    possible, idle_s = float(found.possible.mean()), float(found.idle_s.median())
    draws = found.scale.transpose(*SAMPLE).values.ravel()
    row: dict[str, Any] = {"replicas": count}
    if math.isnan(count):
        mean = np.full(draws.size, np.nan)
        row |= {n: math.nan for n in ("prob_kept", "mean_s", "mean_p05_s", "mean_p95_s")}
        row["prob_saturated"] = math.nan
    else:
        law, variance = at_scale(fit, asked, found.arm, 1 / count)
        share = share_within(asked, law, variance, slo_s)
        mean = over_requests(asked, law.e2e_s).transpose(*SAMPLE).values.ravel()
        low, middle, high = np.quantile(mean, [0.05, 0.5, 0.95], method="inverted_cdf")
        row |= {
            "prob_kept": float((share >= percentile / 100).mean()),
            "mean_s": float(middle),
            "mean_p05_s": float(low),
            "mean_p95_s": float(high),
            "prob_saturated": float((law.utilization >= 1).any("window").mean()),
        }
    row |= {"needed": needed, "prob_possible": possible, "idle_s": idle_s}
    row["support"] = label(fit, k, asked, found.arm, 0.0 if math.isnan(count) else 1 / count)
    with np.errstate(divide="ignore"):
        wanted = np.ceil(1 / draws) if fixed is None else np.full(draws.size, count)
    return row, mean, wanted


def _compared(losses: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """P(best) and expected regret of each, and the chance that all are infinite.

    Ties are shared, so that the order of candidates decides nothing.
    """
    best_of, regret = np.where(able, 0.0, np.nan), np.full(len(losses), np.nan)
    if not able.any():
        return best_of, regret, math.nan
    own = losses[able]
    best = own.min(axis=0)
    finite = np.isfinite(best)
    ties = (own == best) & finite
    best_of[able] = (ties / np.maximum(ties.sum(axis=0), 1)).mean(axis=1)
    if finite.any():
        lost = np.minimum(own[:, finite], WORST * best[finite]) - best[finite]
        regret[able] = lost.mean(axis=1)
    return best_of, regret, float(1 - finite.mean())


def _beats(means: np.ndarray, able: np.ndarray, names: list[str]) -> pd.DataFrame:
    faster = (means[:, None] < means[None]).mean(axis=-1)
    known = able[:, None] & able[None] & ~np.eye(len(names), dtype=bool)
    return pd.DataFrame(np.where(known, faster, np.nan), names, names)


def _servers(count: float) -> str:
    return f"{count:.0f} replica{'' if count == 1 else 's'}"
