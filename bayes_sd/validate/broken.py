"""Both arms on simulated servers with an assumption broken, and what the law says of them."""

from dataclasses import dataclass, replace
from math import ceil, exp, inf, isfinite, isinf, log, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import t as student

from bayes_sd.physics import (
    Cycle,
    combine,
    coverage,
    cycles,
    in_flight_with_experts,
    tokens_in_pass,
)
from bayes_sd.validate.assumptions import OUTPUT, SERVERS, Assumption
from bayes_sd.validate.simulator import SimulatedServer, lengths, simulate

ARMS = {"plain": (0, 0.0), "sd": (3, 0.7)}  # draft tokens, acceptance
SHARES = (0.2, 0.5, 0.8)  # of the capacity of the arm that has less
COUNTED = (0.1, 0.9)  # of a run: after it has settled, before arrivals end
FEWEST, MOST_RUNS = 8, 40  # requests of a short run, and short runs of a replicate


def measure(
    assumption: Assumption, seed: int = 1, requests: int = 4000, replicates: int = 6
) -> pd.DataFrame:
    """Simulate both arms on both servers at every load, and ask the law.

    Returns
    -------
    pandas.DataFrame
        One row a server, load and arm. Seconds: ``simulated_s`` with its 95% interval over
        replicates ``low_s .. high_s``, ``law_s``, 95th percentiles of requests ``p95_s`` and, of a
        log-normal with the law's spread, ``law_p95_s``. Shares: ``error`` of the law,
        ``error_counted`` with the cycles counted in the runs, ``sd_change`` and ``law_sd_change``
        of the mean by SD, ``p_wrong`` that the arm which the law names is the slower one,
        ``slowdown_short`` and ``slowdown_long`` of the quarters of requests with least and most
        work, against each alone on the server.
    """
    rows = []
    for name, plain in SERVERS.items():
        server = replace(plain, experts_s=assumption.experts_s, idle=1 - 2 / 16)
        capacity = 1 / max(Place(assumption, server, 0.0).cycle(arm).c2 for arm in ARMS)
        server = _narrowed(Place(assumption, server, SHARES[-1] * capacity))
        for share in SHARES:
            place = Place(assumption, server, share * capacity)
            at = {"server": name, "share": share, "rate_rps": place.rate_rps}
            effort = (seed, ceil(requests * share / SHARES[-1]), replicates)
            rows += [at | row for row in _point(place, effort)]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Place:
    """A server under a broken assumption, at one rate."""

    assumption: Assumption
    server: SimulatedServer
    rate_rps: float

    def cycle(self, arm: str) -> Cycle:
        """The law's costs of an arm."""
        k, alpha = ARMS[arm]
        return self.server.law(k, self.assumption.prompt, OUTPUT, alpha)

    def counted(self, arm: str, passes: float) -> Cycle:
        """The same with passes a request as counted."""
        k = ARMS[arm][0]
        return combine(self.server.stages(k, self.assumption.prompt), k, passes)

    def law(self, arm: str, total: Cycle | None = None) -> tuple[float, float]:
        """Mean latency (s), and the variance others give its log: ``B C2 / L * C2 / C1``."""
        total = total or self.cycle(arm)
        room = 1 - self.rate_rps * total.c2
        if room <= 0:
            return inf, inf
        idle, k = self.server.idle, ARMS[arm][0]
        others = in_flight_with_experts(total, self.rate_rps, room, idle, log(idle), k)
        mean, added = others / self.rate_rps, others * total.c2
        return float(mean), float(added / mean * total.c2 / (mean - added))

    def in_flight(self, arm: str) -> float:
        """Requests in flight by the law."""
        return self.rate_rps * self.law(arm)[0]


def _narrowed(place: Place) -> SimulatedServer:
    server, wanted = place.server, place.assumption
    flights = [place.in_flight(arm) for arm in ARMS]
    passes = [1 + cycles(OUTPUT, [alpha] * k, k) for k, alpha in ARMS.values()]
    arriving = max(b / n for b, n in zip(flights, passes, strict=True)) * wanted.prompt
    if isfinite(wanted.chunk_room):
        server = replace(server, chunk_tokens=ceil(wanted.chunk_room * arriving))
    if isfinite(wanted.sequence_room):
        server = replace(server, max_sequences=ceil(wanted.sequence_room * max(flights)))
    return server


def _point(place: Place, effort: tuple[int, int, int]) -> list[dict[str, Any]]:
    # Both arms at one load, on the same arrivals and lengths.
    runs = {arm: _replicates(place, arm, effort) for arm in ARMS}
    change = np.log(runs["sd"]["mean_s"] / runs["plain"]["mean_s"])
    sd_slower = student.cdf(change.mean() / change.std() * sqrt(len(change)), len(change) - 1)
    law_change = place.law("sd")[0] / place.law("plain")[0] - 1
    both = {
        "sd_change": runs["sd"]["mean_s"].mean() / runs["plain"]["mean_s"].mean() - 1,
        "law_sd_change": law_change,
        "p_wrong": float(sd_slower if law_change < 0 else 1 - sd_slower),
    }
    return [{"arm": arm} | _arm(place, arm, runs[arm]) | both for arm in ARMS]


def _arm(place: Place, arm: str, runs: pd.DataFrame) -> dict[str, float]:
    found, (law_s, others_variance) = runs.mean(), place.law(arm)
    half = student.ppf(0.975, len(runs) - 1) * runs["mean_s"].std() / sqrt(len(runs))
    counted_s = place.law(arm, place.counted(arm, found["cycles"]))[0]
    variance = found["own_variance"] + others_variance
    return {
        "simulated_s": found["mean_s"],
        "low_s": found["mean_s"] - half,
        "high_s": found["mean_s"] + half,
        "law_s": law_s,
        "error": law_s / found["mean_s"] - 1,
        "error_counted": counted_s / found["mean_s"] - 1,
        "p95_s": found["p95_s"],
        "law_p95_s": law_s * exp(ndtri(0.95) * sqrt(variance) - variance / 2),
        "slowdown_short": found["slowdown_short"],
        "slowdown_long": found["slowdown_long"],
    }


def _replicates(place: Place, arm: str, effort: tuple[int, int, int]) -> pd.DataFrame:
    seed, n, replicates = effort
    started, runs = round(place.in_flight(arm)), 1
    if isfinite(place.assumption.latencies):
        busiest = max(place.in_flight(each) for each in ARMS)
        length = max(FEWEST, round(place.assumption.latencies * busiest))
        started, runs, n = 0, max(1, min(MOST_RUNS, n // length)), length
    rows = []
    for i in range(replicates):
        generators = [np.random.default_rng((seed, i, j)) for j in range(runs)]
        frames = [_serve(place, arm, started, n, rng) for rng in generators]
        rows.append(_summary(place.server, ARMS[arm][0], pd.concat(frames)))
    return pd.DataFrame(rows)


def _serve(place: Place, arm: str, started: int, n: int, rng: np.random.Generator) -> pd.DataFrame:
    broken, (k, alpha) = place.assumption, ARMS[arm]
    arrivals = _arrivals(broken, n, rng) * n / place.rate_rps
    prompt = lengths(broken.prompt, broken.prompt_cv, 0.0, n, rng)
    output = lengths(OUTPUT, broken.output_cv, broken.output_tail, n, rng)
    # Those that the law has in flight are there already, each partly done, so that a run need not
    # fill the server first; long requests are more likely to be met.
    left = rng.choice(output, started, p=output / output.sum()) * rng.random(started)
    accepted = np.full(started + n, alpha)
    if broken.acceptance_sd and k:
        weight = alpha * (1 - alpha) / broken.acceptance_sd**2 - 1
        accepted = rng.beta(alpha * weight, (1 - alpha) * weight, started + n)
    served = simulate(
        place.server,
        np.concatenate([np.zeros(started), arrivals]),
        np.concatenate([np.ones(started), prompt]),
        np.concatenate([np.ceil(left), output]),
        k,
        accepted,
        seed=int(rng.integers(2**31)),
    ).iloc[started:]
    settled = isinf(broken.latencies)
    return served.iloc[int(n * COUNTED[0]) : int(n * COUNTED[1])] if settled else served


def _arrivals(assumption: Assumption, n: int, rng: np.random.Generator) -> np.ndarray:
    # Over a run of length 1. As many in every run: vLLM's load generator stretches gaps likewise.
    constant = isinf(assumption.gap_shape)
    at = np.cumsum(np.ones(n) if constant else rng.gamma(assumption.gap_shape, 1.0, n))
    at /= at[-1]
    if (r := assumption.ramp) > 0:
        at = (np.sqrt((1 - r) ** 2 + 4 * r * at) - (1 - r)) / (2 * r)
    return at


def _summary(server: SimulatedServer, k: int, served: pd.DataFrame) -> dict[str, float]:
    latency = served["e2e_s"].to_numpy()
    own = combine(server.stages(k, served["prompt_tokens"]), k, served["cycles"])
    alone = (own.c1 + coverage(server.idle, tokens_in_pass(0, k)) * own.c1_experts).to_numpy()
    slowdown = (latency / alone)[np.argsort(alone, kind="stable")]
    quarter = max(1, len(slowdown) // 4)
    return {
        "mean_s": latency.mean(),
        "p95_s": np.quantile(latency, 0.95),
        "cycles": served["cycles"].mean(),
        "own_variance": np.log(alone).var(),
        "slowdown_short": slowdown[:quarter].mean(),
        "slowdown_long": slowdown[-quarter:].mean(),
    }
