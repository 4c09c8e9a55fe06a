"""What answers look like: draws, and the ways to read them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError

SAMPLE = ("chain", "draw")
OUTCOMES = ("below", "never", "always", "above", "between")


def quantile(draws: xr.DataArray, q: Any) -> xr.DataArray:
    """Quantiles over draws, some of them infinite: observed values, not averages of neighbours."""
    probs = np.atleast_1d(np.asarray(q))
    if probs.dtype.kind not in "iuf" or not ((probs >= 0) & (probs <= 1)).all():
        raise InputError(f"q = {q!r}: must be probabilities in [0, 1].")
    return draws.quantile(probs.astype(float), dim=SAMPLE, method="inverted_cdf")


@dataclass(frozen=True, eq=False)
class Latency:
    """Posterior predictive latency.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, k, load): ``mean_s``, the long-run mean latency; ``run_s``, the mean of
        one run or hour; ``request_s``, one request drawn at random; seconds, infinite where
        ``saturated``. ``support`` (k, load) is measured, interpolated, extrapolated or assumed
        structure.
    """

    draws: xr.Dataset

    @property
    def prob_saturated(self) -> xr.DataArray:
        """Probability that the rate is at or past capacity, by k and load."""
        return self.draws["saturated"].mean(SAMPLE)

    def quantile(self, q: float | list[float], of: str = "request") -> xr.DataArray:
        """Quantiles in seconds, infinite where saturation reaches them.

        Parameters
        ----------
        q : float or list of float
            Probabilities in [0, 1].
        of : {"request", "run", "mean"}
            One request drawn at random; the mean of one run; the long-run mean.

        Raises
        ------
        InputError
            If `q` is no probability or `of` is none of these.
        """
        if of not in ("request", "run", "mean"):
            raise InputError(f"of = {of!r}: must be request, run or mean.")
        return quantile(self.draws[f"{of}_s"], q)

    def table(self, prob: float = 0.9) -> pd.DataFrame:
        """One row a k and load: median and equal-tailed interval (`prob`) of the mean, request
        percentiles, P(saturated), support."""
        tail = (1 - prob) / 2
        mean = self.quantile([tail, 0.5, 1 - tail], of="mean")
        request = self.quantile([0.5, 0.95, 0.99])
        parts = {
            f"mean_p{100 * tail:02.0f}_s": mean.isel(quantile=0, drop=True),
            "mean_p50_s": mean.isel(quantile=1, drop=True),
            f"mean_p{100 * (1 - tail):02.0f}_s": mean.isel(quantile=2, drop=True),
            "request_p50_s": request.isel(quantile=0, drop=True),
            "request_p95_s": request.isel(quantile=1, drop=True),
            "request_p99_s": request.isel(quantile=2, drop=True),
            "prob_saturated": self.prob_saturated,
            "support": self.draws["support"],
        }
        return tabulate(xr.Dataset(parts))


@dataclass(frozen=True, eq=False)
class BreakEven:
    """Where SD stops (or starts) being faster in the mean.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, k): ``rate_rps``, the rate at which both are equal, NaN in the draws in
        which they never are; ``outcome``: "below" (SD is faster up to the rate), "above" (from the
        rate on), "between" (from the rate on, but not near capacity), "always" or "never" (at
        every rate that either sustains).
    """

    draws: xr.Dataset

    def prob(self, outcome: str) -> xr.DataArray:
        """Probability of an outcome, by k."""
        return (self.draws["outcome"] == outcome).mean(SAMPLE)

    def quantile(self, q: float | list[float]) -> xr.DataArray:
        """Quantiles of the rate up to which SD is faster, requests/s, over all draws.

        "never" counts as 0 and "always" as infinite, so a quantile reads like an answer: with
        probability 1 - q SD is faster at any rate below it. Draws with "above" or "between" have
        no such rate and count as 0; their probability is stated beside.

        Raises
        ------
        InputError
            If `q` is no probability.
        """
        outcome = self.draws["outcome"]
        value = xr.where(outcome == "below", self.draws["rate_rps"], 0.0)
        return quantile(xr.where(outcome == "always", np.inf, value), q)

    def table(self) -> pd.DataFrame:
        """One row a k: p05, p50, p95 in requests/s and the probabilities of each outcome."""
        q = self.quantile([0.05, 0.5, 0.95])
        parts = {
            name: q.isel(quantile=i, drop=True) for i, name in enumerate(("p05", "p50", "p95"))
        }
        parts |= {f"prob_{o}": self.prob(o) for o in OUTCOMES}
        return tabulate(xr.Dataset(parts).assign(support=self.draws["support"]))


def tabulate(data: xr.Dataset) -> pd.DataFrame:
    """Flat table of a dataset: a column a coordinate, a row a cell."""
    if not data.dims:
        return pd.DataFrame([{str(n): data[n].item() for n in [*data.coords, *data.data_vars]}])
    return data.to_dataframe().reset_index()
