"""A small discrete-event simulator of a continuous-batching server with draft-verify cycles.

One pass after another: every sequence that decodes drafts and verifies, prompts are computed in
chunks beside them, and a pass takes as long as its work. Nothing of the latency law is in it: no
Little's law, no mean number in flight. `benchmarks/stress.py` compares it with the law.
"""

from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from math import ceil, inf, isinf, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.costs import Stages
from bayes_sd.physics.law import Law, Outcome, outcome

LAW = Law(("experts",))  # arithmetic comes after reading, as here
PARETO_LONGEST = 200


@dataclass(frozen=True)
class SimulatedServer:
    """What a server's work costs, in seconds."""

    pass_s: float = 0.01  # a pass, whatever is in it: overhead, weights outside the experts
    experts_s: float = 0.0  # reading all experts; a pass of T tokens reads the share 1 - idle^T
    idle: float = 0.5  # chance that a token leaves an expert alone, 1 - m/M
    sequence_s: float = 1e-4  # each decoding sequence in a pass
    token_s: float = 1e-4  # each of its k + 1 tokens
    prompt_token_s: float = 1e-5
    draft_s: float = 1e-3  # a draft pass; k of them come before a verify pass
    draft_sequence_s: float = 2e-5  # each sequence in it
    chunk_tokens: int = 2048  # prompt tokens a pass takes at most
    max_sequences: int = 256  # at a time

    def law(
        self,
        k: int,
        prompt: Any,
        output: Any,
        acceptance: float,
        rate_rps: float = 0.0,
        passes: Any = None,
    ) -> Outcome:
        """What the latency law says of these costs, for passes as expected or as counted."""
        counted = cycles(output, [acceptance] * k, k) if passes is None else passes
        load = {"closed": 0.0, "rate_rps": np.float64(rate_rps), "others": 0.0}
        work = load | {"k": k, "draft_passes": k, "cycles": counted}
        sizes = {"expert": self.experts_s, "log_idle": log(self.idle), "idle": self.idle}
        with np.errstate(all="ignore"):  # no latency past the pole
            costs = self.stages(k, prompt)
            return outcome(costs, sizes | {"captured": inf}, work, law=LAW)

    def stages(self, k: int, prompt: Any) -> Stages:
        """Stage costs in seconds that the latency law has for these costs."""
        prefill = prompt * self.prompt_token_s
        return Stages(
            prefill_alone=self.pass_s + self.experts_s * (1 - self.idle**prompt) + prefill,
            prefill_others=prefill,
            verify_alone=self.pass_s + self.sequence_s + (k + 1) * self.token_s,
            experts=self.experts_s,
            verify_others=self.sequence_s + (k + 1) * self.token_s,
            draft_alone=self.draft_s + self.draft_sequence_s,
            draft_others=self.draft_sequence_s,
            waits=1.0,
        )


def poisson_arrivals(
    rate_rps: float, requests: int, rng: np.random.Generator, burstiness: float = 1.0
) -> np.ndarray:
    """Arrival times, s: gaps are gamma with shape `burstiness` (1 Poisson, below 1 in bursts)."""
    gaps = rng.gamma(burstiness, 1 / (rate_rps * burstiness), requests)
    return np.asarray(np.cumsum(gaps) - gaps[0])


def dispersion(burstiness: float, expected: float) -> float:
    """Variance over mean of the number of arrivals in a window that expects so many.

    `burstiness` is the shape of the gamma gaps, infinite for a constant rate.
    """
    if isinf(burstiness):
        rest = expected % 1
        return rest * (1 - rest) / expected
    times = _many_arrivals(burstiness)
    starts = np.linspace(0, times[-1] - expected, 40_000)
    counts = np.searchsorted(times, starts + expected) - np.searchsorted(times, starts)
    return float(counts.var() / counts.mean())


@cache
def _many_arrivals(burstiness: float) -> np.ndarray:
    """A long sequence of arrivals at rate 1."""
    return poisson_arrivals(1.0, 200_000, np.random.default_rng(0), burstiness)


def lengths(mean: float, cv: float, tail: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of requests, in tokens: the same in every run but for their order.

    Log-normal with coefficient of variation `cv`, or Pareto with index `tail`, up to 200 times the
    shortest; fixed where both are 0.
    """
    u, relative = (np.arange(n) + 0.5) / n, np.ones(n)
    if tail:
        relative = np.minimum((1 - u) ** (-1 / tail), PARETO_LONGEST)
    elif cv:
        relative = np.exp(sqrt(log(1 + cv**2)) * ndtri(u))
    return rng.permutation(np.maximum(1, np.rint(relative * mean / relative.mean())))


def simulate(
    server: SimulatedServer,
    arrivals_s: npt.ArrayLike,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    k: int = 0,
    acceptance: npt.ArrayLike = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Serve requests first come, first served; `seed` is of the accepted tokens.

    Lengths and acceptance are a number, or one for each request. Returns a row a request:
    ``arrival_s, ttft_s, e2e_s, cycles, prompt_tokens, output_tokens``.
    """
    arrivals = np.asarray(arrivals_s, float)
    n = len(arrivals)
    prompt, output = (np.broadcast_to(x, n).astype(int) for x in (prompt_tokens, output_tokens))
    alpha = np.broadcast_to(acceptance, n).astype(float)
    if (np.diff(arrivals) < 0).any() or not np.isfinite(arrivals).all():
        raise InputError("arrivals_s must be finite and must not decrease.")
    if n == 0 or (prompt < 1).any() or (output < 1).any():
        raise InputError("there must be a request, and prompts and outputs of at least 1 token.")
    passes = _passes_needed(output, alpha, k, np.random.default_rng(seed))
    first_s, last_s = _run(server, k, arrivals, prompt, passes)
    return pd.DataFrame(
        {
            "arrival_s": arrivals,
            "ttft_s": first_s - arrivals,
            "e2e_s": last_s - arrivals,
            "cycles": passes,
            "prompt_tokens": prompt,
            "output_tokens": output,
        }
    )


def _passes_needed(
    output: np.ndarray, alpha: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Passes of each request, drawn beforehand: acceptance does not depend on the others."""
    left = output - 1  # the prefill gives the first token
    if k == 0:
        return left
    passes = np.zeros(len(output), int)
    going = np.flatnonzero(left > 0)
    while going.size:
        accepted = rng.random((going.size, k)) < alpha[going, None]
        left[going] -= 1 + np.cumprod(accepted, axis=1).sum(axis=1)
        passes[going] += 1
        going = going[left[going] > 0]
    return passes


def _run(
    server: SimulatedServer, k: int, arrivals: np.ndarray, prompt: np.ndarray, passes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """When each request has its first token and its last."""
    # First come, first served: those that have arrived, been admitted and been read are all the
    # first so many. A sequence is in every pass from its prefill to its end, so that its last pass
    # is known when its prefill ends.
    n, times, unread, needed = len(arrivals), arrivals.tolist(), prompt.tolist(), passes.tolist()
    first_s, last, ends_s = np.zeros(n), [0] * n, {}
    leaving: list[int] = []  # a heap of last passes
    arrived = read = gone = decoding = number = 0
    now = 0.0
    while gone < n:
        if gone == arrived:
            now = max(now, times[arrived])
        while arrived < n and times[arrived] <= now:
            arrived += 1
        admitted = min(arrived, gone + server.max_sequences)
        budget, before = server.chunk_tokens, read
        while read < admitted and budget >= unread[read]:
            budget -= unread[read]
            read += 1
        if read < admitted:
            unread[read] -= budget
            budget = 0
        spent = _pass_s(server, k, decoding, server.chunk_tokens - budget)
        alike = 1
        if budget == server.chunk_tokens:  # nothing to read: alike until one arrives or leaves
            alike = leaving[0] - number
            if arrived < n:
                alike = max(1, min(alike, ceil((times[arrived] - now) / spent)))
        number += alike
        now += alike * spent
        ends_s[number] = now
        for i in range(before, read):  # the last chunk gives the first token
            first_s[i], last[i] = now, number + needed[i]
            heappush(leaving, last[i])
        decoding += read - before
        while leaving and leaving[0] == number:
            heappop(leaving)
            decoding -= 1
            gone += 1
    return first_s, np.asarray([ends_s[i] for i in last])


def _pass_s(server: SimulatedServer, k: int, decoding: int, prompt_tokens: int) -> float:
    """Seconds of one pass."""
    tokens = decoding * (k + 1) + prompt_tokens
    spent = server.pass_s + server.experts_s * (1 - server.idle**tokens)
    spent += decoding * (server.sequence_s + (k + 1) * server.token_s)
    spent += prompt_tokens * server.prompt_token_s
    if decoding:
        spent += k * (server.draft_s + decoding * server.draft_sequence_s)
    return spent
