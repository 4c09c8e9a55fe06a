"""Stage costs of a draft-verify server: the parts they add up from, and their sum over a request.

Units: seconds; model sizes in 1e9 parameters; ``alone`` is what a request costs by itself,
``others`` what each other request in flight adds to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

PROMPT_TOKENS = 512.0  # prompt length at which prefill slopes are quoted, whatever the curvature
CONTEXT_TOKENS = 1000.0  # context at which the cost of a sequence in a pass is quoted
KV_GB = 4.096e-6  # keys and values of one token and layer: 8 heads of 128 in 16 bits


class Stages(NamedTuple):
    """Stage costs in seconds.

    A verify pass of a mixture of experts costs ``verify_alone + coverage * experts``. Where
    arithmetic comes in tiles, ``tile_token`` is what each token saves that fills up a tile.
    """

    prefill_alone: Any = 0.0
    prefill_others: Any = 0.0
    verify_alone: Any = 0.0
    experts: Any = 0.0
    verify_others: Any = 0.0
    draft_alone: Any = 0.0
    draft_others: Any = 0.0
    tile_token: Any = 0.0


OTHERS = ("prefill_others", "verify_others", "draft_others")


class Totals(NamedTuple):
    """Latency coefficients of a request, s: ``C1 = c1 + coverage * experts``, ``C2 = c2``."""

    c1: Any
    experts: Any
    c2: Any
    tile_token: Any = 0.0


def absent(cost: Any) -> bool:
    """Whether a law lacks this cost: the plain number 0.0, which no array is."""
    return isinstance(cost, float) and cost == 0.0


def scaled(stages: Stages, names: tuple[str, ...], factor: Any) -> Stages:
    """Stage costs with some multiplied by a factor; costs that a law lacks stay absent."""
    costs = {name: getattr(stages, name) for name in names}
    return stages._replace(**{n: c if absent(c) else c * factor for n, c in costs.items()})


def add(first: Stages, *others: Stages) -> Stages:
    """Sum of stage costs.

    Examples
    --------
    >>> add(Stages(verify_alone=1.0), Stages(verify_alone=2.0)).verify_alone
    3.0
    """
    total = first
    for other in others:
        pairs = zip(total, other, strict=True)
        total = Stages(*(old if absent(new) else old + new for old, new in pairs))
    return total


def draft_passes(k: Any, drafter_loaded: Any) -> Any:
    """Passes of the drafter in a cycle: `k`, and one at ``k = 0`` where a drafter is loaded.

    vLLM runs a loaded drafter's first pass even when nothing is to be drafted, so that the
    drafter's keys and values stay complete for when drafting begins again.

    Examples
    --------
    >>> draft_passes(3, 1), draft_passes(0, 1), draft_passes(0, 0)
    (3, 1, 0)
    """
    return k + drafter_loaded * (k < 1)


def combine(stages: Stages, passes: Any, cycles: Any) -> Totals:
    r"""Sum stage costs over a request, equation (2): ``C_i = prefill + n (verify + k draft)``.

    `passes` are those of the drafter a cycle, see :func:`draft_passes`; `cycles` as from
    :func:`bayes_sd.physics.acceptance.cycles`.

    Examples
    --------
    >>> round(combine(Stages(prefill_alone=0.1, verify_alone=0.02), passes=0, cycles=10).c1, 3)
    0.3
    """
    s = stages
    return Totals(
        c1=s.prefill_alone + cycles * (s.verify_alone + passes * s.draft_alone),
        experts=s.experts if absent(s.experts) else s.experts * cycles,
        c2=s.prefill_others + cycles * (s.verify_others + passes * s.draft_others),
        tile_token=s.tile_token if absent(s.tile_token) else s.tile_token * cycles,
    )


def prompt_work(prompt_tokens: Any, attention_tokens: Any) -> Any:
    """Prompt length with attention's quadratic share: ``P (1 + P / P0) / (1 + 512 / P0)`` tokens.

    At `attention_tokens` = P0 attention costs as much as everything else; a prompt of 512 tokens
    counts as 512 whatever P0 is.

    Examples
    --------
    >>> prompt_work(512.0, 2000.0)
    512.0
    """
    share = (1 + prompt_tokens / attention_tokens) / (1 + PROMPT_TOKENS / attention_tokens)
    return prompt_tokens * share


def context_work(layers: Any, kv_gb: Any, context_tokens: Any, balance_tokens: Any) -> Any:
    """What a sequence adds to a pass beside its tokens, in layers at 1000 tokens of context.

    Each layer costs a fixed share and one that reads keys and values; at `balance_tokens` of
    context the two are equal. A sequence of 1000 tokens in a layer of 4 kB a token counts as 1.

    Examples
    --------
    >>> round(context_work(32, 32 * 4.096e-6, 1000.0, 500.0), 6)
    32.0
    """
    reading = context_tokens * kv_gb / (KV_GB * balance_tokens)
    return (layers + reading) / (1 + CONTEXT_TOKENS / balance_tokens)


# The parts. Each is a function of coefficients `c`, sizes `m` and the workload `w`.


def _linear(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Weights read once a pass; arithmetic of prompts and sequences; a drafter's overheads."""
    prompt, decode_token = w["prompt_tokens"], c["decode_token_ratio"] * c["prefill_token_others"]
    weights = m["shared"] + m["expert"]
    active, drafter = m["active"], m["drafter"]
    return Stages(
        prefill_alone=c["prefill_token_alone"]
        * (active * c["factor_prefill_alone"] + drafter)
        * prompt,
        prefill_others=c["prefill_token_others"]
        * (active * c["factor_prefill_others"] + drafter)
        * prompt,
        verify_alone=c["weights_per_pass"] * weights * c["factor_verify_alone"],
        verify_others=decode_token * active * c["factor_verify_others"],
        draft_alone=(c["overhead_draft_alone"] + c["weights_per_pass"] * drafter)
        * c["factor_draft_alone"],
        draft_others=(c["overhead_draft_others"] + decode_token * drafter)
        * c["factor_draft_others"],
    )


def _overheads(c: Any, prefix: str, by: Any) -> Stages:
    """Overheads of both prefills and both verify costs, times `by`."""
    names = ("prefill_alone", "prefill_others", "verify_alone", "verify_others")
    return Stages(**{n: by * c[f"{prefix}_{n}"] * c[f"factor_{n}"] for n in names})


def _host(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Overheads that no model's size changes: the host's work for a request, pass, sequence."""
    return _overheads(c, "host", 1.0)


def _depth(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Overheads that grow with depth: kernels are launched and caches kept layer by layer."""
    return _overheads(c, "overhead", m["layers"])


def _experts(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Experts' weights are read as far as a pass touches them, equation (4)."""
    weights = c["weights_per_pass"] * m["expert"] * c["factor_verify_alone"]
    return Stages(verify_alone=-weights, experts=weights)


def _tokens(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Arithmetic of ``k + 1`` tokens a sequence instead of one, in tiles where there are any."""
    token = c["decode_token_ratio"] * c["prefill_token_others"]
    token = token * m["active"] * c["factor_verify_others"]
    drafted = w["k"] * token
    return Stages(
        verify_alone=drafted, verify_others=drafted, tile_token=token if tile_tokens > 1 else 0.0
    )


def _context(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Keys and values of ``P + g/2`` tokens are read in every pass, beside the fixed overhead."""
    tokens = w["prompt_tokens"] + w["output_tokens"] / 2
    work = context_work(m["layers"], m["kv_gb"], tokens, c["context_tokens"])
    added = c["overhead_verify_others"] * (work - m["layers"]) * c["factor_verify_others"]
    return Stages(verify_others=added)


def _attention(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """Attention's share of a prefill grows with the square of the prompt."""
    prompt = w["prompt_tokens"]
    more = prompt_work(prompt, c["attention_tokens"]) - prompt
    active, drafter = m["active"], m["drafter"]
    return Stages(
        prefill_alone=c["prefill_token_alone"]
        * (active * c["factor_prefill_alone"] + drafter)
        * more,
        prefill_others=c["prefill_token_others"]
        * (active * c["factor_prefill_others"] + drafter)
        * more,
    )


def _drafting(c: Any, m: Any, w: Any, tile_tokens: float) -> Stages:
    """A drafter's arithmetic at a price of its own: small kernels, logits its size leaves out."""
    prompt_token = c["prefill_token_others"] * m["drafter"] * c["factor_draft_others"]
    return Stages(draft_others=(c["draft_token_ratio"] - c["decode_token_ratio"]) * prompt_token)


class Part(NamedTuple):
    """A part of the law: what it charges, and the coefficients it alone needs."""

    costs: Callable[[Any, Any, Any, float], Stages]
    terms: tuple[str, ...] = ()


def _four(prefix: str) -> tuple[str, ...]:
    return tuple(
        f"{prefix}_{n}"
        for n in ("prefill_alone", "prefill_others", "verify_alone", "verify_others")
    )


LINEAR = Part(
    _linear,
    (
        "weights_per_pass",
        "prefill_token_alone",
        "prefill_token_others",
        "decode_token_ratio",
        "overhead_draft_alone",
        "overhead_draft_others",
    ),
)
ADDED = {
    "host": Part(_host, _four("host")),
    "depth": Part(_depth, _four("overhead")),
    "experts": Part(_experts),
    "tokens": Part(_tokens),
    "context": Part(_context, ("context_tokens",)),
    "attention": Part(_attention, ("attention_tokens",)),
    "drafting": Part(_drafting, ("draft_token_ratio",)),
}
"""Parts that add stage costs, by name; `LINEAR` is always there."""
