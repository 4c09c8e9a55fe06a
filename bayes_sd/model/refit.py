"""Compile once, refit often: runs left out, or observed values replaced, by data alone."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.model.design import Design
from bayes_sd.model.sample import Convergence, Sampling, compile_nutpie, diagnose, draw

MASKED_SD = 1e6  # added to the log-sd of a run left out: its likelihood is flat
OBSERVED = ("log_e2e", "log_ttft", "log_var_e2e", "log_var_ttft")
RUN_PREFIX = "run_"


@dataclass(frozen=True, eq=False)
class Refit:
    """One refit.

    `draws` (chain, draw, run) has ``run_mean_*`` (s), ``run_scale_*`` (log) and ``run_variance_*``
    of e2e and ttft for every run, those left out included; `sampled` the model's ``posterior`` and
    ``sample_stats``; `left_out` says which runs were left out.
    """

    draws: xr.Dataset
    sampled: xr.DataTree
    left_out: np.ndarray
    seconds: float

    @cached_property
    def parameters(self) -> xr.Dataset:
        """Draws of the model's parameters."""
        return self.sampled["posterior"].to_dataset()

    @property
    def divergences(self) -> int:
        """Divergent transitions."""
        return int(self.sampled["sample_stats"]["diverging"].sum())

    @cached_property
    def convergence(self) -> Convergence:
        """R-hat and effective sample sizes, computed when asked for, as it takes a while."""
        return diagnose(self.sampled)

    def of_runs(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Draws of a quantity of runs: (draws, rows)."""
        values = self.draws[name].values
        return np.asarray(values.reshape(-1, values.shape[-1])[:, rows])


@dataclass(frozen=True, eq=False)
class Refitter:
    """A compiled model and the design it was compiled for; see :func:`compile_refits`."""

    design: Design
    compiled: Any
    seconds_compile: float

    @property
    def table(self) -> pd.DataFrame:
        """The runs, steady and censored, in the order of ``left_out``."""
        return self.design.table

    def refit(
        self,
        left_out: np.ndarray | None = None,
        *,
        seed: int = 1,
        observed: Mapping[str, np.ndarray] | None = None,
        draws: int = 500,
        tune: int = 500,
        **sampling: Any,
    ) -> Refit:
        """Sample again without some runs, or with other `observed` values.

        `left_out` has one entry a run; `observed` replaces any of ``log_e2e``, ``log_ttft``,
        ``log_var_e2e``, ``log_var_ttft`` over all runs; `sampling` is as in :class:`Sampling`.
        """
        how = Sampling(draws=draws, tune=tune, **sampling)
        n = len(self.design.table)
        left_out = np.zeros(n, bool) if left_out is None else np.asarray(left_out, bool)
        new = {"mask_sd": MASKED_SD * left_out, **(observed or {})}
        # Sizes are not checked by the compiled code: a wrong one would be read past its end.
        for name, values in new.items():
            if name not in ("mask_sd", *OBSERVED):
                raise InputError(f"{name!r} cannot be replaced; only {', '.join(OBSERVED)}.")
            if np.shape(values) != (n,):
                raise InputError(f"{name} has shape {np.shape(values)}; the fit has {n} runs.")
        begun = time.perf_counter()
        data = {name: np.asarray(values, float) for name, values in new.items()}
        tree = draw(self.compiled.with_data(**data), how, seed)
        seconds = time.perf_counter() - begun
        posterior = tree["posterior"].to_dataset()
        of_runs = [str(name) for name in posterior.data_vars if str(name).startswith(RUN_PREFIX)]
        tree["posterior"] = xr.DataTree(posterior.drop_vars(of_runs))
        return Refit(posterior[of_runs], tree, left_out, seconds)


def compile_refits(graph: Any, design: Design, initial: Mapping[str, np.ndarray]) -> Refitter:
    """Compile a graph built with ``keep_runs`` so that refits cost sampling only."""
    begun = time.perf_counter()
    fixed = [name for name in design.data if name not in ("mask_sd", *OBSERVED)]
    fixed += [f"verifier_{name}" for name in design.verifiers]
    fixed += ["drafter_size"] if len(design.drafters) else []
    compiled = compile_nutpie(graph, initial, fixed)
    return Refitter(design, compiled, time.perf_counter() - begun)
