"""A small discrete-event simulator of a continuous-batching server with draft-verify cycles.

One pass after another: every sequence that decodes drafts and verifies, prompts are computed in
chunks beside them, and a pass takes as long as its work. Nothing of the latency law is in it: no
Little, no mean in flight. What the law says of the same costs can be held against it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.costs import Cycle, Stages, combine


@dataclass(frozen=True)
class SimulatedServer:
    """What a server's work costs, in seconds.

    Parameters
    ----------
    pass_s : float
        A pass, whatever is in it: overhead, and the weights outside the experts.
    experts_s : float
        Reading all experts; a pass of `T` tokens reads the share ``1 - idle^T``.
    idle : float
        Chance that a token leaves an expert alone, ``1 - m/M``.
    sequence_s, token_s : float
        Each decoding sequence in a pass, and each of its ``k + 1`` tokens.
    prompt_token_s : float
        Each prompt token.
    draft_s, draft_sequence_s : float
        A draft pass, and each sequence in it; ``k`` draft passes come before a verify pass.
    chunk_tokens, max_sequences : int
        Prompt tokens a pass takes at most, and sequences at a time.
    """

    pass_s: float = 0.01
    experts_s: float = 0.0
    idle: float = 0.5
    sequence_s: float = 1e-4
    token_s: float = 1e-4
    prompt_token_s: float = 1e-5
    draft_s: float = 1e-3
    draft_sequence_s: float = 2e-5
    chunk_tokens: int = 2048
    max_sequences: int = 256

    def law(self, k: int, prompt: float, output: float, acceptance: float) -> Cycle:
        """C1 and C2 that the latency law has for these costs."""
        n = cycles(output, [acceptance] * k, k)
        prefill = prompt * self.prompt_token_s
        stages = Stages(
            c1_prefill=self.pass_s + self.experts_s * (1 - self.idle**prompt) + prefill,
            c2_prefill=prefill,
            c1_verify=self.pass_s + self.sequence_s + (k + 1) * self.token_s,
            c1_experts=self.experts_s,
            c2_verify=self.sequence_s + (k + 1) * self.token_s,
            c1_draft=self.draft_s + self.draft_sequence_s,
            c2_draft=self.draft_sequence_s,
        )
        return combine(stages, k, n)


def poisson_arrivals(
    rate_rps: float, requests: int, rng: np.random.Generator, burstiness: float = 1.0
) -> np.ndarray:
    """Arrival times, s: gaps are gamma with shape `burstiness` (1 Poisson, below 1 in bursts)."""
    gaps = rng.gamma(burstiness, 1 / (rate_rps * burstiness), requests)
    return np.asarray(np.cumsum(gaps) - gaps[0])


def simulate(
    server: SimulatedServer,
    arrivals_s: Sequence[float],
    prompt_tokens: int | Sequence[int],
    output_tokens: int | Sequence[int],
    k: int = 0,
    acceptance: float | Sequence[float] = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Serve requests first come, first served.

    Parameters
    ----------
    server : SimulatedServer
    arrivals_s : sequence of float
        Increasing.
    prompt_tokens, output_tokens, acceptance : number or one for each request
    k : int
        Draft tokens per cycle.
    seed : int
        Of the accepted tokens.

    Returns
    -------
    pandas.DataFrame
        One row a request: ``arrival_s, ttft_s, e2e_s, cycles, prompt_tokens, output_tokens``.

    Raises
    ------
    InputError
        If the arrivals are not increasing, or a length is below 1.

    Examples
    --------
    >>> alone = simulate(SimulatedServer(), [0.0], prompt_tokens=100, output_tokens=3)
    >>> round(float(alone.e2e_s[0]), 4)  # a prefill pass of 100 tokens and two decode passes
    0.0314
    """
    arrivals = np.asarray(arrivals_s, float)
    n = len(arrivals)
    prompt, output = (np.broadcast_to(x, n).astype(int) for x in (prompt_tokens, output_tokens))
    alpha = np.broadcast_to(acceptance, n).astype(float)
    if (np.diff(arrivals) < 0).any() or not np.isfinite(arrivals).all():
        raise InputError("arrivals_s must be finite and must not decrease.")
    if n == 0 or (prompt < 1).any() or (output < 1).any():
        raise InputError("there must be a request, and prompts and outputs of at least 1 token.")
    rng = np.random.default_rng(seed)
    unread, left = prompt.copy(), output.copy()
    first, last, passes = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, int)
    waiting, running, arrived, now = deque[int](), list[int](), 0, 0.0
    while arrived < n or waiting or running:
        if not waiting and not running:
            now = max(now, arrivals[arrived])
        while arrived < n and arrivals[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        while waiting and len(running) < server.max_sequences:
            running.append(waiting.popleft())
        budget, reading = server.chunk_tokens, []
        for i in running:
            if unread[i] > 0 and budget > 0:
                taken = min(int(unread[i]), budget)
                budget -= taken
                reading.append((i, taken))
        decoding = [i for i in running if unread[i] == 0]
        now += _pass_s(server, k, len(decoding), sum(taken for _, taken in reading))
        for i, taken in reading:
            unread[i] -= taken
            if unread[i] == 0:  # the last chunk gives the first token
                first[i] = now
                left[i] -= 1
        if decoding:
            accepted = rng.random((len(decoding), k)) < alpha[decoding, None]
            left[decoding] -= 1 + np.cumprod(accepted, axis=1).sum(axis=1)
            passes[decoding] += 1
        done = [i for i in running if unread[i] == 0 and left[i] <= 0]
        last[done] = now
        running = [i for i in running if unread[i] > 0 or left[i] > 0]
    return pd.DataFrame(
        {
            "arrival_s": arrivals,
            "ttft_s": first - arrivals,
            "e2e_s": last - arrivals,
            "cycles": passes,
            "prompt_tokens": prompt,
            "output_tokens": output,
        }
    )


def _pass_s(server: SimulatedServer, k: int, decoding: int, prompt_tokens: int) -> float:
    tokens = decoding * (k + 1) + prompt_tokens
    spent = server.pass_s + server.experts_s * (1 - server.idle**tokens)
    spent += decoding * (server.sequence_s + (k + 1) * server.token_s)
    spent += prompt_tokens * server.prompt_token_s
    if decoding:
        spent += k * (server.draft_s + decoding * server.draft_sequence_s)
    return spent
