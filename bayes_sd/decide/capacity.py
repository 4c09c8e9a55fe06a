"""The largest rate a server sustains within a latency target, and what that costs."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import ndtr, ndtri

from bayes_sd.decide.schedule import require_measured
from bayes_sd.errors import InputError
from bayes_sd.physics.law import Outcome
from bayes_sd.physics.steady import pole
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import Arm, arm_of, arms, scatter
from bayes_sd.predict.load import grid
from bayes_sd.predict.root import root
from bayes_sd.predict.support import farthest, support
from bayes_sd.predict.system import System, default_system
from bayes_sd.traces.traffic import Traffic

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

DRAWS = 2000
WINDOWS = 24  # that stand for all of a traffic, see Traffic.thin; rates move by less than 1%
STEPS = 7  # secants; the rate found is then exact to 1e-4 or better
HALVINGS = 10  # of a latency: to a thousandth of its range over windows
NEAR_POLE = 34.0  # -log of the headroom left at the last rate looked at: that of a float
LEAST = 1e-300
HOUR_S, MILLION = 3600.0, 1e6


def capacity(
    fit: "Fit",
    k: int | Sequence[int],
    system: System | None,
    slo_s: float,
    prompt: float | None,
    output: float | None,
    percentile: float,
    confidence: float,
    traffic: float | Traffic | None,
    price_per_hour: float | None,
    seed: int,
) -> pd.DataFrame:
    """See :meth:`bayes_sd.Fit.capacity`."""
    check(slo_s, percentile, confidence)
    number = None if isinstance(traffic, Traffic) else traffic
    for name, value in (("traffic", number), ("price_per_hour", price_per_hour)):
        check_positive(name, value)
    ks = arms(k)
    system = system or default_system(fit, any(ks))
    if not system.extrapolate:
        require_measured(fit, system, ks)
    thin = fit.thin(DRAWS)
    if isinstance(traffic, Traffic):
        if prompt is not None or output is not None:
            raise InputError("A Traffic has its own lengths: leave prompt and output out.")
        asked, unit = Asked.of(traffic), traffic.mean_rps
    elif prompt is None or output is None:
        raise InputError("Lengths are missing: give prompt and output, or traffic with a table.")
    else:
        asked, unit = Asked(grid(rps=1.0, prompt=prompt, output=output).expand_dims("window")), 1.0
    rows = []
    for one in ks:
        found = sustained(thin, system, one, asked, slo_s, percentile, seed)
        scale = found.sustained_with(confidence)
        rows.append(
            {
                "k": one,
                "max_rps": scale * unit if scale > 0 else math.nan,
                "median_rps": float(found.scale.median()) * unit,
                "prob_possible": float(found.possible.mean()),
                "idle_s": float(found.idle_s.median()),
                "support": label(thin, one, asked, found.arm, scale),
            }
        )
    table = pd.DataFrame(rows)
    if traffic is not None:
        wanted = unit if number is None else number
        table["replicas"] = [replicas(r / wanted) for r in table["max_rps"].fillna(0.0)]
    if price_per_hour is not None:
        if isinstance(traffic, Traffic):  # so many servers, all the time
            hours = table["replicas"] / tokens_per_hour(traffic)
        else:  # one server, as busy as the target allows
            hours = 1 / (table["max_rps"] * (output or math.nan) * HOUR_S)
        table["price_per_million_tokens"] = price_per_hour * MILLION * hours
    return table


def check(slo_s: float, percentile: float, confidence: float) -> None:
    """Refuse a target that makes no sense.

    Raises
    ------
    InputError
        One sentence.
    """
    if not (np.isfinite(slo_s) and slo_s > 0):
        raise InputError(f"slo_s = {slo_s!r}: must be a positive number of seconds.")
    if not 0 < percentile < 100:
        raise InputError(f"percentile = {percentile!r}: must lie between 0 and 100.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence!r}: must lie between 0 and 1.")


def check_positive(name: str, value: float | None) -> None:
    """Refuse what is given and is no positive number."""
    if value is not None and not (isinstance(value, Real) and np.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value!r}: must be a positive number.")


def replicas(scale: float) -> float:
    """Servers among which a traffic is split, of which one sustains `scale` of it; NaN for 0."""
    return float(math.ceil(1 / scale)) if scale > 0 else math.nan


def impossible(name: str, percentile: float, slo_s: float, prob: float, idle_s: float) -> str:
    """Why no number of servers keeps a target."""
    return (
        f"{name}: p{percentile:g} <= {slo_s:g} s is impossible at any load with this confidence: "
        f"an idle server keeps the target with probability {prob:.2f}, its p{percentile:g} is "
        f"about {idle_s:.3g} s."
    )


def tokens_per_hour(traffic: Traffic) -> float:
    """Output tokens an hour, windows without requests included."""
    return traffic.output_tokens / traffic.seconds * HOUR_S


class Asked(NamedTuple):
    """Windows with requests, and the share of all requests that each has."""

    load: xr.Dataset
    shares: np.ndarray = np.ones(1)

    @staticmethod
    def of(traffic: Traffic) -> "Asked":
        """Of a traffic, thinned to what can be answered in about a second."""
        few = traffic.thin(WINDOWS)
        return Asked(few.load(), few.shares)


class Sustained(NamedTuple):
    """What one server sustains of a traffic, draw by draw.

    `scale` is the multiple of the traffic at which the target's share of requests is just within
    it, 0 where it is not even at rest; `idle_s` the percentile of latency at rest.
    """

    arm: Arm
    scale: xr.DataArray
    possible: xr.DataArray
    idle_s: xr.DataArray

    def sustained_with(self, confidence: float) -> float:
        """The multiple that so many draws reach or exceed."""
        return float(self.scale.quantile(1 - confidence, SAMPLE, method="inverted_cdf"))


def at_scale(fit: "Fit", asked: Asked, arm: Arm, scale: Any) -> tuple[Outcome, Any]:
    """The law with the rates of every window times `scale`; variance of log latency."""
    law, load = arm.at(fit.law, asked.load["rate_rps"] * scale)
    return law, scatter(fit, law, load, "e2e")[1]


def over_requests(asked: Asked, values: Any) -> Any:
    """Mean over windows, each counting by its requests."""
    return (values * xr.DataArray(asked.shares, dims="window")).sum("window")


def share_within(asked: Asked, law: Outcome, variance: Any, seconds: Any) -> Any:
    """Share of all requests served within so many seconds; those of a saturated window are not."""
    with np.errstate(divide="ignore"):
        z = (np.log(seconds) - np.log(law.e2e_s) + variance / 2) / variance**0.5
    return over_requests(asked, xr.apply_ufunc(ndtr, z))


def sustained(
    fit: "Fit", system: System, k: int, asked: Asked, slo_s: float, percentile: float, seed: int
) -> Sustained:
    """Find, in every draw, the multiple of a traffic at which it meets a target exactly."""
    share = percentile / 100
    arm = arm_of(fit, system, k, asked.load, seed)
    law, variance = at_scale(fit, asked, arm, 0.0)
    at_rest = share_within(asked, law, variance, slo_s)
    possible = at_rest >= share
    poles = (pole(law.c2_s) / asked.load["rate_rps"]).transpose(*SAMPLE, "window")
    top = poles.isel(window=0, drop=True).copy(data=_most(poles.values, asked.shares, share))

    # Latency is about C1 / (1 - u) at u = scale / top, so that the normal score of the share falls
    # about in a straight line with -log(1 - u), and a few secants find where it meets the target.
    def missed(depth: Any) -> Any:
        found = at_scale(fit, asked, arm, -np.expm1(-depth) * top)
        return _score(share_within(asked, *found, slo_s)) - _score(share)

    low, high = xr.zeros_like(top), xr.full_like(top, NEAR_POLE)
    above, below = _score(at_rest) - _score(share), _score(0.0 * top) - _score(share)
    above = xr.where(possible, above, 1.0)  # where there is no root, none is looked for in earnest
    depth = root(missed, low, high, above, below, STEPS)
    scale = xr.where(possible, -np.expm1(-depth) * top, 0.0)
    return Sustained(arm, scale, possible, _quantile_s(asked, law, variance, share))


def _score(share: Any) -> Any:
    return xr.apply_ufunc(ndtri, xr.apply_ufunc(np.clip, share, LEAST, 1 - 1e-16))


def _most(poles: np.ndarray, shares: np.ndarray, share: float) -> np.ndarray:
    """The multiple at which windows with more requests saturate than may miss the target."""
    order = np.argsort(poles, axis=-1)
    saturated = np.cumsum(shares[order], axis=-1)
    first = (saturated > 1 - share + 1e-12).argmax(axis=-1)[..., None]
    return np.take_along_axis(np.take_along_axis(poles, order, -1), first, -1)[..., 0]


def _quantile_s(asked: Asked, law: Outcome, variance: Any, share: float) -> Any:
    """Percentile of latency over the requests of all windows, between those of the windows."""
    tail = law.e2e_s * np.exp(float(ndtri(share)) * variance**0.5 - variance / 2)
    low, high = tail.min("window"), tail.max("window")
    if len(asked.shares) == 1:
        return high
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        within = share_within(asked, law, variance, middle) >= share
        low, high = xr.where(within, low, middle), xr.where(within, middle, high)
    return high


def label(fit: "Fit", k: int, asked: Asked, arm: Arm, scale: float) -> str:
    """How far the window farthest from the data is from them, at `scale` times the traffic."""
    load = asked.load.assign(rate_rps=asked.load["rate_rps"] * scale)
    labels = support(fit, arm.resolved, k, load, arm.at(fit.law, load["rate_rps"])[0])
    return farthest(labels.values.ravel())
