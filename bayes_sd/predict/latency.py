"""Posterior predictive latency of a system over loads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import DRAFT_TOKENS_MAX, cycles, cycles_variance
from bayes_sd.physics.costs import Law
from bayes_sd.physics.law import (
    NU,
    SOFTNESS,
    Outcome,
    run_scale,
    system_stages,
)
from bayes_sd.physics.stages import draft_passes
from bayes_sd.physics.structures import Placed
from bayes_sd.physics.tails import METRICS, counted, intensity, spread_variance
from bayes_sd.predict.answers import Latency
from bayes_sd.predict.deployed import Route, deployed, latency_s, route
from bayes_sd.predict.support import refuse_far, support
from bayes_sd.predict.system import Resolved, System, acceptance, default_system, resolve

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

LOG_MAX = 300.0  # bound of a log scatter; just below the pole a draw can exceed any latency


def arms(k: int | Sequence[int], lowest: int = 0) -> list[int]:
    """Draft lengths asked for, checked.

    Raises
    ------
    InputError
        If one is no whole number from `lowest` to 1,024.
    """
    values = np.atleast_1d(np.asarray(k))
    if (
        values.size == 0
        or values.dtype.kind not in "iuf"
        or not np.isfinite(values).all()
        or (values != np.floor(values)).any()
        or (values < lowest).any()
        or (values > DRAFT_TOKENS_MAX).any()
    ):
        raise InputError(
            f"k = {k!r}: must be one or more whole numbers of at least {lowest}, "
            f"at most {DRAFT_TOKENS_MAX}."
        )
    return list(dict.fromkeys(int(v) for v in values.ravel()))


def workload(
    load: xr.Dataset, k: int, acceptance: Sequence[Any], drafter_loaded: bool | None = None
) -> dict[str, Any]:
    """Arguments of the law at a load; a drafter is loaded where `k` > 0, or where it is said."""
    closed = "concurrency" in load
    return {
        "k": k,
        "draft_passes": draft_passes(k, int(bool(drafter_loaded))),
        "cycles": cycles(load["output_tokens"], acceptance, k),
        "cycles_var": cycles_variance(load["output_tokens"], acceptance, k),
        "prompt_cv2": load["prompt_cv"] ** 2 if "prompt_cv" in load else 0.0,
        "output_cv2": load["output_cv"] ** 2 if "output_cv" in load else 0.0,
        "prompt_tokens": load["prompt_tokens"],
        "output_tokens": load["output_tokens"],
        "closed": float(closed),
        "rate_rps": 0.0 if closed else load["rate_rps"],
        "others": load["concurrency"] - 1 if closed else 0.0,
    }


def place(fit: "Fit", resolved: Resolved, asked: dict[str, Any]) -> Placed:
    """Stage costs of an arm where they run: on one server, or in an assumed structure."""
    stages = system_stages(resolved.theta, resolved.sizes, asked, fit.law)
    if resolved.place is None:
        return Placed((stages,))
    return resolved.place(stages, resolved.sizes, asked)


def arm_route(
    fit: "Fit", system: System, k: int, load: xr.Dataset, seed: int
) -> tuple[Resolved, Route]:
    """Latency coefficients of one arm, which no rate changes."""
    resolved = resolve(fit, system, k, seed)
    refuse_far(fit, system, resolved, k, load)
    rates = acceptance(fit, system, resolved.pair, k) if k else []
    asked = workload(load, k, rates)
    return resolved, route(place(fit, resolved, asked), asked)


def rate_latency(fit: "Fit", arm: tuple[Resolved, Route], rate: Any, k: int) -> Any:
    """Mean latency at a rate below capacity, s, of an :func:`arm_route`."""
    resolved, own = arm
    return latency_s(own, resolved.sizes, rate, k, fit.law)


class Arm(NamedTuple):
    """One arm at a load: what does not change with the rate, for questions at many rates."""

    resolved: Resolved
    placed: Placed
    asked: dict[str, Any]

    def at(self, law: Law, rate_rps: Any = None) -> tuple[Outcome, dict[str, Any]]:
        """What the law says, infinite past the pole; at the load's own rates or at others."""
        asked = self.asked if rate_rps is None else {**self.asked, "rate_rps": rate_rps}
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = deployed(self.placed, self.resolved.theta, self.resolved.sizes, asked, law)
            # Past the pole the fixed point has no root and infinity times zero is not a number.
            over = found.utilization >= 1
            found = found._replace(e2e_s=xr.where(over, np.inf, found.e2e_s))
        return found, asked


def arm_of(
    fit: "Fit",
    system: System,
    k: int,
    load: xr.Dataset,
    seed: int,
    drafter_loaded: bool | None = None,
    server: str | None = None,
) -> Arm:
    """Resolve one arm of a system and place its costs, within what may be asked of the fit."""
    resolved = resolve(fit, system, k, seed, drafter_loaded, server)
    refuse_far(fit, system, resolved, k, load)
    rates = acceptance(fit, system, resolved.pair, k) if k else []
    asked = workload(load, k, rates, drafter_loaded)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return Arm(resolved, place(fit, resolved, asked), asked)


def arm_outcome(
    fit: "Fit",
    system: System,
    k: int,
    load: xr.Dataset,
    seed: int,
    drafter_loaded: bool | None = None,
    server: str | None = None,
) -> tuple[Resolved, Outcome, dict[str, Any]]:
    """What the law says of one arm, exact, infinite past the pole; and the load it says it of."""
    arm = arm_of(fit, system, k, load, seed, drafter_loaded, server)
    return (arm.resolved, *arm.at(fit.law))


def noise_of(fit: "Fit") -> dict[str, xr.DataArray]:
    """Draws of the scales of what the law leaves open, by name."""
    terms = fit.unlabelled["noise"]
    return {str(n): terms.sel(noise_term=n, drop=True) for n in terms["noise_term"].values}


def scatter(
    fit: "Fit", law: Outcome, load: Any, metric: str, requests: Any = np.inf
) -> tuple[Any, Any]:
    """Scatter of a run's mean (scale of log) and variance of log latency of single requests."""
    noise = noise_of(fit)
    with np.errstate(invalid="ignore", divide="ignore"):
        growth = np.minimum(law.growth.fillna(np.inf), 1 / SOFTNESS)
        share = xr.where(np.isfinite(law.others_share), law.others_share, 1.0)
        law = law._replace(others_share=np.minimum(share, 1.0))
        if metric == "ttft":
            scale = run_scale(noise["ttft_sd"], noise["ttft_capacity_sd"], growth)
        else:
            growing = (noise["capacity_sd"] ** 2 + noise["arrival_sd"] ** 2 / requests) ** 0.5
            scale = run_scale(noise["run_sd"], growing, growth)
        name = "ttft_spread" if metric == "ttft" else "spread"
        known = counted(metric, law, load)
        # Past the pole a request's own share of an infinite latency is none.
        known = xr.where(np.isfinite(law.e2e_s), known, 0.0)
        variance = spread_variance(
            noise[f"{name}_alone"], noise[f"{name}_load"], intensity(metric, law), known
        )
    return scale, variance


def mean_of(metric: str, law: Outcome, output_tokens: Any) -> Any:
    """Mean of a metric, s: e2e latency, TTFT, or TPOT ``(e2e - ttft) / (g - 1)``."""
    if metric == "tpot":
        return law.decode_s / (output_tokens - 1)
    return law.e2e_s if metric == "e2e" else law.ttft_s


def latency(
    fit: "Fit", load: xr.Dataset, k: Any, system: System | None, metric: str, seed: int
) -> Latency:
    """See :meth:`bayes_sd.Fit.latency`."""
    if metric not in METRICS:
        raise InputError(f"metric = {metric!r}: must be one of {', '.join(METRICS)}.")
    if metric == "tpot" and bool((load["output_tokens"] <= 1).any()):
        raise InputError("Time per output token needs answers of more than one token.")
    ks = arms(k)
    system = system or default_system(fit, any(ks))
    parts = [_arm(fit, load, one, system, metric, seed) for one in ks]
    data = xr.concat(parts, dim=xr.DataArray(ks, dims="k", name="k"), coords="minimal")
    data = data.transpose("chain", "draw", "k", ...)
    for name in ("mean_s", "run_s", "request_s"):
        data[name].attrs["units"] = "s"
    return Latency(data)


def observable(
    mean: xr.DataArray, saturated: xr.DataArray, scale: Any, variance: Any, seed: list[int]
) -> xr.Dataset:
    """What would be measured, draw by draw: the mean of a run, and one request of it.

    Arms are to differ in `seed`: two servers, two runs.
    """
    rng = np.random.default_rng(seed)
    # A t has no bound, a float has one.
    shift = (scale * mean.copy(data=rng.standard_t(NU, mean.shape))).clip(-LOG_MAX, LOG_MAX)
    single = variance**0.5 * mean.copy(data=rng.standard_normal(mean.shape)) - variance / 2
    run = mean * np.exp(shift)
    return xr.Dataset(
        {
            "mean_s": mean,
            "run_s": xr.where(saturated, np.inf, run),
            "request_s": xr.where(saturated, np.inf, run * np.exp(single)),
            "saturated": xr.zeros_like(mean, dtype=bool) | saturated,
        }
    )


def _arm(
    fit: "Fit", load: xr.Dataset, k: int, system: System, metric: str, seed: int
) -> xr.Dataset:
    resolved, law, asked = arm_outcome(fit, system, k, load, seed)
    saturated = law.utilization >= 1
    mean = xr.where(saturated, np.inf, mean_of(metric, law, load["output_tokens"]))
    mean = mean.broadcast_like(load["prompt_tokens"]).broadcast_like(load["output_tokens"])
    scale, variance = scatter(fit, law, asked, metric)
    data = observable(mean, saturated, scale, variance, [seed, 1 + k])
    data["support"] = support(fit, resolved, k, load, law)
    return data.transpose("chain", "draw", *load.dims, missing_dims="ignore")
