"""The convergence gate: what a fit must pass before anybody may use it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

RHAT_MAX = 1.01
ESS_MIN = 400.0


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of a fit.

    `table` has one row a parameter: ``rhat``, ``ess_bulk``, ``ess_tail``.
    """

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
    parts: dict[str, float] = {}
    for name, array in values.data_vars.items():
        for index in np.ndindex(array.shape):
            label = ", ".join(
                str(array[dim].values[i]) for dim, i in zip(array.dims, index, strict=True)
            )
            parts[f"{name}[{label}]" if label else str(name)] = float(array.values[index])
    return pd.Series(parts, dtype=float)
