"""The package's law fitted by least squares to runs: coefficients of the law alone, in seconds.

No verifier, drafter, server or environment differs from the law. Relative errors of the mean
latency, and at a third of the weight those of TTFT, are minimized (soft-L1 beyond 10%); each prior
weighs as much as one such run.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from bayes_sd.model.design import Design, build_design, coefficients
from bayes_sd.model.priors import population
from bayes_sd.physics.law import FULL, SOFTNESS, Law, Outcome, outcome
from bayes_sd.runs.schema import Runs

SCALE = 0.1  # relative error of a usual run
STARTS = (0.0, -1.0)  # standard deviations from the medians of the priors
STEPS = 80
FAR = 50.0  # stands for the error of a latency that is no number


@dataclass(frozen=True)
class Inputs:
    """What the law takes of runs, and what was measured of them; `table` has a row a run."""

    design: Design
    table: pd.DataFrame
    workload: dict[str, np.ndarray]
    sizes: dict[str, Any]

    def part(self, rows: Any) -> "Inputs":
        """The runs whose entry in `rows` is true."""
        rows = np.asarray(rows)
        return replace(
            self,
            table=self.table[rows].reset_index(drop=True),
            workload={name: values[rows] for name, values in self.workload.items()},
            sizes={name: values[rows] for name, values in self.sizes.items()},
        )


def inputs(runs: Runs) -> Inputs:
    """Steady runs as the law takes them."""
    design = build_design(runs, censored=False)
    table, data = design.table, design.data
    # Indices of rows say nothing of a part of the runs.
    workload = {n: x for n, x in data.items() if not n.endswith("_rows")}
    return Inputs(design, table, workload, design.inputs)


@dataclass(frozen=True)
class Fitted:
    """A law and its coefficients."""

    law: Law
    terms: dict[str, float]

    def outcome(self, runs: Inputs) -> Outcome:
        """What the law says of the runs."""
        stages = self.law.stages(coefficients(self.terms), runs.sizes, runs.workload)
        with np.errstate(all="ignore"):
            return outcome(stages, runs.sizes, runs.workload, SOFTNESS, law=self.law)

    def error(self, runs: Inputs) -> np.ndarray:
        """Predicted mean latency over measured, less one."""
        return self.outcome(runs).e2e_s / runs.table["e2e_mean_s"].to_numpy() - 1


def fit(runs: Inputs, law: Law = FULL) -> Fitted:
    """The best of fits from several starts; what no run tells stays at its prior."""
    law = runs.design.fitted_law(law)
    priors = runs.design.told(population(law))
    middle, spread = np.log([p.a for p in priors]), np.array([p.b for p in priors])
    measured = runs.table[["e2e_mean_s", "ttft_mean_s"]].to_numpy(float)
    timed = np.isfinite(measured[:, 1])

    def fitted(z: np.ndarray) -> Fitted:
        said = dict(zip((p.name for p in priors), np.exp(middle + spread * z), strict=True))
        return Fitted(law, runs.design.all_terms(said))

    def errors(z: np.ndarray) -> np.ndarray:
        said = fitted(z).outcome(runs)
        e2e, ttft = (np.log(np.maximum(x, 1e-6)) for x in (said.e2e_s, said.ttft_s))
        late = (ttft - np.log(measured[:, 1]))[timed] / (3 * SCALE)
        each = np.concatenate([(e2e - np.log(measured[:, 0])) / SCALE, late, z])
        return np.nan_to_num(each, nan=FAR, posinf=FAR, neginf=-FAR)

    starts = (np.full(len(priors), start) for start in STARTS)
    found = (least_squares(errors, z, loss="soft_l1", max_nfev=STEPS) for z in starts)
    return fitted(min(found, key=lambda solution: solution.cost).x)


def left_out(runs: Inputs, groups: pd.Series, law: Law = FULL) -> np.ndarray:
    """Errors of each run by a fit of the runs of other groups."""
    error = np.full(len(runs.table), np.nan)
    for group in groups.unique():
        held = (groups == group).to_numpy()
        unseen = runs.part(held)
        del unseen.workload["pass_tokens"]  # at a rate it follows from the latency itself
        error[held] = fit(runs.part(~held), law).error(unseen)
    return error
