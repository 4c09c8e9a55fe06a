"""How far an answer is from the data: measured, interpolated or extrapolated."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit
    from bayes_sd.physics.law import Outcome
    from bayes_sd.predict.system import Resolved

LABELS = np.array(["extrapolated", "interpolated", "measured"], dtype=object)


def support(fit: "Fit", resolved: "Resolved", k: int, load: xr.Dataset, law: "Outcome") -> Any:
    """Label each cell of a load.

    Measured: this very arm ran, at rates, lengths and utilizations that bracket the cell.
    Interpolated: k, both sizes, the lengths and the median utilization lie inside what the fit has
    seen. Extrapolated: anything else, loads past every measured utilization included.

    Returns
    -------
    xarray.DataArray
        Strings, over the dims of `load`.
    """
    runs = fit.runs

    def inside(rows: Any, column: str, values: Any) -> Any:
        column_values = rows[column].dropna()
        if column_values.empty:
            return xr.zeros_like(values, dtype=bool)
        return (values >= column_values.min() * 0.999) & (values <= column_values.max() * 1.001)

    closed = "concurrency" in load
    name, values = (
        ("concurrency", load["concurrency"]) if closed else ("rate_rps", load["rate_rps"])
    )
    lengths = [("prompt_tokens", load["prompt_tokens"]), ("output_tokens", load["output_tokens"])]
    share: Any = law.others_share.fillna(1.0).clip(max=1.0).median(("chain", "draw"))
    own = runs[runs["system"] == resolved.system] if resolved.system else runs.iloc[:0]
    measured = inside(own, name, values) & (share <= own["utilization"].max() * 1.05)
    for column, lens in lengths:
        measured = measured & inside(own, column, lens)

    near = (share <= runs["utilization"].max()) & (k <= runs["draft_tokens"].max())
    for column, lens in lengths:
        near = near & inside(runs, column, lens)
    near = near & _size_inside(fit, resolved)
    return xr.DataArray(
        LABELS[(xr.where(near | measured, 1, 0) + measured).to_numpy()], dims=(near | measured).dims
    ).assign_coords((near | measured).coords)


def _size_inside(fit: "Fit", resolved: "Resolved") -> bool:
    """Whether a new model's sizes lie between measured ones of its family."""
    inside = True
    if resolved.verifier is None:
        known = fit.tree["verifiers"].to_dataset()
        family = known.where(known["moe"] == resolved.sizes["moe"], drop=True)
        inside = family.sizes["verifier"] > 0 and all(
            float(family[n].min()) <= resolved.sizes[n] <= float(family[n].max())
            for n in ("active", "shared", "expert")
        )
    if resolved.drafter is None and resolved.sizes["drafter"] > 0:
        sizes = fit.tree["drafters"]["drafter_size"]
        inside &= bool(float(sizes.min()) <= resolved.sizes["drafter"] <= float(sizes.max()))
    return inside
