"""Compile and sample: nutpie, or PyMC's own NUTS where nutpie is missing."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    import pymc as pm


@dataclass(frozen=True)
class Sampling:
    """How to sample: `sampler` is "auto", "nutpie" or "pymc"; `adaptation` is nutpie's."""

    draws: int = 1200
    tune: int = 1000
    chains: int = 4
    target_accept: float = 0.9
    sampler: str = "auto"
    adaptation: str = "diag"
    cores: int | None = None


def sample(
    model: "pm.Model",
    how: Sampling,
    seed: int,
    progress: bool | None = None,
    initial: Mapping[str, np.ndarray] | None = None,
) -> tuple[xr.DataTree, dict[str, float | str]]:
    """Draw from the posterior of `model`.

    Parameters
    ----------
    model : pymc.Model
    how : Sampling
    seed : int
        Equal seeds give equal draws on one machine and one set of versions.
    progress : bool, optional
        Show a progress bar; by default only when standard error is a terminal.
    initial : mapping, optional
        Where variables start; the others start around the middle of their prior, chains apart.

    Returns
    -------
    tuple
        Tree with groups ``posterior`` and ``sample_stats``, and what was used: ``sampler``,
        ``seconds_compile``, ``seconds_sample``.
    """
    if progress is None:
        progress = sys.stderr.isatty()
    name = how.sampler
    if name == "auto":
        name = "nutpie" if find_spec("nutpie") else "pymc"
    run = {"nutpie": _nutpie, "pymc": _pymc}[name]
    tree, compile_s, sample_s = run(model, how, seed, progress, dict(initial or {}))
    return tree, {"sampler": name, "seconds_compile": compile_s, "seconds_sample": sample_s}


def _nutpie(
    model: "pm.Model", how: Sampling, seed: int, progress: bool, initial: dict[str, np.ndarray]
) -> tuple[xr.DataTree, float, float]:
    import nutpie
    from pymc.model.transform.optimization import freeze_dims_and_data

    start = time.perf_counter()
    # Frozen sizes and data fold much of the graph: a third of the time to compile it.
    frozen = freeze_dims_and_data(model)  # here, not in nutpie: it renews the variables to jitter
    compiled = nutpie.compile_pymc_model(
        frozen,
        freeze_model=False,
        initial_points=initial,
        jitter_rvs={v for v in frozen.free_RVs if v.name not in initial},
    )
    compiled_at = time.perf_counter()
    tree = nutpie.sample(
        compiled,
        draws=how.draws,
        tune=how.tune,
        chains=how.chains,
        cores=how.cores,
        seed=seed,
        target_accept=how.target_accept,
        adaptation=how.adaptation,
        progress_bar=progress,
    )
    return tree, compiled_at - start, time.perf_counter() - compiled_at


def _pymc(
    model: "pm.Model", how: Sampling, seed: int, progress: bool, initial: dict[str, np.ndarray]
) -> tuple[xr.DataTree, float, float]:
    import pymc as pm

    start = time.perf_counter()
    with model:
        model.compile_logp(mode="NUMBA")(model.initial_point())
        compiled_at = time.perf_counter()
        tree = pm.sample(
            draws=how.draws,
            tune=how.tune,
            chains=how.chains,
            cores=how.cores or 1,
            random_seed=seed,
            initvals=initial,
            progressbar=progress,
            nuts={"target_accept": how.target_accept},
            compute_convergence_checks=False,
            quiet=not progress,
        )
    return tree, compiled_at - start, time.perf_counter() - compiled_at
