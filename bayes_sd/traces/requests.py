"""Single requests of a run, whichever tool timed them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.traces.records import Latency
from bayes_sd.traces.rows import UNIT_SLACK, latency_of_requests


@dataclass(frozen=True)
class Requests:
    """Successful requests: when they were sent and how long they took, in seconds; tokens.

    ``ttft`` is NaN where answers did not come in pieces.
    """

    start: np.ndarray
    e2e: np.ndarray
    ttft: np.ndarray
    prompt: np.ndarray
    output: np.ndarray

    def __len__(self) -> int:
        return len(self.e2e)


def latencies_of(requests: Requests, duration_s: float) -> dict[str, Latency]:
    """Exact statistics of e2e, ttft and tpot.

    Parameters
    ----------
    requests : Requests
    duration_s : float
        Of the run: a request that lasted longer has another unit.

    Raises
    ------
    InputError
        If a latency is not positive, a first token came after the last, or units differ.
    """
    e2e, ttft, output = requests.e2e, requests.ttft, requests.output
    for name, x in (("e2e latency", e2e), ("ttft", ttft)):
        bad = np.flatnonzero(~(x > 0) & ~((name == "ttft") & np.isnan(x)))
        if bad.size:
            raise InputError(
                f"{name} of request {bad[0]} must be a positive number, got {x[bad[0]]:g} s"
            )
    late = np.flatnonzero(ttft > e2e * (1 + 1e-4))
    if late.size:
        i = late[0]
        raise InputError(
            f"ttft of request {i} is {ttft[i]:g} s, longer than the whole request, {e2e[i]:g} s"
        )
    if e2e.max() > duration_s * UNIT_SLACK:
        raise InputError(
            f"e2e latencies reach {e2e.max():g} s in a run of {duration_s:g} s; check the units"
        )
    # Tokens that arrive in one chunk leave no measurable decode time.
    decode = np.where((output > 1) & (e2e > ttft), e2e - ttft, np.nan)
    seconds = {"e2e": e2e, "ttft": ttft, "tpot": decode / np.maximum(output - 1, 1)}
    return {metric: latency_of_requests(x) for metric, x in seconds.items()}


def compare_means(latencies: Mapping[str, Latency], reported: Mapping[str, Latency]) -> None:
    """Refuse a report whose own means are not those of its requests.

    Raises
    ------
    InputError
        If a mean is off by more than rounding and a dropped request explain.
    """
    for metric, theirs in reported.items():
        ratio = theirs.mean / latencies[metric].mean
        if ratio > UNIT_SLACK or ratio < 1 / UNIT_SLACK:
            raise InputError(
                f"mean {metric} is reported as {theirs.mean:g} s but the requests' mean is "
                f"{latencies[metric].mean:g} s; one of them has another unit"
            )
