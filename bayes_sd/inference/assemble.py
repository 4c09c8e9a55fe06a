"""From sampler output to a Fit: draws, data, specification and provenance in one tree."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.inference.acceptance import acceptance_draws
from bayes_sd.inference.fit import Fit
from bayes_sd.inference.gate import Convergence
from bayes_sd.inference.sample import Sampling
from bayes_sd.inference.stored import FORMAT
from bayes_sd.model.design import Design
from bayes_sd.model.effects import APART
from bayes_sd.model.priors import COEFFICIENTS, DRAFT_COEFFICIENTS

if TYPE_CHECKING:
    from bayes_sd.model.latency_model import LatencyModel
    from bayes_sd.traces import Traces

DRAWN = ("law", "noise", "moe", "tau_verifier", "tau_drafter", "tau_system", "tau_environment")
FACTORS = ("factor_verifier", "factor_drafter", "factor_system", "factor_environment")


def assemble(
    tree: xr.DataTree,
    design: Design,
    traces: "Traces",
    model: "LatencyModel",
    how: Sampling,
    seed: int,
    used: dict[str, Any],
    convergence: Convergence,
) -> Fit:
    """Put draws, data, specification and provenance into one Fit."""
    from bayes_sd.predict.runs import fitted

    posterior = tree["posterior"].to_dataset()
    posterior = posterior[[name for name in (*DRAWN, *FACTORS) if name in posterior]]
    posterior.attrs = {}
    if model.pooling != "partial":
        posterior = posterior.merge(_not_sampled(posterior, design, model, seed))
    runs = design.runs.copy()
    for name in runs.columns[runs.dtypes == "str"]:
        runs[name] = runs[name].astype(object)
    verifiers = xr.Dataset(
        {n: ("verifier", v) for n, v in design.verifiers.items()},
        coords={"verifier": design.levels["verifier"]},
    )
    drafters = xr.Dataset(
        {"drafter_size": ("drafter", design.drafters)},
        coords={"drafter": design.levels["drafter"]},
    )
    acceptance = acceptance_draws(
        design.runs, posterior.sizes["chain"], posterior.sizes["draw"], seed
    )

    spec = json.dumps(
        {
            "priors": [asdict(p) for p in model.used],
            "law": asdict(model.law),
            "pooling": model.pooling,
            **asdict(how),
            "seed": seed,
        }
    )

    def groups(runs: pd.DataFrame) -> xr.DataTree:
        tree = xr.DataTree.from_dict(
            {
                "posterior": posterior,
                "acceptance": acceptance,
                "runs": xr.Dataset.from_dataframe(runs.rename_axis("run")),
                "verifiers": verifiers,
                "drafters": drafters,
            }
        )
        tree.attrs["spec"] = spec
        return tree

    if not convergence.nonfinite:
        runs = runs.assign(**fitted(Fit(groups(runs)), runs))
    result, steady = groups(runs), runs[~runs["saturated"]]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    packages = ("bayes_sd", "pymc", "nutpie", "arviz", "numpy", "xarray")
    result.attrs = {
        "kind": "bayes_sd fit",
        "format": FORMAT,
        "spec": spec,
        "sampling": json.dumps(convergence.summary | used),
        "provenance": json.dumps(
            {
                "created": now,
                "environment": design.environment,
                "runs": len(steady),
                "requests": int(steady["requests"].sum()),
                "runs_censored": len(runs) - len(steady),
                "runs_read": len(traces),
                "runs_not_steady": int(traces.runs["saturated"].sum()),
                "versions": {name: _version(name) for name in packages},
            }
        ),
    }
    return Fit(result)


def _not_sampled(
    posterior: xr.Dataset, design: Design, model: "LatencyModel", seed: int
) -> xr.Dataset:
    """With what new models scatter, and under complete pooling the factors of known ones."""
    one = xr.ones_like(posterior["law"].isel(law_term=0, drop=True))
    effects = {
        "verifier": ("coefficient", COEFFICIENTS),
        "drafter": ("draft_coefficient", DRAFT_COEFFICIENTS),
        "system": ("speed", model.server_effects),
    }
    rng = np.random.default_rng(seed)
    made = xr.Dataset()
    for level, (dim, names) in effects.items():
        like = one.expand_dims({dim: list(names)}, axis=-1)
        if model.pooling == "complete":
            prior = next(p for p in model.priors if p.name == f"tau_{level}")
            made[prior.name] = prior.a * np.exp(prior.b * rng.standard_normal(like.shape)) * like
            made[f"factor_{level}"] = like.expand_dims({level: design.levels[level]}, axis=-1)
        elif f"tau_{level}" not in posterior:
            made[f"tau_{level}"] = APART * like
    if model.pooling == "complete" and "moe" in posterior:
        moe = xr.DataArray(design.verifiers["moe"], dims="verifier")
        made["factor_verifier"] = np.exp(posterior["moe"] * moe) * made["factor_verifier"]
    return made


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
