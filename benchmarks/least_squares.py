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
from bayes_sd.physics import law as physics
from bayes_sd.physics.costs import Stages
from bayes_sd.runs import sizes

STARTS = 12
PAPER = physics.Law(("host",))  # reading and computing one after the other
BOUNDS = (-14.0, 6.0)  # of the log coefficient, around a start that explains the whole latency
SPARE_ROWS = 5  # rows beyond the coefficients that a fit of its own needs

Values = dict[str, Any]


@dataclass(frozen=True)
class Law:
    """Names of the coefficients, and stage costs from them and the features of runs."""

    names: tuple[str, ...]
    stages: Callable[[Values, Values], Stages]


def _stages(p1: Any, p2: Any, v1: Any, experts: Any, v2: Any, d1: Any, d2: Any) -> Stages:
    return Stages(prefill_alone=p1, prefill_others=p2, verify_alone=v1, verify_others=v2,
                  experts=experts, draft_alone=d1, draft_others=d2)  # fmt: skip


def _six(t: Values, f: Values) -> Stages:
    return _stages(t["1p"], t["2p"], t["1v"], 0.0, t["2v"], t["1d"], t["2d"])


def _with_lengths(t: Values, f: Values) -> Stages:
    p, context = f["prompt_tokens"], f["prompt_tokens"] + f["output_tokens"] / 2
    return _stages(
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
    return _stages(
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
    """Arrays over runs that the laws need; ``g / E`` cycles, as the paper has it."""
    closed = (rows["loop"] == "closed").to_numpy(float)
    k, output = rows["draft_tokens"].to_numpy(float), rows["output_tokens"].to_numpy(float)
    return {
        **sizes.features(*(rows[name] for name in SIZES)),
        "prompt_tokens": rows["prompt_tokens"].to_numpy(float),
        "output_tokens": output,
        "k": k,
        "draft_passes": k,
        "cycles": output / rows["tokens_per_cycle"].to_numpy(float),
        "drafter": rows["drafter_params"].fillna(0.0).to_numpy(float) / 1e9,
        "drafter_layers": rows["drafter_layers"].fillna(1.0).to_numpy(float),
        "captured": np.inf,
        "closed": closed,
        "rate_rps": np.where(closed > 0, 0.0, rows["rate_rps"].to_numpy(float)),
        "others": np.where(closed > 0, rows["concurrency"].to_numpy(float) - 1, 0.0),
    }


def columns(law: Law, f: Values, in_flight: np.ndarray) -> np.ndarray:
    """Latency beside so many others per unit of each coefficient: (runs, coefficients)."""
    parts = []
    for name in law.names:
        s = law.stages({other: float(other == name) for other in law.names}, f)
        cycle = s.verify_alone + s.experts + f["k"] * s.draft_alone
        alone = s.prefill_alone + f["cycles"] * cycle
        parts.append(alone + in_flight * physics.most_added_s(s, f))
    return np.stack([np.broadcast_to(part, f["k"].shape) for part in parts], axis=1)


def latency(law: Law, theta: Values, f: Values) -> np.ndarray:
    """Mean latency, s; past the pole large, not infinite (headroom is rounded as in the model)."""
    stages = law.stages(theta, f)
    return physics.outcome(stages, f, f, physics.SOFTNESS, law=PAPER).e2e_s


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
        return latency(LAWS[self.law], self.theta, features(rows))


def fit(law: str, rows: pd.DataFrame, starts: int = STARTS, seed: int = 0) -> PointFit:
    """Best of several starts; a coefficient that no run depends on is 0."""
    f, observed = features(rows), rows["e2e_mean_s"].to_numpy(float)
    in_flight = np.where(f["closed"] > 0, f["others"], f["rate_rps"] * observed)
    # A coefficient's start: what would explain half the typical latency with none beside it.
    effect = columns(LAWS[law], f, in_flight) / observed[:, None]
    used = (effect > 0).any(axis=0)
    names = [name for name, of_use in zip(LAWS[law].names, used, strict=True) if of_use]
    scale = np.array([1 / np.median(e[e > 0]) for e in effect[:, used].T])

    def theta(x: np.ndarray) -> Values:
        found = dict(zip(names, (np.exp(x) * scale).tolist(), strict=True))
        return dict.fromkeys(LAWS[law].names, 0.0) | found

    def errors(x: np.ndarray) -> np.ndarray:
        return latency(LAWS[law], theta(x), f) / observed - 1

    rng = np.random.default_rng(seed)
    solutions = []
    for start in range(starts):
        apart = (start > 0) * rng.normal(0, 1.5, scale.size)
        x0 = np.clip(np.log(0.5 / scale.size) + apart, BOUNDS[0] + 0.1, BOUNDS[1] - 0.1)
        solutions.append(least_squares(errors, x0, bounds=BOUNDS, max_nfev=300))
    best = min(solutions, key=lambda solution: solution.cost)
    residual = np.log1p(errors(best.x))
    freedom = max(len(observed) - len(names), 1)
    log_sd = float(np.sqrt((residual**2).sum() / freedom))
    return PointFit(law, theta(best.x), log_sd, float(best.cost))


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
        used = (columns(LAWS["lengths"], features(group), 1.0) > 0).any(axis=0).sum()
        if len(group) >= used + SPARE_ROWS:
            fits[str(name)] = fit("lengths", group)
    return fits
