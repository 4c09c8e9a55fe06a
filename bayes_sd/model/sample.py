"""Sampling with nutpie, where chains start, and the convergence gate."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.model.design import Design, coefficients
from bayes_sd.model.priors import Prior
from bayes_sd.physics.law import FULL, SOFTNESS, Law, outcome

if TYPE_CHECKING:
    import pymc as pm

RHAT_MAX = 1.01
ESS_MIN = 400.0

# Priors reach from a laptop to an H200, so their median may lie far past the pole of every run,
# where the likelihood has no useful slope; a chain that starts there may never come back.
START_SHIFTS = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5)  # prior standard deviations
START_ERROR = 0.1  # relative, of an observed latency; more near the pole
START_PRIOR_WEIGHT = 0.25  # so that what the runs leave open stays near its median
START_NUDGE = 0.1  # prior standard deviations


@dataclass(frozen=True)
class Sampling:
    """How to sample: draws kept and discarded of each chain, step size target, cores."""

    draws: int = 1200
    tune: int = 1000
    chains: int = 4
    target_accept: float = 0.9
    cores: int | None = None

    def __post_init__(self) -> None:
        for name in ("draws", "tune", "chains"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} = {value!r}: must be a whole number of at least 1.")
        if not 0 < self.target_accept < 1:
            raise InputError(f"target_accept = {self.target_accept!r}: must lie between 0 and 1.")


def start(design: Design, priors: tuple[Prior, ...], law: Law = FULL) -> np.ndarray:
    """Logs of the population coefficients by regularised least squares on the run means."""
    from scipy.optimize import least_squares

    middle, sd = np.log([p.a for p in priors]), np.array([p.b for p in priors])
    data, verifier = design.data, design.data["verifier_i"]
    sizes: dict[str, Any] = {
        str(name): values.to_numpy(float)[verifier] for name, values in design.verifiers.items()
    }
    sizes["drafter"] = 0.0 * data["drafted"]
    if len(design.drafters):
        drafters = design.drafters["drafter_params"].to_numpy(float)
        sizes["drafter"] = drafters[data["drafter_i"]] * data["drafted"]
    alone = design.table.groupby(["server", "prompt_tokens", "output_tokens"])["e2e_mean_s"]
    crowding = (design.table["e2e_mean_s"] / alone.transform("min")).to_numpy()

    def errors(z: np.ndarray) -> np.ndarray:
        terms = dict(zip((p.name for p in priors), np.exp(middle + sd * z), strict=True))
        terms = coefficients(terms, verifier=[1.0] * 4, drafter=[1.0] * 2, server=[1.0])
        stages = law.stages(terms, sizes, data)
        said = outcome(stages, terms["queue_cycles"], sizes, data, SOFTNESS, law=law)
        e2e = (np.log(said.e2e_s) - data["log_e2e"]) / (START_ERROR * crowding)
        ttft = (np.log(said.ttft_s) - data["log_ttft"]) / (2 * START_ERROR * crowding)
        rows = e2e[data["e2e_rows"]], ttft[data["ttft_rows"]]
        return np.concatenate([*rows, START_PRIOR_WEIGHT * z])

    costs = [np.log1p(errors(np.full(len(priors), s)) ** 2).sum() for s in START_SHIFTS]
    best = START_SHIFTS[int(np.argmin(costs))]
    solution = least_squares(errors, np.full(len(priors), best), loss="soft_l1", max_nfev=100)
    # Rounded, so that the last digits of a sum on another machine do not change the draws.
    logs = np.round(middle + sd * solution.x, 1)
    # A coefficient that no run tells has no gradient in the middle of its prior, which the sampler
    # takes for a fault.
    return np.where(np.isclose(logs, middle), logs + START_NUDGE * sd, logs)


def compile_nutpie(model: "pm.Model", initial: Mapping[str, np.ndarray], fixed: Any = None) -> Any:
    """Compile for nutpie with sizes and data frozen: they fold much of the graph.

    `fixed` names the data to freeze, by default all; what is left can be replaced later.
    """
    import nutpie
    from pymc.model.transform.optimization import freeze_dims_and_data

    # Frozen here, not in nutpie, which would renew the variables that are to be jittered.
    frozen = freeze_dims_and_data(model, **({} if fixed is None else {"data": fixed}))
    return nutpie.compile_pymc_model(
        frozen,
        freeze_model=False,
        initial_points=dict(initial),
        jitter_rvs={v for v in frozen.free_RVs if v.name not in initial},
    )


def draw(compiled: Any, how: Sampling, seed: int, progress: bool = False) -> xr.DataTree:
    """Sample a compiled model; equal seeds give equal draws on one machine and set of versions."""
    import nutpie

    return nutpie.sample(
        compiled,
        draws=how.draws,
        tune=how.tune,
        chains=how.chains,
        cores=how.cores,
        seed=seed,
        target_accept=how.target_accept,
        progress_bar=progress,
    )


def sample(
    model: "pm.Model",
    how: Sampling,
    seed: int,
    progress: bool | None = None,
    initial: Mapping[str, np.ndarray] | None = None,
) -> tuple[xr.DataTree, dict[str, float]]:
    """Draw from the posterior: a tree with ``posterior`` and ``sample_stats``, and seconds spent.

    `progress` is by default shown only when standard error is a terminal. `initial` says where
    variables start; the others start around the middle of their prior, chains apart.
    """
    begun = time.perf_counter()
    compiled = compile_nutpie(model, initial or {})
    compiled_at = time.perf_counter()
    tree = draw(compiled, how, seed, sys.stderr.isatty() if progress is None else progress)
    seconds = compiled_at - begun, time.perf_counter() - compiled_at
    return tree, dict(zip(("seconds_compile", "seconds_sample"), seconds, strict=True))


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of a fit; `table`: ``rhat``, ``ess_bulk``, ``ess_tail`` of every parameter."""

    table: pd.DataFrame
    divergences: int
    chains: int
    draws: int
    nonfinite: int

    @property
    def summary(self) -> dict[str, Any]:
        """Worst values over all parameters, JSON-able."""
        return {
            "rhat_max": round(float(self.table["rhat"].max()), 4),
            "ess_bulk_min": round(float(self.table["ess_bulk"].min()), 1),
            "ess_tail_min": round(float(self.table["ess_tail"].min()), 1),
            "divergences": self.divergences,
            "chains": self.chains,
            "draws": self.draws,
        }

    @property
    def complaints(self) -> list[str]:
        """What the gate refuses, one sentence each; empty when the fit passes."""
        if self.nonfinite:
            return [f"{self.nonfinite} draws are not finite (was sampling interrupted?)."]
        blank = self.table.index[self.table.isna().any(axis=1)]
        if self.chains < 2 or self.draws < 4:
            return [f"{self.chains} chain(s) of {self.draws} draws are too few to diagnose."]
        if len(blank):
            return [f"{len(blank)} of {len(self.table)} parameters never moved (as {blank[0]})."]
        said = []
        if self.divergences:
            said.append(f"{self.divergences} divergent transitions, none allowed.")
        for name, value, bad in (
            ("rhat", f"above {RHAT_MAX}", ~(self.table["rhat"] <= RHAT_MAX)),
            ("ess_bulk", f"below {ESS_MIN:.0f}", ~(self.table["ess_bulk"] >= ESS_MIN)),
            ("ess_tail", f"below {ESS_MIN:.0f}", ~(self.table["ess_tail"] >= ESS_MIN)),
        ):
            if bad.any():
                worst = self.table.loc[bad, name]
                where = str(worst.idxmax() if name == "rhat" else worst.idxmin())
                said.append(
                    f"{name} is {value} for {int(bad.sum())} of {len(bad)} parameters "
                    f"(worst: {where}, {worst[where]:.3g})."
                )
        return said


def diagnose(tree: xr.DataTree) -> Convergence:
    """R-hat and effective sample sizes of every sampled parameter.

    Counts and finiteness come first: an interrupted run is padded with NaN and shows no divergence.
    """
    import arviz as az

    posterior = tree["posterior"].to_dataset()
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    nonfinite = sum(int((~np.isfinite(v.values)).sum()) for v in posterior.data_vars.values())
    if nonfinite or chains < 2 or draws < 4:
        blank = pd.DataFrame(columns=["rhat", "ess_bulk", "ess_tail"], dtype=float)
        blank.loc["all"] = np.nan
        return Convergence(blank, 0, chains, draws, nonfinite)
    columns = {
        "rhat": az.rhat(posterior, method="rank"),
        "ess_bulk": az.ess(posterior, method="bulk"),
        "ess_tail": az.ess(posterior, method="tail", prob=0.9),
    }
    table = pd.DataFrame({name: _flat(values) for name, values in columns.items()})
    diverging = int(tree["sample_stats"]["diverging"].sum())
    return Convergence(table, diverging, chains, draws, nonfinite)


def _flat(values: xr.Dataset) -> pd.Series:
    """Scalars of a dataset by ``name[label, ...]``."""
    parts: dict[str, float] = {}
    for name, array in values.data_vars.items():
        for index in np.ndindex(array.shape):
            labels = zip(array.dims, index, strict=True)
            label = ", ".join(str(array[dim].values[i]) for dim, i in labels)
            parts[f"{name}[{label}]" if label else str(name)] = float(array.values[index])
    return pd.Series(parts, dtype=float)
