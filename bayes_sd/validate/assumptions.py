"""What is broken on purpose, one assumption at a time, and the simulated servers it breaks on."""

from dataclasses import dataclass, replace
from math import inf

from bayes_sd.validate.simulator import SimulatedServer

PROMPT, OUTPUT = 128, 64  # tokens

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
    """What is broken; as it stands, nothing.

    Parameters
    ----------
    name, words : str
        Short, joined by ``_``; and as a sentence starts.
    gap_shape : float
        Gaps between arrivals are gamma with this shape; infinite for a constant rate.
    prompt : int
        Mean prompt, tokens.
    prompt_cv, output_cv : float
        Coefficients of variation of log-normal lengths; 0 for fixed ones.
    output_tail : float
        Index of Pareto outputs; 0 for none.
    acceptance_sd : float
        Standard deviation of the acceptance between requests (beta).
    ramp : float
        The rate rises by twice this share of its mean over a run.
    experts_s : float
        Reading all experts, s; two of sixteen a token.
    chunk_room, sequence_room : float
        Prompt tokens a pass takes, in those that arrive in one at the highest load; and sequences
        served at a time, in those that the law has in flight there.
    latencies : float
        Runs start empty, are this many mean latencies long and are counted in full; infinite for
        runs from a server in its steady state.
    """

    name: str
    words: str
    gap_shape: float = 1.0
    prompt: int = PROMPT
    prompt_cv: float = 0.0
    output_cv: float = 0.0
    output_tail: float = 0.0
    acceptance_sd: float = 0.0
    ramp: float = 0.0
    experts_s: float = 0.0
    chunk_room: float = inf
    sequence_room: float = inf
    latencies: float = inf


BASE = Assumption("nothing_broken", "Poisson arrivals and fixed lengths")
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
# Two at a time, for the two questions below.
BURSTS_MIXED = replace(BURSTS, name="bursts_mixed", prompt_cv=1.0, output_cv=1.0)
CONSTANT_MIXED = replace(CONSTANT, name="constant_mixed", prompt_cv=1.0, output_cv=1.0)
LONG_MIXED = replace(LONG, name="long_mixed", prompt_cv=1.0, output_cv=1.0)
