"""Simulated servers with an assumption of the latency law broken, and what the law says of them.

Both servers, plain and with speculative decoding (SD), run at three loads. The law gets their exact
costs, so that what is left is its own error, not that of a fit.
"""

from dataclasses import dataclass, replace
from math import ceil, exp, inf, isfinite, isinf, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import t as student
from simulator import SimulatedServer, lengths, simulate

from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.law import Outcome

PROMPT, OUTPUT = 128, 64  # tokens
ARMS = {"plain": (0, 0.0), "sd": (3, 0.7)}  # draft tokens, acceptance
SHARES = (0.2, 0.5, 0.8)  # of the capacity of the arm that has less
COUNTED = (0.1, 0.9)  # of a run: after it has settled, before arrivals end
FEWEST, MOST_RUNS = 8, 40  # requests of a short run, and short runs of a replicate

# C1/C2 of plain decoding is 47 and 7, as on a GPU and on a CPU.
SERVERS = {
    "memory-bound": SimulatedServer(chunk_tokens=2**17, max_sequences=10**6),
    "compute-bound": SimulatedServer(
        sequence_s=2e-4,
        token_s=1.5e-3,
        prompt_token_s=2e-5,
        draft_sequence_s=1e-4,
        chunk_tokens=2**17,
        max_sequences=10**6,
    ),
}


@dataclass(frozen=True)
class Assumption:
    """What is broken; by default nothing."""

    name: str
    words: str  # as a sentence starts
    gap_shape: float = 1.0  # gaps between arrivals are gamma; infinite for a constant rate
    prompt: int = PROMPT  # mean, tokens
    prompt_cv: float = 0.0  # coefficients of variation of log-normal lengths
    output_cv: float = 0.0
    output_tail: float = 0.0  # index of Pareto outputs; 0 for none
    acceptance_sd: float = 0.0  # of the acceptance between requests (beta)
    ramp: float = 0.0  # the rate rises by twice this share of its mean over a run
    experts_s: float = 0.0  # reading all experts, s; two of sixteen a token
    chunk_room: float = inf  # prompt tokens a pass takes, in those that arrive in one at most
    sequence_room: float = inf  # sequences served, in those that the law has in flight at most
    latencies: float = inf  # runs start empty and are so many mean latencies long


BASE = Assumption("nothing_broken", "Nothing: Poisson arrivals, fixed lengths")
BURSTS = Assumption("bursty_arrivals", "Bursts (gamma gaps of shape 0.3)", gap_shape=0.3)
CONSTANT = Assumption("constant_arrivals", "Arrivals at equal distances", gap_shape=inf)
MIXED = Assumption(
    "mixed_lengths", "Log-normal prompts and outputs (cv 1)", prompt_cv=1.0, output_cv=1.0
)
TAIL = Assumption("heavy_tailed_outputs", "Pareto outputs (index 1.5)", output_tail=1.5)
LONG = Assumption("long_prompts", "Prompts of 4,096 tokens", prompt=4096)
ASSUMPTIONS = (
    BASE,
    BURSTS,
    CONSTANT,
    MIXED,
    TAIL,
    Assumption("varying_acceptance", "Acceptance 0.7 with sd 0.2 by request", acceptance_sd=0.2),
    Assumption("chunks_enough", "Chunks 1.2 times what arrives in a pass", chunk_room=1.2),
    Assumption("chunks_too_small", "Chunks 0.8 times what arrives in a pass", chunk_room=0.8),
    Assumption("sequences_enough", "A limit 1.1 times the law's in flight", sequence_room=1.1),
    Assumption("sequences_too_few", "A limit 0.9 times the law's in flight", sequence_room=0.9),
    Assumption("experts", "A mixture of experts (2 of 16)", experts_s=0.02),
    LONG,
    Assumption("drifting_load", "A rate rising by 40% over the run", ramp=0.2),
    Assumption("short_runs", "Runs of four mean latencies from an empty server", latencies=4.0),
)
# Two at a time, for the questions about arrivals and lengths.
BURSTS_MIXED = replace(BURSTS, name="bursts_mixed", prompt_cv=1.0, output_cv=1.0)
CONSTANT_MIXED = replace(CONSTANT, name="constant_mixed", prompt_cv=1.0, output_cv=1.0)
LONG_MIXED = replace(LONG, name="long_mixed", prompt_cv=1.0, output_cv=1.0)


def measure(
    assumption: Assumption, seed: int = 1, requests: int = 4000, replicates: int = 6
) -> pd.DataFrame:
    """Simulate both arms on both servers at every load, and ask the law.

    A row a server, load and arm. Seconds: ``simulated_s`` with its 95% interval over replicates
    ``low_s .. high_s``, ``law_s``, 95th percentiles of requests ``p95_s`` and, of a log-normal with
    the law's spread, ``law_p95_s``. Shares: ``error`` of the law, ``error_counted`` with the cycles
    counted in the runs, ``sd_change`` and ``law_sd_change`` of the mean by SD, ``p_wrong`` that the
    arm which the law names is the slower one, ``slowdown_short`` and ``slowdown_long`` of the
    quarters of requests with least and most work, against each alone on the server.
    """
    rows = []
    for name, plain in SERVERS.items():
        server = replace(plain, experts_s=assumption.experts_s, idle=1 - 2 / 16)
        capacity = 1 / max(Place(assumption, server, 0.0).costs(arm).c2_s for arm in ARMS)
        server = _narrowed(Place(assumption, server, SHARES[-1] * capacity))
        for share in SHARES:
            place = Place(assumption, server, share * capacity)
            where = {"server": name, "share": share, "rate_rps": place.rate_rps}
            effort = (seed, ceil(requests * share / SHARES[-1]), replicates)
            rows += [where | row for row in _both_arms(place, effort)]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Place:
    """A server under a broken assumption, at one rate."""

    assumption: Assumption
    server: SimulatedServer
    rate_rps: float

    def costs(self, arm: str, passes: float | None = None) -> Outcome:
        """The law of an arm, for the passes a request that it expects or that were counted."""
        k, alpha = ARMS[arm]
        prompt = self.assumption.prompt
        return self.server.law(k, prompt, OUTPUT, alpha, self.rate_rps, passes)

    def law(self, arm: str, passes: float | None = None) -> tuple[float, float]:
        """Mean latency (s), and the variance others give its log: ``B C2 / L * C2 / C1``."""
        said = self.costs(arm, passes)
        if said.utilization >= 1:
            return inf, inf
        added = said.others * said.c2_s
        return float(said.e2e_s), float(added / said.e2e_s * said.c2_s / (said.e2e_s - added))

    def in_flight(self, arm: str) -> float:
        """Requests in flight by the law."""
        return self.rate_rps * self.law(arm)[0]


def _narrowed(place: Place) -> SimulatedServer:
    """The server with the limits of the assumption, which the highest load sets."""
    server, wanted = place.server, place.assumption
    flights = [place.in_flight(arm) for arm in ARMS]
    passes = [1 + cycles(OUTPUT, [alpha] * k, k) for k, alpha in ARMS.values()]
    arriving = max(b / n for b, n in zip(flights, passes, strict=True)) * wanted.prompt
    if isfinite(wanted.chunk_room):
        server = replace(server, chunk_tokens=ceil(wanted.chunk_room * arriving))
    if isfinite(wanted.sequence_room):
        server = replace(server, max_sequences=ceil(wanted.sequence_room * max(flights)))
    return server


def _both_arms(place: Place, effort: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Both arms at one load, on the same arrivals and lengths."""
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
    """One arm at one load, simulated and by the law."""
    mean, (law_s, others_variance) = runs.mean(), place.law(arm)
    half = student.ppf(0.975, len(runs) - 1) * runs["mean_s"].std() / sqrt(len(runs))
    counted_s = place.law(arm, mean["cycles"])[0]
    variance = mean["own_variance"] + others_variance
    return {
        "simulated_s": mean["mean_s"],
        "low_s": mean["mean_s"] - half,
        "high_s": mean["mean_s"] + half,
        "law_s": law_s,
        "error": law_s / mean["mean_s"] - 1,
        "error_counted": counted_s / mean["mean_s"] - 1,
        "p95_s": mean["p95_s"],
        "law_p95_s": law_s * exp(ndtri(0.95) * sqrt(variance) - variance / 2),
        "slowdown_short": mean["slowdown_short"],
        "slowdown_long": mean["slowdown_long"],
    }


def _replicates(place: Place, arm: str, effort: tuple[int, int, int]) -> pd.DataFrame:
    """A row a replicate; short runs are many to a replicate."""
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
    """One run: the requests of it that count."""
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
    """Arrivals over a run of length 1, as many in every run: vLLM's bench stretches gaps so too."""
    constant = isinf(assumption.gap_shape)
    times = np.cumsum(np.ones(n) if constant else rng.gamma(assumption.gap_shape, 1.0, n))
    times /= times[-1]
    if (r := assumption.ramp) > 0:
        times = (np.sqrt((1 - r) ** 2 + 4 * r * times) - (1 - r)) / (2 * r)
    return times


def _summary(server: SimulatedServer, k: int, served: pd.DataFrame) -> dict[str, float]:
    """Mean and 95th percentile, cycles, and by how much others slow short and long requests."""
    latency = served["e2e_s"].to_numpy()
    prompt, passes = (served[name].to_numpy() for name in ("prompt_tokens", "cycles"))
    alone = server.law(k, prompt, OUTPUT, 0.0, passes=passes).c1_s
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
