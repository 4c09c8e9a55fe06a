"""Data that a model would have made: for recovery and for simulation-based calibration."""

from typing import Any

import numpy as np
from scipy.stats import t

from bayes_sd.inference.refit import Refit
from bayes_sd.model.design import Design
from bayes_sd.physics.law import NU


def one_draw(refit: Refit, index: int) -> dict[str, Any]:
    """Everything a refit says in one draw: its parameters and what they mean for the runs."""
    chains, draws = refit.draws.sizes["chain"], refit.draws.sizes["draw"]
    at = {"chain": index // draws % chains, "draw": index % draws}
    return {
        str(name): data[name].isel(at).values
        for data in (refit.draws, refit.parameters)
        for name in data.data_vars
    }


def replicate(
    truth: dict[str, Any], design: Design, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Observed values of all runs under one draw, as :meth:`Refitter.refit` takes them.

    Parameters
    ----------
    truth : dict
        See :func:`one_draw`; needs ``run_*`` and ``noise``.
    design : Design
    rng : numpy.random.Generator
    """
    data, made = design.data, {}
    for metric in ("e2e", "ttft"):
        sd = np.hypot(truth[f"run_scale_{metric}"], data[f"se_{metric}"])
        error = t.rvs(NU, size=len(sd), random_state=rng)
        made[f"log_{metric}"] = np.log(truth[f"run_mean_{metric}"]) + sd * error
    names = list(truth["noise_names"])
    spread_sd = float(truth["noise"][names.index("spread_sd")])
    for metric in ("e2e", "ttft"):
        sd = np.sqrt(2 / (data[f"worth_{metric}"] - 1) + (2 * spread_sd) ** 2)
        middle = np.log(truth[f"run_variance_{metric}"])
        made[f"log_var_{metric}"] = middle + sd * rng.standard_normal(len(sd))
    # A run that was cut short showed at most what it would have come to.
    cut = data["censored_rows"]
    made["log_e2e"][cut] -= np.abs(rng.standard_normal(len(cut)))
    return made
