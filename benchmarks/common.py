"""What the benchmarks share: fits used even where the gate refuses them, and parts of runs."""

import sys
from typing import Any

import numpy as np

import bayes_sd as bsd
from bayes_sd.errors import ConvergenceError
from bayes_sd.model.sample import ESS_MIN, RHAT_MAX
from bayes_sd.runs.schema import Runs


def fitted(model: bsd.LatencyModel, runs: Runs, **how: Any) -> bsd.Fit:
    """Fit; one that did not converge is used all the same, and said so on standard error."""
    try:
        return model.fit(runs, progress=False, **how)
    except ConvergenceError as error:
        print(error, file=sys.stderr)
        return error.fit


def converged(fit: bsd.Fit) -> bool:
    """Whether the fit passed the gate."""
    s = fit.sampling
    fewest = min(s["ess_bulk_min"], s["ess_tail_min"])
    return s["rhat_max"] <= RHAT_MAX and fewest >= ESS_MIN and s["divergences"] == 0


def part(runs: Runs, rows: np.ndarray) -> Runs:
    """The runs whose entry in `rows` is true."""
    return Runs(runs.table[np.asarray(rows)].reset_index(drop=True), runs.set_aside)


def random_fifth(count: int, seed: int) -> np.ndarray:
    """Which of `count` runs are in a random fifth of them."""
    order = np.random.default_rng(seed).permutation(count)
    return np.isin(np.arange(count), order[: round(0.2 * count)])
