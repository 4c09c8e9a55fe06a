"""The paper's point fit (arXiv 2605.15051) by SciPy least squares: the baseline of the benchmarks.

Every coefficient is positive and relative errors of the mean latency are minimised. The law itself
is the package's: ``C_i = c_i,prefill + g/E (c_i,verify + k c_i,draft)``, ``L = C1 / (1 - rate C2)``
or ``C1 + (n - 1) C2`` at a concurrency n, with the expert coverage of equation (4).
`rows` is a table of steady runs, as in ``Runs.table``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from bayes_sd.model.design import SIZES
from bayes_sd.physics.costs import Stages, Totals, combine
from bayes_sd.physics.law import SOFTNESS, latency_beside
from bayes_sd.physics.queue import headroom, in_flight_at_rate
from bayes_sd.runs import sizes

STARTS = 12
BOUNDS = (-14.0, 6.0)  # of the log coefficient, around a start that explains the whole latency
SPARE_ROWS = 5  # rows beyond the coefficients that a fit of its own needs

Values = dict[str, Any]


@dataclass(frozen=True)
class Law:
    """Names of the coefficients, and stage costs from them and the features of runs."""

    names: tuple[str, ...]
    stages: Callable[[Values, Values], Stages]


def _six(t: Values, f: Values) -> Stages:
    return Stages(t["1p"], t["2p"], t["1v"], 0.0, t["2v"], t["1d"], t["2d"])


def _with_lengths(t: Values, f: Values) -> Stages:
    p, context = f["prompt_tokens"], f["prompt_tokens"] + f["output_tokens"] / 2
    return Stages(
        t["1p"] + t["1p_token"] * p,
        t["2p"] + t["2p_token"] * p,
        t["1v"],
        t["1v_experts"] * f["moe"],
        t["2v"] + t["2v_context"] * context,
        t["1d"] + t["1d_size"] * f["drafter"],
        t["2d"] + t["2d_size"] * f["drafter"],
    )


def _with_sizes(t: Values, f: Values) -> Stages:
    p, context = f["prompt_tokens"], f["prompt_tokens"] + f["output_tokens"] / 2
    a, d = f["active"], f["drafter"]
    return Stages(
        t["1p"] + t["1p_size"] * a * p,
        t["2p"] + t["2p_size"] * a * p,
        t["1v"] + t["1v_size"] * f["shared"],
        t["1v_experts"] * f["expert"],
        t["2v"] + t["2v_size"] * a + t["2v_context"] * context,
        t["1d"] + t["1d_size"] * d,
        t["2d"] + t["2d_size"] * d,
    )


SIX = ("1p", "2p", "1v", "2v", "1d", "2d")
MORE = ("1v_experts", "2v_context")
LAWS = {
    "six": Law(SIX, _six),
    "lengths": Law((*SIX, "1p_token", "2p_token", "1d_size", "2d_size", *MORE), _with_lengths),
    "sizes": Law((*SIX, *(f"{n}_size" for n in SIX), *MORE), _with_sizes),
}


def features(rows: pd.DataFrame) -> Values:
    """Arrays over runs that the laws need."""
    closed = (rows["loop"] == "closed").to_numpy(float)
    lengths = ("prompt_tokens", "output_tokens", "tokens_per_cycle")
    return {
        **{name: rows[name].to_numpy(float) for name in lengths},
        **sizes.features(*(rows[name] for name in SIZES)),
        "k": rows["draft_tokens"].to_numpy(float),
        "drafter": rows["drafter_params"].fillna(0.0).to_numpy(float) / 1e9,
        "closed": closed,
        "rate": np.where(closed > 0, 0.0, rows["rate_rps"].to_numpy(float)),
        "others": np.where(closed > 0, rows["concurrency"].to_numpy(float) - 1, 0.0),
    }


def columns(law: Law, f: Values) -> np.ndarray:
    """C1, its part in the experts, and C2 per unit of each coefficient: (3, runs, coefficients).

    The costs are linear in the coefficients, so their units are all there is to know.
    """
    k, parts = f["k"], []
    for name in law.names:
        unit = {other: float(other == name) for other in law.names}
        stages = law.stages(unit, f)
        # g / E cycles, as the paper has it.
        cost = combine(stages, k, f["output_tokens"] / f["tokens_per_cycle"])
        parts.append([np.broadcast_to(c, k.shape) for c in (cost.c1, cost.experts, cost.c2)])
    return np.array(parts).transpose(1, 2, 0)


def latency(theta: np.ndarray, units: np.ndarray, f: Values) -> np.ndarray:
    """Mean latency, s; past the pole large, not infinite (headroom is rounded as in the model)."""
    totals = Totals(*(units @ theta))
    room = headroom(f["rate"] * totals.c2, SOFTNESS)
    at_rate = in_flight_at_rate(totals, f, f["rate"], room, f["k"])
    others = np.where(f["closed"] > 0, f["others"], at_rate)
    return latency_beside(totals, f, others, f["k"])


@dataclass(frozen=True)
class PointFit:
    """Fitted coefficients in seconds (per the features of the law), and the residual spread.

    `log_sd` is that of the log residuals with the coefficients' degrees of freedom taken off;
    `cost` is half the sum of squared relative errors.
    """

    law: str
    theta: dict[str, float]
    log_sd: float
    cost: float

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Mean latency of each run, s."""
        f = features(rows)
        return latency(np.array(list(self.theta.values())), columns(LAWS[self.law], f), f)


def fit(law: str, rows: pd.DataFrame, starts: int = STARTS, seed: int = 0) -> PointFit:
    """Best of several starts; a coefficient that no run depends on is 0."""
    f, observed = features(rows), rows["e2e_mean_s"].to_numpy(float)
    units = columns(LAWS[law], f)
    used = (units > 0).any(axis=(0, 1))
    units = units[:, :, used]
    # A coefficient's start: what would explain half the typical latency with none beside it.
    in_flight = np.where(f["closed"] > 0, f["others"], f["rate"] * observed)
    effect = (units[0] + units[1] + in_flight[:, None] * units[2]) / observed[:, None]
    whole = np.array([1 / np.median(e[e > 0]) if (e > 0).any() else 1.0 for e in effect.T])

    def errors(log_theta: np.ndarray) -> np.ndarray:
        return latency(np.exp(log_theta), units, f) / observed - 1

    rng = np.random.default_rng(seed)
    solutions = []
    for start in range(starts):
        apart = (start > 0) * rng.normal(0, 1.5, whole.size)
        x0 = np.clip(np.log(0.5 / whole.size) + apart, BOUNDS[0] + 0.1, BOUNDS[1] - 0.1)
        solutions.append(
            least_squares(lambda x: errors(x + np.log(whole)), x0, bounds=BOUNDS, max_nfev=300)
        )
    best = min(solutions, key=lambda solution: solution.cost)
    theta = np.zeros(used.size)
    theta[used] = np.exp(best.x) * whole
    residual = np.log1p(errors(best.x + np.log(whole)))
    freedom = max(len(observed) - int(used.sum()), 1)
    return PointFit(
        law,
        {n: float(v) for n, v in zip(LAWS[law].names, theta, strict=True)},
        float(np.sqrt((residual**2).sum() / freedom)),
        float(best.cost),
    )


def six_coefficients(rows: pd.DataFrame) -> PointFit:
    """The paper's six coefficients for one verifier (and drafter) at one pair of lengths."""
    return fit("six", rows)


def size_law(rows: pd.DataFrame) -> PointFit:
    """Every coefficient ``o + s N``, shared by all verifiers: N the active parameters.

    A mixture of experts reads ``shared + coverage x expert`` parameters a pass, the second part at
    a slope of its own.
    """
    return fit("sizes", rows)


def per_verifier(rows: pd.DataFrame) -> dict[str, PointFit]:
    """Six coefficients a verifier, linear in lengths and drafter size where these vary.

    Prefills are linear in P, c2,verify in P + g/2. A verifier needs `SPARE_ROWS` rows more than it
    has coefficients.
    """
    fits = {}
    for name, group in rows.groupby("verifier"):
        used = (columns(LAWS["lengths"], features(group)) > 0).any(axis=(0, 1)).sum()
        if len(group) >= used + SPARE_ROWS:
            fits[str(name)] = fit("lengths", group)
    return fits
