"""Length dependence of prefill: attention's share grows with the square of the prompt."""

from typing import Any

from bayes_sd.physics.stages import Stages

TERMS = ("attention_tokens",)
PROMPT_TOKENS = 512.0  # where the slopes are quoted, whatever the curvature


def prompt_work(prompt_tokens: Any, attention_tokens: Any) -> Any:
    """Prompt length with attention's quadratic share: ``P (1 + P / P0) / (1 + 512 / P0)`` tokens.

    A prompt of 512 tokens counts as 512 whatever the share of attention.

    Parameters
    ----------
    prompt_tokens : array_like
        Prompt tokens `P`.
    attention_tokens : array_like
        Prompt length `P0` at which attention costs as much as everything else.

    Examples
    --------
    >>> prompt_work(512.0, 2000.0)
    512.0
    """
    share = (1 + prompt_tokens / attention_tokens) / (1 + PROMPT_TOKENS / attention_tokens)
    return prompt_tokens * share


def costs(theta: Any, system: Any, load: Any, tile_tokens: float = 1.0) -> Stages:
    r"""Charge prompts by their :func:`prompt_work` `w` instead of their length.

    .. math:: c_{i,prefill} \mathrel{+}= s_{ip}\,(a f_{ip} + d)\,(w - P)
    """
    prompt = load["prompt_tokens"]
    more = prompt_work(prompt, theta["attention_tokens"]) - prompt
    a, d = system["active"], system["drafter"]
    return Stages(
        c1_prefill=theta["s_1p"] * (a * theta["f_1p"] + d) * more,
        c2_prefill=theta["s_2p"] * (a * theta["f_2p"] + d) * more,
    )
