"""Stage costs of a draft-verify server: the parts they add up from, and their sum over a request.

Units: seconds; model sizes in 1e9 parameters; ``alone`` is what a request costs by itself,
``others`` what each other request in flight adds to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

PROMPT_TOKENS = 512.0  # prompt length at which prefill slopes are quoted, whatever the curvature
CONTEXT_TOKENS = 1000.0  # context at which the cost of a sequence in a pass is quoted
KV_GB = 4.096e-6  # keys and values of one token and layer: 8 heads of 128 in 16 bits
OTHERS = ("prefill_others", "verify_others", "draft_others")
VERIFIER = ("prefill_alone", "prefill_others", "verify_alone", "verify_others")


class Stages(NamedTuple):
    """Stage costs in seconds.

    A verify pass of a mixture of experts costs ``verify_alone + coverage * experts``. Where
    arithmetic comes in tiles, ``tile_token`` is what each token saves that fills up a tile.
    ``prefill_ahead`` is the part of ``prefill_others`` that comes before a request's first token
    where a concurrency is held.
    """

    prefill_alone: Any = 0.0
    prefill_others: Any = 0.0
    verify_alone: Any = 0.0
    experts: Any = 0.0
    verify_others: Any = 0.0
    draft_alone: Any = 0.0
    draft_others: Any = 0.0
    tile_token: Any = 0.0
    prefill_ahead: Any = 0.0


class Totals(NamedTuple):
    """Latency coefficients of a request, s: ``C1 = c1 + coverage * experts``, ``C2 = c2``."""

    c1: Any
    experts: Any
    c2: Any
    tile_token: Any = 0.0


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


def draft_passes(k: Any, drafter_loaded: Any) -> Any:
    """Passes of the drafter in a cycle: `k`, and one at ``k = 0`` where a drafter is loaded."""
    # vLLM runs the first pass even when nothing is to be drafted, so that the drafter's keys and
    # values stay complete for when drafting begins again.
    return k + drafter_loaded * (k < 1)


def combine(stages: Stages, passes: Any, cycles: Any) -> Totals:
    """Stage costs of a request, equation (2): ``C_i = prefill + n (verify + passes draft)``."""
    s = stages
    return Totals(
        c1=s.prefill_alone + cycles * (s.verify_alone + passes * s.draft_alone),
        experts=times(s.experts, cycles),
        c2=s.prefill_others + cycles * (s.verify_others + passes * s.draft_others),
        tile_token=times(s.tile_token, cycles),
    )


def prompt_work(prompt_tokens: Any, attention_tokens: Any) -> Any:
    """Prompt length with attention's quadratic share: ``P (1 + P / P0) / (1 + 512 / P0)`` tokens.

    At `attention_tokens` = P0 attention costs as much as everything else; a prompt of 512 tokens
    counts as 512 whatever P0 is.
    """
    share = (1 + prompt_tokens / attention_tokens) / (1 + PROMPT_TOKENS / attention_tokens)
    return prompt_tokens * share


def context_work(layers: Any, kv_gb: Any, context_tokens: Any, balance_tokens: Any) -> Any:
    """What a sequence adds to a pass beside its tokens, in layers at 1000 tokens of context.

    Each layer costs a fixed share and one that reads keys and values; at `balance_tokens` of
    context the two are equal. A sequence of 1000 tokens in a layer of 4 kB a token counts as 1.
    """
    reading = context_tokens * kv_gb / (KV_GB * balance_tokens)
    return (layers + reading) / (1 + CONTEXT_TOKENS / balance_tokens)


# The parts. Each is a function of coefficients `c`, sizes `m` (as from `bayes_sd.runs.sizes`, with
# the ``drafter``, 0 if none) and the workload `w` (as from `bayes_sd.model.design`).


def _prompt(c: Any, m: Any, tokens: Any) -> Stages:
    """Arithmetic of so many prompt tokens, in the verifier and in the drafter."""

    def cost(by: str) -> Any:
        sizes = m["active"] * c[f"factor_prefill_{by}"] + m["drafter"]
        return c[f"prefill_token_{by}"] * sizes * tokens

    return Stages(prefill_alone=cost("alone"), prefill_others=cost("others"))


def _linear(c: Any, m: Any, w: Any) -> Stages:
    """Weights read once a pass; arithmetic of prompts and sequences; a drafter's overheads."""
    weights, token = c["weights_per_pass"], c["decode_token_ratio"] * c["prefill_token_others"]
    draft_alone = c["overhead_draft_alone"] + weights * m["drafter"]
    draft_others = c["overhead_draft_others"] + token * m["drafter"]
    return _prompt(c, m, w["prompt_tokens"])._replace(
        verify_alone=weights * (m["shared"] + m["expert"]) * c["factor_verify_alone"],
        verify_others=token * m["active"] * c["factor_verify_others"],
        draft_alone=draft_alone * c["factor_draft_alone"],
        draft_others=draft_others * c["factor_draft_others"],
    )


def _overheads(c: Any, prefix: str, by: Any) -> Stages:
    """Overheads of both prefills and both verify costs, times `by`."""
    return Stages(**{n: by * c[f"{prefix}_{n}"] * c[f"factor_{n}"] for n in VERIFIER})


def _experts(c: Any, m: Any, w: Any) -> Stages:
    """Experts' weights are read as far as a pass touches them, equation (4)."""
    weights = c["weights_per_pass"] * m["expert"] * c["factor_verify_alone"]
    return Stages(verify_alone=-weights, experts=weights)


def _tokens(c: Any, m: Any, w: Any) -> Stages:
    """Arithmetic of ``k + 1`` tokens a sequence instead of one."""
    token = c["decode_token_ratio"] * c["prefill_token_others"]
    token = token * m["active"] * c["factor_verify_others"]
    drafted = w["k"] * token
    return Stages(verify_alone=drafted, verify_others=drafted, tile_token=token)


def _context(c: Any, m: Any, w: Any) -> Stages:
    """Keys and values of ``P + g/2`` tokens are read in every pass, beside the fixed overhead."""
    tokens = w["prompt_tokens"] + w["output_tokens"] / 2
    work = context_work(m["layers"], m["kv_gb"], tokens, c["context_tokens"])
    added = c["overhead_verify_others"] * (work - m["layers"]) * c["factor_verify_others"]
    return Stages(verify_others=added)


def _attention(c: Any, m: Any, w: Any) -> Stages:
    """Attention's share of a prefill grows with the square of the prompt."""
    prompt = w["prompt_tokens"]
    return _prompt(c, m, prompt_work(prompt, c["attention_tokens"]) - prompt)


def _drafting(c: Any, m: Any, w: Any) -> Stages:
    """A drafter's arithmetic at a price of its own: small kernels, logits its size leaves out."""
    prompt_token = c["prefill_token_others"] * m["drafter"] * c["factor_draft_others"]
    return Stages(draft_others=(c["draft_token_ratio"] - c["decode_token_ratio"]) * prompt_token)


class Part(NamedTuple):
    """A part of the law: what it charges, and the coefficients it alone needs."""

    costs: Callable[[Any, Any, Any], Stages]
    terms: tuple[str, ...] = ()


_SIZED = ("weights_per_pass", "prefill_token_alone", "prefill_token_others", "decode_token_ratio")
LINEAR = Part(_linear, (*_SIZED, "overhead_draft_alone", "overhead_draft_others"))
ADDED = {
    # The host's work for a request, a pass and a sequence, whatever the model.
    "host": Part(lambda c, m, w: _overheads(c, "host", 1.0), tuple(f"host_{n}" for n in VERIFIER)),
    # Kernels are launched and caches kept layer by layer.
    "depth": Part(
        lambda c, m, w: _overheads(c, "overhead", m["layers"]),
        tuple(f"overhead_{n}" for n in VERIFIER),
    ),
    "experts": Part(_experts),
    "tokens": Part(_tokens),
    "context": Part(_context, ("context_tokens",)),
    "attention": Part(_attention, ("attention_tokens",)),
    "drafting": Part(_drafting, ("draft_token_ratio",)),
}
"""Parts that add stage costs, by name; `LINEAR` is always there."""
