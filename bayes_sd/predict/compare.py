"""Speculative against plain decoding: probability, speedup, break-even."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.predict.answers import SAMPLE, BreakEven
from bayes_sd.predict.deployed import capacity_rps
from bayes_sd.predict.latency import arm_route, arms, latency, rate_latency
from bayes_sd.predict.load import grid
from bayes_sd.predict.root import root
from bayes_sd.predict.support import farthest
from bayes_sd.predict.system import System, default_system

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

CELLS = 16  # of the range of rates, to bracket a change of order
TOP = 1 - 1e-9  # of the range: where the first arm saturates it serves no one
SECANTS = 8  # of a bracket: a relative error of 1e-9, 1e-4 where the arms all but touch


def _require_plain(fit: "Fit", system: System) -> None:
    runs = fit.runs
    plain = runs[runs["arm"] == "plain"]
    if isinstance(system.verifier, str):
        if system.verifier not in set(runs["verifier"]):
            return  # who is unknown to the fit is said, with the known ones, by `resolve`
        plain = plain[plain["verifier"] == system.verifier]
    if system.environment is not None:
        plain = plain[plain["environment"] == system.environment]
    if plain.empty:
        name = system.verifier if isinstance(system.verifier, str) else "any verifier"
        raise EvidenceError(
            f"No plain run of {name} was fitted, so P(SD beats plain) has nothing to stand on: "
            "measure the same server without a drafter."
        )


def prob_faster(
    fit: "Fit", load: xr.Dataset, k: Any, system: System | None, of: str, seed: int
) -> xr.Dataset:
    """See :meth:`bayes_sd.Fit.prob_faster`."""
    if of not in ("mean", "run", "request"):
        raise InputError(f"of = {of!r}: must be 'mean', 'run' or 'request'.")
    ks = arms(k, lowest=1)
    system = system or default_system(fit, True)
    _require_plain(fit, system)
    draws = latency(fit, load, [0, *ks], system, "e2e", seed).draws
    value, stuck = draws[f"{of}_s"], draws["saturated"]
    plain, sd = value.sel(k=0, drop=True), value.sel(k=ks)
    both = (stuck.sel(k=0, drop=True) & stuck.sel(k=ks)).mean(SAMPLE)
    faster = (sd < plain).mean(SAMPLE)
    # The labels sort by how far they reach: the worse of the two arms is the smaller word.
    label = np.minimum(draws["support"].sel(k=ks), draws["support"].sel(k=0, drop=True))
    return xr.Dataset(
        {
            "prob_faster": faster,
            "prob_slower": 1 - faster - both,
            "prob_both_saturated": both,
            "support": label,
        }
    ).transpose("k", ...)


def speedup(fit: "Fit", load: xr.Dataset, k: Any, system: System | None, seed: int) -> xr.DataArray:
    """See :meth:`bayes_sd.Fit.speedup`."""
    ks = arms(k, lowest=1)
    system = system or default_system(fit, True)
    _require_plain(fit, system)
    mean = latency(fit, load, [0, *ks], system, "e2e", seed).draws["mean_s"]
    with np.errstate(invalid="ignore"):
        return (mean.sel(k=0, drop=True) / mean.sel(k=ks)).rename("speedup")


def break_even(
    fit: "Fit", k: Any, system: System | None, prompt: float, output: float, seed: int
) -> BreakEven:
    """See :meth:`bayes_sd.Fit.break_even`."""
    ks = arms(k, lowest=1)
    system = system or default_system(fit, True)
    _require_plain(fit, system)
    parts = [_crossing(fit, one, system, prompt, output, seed) for one in ks]
    data = xr.concat(parts, dim=xr.DataArray(ks, dims="k", name="k"))
    data["rate_rps"].attrs["units"] = "requests/s"
    return BreakEven(data)


def _crossing(
    fit: "Fit", k: int, system: System, prompt: float, output: float, seed: int
) -> xr.Dataset:
    """First rate at which the order of the two arms changes, in every draw.

    Without experts there is at most one, and it agrees with
    :func:`bayes_sd.physics.break_even_rate`. With experts the fixed point has no closed form and
    SD can win between two rates only, so a grid brackets the first change before it is bisected.
    """
    load = grid(rps=0.0, prompt=prompt, output=output)
    arm = {one: arm_route(fit, system, one, load, seed) for one in (0, k)}

    # Requests served a second by one place in the batch: a line in the rate without experts.
    def gain(rate: Any) -> Any:
        return rate_latency(fit, arm[k], rate, k) ** -1 - rate_latency(fit, arm[0], rate, 0) ** -1

    capacity = {one: capacity_rps(own) for one, (_, own) in arm.items()}
    shared = np.minimum(capacity[0], capacity[k])
    shares = xr.DataArray(np.append(np.arange(CELLS) / CELLS, TOP), dims="cell")
    gains = gain(shared * shares)
    at_rest, at_top = gains[{"cell": 0}] > 0, capacity[k] > capacity[0]
    sign = xr.where(at_rest, 1.0, -1.0)
    changed = ((gains > 0) != at_rest).isel(cell=slice(1, None))
    crosses = changed.any("cell")
    first = changed.argmax("cell")
    rate = root(
        lambda rate: sign * gain(rate),
        shared * shares[first],
        shared * shares[first + 1],
        sign * gains.isel(cell=first),
        sign * gains.isel(cell=first + 1),
        SECANTS,
    ).where(crosses)
    outcome = xr.where(
        crosses,
        xr.where(at_rest, "below", xr.where(at_top, "above", "between")),
        xr.where(at_rest, "always", "never"),
    )
    typical = float(rate.median()) if bool(crosses.any()) else float(shared.median()) / 2
    at = load.assign(rate_rps=xr.DataArray(typical))
    labels = latency(fit, at, [0, k], system, "e2e", seed).draws["support"]
    return xr.Dataset({"rate_rps": rate, "outcome": outcome, "support": farthest(labels.values)})
