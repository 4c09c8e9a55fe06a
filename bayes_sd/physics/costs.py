"""Stage costs of a draft-verify server: bytes and arithmetic over what its machine offers.

Units: seconds; model sizes in 1e9 parameters; ``alone`` is what a request costs by itself,
``others`` what each other request in flight adds to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

PROMPT_TOKENS = 512.0  # prompt length at which prefill slopes are quoted, whatever the curvature
QUERIES = 4.0  # query heads to a key-value head for which `read_keys` is quoted
FLOP_S = 2e-3  # seconds of a multiply and an add for each of 1e9 parameters at 1 TFLOP/s
DECODING = ("verify_others", "compute_others", "draft_others")
OTHERS = ("prefill_others", "prompt_others", *DECODING)
VERIFIER = ("prefill_alone", "prefill_others", "verify_alone", "verify_others")


class Stages(NamedTuple):
    """Stage costs in seconds.

    A pass beside ``B`` others costs ``verify_alone + B verify_others`` and the longer
    (`bayes_sd.physics.queue.Pass`) of ``fixed + coverage * experts``, which it takes whatever its
    tokens, and of ``compute_alone + B compute_others``, with ``prompt_alone`` and ``prompt_others``
    for the prompts that it takes in. `uneven` is how unevenly tokens choose experts, see
    :func:`bayes_sd.physics.queue.coverage`. Beyond captured graphs a cycle takes `pace` or more.
    ``prefill_alone`` is what a request costs once besides, ``prefill_others`` what each other does.
    No seconds are `waits`, the cycles before a first token, and `ahead`, the share of others'
    prompts that come before it where a concurrency is held.
    """

    prefill_alone: Any = 0.0
    prefill_others: Any = 0.0
    prompt_alone: Any = 0.0
    prompt_others: Any = 0.0
    verify_alone: Any = 0.0
    verify_others: Any = 0.0
    fixed: Any = 0.0
    experts: Any = 0.0
    compute_alone: Any = 0.0
    compute_others: Any = 0.0
    draft_alone: Any = 0.0
    draft_others: Any = 0.0
    pace: Any = 0.0
    uneven: Any = 0.0
    waits: Any = 0.0
    ahead: Any = 0.0


TIMES = tuple(name for name in Stages._fields if name not in ("uneven", "waits", "ahead"))


def absent(cost: Any) -> bool:
    """Whether a law lacks this cost: the plain number 0.0, which no array is."""
    return isinstance(cost, float) and cost == 0.0


def times(cost: Any, factor: Any) -> Any:
    """A cost multiplied by a factor; one that a law lacks stays absent."""
    return cost if absent(cost) else cost * factor


def scaled(stages: Stages, names: tuple[str, ...], factor: Any) -> Stages:
    """Stage costs with some multiplied by a factor."""
    return stages._replace(**{name: times(getattr(stages, name), factor) for name in names})


def add(*parts: Stages) -> Stages:
    """Sum of stage costs."""
    present = ([c for c in costs if not absent(c)] for costs in zip(*parts, strict=True))
    return Stages(*(sum(costs, 0.0) for costs in present))


def larger(one: Any, other: Any) -> Any:
    """The larger of two values, by operators."""
    return (one + other + abs(one - other)) / 2


def whole(stages: Stages) -> Stages:
    """With all that a pass reads and computes in its costs, as if one came after the other."""
    s = stages
    return s._replace(
        prefill_alone=s.prefill_alone + s.prompt_alone,
        prefill_others=s.prefill_others + s.prompt_others,
        verify_alone=s.verify_alone + s.fixed + s.experts,
        verify_others=s.verify_others + s.compute_others,
    )


def all_captured(m: Any) -> bool:
    """Whether every pass has a captured graph: the plain number infinity, which no array is."""
    return isinstance(m["captured"], float) and m["captured"] == float("inf")


def beyond_graphs(tokens: Any, m: Any) -> Any:
    """1 where a pass over so many tokens has no captured graph, else 0."""
    if all_captured(m):
        return 0.0
    return 1.0 * (tokens > m["captured"])  # a number: symbols are not multiplied by truth values


def draft_passes(k: Any, drafter_loaded: Any) -> Any:
    """Passes of the drafter in a cycle: `k`, and one at ``k = 0`` where a drafter is loaded."""
    # vLLM runs the first pass even when nothing is to be drafted, so that the drafter's keys and
    # values stay complete for when drafting begins again.
    return k + drafter_loaded * (k < 1)


# The parts. Each is a function of coefficients `c`, sizes `m` (of the verifier, its ``drafter``, 0
# if none, and the machine: see `bayes_sd.runs.sizes`) and the workload `w` (as from
# `bayes_sd.model.design`).


def _prompt(c: Any, m: Any, tokens: Any) -> Stages:
    """Arithmetic of so many prompt tokens, in the verifier and in the drafter."""
    sizes = m["active"] * c["factor_prefill_others"] + m["drafter"]
    cost = c["prefill_token"] * FLOP_S / m["tflops"] * sizes * tokens
    return Stages(prompt_alone=cost, prompt_others=cost)


def _token(c: Any, m: Any) -> Any:
    """Arithmetic of a decoded token for each of 1e9 parameters."""
    return c["decode_token_ratio"] * c["prefill_token"] * FLOP_S / m["tflops"]


def _linear(c: Any, m: Any, w: Any) -> Stages:
    """Weights read once a pass; arithmetic of prompts and sequences; a drafter's overheads."""
    read, token = c["read_weights"] / m["gb_per_s"], _token(c, m)
    overhead = c["overhead_draft_alone"] * m["drafter_layers"]
    draft_alone = overhead + read * m["drafter_bytes"] * m["drafter"]
    draft_others = c["overhead_draft_others"] + token * m["drafter"]
    compute = token * m["active"] * c["factor_verify_others"]
    whole = (m["shared"] + m["expert"]) * m["bytes"]
    return _prompt(c, m, w["prompt_tokens"])._replace(
        fixed=read * whole * c["factor_verify_alone"],
        compute_others=compute,
        draft_alone=draft_alone * c["factor_draft"],
        draft_others=draft_others * c["factor_draft"],
    )


def _overheads(c: Any, prefix: str, by: Any, names: tuple[str, ...] = VERIFIER) -> Stages:
    """Overheads of prefills and passes, times `by`."""
    return Stages(**{n: by * c[f"{prefix}_{n}"] * c[f"factor_{n}"] for n in names})


def _layers(c: Any, m: Any, w: Any) -> Stages:
    """A pass is scheduled, then launched layer by layer; more for experts and between devices.

    Arithmetic goes on meanwhile, as it does while weights are read.
    """
    stages = _overheads(c, "overhead", m["layers"], VERIFIER[:3])
    more = c["overhead_experts"] * m["moe"] + c["overhead_parallel"] * (m["dies"] > 1)
    more = (more * m["layers"] + c["overhead_pass"]) * c["factor_verify_alone"]
    return stages._replace(verify_alone=0.0, fixed=stages.verify_alone + more)


def _experts(c: Any, m: Any, w: Any) -> Stages:
    """Experts' weights are read as far as a pass touches them, equation (4)."""
    if absent(m["expert"]):
        return Stages()
    read = c["read_weights"] * m["expert"] * m["bytes"] / m["gb_per_s"] * c["factor_verify_alone"]
    return Stages(fixed=-read, experts=read, uneven=c["uneven_experts"])


def _tokens(c: Any, m: Any, w: Any) -> Stages:
    """Every token of a pass costs its overhead and arithmetic: ``k + 1`` a sequence."""
    compute = _token(c, m) * m["active"] * c["factor_verify_others"]
    overhead = c["overhead_token"] * m["layers"] * (w["k"] + 1) * c["factor_verify_others"]
    return Stages(
        verify_alone=overhead,
        verify_others=overhead,
        compute_alone=compute * (w["k"] + 1),
        compute_others=compute * w["k"],
    )


def _context(c: Any, m: Any, w: Any) -> Stages:
    """Keys and values of ``P + g/2`` tokens are read in every pass, and each query head asks.

    Reading goes with key-value heads, arithmetic and unpacked kernels with query heads: the mean of
    both, geometric, is what models with 1 to 16 query heads to a key-value head show.
    """
    tokens = w["prompt_tokens"] + w["output_tokens"] / 2
    keys_gb = m["kv_gb"] * (m["queries"] / QUERIES) ** 0.5
    read = c["read_keys"] / m["gb_per_s"] * keys_gb * tokens * c["factor_verify_others"]
    return Stages(verify_alone=read, verify_others=read)


def _attention(c: Any, m: Any, w: Any) -> Stages:
    """Attention's share of a prefill grows with the square of the prompt.

    At `attention_tokens` it costs as much as everything else; a prompt of 512 tokens counts as 512
    whatever they are: ``P (1 + P / P0) / (1 + 512 / P0)``.
    """
    prompt, even = w["prompt_tokens"], c["attention_tokens"]
    share = (1 + prompt / even) / (1 + PROMPT_TOKENS / even)
    return _prompt(c, m, prompt * share - prompt)


def _graphs(c: Any, m: Any, w: Any) -> Stages:
    """Without a captured graph the host launches every kernel, and sets the pace."""
    if all_captured(m):
        return Stages()
    each = c["pace_dense"] * (1 - m["moe"]) + c["pace_experts"] * m["moe"]
    return Stages(pace=m["layers"] * each)


class Part(NamedTuple):
    """A part of the law: what it charges, and the coefficients it alone needs."""

    costs: Callable[[Any, Any, Any], Stages]
    terms: tuple[str, ...] = ()


_SIZED = ("read_weights", "prefill_token", "decode_token_ratio")
LINEAR = Part(_linear, (*_SIZED, "overhead_draft_alone", "overhead_draft_others"))
_LAYERS = (*VERIFIER[:3], "pass", "experts", "parallel")
ADDED = {
    # The host's work for a request, a pass and a sequence, whatever the model.
    "host": Part(lambda c, m, w: _overheads(c, "host", 1.0), tuple(f"host_{n}" for n in VERIFIER)),
    "layers": Part(_layers, tuple(f"overhead_{n}" for n in _LAYERS)),
    "experts": Part(_experts, ("uneven_experts",)),
    "tokens": Part(_tokens, ("overhead_token",)),
    "context": Part(_context, ("read_keys",)),
    "attention": Part(_attention, ("attention_tokens",)),
    "graphs": Part(_graphs, ("pace_dense", "pace_experts")),
}
"""Parts that add stage costs, by name; `LINEAR` is always there."""
