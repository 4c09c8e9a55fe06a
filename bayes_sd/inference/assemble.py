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
    if model.pooling == "none":  # what a new model's effects are drawn with
        for name, dim, own in (
            ("tau_verifier", "coefficient", COEFFICIENTS),
            ("tau_drafter", "draft_coefficient", DRAFT_COEFFICIENTS),
        ):
            shape = (posterior.sizes["chain"], posterior.sizes["draw"], len(own))
            posterior[name] = (("chain", "draw", dim), np.full(shape, APART))
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
