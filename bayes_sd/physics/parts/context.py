"""Length dependence of verifying: the keys and values of a sequence are read in every pass."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("context_tokens",)
CONTEXT_TOKENS = 1000.0  # where the cost of a sequence is quoted, whatever the curvature
KV_GB = 4.096e-6  # keys and values of one token and layer: 8 heads of 128 in 16 bits


def context_work(layers: Any, kv_gb: Any, context_tokens: Any, balance_tokens: Any) -> Any:
    """What a sequence adds to a pass beside its tokens, in layers at 1000 tokens of context.

    Each layer costs a share that is fixed and one that reads keys and values; a sequence of 1000
    tokens in a layer of 4 kB a token counts as 1.

    Parameters
    ----------
    layers : array_like
        Layers.
    kv_gb : array_like
        Keys and values of one token, all layers, GB.
    context_tokens : array_like
        Tokens whose keys and values are read.
    balance_tokens : array_like
        Context length at which reading costs as much as the fixed share.

    Examples
    --------
    >>> round(context_work(32, 32 * 4.096e-6, 1000.0, 500.0), 6)
    32.0
    """
    reading = context_tokens * kv_gb / (KV_GB * balance_tokens)
    return (layers + reading) / (1 + CONTEXT_TOKENS / balance_tokens)


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Charge ``o_2v`` by the :func:`context_work` `u` of ``P + g/2`` tokens, not by layers.

    .. math:: c_{2,verify} \mathrel{+}= o_{2v}\,(u - n)\, f_{2v}
    """
    layers = system["layers"]
    tokens = load["prompt_tokens"] + load["output_tokens"] / 2
    work = context_work(layers, system["kv_gb"], tokens, theta["context_tokens"])
    return Stages(c2_verify=theta["o_2v"] * (work - layers) * theta["f_2v"])
