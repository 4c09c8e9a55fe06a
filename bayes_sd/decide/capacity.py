"""The largest rate a server sustains within a latency target, and what that costs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import ndtri

from bayes_sd.errors import InputError
from bayes_sd.physics.steady import pole
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import arm_outcome, arms, scatter
from bayes_sd.predict.load import grid
from bayes_sd.predict.support import support
from bayes_sd.predict.system import System, default_system

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

DRAWS = 2000
HALVINGS = 30
HOUR_S, MILLION = 3600.0, 1e6


def capacity(
    fit: "Fit",
    k: int | Sequence[int],
    system: System | None,
    slo_s: float,
    prompt: float,
    output: float,
    percentile: float,
    confidence: float,
    traffic_rps: float | None,
    price_per_hour: float | None,
    seed: int,
) -> pd.DataFrame:
    """See :meth:`bayes_sd.Fit.capacity`."""
    _check(slo_s, percentile, confidence, traffic_rps, price_per_hour)
    ks = arms(k)
    system = system or default_system(fit, any(ks))
    thin = fit.thin(DRAWS)
    rows = [
        _arm(thin, system, one, slo_s, prompt, output, percentile, confidence, seed) for one in ks
    ]
    table = pd.DataFrame(rows)
    if traffic_rps is not None:
        table["replicas"] = [
            math.ceil(traffic_rps / r) if r > 0 else math.nan for r in table["max_rps"]
        ]
    if price_per_hour is not None:
        tokens_per_hour = table["max_rps"] * output * HOUR_S
        table["price_per_million_tokens"] = price_per_hour * MILLION / tokens_per_hour
    return table


def _check(
    slo_s: float,
    percentile: float,
    confidence: float,
    traffic_rps: float | None,
    price_per_hour: float | None,
) -> None:
    if not (np.isfinite(slo_s) and slo_s > 0):
        raise InputError(f"slo_s = {slo_s!r}: must be a positive number of seconds.")
    if not 0 < percentile < 100:
        raise InputError(f"percentile = {percentile!r}: must lie between 0 and 100.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence!r}: must lie between 0 and 1.")
    for name, value in (("traffic_rps", traffic_rps), ("price_per_hour", price_per_hour)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value!r}: must be a positive number.")


def _arm(
    fit: "Fit",
    system: System,
    k: int,
    slo_s: float,
    prompt: float,
    output: float,
    percentile: float,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    load = grid(rps=0.0, prompt=prompt, output=output)
    z = float(ndtri(percentile / 100))

    def tail_s(rate: Any) -> tuple[Any, Any, Any]:
        resolved, law, asked = arm_outcome(fit, system, k, load.assign(rate_rps=rate), seed)
        variance = scatter(fit, law, asked, "e2e")[1]
        tail = law.e2e_s * np.exp(z * variance**0.5 - variance / 2)
        return xr.where(law.utilization >= 1, np.inf, tail), law, resolved

    idle, law, resolved = tail_s(load["rate_rps"])
    possible = idle <= slo_s
    # Latency grows with the rate, so in every draw one rate meets the target exactly.
    low, high = xr.zeros_like(law.c2_s), pole(law.c2_s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        within = tail_s(middle)[0] <= slo_s
        low, high = xr.where(within, middle, low), xr.where(within, high, middle)
    rates = xr.where(possible, low, 0.0)
    rate = float(rates.quantile(1 - confidence, SAMPLE, method="inverted_cdf"))
    at = load.assign(rate_rps=xr.DataArray(rate))
    label = str(support(fit, resolved, k, at, arm_outcome(fit, system, k, at, seed)[1]).item())
    return {
        "k": k,
        "max_rps": rate if rate > 0 else math.nan,
        "median_rps": float(rates.median()),
        "prob_possible": float(possible.mean()),
        "idle_s": float(idle.median()),
        "support": label,
    }
