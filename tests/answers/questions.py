"""Servers that the saved posterior knows, loads to ask about, and changed copies of the fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sd.answers.latency import arm_of
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit
from bayes_sd.physics.law import Outcome
from bayes_sd.runs.load import Load
from bayes_sd.runs.sizes import Size

SAMPLE = ("chain", "draw")
PLAIN, SD = Server("dense-60m"), Server("dense-60m", "draft-12m", k=5)  # acceptance 0.8
SHORT = Server("dense-60m", "draft-3m", k=2, acceptance=0.7)
MOE_PLAIN = Server("moe-e8k2")
MOE = Server("moe-e8k2", "draft-3m", k=3, acceptance=0.9)
NEW = Server(Size(100e6), Size(5e6), k=3, acceptance=0.8)
PAIRS = pytest.mark.parametrize(
    ("server", "baseline"), [(SD, PLAIN), (MOE, MOE_PLAIN)], ids=["dense", "moe"]
)
WORK: dict[str, float] = {"prompt": 256.0, "output": 96.0}


def rps(*values: float, **work: float) -> Load:
    """A load of these rates."""
    return Load(rps=list(values), **(WORK | work))


def in_flight(*values: float, **work: float) -> Load:
    """A load of these concurrencies."""
    return Load(concurrency=list(values), **(WORK | work))


def law(fit: Fit, server: Server, values: Any = 0.0, started_anew: str | None = None) -> Outcome:
    """What the law says in every draw, at rates that may differ between draws: (draws, loads)."""
    arm = arm_of(fit, server, rps(0.0), extrapolate=True, started_anew=started_anew)
    return arm.outcome(np.asarray(values, float))[0]


def changed(fit: Fit, **parts: xr.Dataset) -> Fit:
    """The same fit with some of its groups replaced."""
    tree = xr.DataTree.from_dict({n: c.to_dataset() for n, c in fit.tree.children.items()} | parts)
    tree.attrs = dict(fit.tree.attrs)
    return Fit(tree)


def without_runs(fit: Fit, drop: Any) -> Fit:
    """As if the servers for which `drop(table)` is true had never run."""
    servers, runs = (fit.tree[n].to_dataset() for n in ("servers", "runs"))
    kept = servers.isel(server=np.flatnonzero(~drop(servers.to_dataframe())))
    rows = np.isin(runs["server"].values.astype(str), kept["server"].values.astype(str))
    posterior = fit.posterior.sel(server=kept["server"].values)
    runs = runs.isel(run=np.flatnonzero(rows))
    return changed(fit, servers=kept, runs=runs, posterior=posterior)


def renamed(fit: Fit, names: Mapping[str, str]) -> Fit:
    """The same fit with other names of models."""

    def swap(array: xr.DataArray) -> xr.DataArray:
        if array.dtype.kind not in "OUT":
            return array
        values = [names.get(str(v), v) for v in array.values.ravel()]
        return array.copy(data=np.array(values, object).reshape(array.shape))

    parts = {}
    for name, node in fit.tree.children.items():
        data = node.to_dataset()
        data = data.assign({str(n): swap(v) for n, v in data.data_vars.items()})
        parts[name] = data.assign_coords({n: swap(v) for n, v in data.coords.items()})
    return changed(fit, **parts)


ELSEWHERE = "another machine"


def with_two_environments(fit: Fit, verifiers: Any = ("dense-60m", "dense-25m")) -> Fit:
    """Drafting servers of these verifiers, and all of dense-25m, ran on another machine."""
    servers, runs = (fit.tree[n].to_dataset() for n in ("servers", "runs"))
    for data in (servers, runs):
        table = data.to_dataframe()
        drafting = (table["draft_tokens"] > 0) | (table["verifier"] == "dense-25m")
        moved = table["verifier"].isin(verifiers) & drafting
        where = np.where(moved, ELSEWHERE, data["environment"].values.astype(str))
        data["environment"] = (data["environment"].dims, where.astype(object))
    here = fit.environments[0]
    shape = *fit.shape, fit.posterior.sizes["law_term"], 1
    logs = np.random.default_rng(2).normal(0.4, 0.05, shape)
    factors = np.exp(np.concatenate([logs, -logs], axis=-1))
    posterior = fit.posterior.assign_coords(environment=[ELSEWHERE, here])
    posterior["factor_environment"] = ((*SAMPLE, "law_term", "environment"), factors)
    return changed(fit, servers=servers, runs=runs, posterior=posterior)
