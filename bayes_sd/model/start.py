"""Where chains start, by least squares."""

from collections.abc import Mapping

import numpy as np

from bayes_sd.model.design import Design, coefficients
from bayes_sd.model.priors import Prior
from bayes_sd.physics.law import FULL, SOFTNESS, Law, Outcome, outcome

# Priors reach from a laptop to an H200, so their median may lie far past the pole of every run,
# where the likelihood has no useful slope; a chain that starts there may never come back.
SHIFTS = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5)  # prior standard deviations
ERROR = 0.1  # relative, of an observed latency; more near the pole
PRIOR_WEIGHT = 0.25  # so that what the runs leave open stays near its median
NUDGE = 0.1  # prior standard deviations
METRICS = {"e2e": ERROR, "ttft": 2 * ERROR}


def _outcome(design: Design, law: Law, terms: Mapping, rows: np.ndarray) -> Outcome:
    """What the law says of some runs with these coefficients."""
    law, inputs = design.fitted_law(law), {n: x[rows] for n, x in design.inputs.items()}
    stages = law.stages(coefficients(design.all_terms(terms)), inputs, inputs)
    return outcome(stages, inputs, inputs, SOFTNESS, law=law)


def start(
    design: Design, priors: tuple[Prior, ...], law: Law = FULL, rows: np.ndarray | None = None
) -> np.ndarray:
    """Logs of the coefficients by regularised least squares on the means of (some) runs."""
    from scipy.optimize import least_squares

    middle, sd = np.log([p.a for p in priors]), np.array([p.b for p in priors])
    names, data = [p.name for p in priors], design.data
    alone = design.table.groupby(["server", "prompt_tokens", "output_tokens"])["e2e_mean_s"]
    crowding = (design.table["e2e_mean_s"] / alone.transform("min")).to_numpy()
    taken = np.full(len(crowding), True) if rows is None else rows
    has = {m: np.isin(np.flatnonzero(taken), data[f"{m}_rows"]) for m in METRICS}

    def errors(z: np.ndarray) -> np.ndarray:
        terms = dict(zip(names, np.exp(middle + sd * z), strict=True))
        said = _outcome(design, law, terms, taken)
        each = [
            ((np.log(said.mean_s(metric, 0.0)) - data[f"log_{metric}"][taken]) / error)[has[metric]]
            / crowding[taken][has[metric]]
            for metric, error in METRICS.items()
        ]
        return np.concatenate([*each, PRIOR_WEIGHT * z])

    costs = [np.log1p(errors(np.full(len(priors), s)) ** 2).sum() for s in SHIFTS]
    best = SHIFTS[int(np.argmin(costs))]
    solution = least_squares(errors, np.full(len(priors), best), loss="soft_l1", max_nfev=100)
    # Rounded, so that the last digits of a sum on another machine do not change the draws.
    logs = np.round(middle + sd * solution.x, 1)
    # In the middle of its prior a coefficient that no run tells has no gradient: a fault to nutpie.
    return np.where(np.isclose(logs, middle), logs + NUDGE * sd, logs)
