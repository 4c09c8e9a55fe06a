"""Latency of a server that changes its draft length with the number of requests in flight."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bayes_sd.decide.schedule import DRAWS, SERVER, Schedule, by_batch
from bayes_sd.errors import InputError
from bayes_sd.physics.law import run_scale
from bayes_sd.physics.occupancy import mean_in_flight, occupancy
from bayes_sd.physics.tails import counted, spread_variance
from bayes_sd.predict.answers import SAMPLE, Latency
from bayes_sd.predict.latency import arm_outcome, noise_of, observable
from bayes_sd.predict.load import grid
from bayes_sd.predict.support import farthest, support
from bayes_sd.predict.system import System, default_system, resolve

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit


def _costs(
    fit: "Fit", system: System, k: int, load: xr.Dataset, seed: int
) -> tuple[xr.Dataset, np.ndarray]:
    """Draws at every batch size with `k` drafted, and how far they are from the data.

    ``mean_s`` is the latency at that concurrency, ``counted`` the variance of its logarithm that
    accepted lengths explain.
    """
    law, asked = arm_outcome(fit, system, k, load, seed, True, SERVER)[1:]
    measured = resolve(fit, system, k, seed, True)
    labels = by_batch(support(fit, measured, k, load, law))
    explained = counted("e2e", law, asked) + xr.zeros_like(law.e2e_s)
    return by_batch(xr.Dataset({"mean_s": law.e2e_s, "counted": explained})), labels.values


def scheduled(
    fit: "Fit",
    schedule: Schedule,
    system: System | None,
    rates: Any,
    prompt: float,
    output: float,
    seed: int,
) -> Latency:
    """See :meth:`bayes_sd.Fit.scheduled`."""
    fit, system = fit.thin(DRAWS), system or default_system(fit, True)
    rows = schedule.rows
    drafted = np.repeat(rows["k"].to_numpy(int), (rows["hi"] - rows["lo"] + 1).to_numpy(int))
    load = grid(concurrency=list(range(1, len(drafted) + 1)), prompt=prompt, output=output)
    rate = grid(rps=rates, prompt=prompt, output=output)["rate_rps"]
    if (rate.values <= 0).any():
        raise InputError(f"rps = {rates!r}: a schedule is asked about at rates above 0.")
    parts = {int(k): _costs(fit, system, int(k), load, seed) for k in np.unique(drafted)}
    at = xr.DataArray(drafted, {"concurrency": load["concurrency"].values}, "concurrency")
    every = xr.concat([data for data, _ in parts.values()], xr.DataArray(list(parts), dims="k"))
    every = every.assign_coords(k=list(parts)).sel(k=at).transpose(*SAMPLE, "concurrency")
    alone = every["mean_s"].isel(concurrency=0, drop=True)

    latency = every["mean_s"].values[..., None, :]
    rps = np.atleast_1d(rate.values).astype(float)
    p = occupancy(latency, rps)
    with np.errstate(invalid="ignore"):
        mean = mean_in_flight(p, latency, rps) / rps
    # Requests see the server at the batch sizes at which they spend their time.
    seen = p[..., 1:] * np.arange(1.0, len(drafted) + 1)
    seen = seen / seen.sum(axis=-1, keepdims=True)
    typical = (seen * latency).sum(axis=-1)
    crowd = p[..., 1:] / np.maximum(p[..., 1:].sum(axis=-1, keepdims=True), 1e-300)
    centre = (crowd * latency).sum(axis=-1, keepdims=True)
    spread = (crowd * (latency - centre) ** 2).sum(axis=-1) / typical**2
    explained = (seen * every["counted"].values[..., None, :]).sum(axis=-1)

    dims = (*SAMPLE, "rate_rps")
    coords = {"rate_rps": rps}
    stuck = xr.DataArray(~np.isfinite(mean), coords, dims)
    mean_s = xr.DataArray(mean, coords, dims)
    noise = noise_of(fit)
    variance = spread_variance(
        noise["spread_alone"],
        noise["spread_load"],
        xr.DataArray(spread, coords, dims),
        xr.DataArray(explained, coords, dims),
    )
    growth = (mean_s.where(~stuck, np.nan) / alone - 1).fillna(0.0).clip(0.0)
    scale = run_scale(noise["run_sd"], noise["capacity_sd"], growth)
    reached = p.mean(axis=(0, 1)) > 0.01  # batch sizes that matter at a rate
    label = np.array([str(parts[int(k)][1][i]) for i, k in enumerate(drafted)], dtype=object)
    reach = [farthest(label[row[1:]] if row[1:].any() else label[:1]) for row in reached]
    draws = observable(mean_s, stuck, scale, variance, [seed, 0])
    draws["support"] = ("rate_rps", np.array(reach, dtype=object))
    for name in ("mean_s", "run_s", "request_s"):
        draws[name].attrs["units"] = "s"
    return Latency(draws.expand_dims(k=["schedule"]).transpose(*SAMPLE, "k", ...))
