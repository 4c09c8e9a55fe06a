"""Compile once, refit often: runs left out, or observed values replaced, by data alone."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.inference.gate import Convergence, diagnose
from bayes_sd.model.design import Design

if TYPE_CHECKING:
    from bayes_sd.model.latency_model import LatencyModel
    from bayes_sd.traces import Traces

AWAY = 1e6  # added to the log-sd of a run left out: its likelihood is flat
OBSERVED = ("log_e2e", "log_ttft", "log_var_e2e", "log_var_ttft")
RUN_PREFIX = "run_"


@dataclass(frozen=True, eq=False)
class Refit:
    """One refit.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, run): ``run_mean_e2e``, ``run_mean_ttft`` (s), their run-to-run
        ``run_scale_*`` (log) and the variance of single requests ``run_variance_*``, for every run,
        those left out included.
    sampled : xarray.DataTree
        The model's ``posterior`` and its ``sample_stats``.
    left_out : numpy.ndarray
        Which runs were left out.
    seconds : float
        Of sampling.
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


@dataclass(frozen=True, eq=False)
class Refitter:
    """A compiled model and the design it was compiled for; see :func:`compile_refits`."""

    design: Design
    compiled: Any
    seconds_compile: float

    @property
    def runs(self) -> pd.DataFrame:
        """The runs, steady and censored, in the order of ``left_out``."""
        return self.design.runs

    def refit(
        self,
        left_out: np.ndarray | None = None,
        *,
        seed: int = 1,
        draws: int = 500,
        tune: int = 500,
        chains: int = 4,
        cores: int | None = None,
        observed: Mapping[str, np.ndarray] | None = None,
        target_accept: float = 0.9,
    ) -> Refit:
        """Sample again without some runs, or with other observed values.

        Parameters
        ----------
        left_out : array of bool, optional
            One entry a run.
        seed, draws, tune, chains, cores, target_accept
            As in :meth:`bayes_sd.LatencyModel.fit`.
        observed : mapping, optional
            Of ``log_e2e``, ``log_ttft``, ``log_var_e2e``, ``log_var_ttft``: an array over all
            runs.

        Returns
        -------
        Refit

        Raises
        ------
        InputError
            If an array has another length than the runs, or a name is unknown.
        """
        import nutpie

        n = len(self.design.runs)
        left_out = np.zeros(n, bool) if left_out is None else np.asarray(left_out, bool)
        new = {"away": AWAY * left_out, **(observed or {})}
        # Sizes are not checked by the compiled code: a wrong one would be read past its end.
        for name, values in new.items():
            if name not in ("away", *OBSERVED):
                raise InputError(f"{name!r} cannot be replaced; only {', '.join(OBSERVED)}.")
            if np.shape(values) != (n,):
                raise InputError(f"{name} has shape {np.shape(values)}; the fit has {n} runs.")
        start = time.perf_counter()
        tree = nutpie.sample(
            self.compiled.with_data(**{k: np.asarray(v, float) for k, v in new.items()}),
            draws=draws,
            tune=tune,
            chains=chains,
            cores=cores,
            seed=seed,
            target_accept=target_accept,
            progress_bar=False,
        )
        seconds = time.perf_counter() - start
        posterior = tree["posterior"].to_dataset()
        of_runs = [str(name) for name in posterior.data_vars if str(name).startswith(RUN_PREFIX)]
        tree["posterior"] = xr.DataTree(posterior.drop_vars(of_runs))
        return Refit(posterior[of_runs], tree, left_out, seconds)


def compile_refits(model: "LatencyModel", traces: "Traces") -> Refitter:
    """Compile a model so that refits cost sampling only.

    Parameters
    ----------
    model : LatencyModel
    traces : Traces

    Returns
    -------
    Refitter

    Raises
    ------
    InputError
        If the law has tiles: its fits take the tokens of a pass from the run's own latency, and a
        run left out must not tell that.

    Examples
    --------
    >>> refitter = compile_refits(bsd.LatencyModel(), traces)             # doctest: +SKIP
    >>> without = refitter.refit(refitter.runs.verifier == "llama-8b")    # doctest: +SKIP
    """
    import nutpie
    from pymc.model.transform.optimization import freeze_dims_and_data

    if model.law.tile_tokens > 1:
        raise InputError(
            f"tile_tokens = {model.law.tile_tokens:g}: leave-out refits need a law without tiles; "
            "fit the rest and predict the others with predict_runs."
        )
    begun = time.perf_counter()
    design = model.design(traces)
    graph = model.graph(design, keep_runs=True)
    fixed = [name for name in design.data if name not in ("away", *OBSERVED)]
    fixed += [f"verifier_{name}" for name in design.verifiers] + ["drafter_size"]
    frozen = freeze_dims_and_data(graph, data=fixed)
    initial = model.start(design)
    compiled = nutpie.compile_pymc_model(
        frozen,
        freeze_model=False,
        initial_points=initial,
        jitter_rvs={v for v in frozen.free_RVs if v.name not in initial},
    )
    return Refitter(design, compiled, time.perf_counter() - begun)
