"""Where to start sampling: coefficients whose latencies resemble the observed ones."""

from typing import Any

import numpy as np

from bayes_sd.model.design import Design
from bayes_sd.model.priors import COEFFICIENTS, DRAFT_COEFFICIENTS, Prior
from bayes_sd.physics.costs import FULL, Law
from bayes_sd.physics.law import SOFTNESS, outcome

# Priors reach from a laptop to an H200, so their median may lie far past the pole of every run,
# where the likelihood has no useful slope; a chain that starts there may never come back.
SHIFTS = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5)  # prior standard deviations, all coefficients alike
RELATIVE = 0.1  # of an observed latency; more near the pole
TIGHT = 0.25  # weight of the prior, so that what the runs leave open stays near its median
NUDGE = 0.1  # prior standard deviations
FACTORS = (
    *(f"f_{name}" for name in COEFFICIENTS + DRAFT_COEFFICIENTS),
    "f_speed",
    "f_capacity",
)


def start(design: Design, priors: tuple[Prior, ...], law: Law = FULL) -> np.ndarray:
    """Logs of the population coefficients by regularised least squares on the run means.

    Parameters
    ----------
    design : Design
    priors : tuple of Prior
        Of the law's coefficients, in the order wanted.
    law : Law

    Returns
    -------
    numpy.ndarray
        One value for each prior.
    """
    from scipy.optimize import least_squares

    middle, sd = np.log([p.a for p in priors]), np.array([p.b for p in priors])
    d, v = design.data, design.data["verifier_i"]
    system: dict[str, Any] = {name: values[v] for name, values in design.verifiers.items()}
    system["drafter"] = design.drafters[d["drafter_i"]] * d["drafted"]
    alone = design.runs.groupby(["system", "prompt_tokens", "output_tokens"])["e2e_mean_s"]
    crowding = (design.runs["e2e_mean_s"] / alone.transform("min")).to_numpy()
    rows = d["ttft_rows"]

    def errors(z: np.ndarray) -> np.ndarray:
        theta: dict[str, Any] = dict.fromkeys(FACTORS, 1.0)
        theta |= dict(zip((p.name for p in priors), np.exp(middle + sd * z), strict=True))
        found = outcome(theta, system, d, SOFTNESS, law=law)
        e2e = ((np.log(found.e2e_s) - d["log_e2e"]) / (RELATIVE * crowding))[d["e2e_rows"]]
        ttft = ((np.log(found.ttft_s) - d["log_ttft"]) / (2 * RELATIVE * crowding))[rows]
        return np.concatenate([e2e, ttft, TIGHT * z])

    costs = [float(np.sum(np.log1p(errors(np.full(len(priors), s)) ** 2))) for s in SHIFTS]
    best = SHIFTS[int(np.argmin(costs))]
    found = least_squares(errors, np.full(len(priors), best), loss="soft_l1", max_nfev=100)
    # Rounded, so that the last digits of a sum on another machine do not change the draws.
    start = np.round(middle + sd * found.x, 1)
    # A coefficient that no run tells has no gradient in the middle of its prior, which the sampler
    # takes for a fault.
    return np.where(np.isclose(start, middle), start + NUDGE * sd, start)
