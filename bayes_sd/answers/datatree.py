"""A fit as ArviZ takes it: the model's own variables, by the names they have in its graph."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers.answer import SAMPLE
from bayes_sd.answers.fitted import run_outcome
from bayes_sd.errors import whole
from bayes_sd.model.design import SPREADS, Design, build_design
from bayes_sd.model.posterior import FACTORS, SAMPLED, Posterior, assemble
from bayes_sd.model.priors import Prior
from bayes_sd.physics import noise
from bayes_sd.runs.schema import Runs

KNOWN = ("server", "requests", "rate_rps", "concurrency", "prompt_tokens", "output_tokens")
CENSORED = "censored"


def to_datatree(fit: Posterior, *, prior_draws: int = 500, seed: int = 0) -> xr.DataTree:
    """The fit as an ArviZ tree: ``az.loo(tree, var_name="e2e")``, ``az.plot_ppc_dist(tree)``.

    Variables are those of ``model.build(runs)``, logs of seconds and of variances: ``e2e`` and
    ``ttft`` of a run's means, ``spread`` and ``ttft_spread`` of its requests. A run past saturation
    is known to be slower than it was seen to be: it has a likelihood (``censored``) and a bound
    among the constant data, but was not observed.

    Parameters
    ----------
    prior_draws : int
        Draws of the prior and its predictive; 0 leaves both out, and needs no PyMC.
    seed : int

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``posterior_predictive``, ``log_likelihood``, ``observed_data``,
        ``constant_data``, ``prior``, ``prior_predictive`` and, where the fit was saved with them,
        ``sample_stats``.

    Examples
    --------
    >>> import arviz as az
    >>> import bayes_sd as bsd
    >>> tree = bsd.Fit.load("fit.nc").to_datatree()  # doctest: +SKIP
    >>> az.plot_trace_dist(tree, var_names="law")  # doctest: +SKIP
    """
    whole("prior_draws", prior_draws, 0)
    fit.require_runs()
    design = build_design(Runs(fit._frame("runs").astype({"saturated": bool}), pd.DataFrame()))
    table = design.table[[*KNOWN]].rename_axis("run").to_xarray()
    seen = _dataset(design, design.data)
    observed = [name for name in seen if name != CENSORED]
    predicted, density = _of_runs(fit, design, seed)
    groups: dict[str, xr.Dataset] = {
        "posterior": fit.posterior,
        "posterior_predictive": predicted[observed],
        "log_likelihood": density,
        "observed_data": seen[observed],
        "constant_data": table.merge(seen[[name for name in seen if name == CENSORED]]),
    }
    if "sample_stats" in fit.tree:
        groups["sample_stats"] = fit.tree["sample_stats"].to_dataset()
    if prior_draws:
        prior = _prior(fit, design, prior_draws, seed)
        groups["prior"] = prior.posterior
        groups["prior_predictive"] = _of_runs(prior, design, seed)[0][observed]
    for name, group in groups.items():
        numbers = {n: np.arange(group.sizes[n]) for n in SAMPLE if n in group.sizes}
        groups[name] = group.assign_coords(numbers)
    return xr.DataTree.from_dict(groups)


def _of_runs(fit: Posterior, design: Design, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """What draws predict for runs, and the log likelihood of what was seen."""
    data, spread_sd, density = design.data, fit.noise["spread_sd"], {}
    run = noise.run_terms(SPREADS, fit.noise, run_outcome(fit, design.table)[0], design.inputs)
    made = noise.replicate(run, spread_sd, data, np.random.default_rng(seed))
    for metric in SPREADS:
        log_mean, seen = np.log(run[f"run_mean_{metric}"]), data[f"log_{metric}"]
        sd = np.hypot(run[f"run_scale_{metric}"], data[f"se_{metric}"])
        density[f"log_{metric}"] = noise.log_density(seen, log_mean, sd)
        if metric == "e2e":
            cut = ..., data["censored_rows"]
            slower = noise.t_cdf(((log_mean - seen) / sd)[cut], np.arctan)
            density["log_e2e"][cut] = np.log(slower + noise.TINY)
        error = noise.spread_error(data[f"n_eff_{metric}"], spread_sd)
        z = (data[f"log_var_{metric}"] - np.log(run[f"run_variance_{metric}"])) / error
        density[f"log_var_{metric}"] = -(z**2) / 2 - np.log(error) - np.log(2 * np.pi) / 2
    return _dataset(design, made, fit.shape), _dataset(design, density, fit.shape)


def _dataset(design: Design, values: dict[str, np.ndarray], shape: tuple = ()) -> xr.Dataset:
    """Values of all runs (..., runs): each variable has a dimension of the runs that have it."""
    places, arrays = {CENSORED: ("log_e2e", "censored")}, {}
    for metric, spread in SPREADS.items():
        places[metric] = f"log_{metric}", metric
        places[spread] = f"log_var_{metric}", f"{metric}_spread"
    for name, (key, of) in places.items():
        rows, dim = design.data[f"{of}_rows"], f"{of}_run"
        if rows.size:
            value = values[key][..., rows].reshape(*shape, rows.size)
            arrays[name] = xr.DataArray(value, {dim: rows}, (*SAMPLE[: len(shape)], dim))
    return xr.Dataset(arrays)


def _prior(fit: Posterior, design: Design, draws: int, seed: int) -> Posterior:
    """A fit that knows no run: draws of the priors of this one."""
    import pymc as pm

    from bayes_sd.model.graph import build

    spec = fit.spec
    priors = tuple(Prior(**p | {"dims": tuple(p["dims"])}) for p in spec["priors"])
    graph = build(design, priors, tuple(spec["server_effects"]), fit.law, spec["pooling"])
    names = [name for name in (*SAMPLED, *FACTORS) if name in graph.named_vars]
    # Not sample_prior_predictive, which warns of the potential: a likelihood, of censored runs.
    values = pm.draw([graph[n] for n in names], draws, random_seed=seed, mode="FAST_COMPILE")
    drawn: Any = zip(names, values, strict=True)
    variables = {
        n: ((*SAMPLE, *graph.named_vars_to_dims.get(n, ())), value[None]) for n, value in drawn
    }
    coords = {d: list(graph.coords[d]) for dims, _ in variables.values() for d in dims[2:]}
    sampled = xr.DataTree.from_dict({"posterior": xr.Dataset(variables, coords)})
    return assemble(sampled, design, spec, {}, seed)
