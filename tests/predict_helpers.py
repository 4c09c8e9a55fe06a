"""What the tests of answers share: systems the corpus measured, loads, and a fit of fewer runs."""

import numpy as np
import pandas as pd
import xarray as xr

import bayes_sd as bsd

DENSE = bsd.System("dense-60m", "draft-12m")  # measured with k = 5, acceptance 0.8
MOE = bsd.System("moe-e8k2", "draft-3m", 0.9)  # measured with k = 3, and with k = 5 at 0.5
WORK = {"prompt": 256.0, "output": 96.0}


def loads(*rps: float) -> xr.Dataset:
    return bsd.grid(rps=list(rps), **WORK)


def some_runs(fit: bsd.Fit, keep: pd.Series) -> bsd.Fit:
    """The same posterior, with fewer runs to stand on."""
    parts = {name: node.to_dataset() for name, node in fit.tree.children.items()}
    steady = np.flatnonzero(~parts["runs"]["saturated"].values.astype(bool))
    parts["runs"] = parts["runs"].isel(run=steady[np.flatnonzero(keep)])
    tree = xr.DataTree.from_dict(parts)
    tree.attrs = fit.tree.attrs
    return bsd.Fit(tree)
