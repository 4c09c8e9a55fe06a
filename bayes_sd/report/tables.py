"""Tables of a fit."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayes_sd.model.priors import ALL

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

EFFECT_NAMES = {
    "1p": "own prefill",
    "2p": "others' prefills",
    "1v": "verify pass",
    "2v": "per sequence and token",
    "1d": "draft pass",
    "2d": "draft, per sequence",
    "speed": "time of a request alone",
    "capacity": "time added by others",
    "overhead": "overheads",
    "memory": "reading weights",
    "compute": "arithmetic",
}


def coefficients(fit: "Fit", prob: float = 0.9) -> pd.DataFrame:
    """Posterior median and equal-tailed interval of every population coefficient.

    Returns
    -------
    pandas.DataFrame
        ``name, median, low, high, unit, meaning``; intervals hold `prob`.
    """
    posterior = fit.posterior
    meaning = {p.name: p for p in ALL}
    rows = []
    for group, dim in (
        ("law", "law_term"),
        ("moe", "coefficient"),
        ("tau_verifier", "coefficient"),
        ("tau_drafter", "draft_coefficient"),
        ("tau_system", "speed"),
        ("tau_environment", "hardware"),
        ("noise", "noise_term"),
    ):
        if group not in posterior:
            continue
        for term in posterior[dim].values:
            draws = posterior[group].sel({dim: term}).values
            own = group in ("law", "noise")
            prior = meaning[str(term) if own else group]
            low, middle, high = np.quantile(draws, [(1 - prob) / 2, 0.5, (1 + prob) / 2])
            name = str(term) if own else f"{group}[{term}]"
            what = prior.meaning if own else f"{prior.meaning}: {EFFECT_NAMES[str(term)]}"
            rows.append((name, middle, low, high, prior.unit, what))
    return pd.DataFrame(rows, columns=["name", "median", "low", "high", "unit", "meaning"])


def collapse(runs: pd.DataFrame) -> dict[str, float]:
    """Observed against fitted run means: R^2 in the log scale by family, mean relative error."""
    observed, fitted = np.log(runs["e2e_mean_s"]), np.log(runs["fitted_e2e_s"])
    result: dict[str, float] = {}
    for family in ("dense", "moe"):
        own = runs["family"] == family
        residual = ((observed - fitted)[own] ** 2).sum()
        total = ((observed[own] - observed[own].mean()) ** 2).sum()
        result[f"r2_{family}"] = float(1 - residual / total) if own.sum() > 1 else float("nan")
    result["mape"] = float(np.abs(runs["fitted_e2e_s"] / runs["e2e_mean_s"] - 1).mean())
    return result
