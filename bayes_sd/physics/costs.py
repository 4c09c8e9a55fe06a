"""Size laws of the stage costs, equation (2), and their sum over a request."""

from typing import Any, NamedTuple

# Slopes are quoted at these lengths, where most runs are: what the data say of them is then the
# same whatever they say of the curvature.
PROMPT_TOKENS = 512.0
CONTEXT_TOKENS = 1000.0
KV_GB = 4.096e-6  # keys and values of one token and layer: 8 heads of 128 in 16 bits


class Stages(NamedTuple):
    """Stage costs in seconds. `c1_*`: a request alone; `c2_*`: added by each other one in flight.

    A verify pass of a mixture-of-experts model costs ``c1_verify + coverage * c1_experts``.
    """

    c1_prefill: Any
    c2_prefill: Any
    c1_verify: Any
    c1_experts: Any
    c2_verify: Any
    c1_draft: Any
    c2_draft: Any


class Cycle(NamedTuple):
    """A request's latency coefficients in seconds: ``C1 = c1 + coverage * c1_experts``, ``C2``."""

    c1: Any
    c1_experts: Any
    c2: Any


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


def stage_costs(theta: Any, system: Any, k: Any, prompt_tokens: Any, output_tokens: Any) -> Stages:
    r"""Stage costs of one system from the size laws.

    With `a`, `d` the active parameters of verifier and drafter, `b` the verifier's parameters
    outside the experts, `x` those inside (all in 1e9), `n` its layers, `v` its keys and values of
    one token (GB), `w` the :func:`prompt_work`, `u` the :func:`context_work` of ``P + g/2``
    tokens, and a decoded token's arithmetic :math:`s_{tok} = r_{tok} s_{2p}`:

    .. math::
        c_{1,prefill} &= (n\, o_{1p} + s_{1p}\, a w)\, f_{1p} + s_{1p}\, d w \\
        c_{2,prefill} &= (n\, o_{2p} + s_{2p}\, a w)\, f_{2p} + s_{2p}\, d w \\
        c_{1,verify}  &= (n\, o_{1v} + s_{pass} (b + \phi x))\, f_{1v} + k\, s_{tok}\, a\, f_{2v} \\
        c_{2,verify}  &= (o_{2v}\, u(n, v) + (k + 1)\, s_{tok}\, a)\, f_{2v} \\
        c_{1,draft}   &= (o_{1d} + s_{pass}\, d)\, f_{1d}, \qquad
        c_{2,draft}    = (o_{2d} + s_{tok}\, d)\, f_{2d}

    A pass costs an overhead a layer plus its weights read once; every token in it, drafted or not,
    its arithmetic; every sequence the reading of its keys and values. The drafter reads the prompt
    too, and its passes obey the verifier's size laws.

    Parameters
    ----------
    theta : mapping
        Coefficients by the names used in :mod:`bayes_sd.model.priors`, in seconds, and the factors
        ``f_*`` by which this verifier and drafter differ from the size laws.
    system : mapping
        ``active``, ``shared``, ``expert``, ``drafter``: parameters in 1e9 (``drafter`` 0 if none);
        ``layers``; ``kv_gb``, keys and values of one token.
    k : array_like
        Draft tokens per cycle, 0 for plain decoding.
    prompt_tokens, output_tokens : array_like
        Prompt tokens `P` and output tokens `g` of a request.

    Returns
    -------
    Stages
        Seconds; draft costs are per draft pass.

    References
    ----------
    arXiv 2605.15051: coefficients linear in size, c2,prefill in P, c2,verify in P + g/2.
    """
    a, d = system["active"], system["drafter"]
    layers = system["layers"]
    work = prompt_work(prompt_tokens, theta["attention_tokens"])
    context = context_work(
        layers, system["kv_gb"], prompt_tokens + output_tokens / 2, theta["context_tokens"]
    )
    s_tok = theta["r_tok"] * theta["s_2p"]
    token = s_tok * a * theta["f_2v"]
    return Stages(
        c1_prefill=(layers * theta["o_1p"] + theta["s_1p"] * a * work) * theta["f_1p"]
        + theta["s_1p"] * d * work,
        c2_prefill=(layers * theta["o_2p"] + theta["s_2p"] * a * work) * theta["f_2p"]
        + theta["s_2p"] * d * work,
        c1_verify=(layers * theta["o_1v"] + theta["s_pass"] * system["shared"]) * theta["f_1v"]
        + k * token,
        c1_experts=theta["s_pass"] * system["expert"] * theta["f_1v"],
        c2_verify=theta["o_2v"] * context * theta["f_2v"] + (k + 1) * token,
        c1_draft=(theta["o_1d"] + theta["s_pass"] * d) * theta["f_1d"],
        c2_draft=(theta["o_2d"] + s_tok * d) * theta["f_2d"],
    )


def combine(stages: Stages, k: Any, cycles: Any) -> Cycle:
    r"""Sum stage costs over a request, equation (2).

    .. math:: C_i = c_{i,prefill} + n (c_{i,verify} + k\, c_{i,draft})

    Parameters
    ----------
    stages : Stages
        Stage costs in seconds.
    k : array_like
        Draft tokens per cycle; at 0 the draft costs drop out.
    cycles : array_like
        Draft-verify cycles `n` of a request, see :func:`bayes_sd.physics.cycles`; about ``g / E``.

    Returns
    -------
    Cycle
        Seconds.

    Examples
    --------
    >>> combine(Stages(0.1, 0.01, 0.02, 0.0, 0.001, 0.002, 0.0001), k=0, cycles=10).c1
    0.30000000000000004
    """
    return Cycle(
        c1=stages.c1_prefill + cycles * (stages.c1_verify + k * stages.c1_draft),
        c1_experts=cycles * stages.c1_experts,
        c2=stages.c2_prefill + cycles * (stages.c2_verify + k * stages.c2_draft),
    )
