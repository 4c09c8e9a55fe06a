"""How far an answer is from the data: measured, inter- or extrapolated, or of assumed structure."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bayes_sd.errors import EvidenceError

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit
    from bayes_sd.physics.law import Outcome
    from bayes_sd.predict.system import Resolved, System

# From the farthest to the nearest, which is also their order as words.
LABELS = np.array(["assumed structure", "extrapolated", "interpolated", "measured"], dtype=object)

FACTOR = 4.0  # beyond the measured range, after which an answer has to be asked for by name


def refuse_far(fit: "Fit", system: "System", resolved: "Resolved", k: int, load: Any) -> None:
    """Refuse what lies more than a factor of 4 outside what was measured.

    Sizes of a new verifier or drafter, prompt and output lengths, draft tokens, and requests in
    flight of a fixed concurrency; a rate needs no such bound, since past capacity it saturates.

    Raises
    ------
    EvidenceError
        Unless the system has ``extrapolate=True``.
    """
    if system.extrapolate:
        return
    runs = fit.runs
    asked: list[tuple[str, float, float, Any]] = [
        ("prompt_tokens", *_ends(load["prompt_tokens"]), runs["prompt_tokens"]),
        ("output_tokens", *_ends(load["output_tokens"]), runs["output_tokens"]),
    ]
    if k > 0:
        asked.append(("draft tokens", k, k, runs["draft_tokens"][runs["draft_tokens"] > 0]))
    if "concurrency" in load:
        asked.append(("concurrency", 1.0, _ends(load["concurrency"])[1], runs["in_flight"]))
    if resolved.verifier is None:
        known = fit.tree["verifiers"].to_dataset()
        for name in ("active", "total"):
            own = known["active"] if name == "active" else known["shared"] + known["expert"]
            sizes = resolved.sizes
            value = sizes["active"] if name == "active" else sizes["shared"] + sizes["expert"]
            asked.append((f"{name} verifier parameters (1e9)", value, value, own.values))
    if resolved.drafter is None and resolved.sizes["drafter"] > 0:
        value = resolved.sizes["drafter"]
        known_sizes = fit.tree["drafters"]["drafter_size"].values
        asked.append(("drafter parameters (1e9)", value, value, known_sizes))
    for name, low, high, measured in asked:
        values = np.asarray(measured, float)
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        least, most = values.min(), values.max()
        far = low < least / FACTOR if name != "concurrency" else False
        if far or high > most * FACTOR:
            raise EvidenceError(
                f"{name} {low if far else high:.4g} is more than {FACTOR:g} times outside the "
                f"measured {least:.4g} to {most:.4g}; to extrapolate all the same, ask for it: "
                "System(..., extrapolate=True)."
            )


def _ends(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def support(fit: "Fit", resolved: "Resolved", k: int, load: xr.Dataset, law: "Outcome") -> Any:
    """Label each cell of a load.

    Measured: this very arm ran, at rates, lengths and utilizations that bracket the cell.
    Interpolated: k, both sizes, the lengths and the median utilization lie inside what the fit has
    seen. Extrapolated: anything else, loads past every measured utilization included. Assumed
    structure: any answer that a deployment changes which nobody measured.

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
    reach = 1 + xr.where(near | measured, 1, 0) + measured
    if resolved.place is not None:
        reach = 0 * reach
    # Of a single cell numpy makes a bare string.
    label = np.asarray(LABELS[reach.to_numpy()], dtype=object)
    return xr.DataArray(label, dims=reach.dims).assign_coords(reach.coords)


def farthest(labels: Iterable[Any]) -> str:
    """The label of what is farthest from the data."""
    return min(str(label) for label in labels)


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
