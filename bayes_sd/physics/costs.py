"""Size laws of the stage costs, equation (2), and their sum over a request."""

from typing import Any, NamedTuple


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
    """Prompt length with attention's quadratic share, in tokens: ``P (1 + P / P0)``.

    Parameters
    ----------
    prompt_tokens : array_like
        Prompt tokens `P`.
    attention_tokens : array_like
        Prompt length `P0` at which attention costs as much as everything else.

    Examples
    --------
    >>> prompt_work(500.0, 2000.0)
    625.0
    """
    return prompt_tokens * (1 + prompt_tokens / attention_tokens)


def stage_costs(theta: Any, system: Any, k: Any, prompt_tokens: Any, output_tokens: Any) -> Stages:
    r"""Stage costs of one system from the size laws.

    With `a`, `d` the active parameters of verifier and drafter, `b` the verifier's parameters
    outside the experts, `x` those inside (all in 1e9), `n` its layers, `v` its keys and values of
    one token (GB), ``w = P (1 + P / P0)``, and ``s_tok`` the time to compute one token through 1e9
    parameters:

    .. math::
        c_{1,prefill} &= (n\, o_{1p} + s_{1p}\, a w)\, f_{1p} + s_{1p}\, d w \\
        c_{2,prefill} &= (n\, o_{2p} + s_{2p}\, a w)\, f_{2p} + s_{2p}\, d w \\
        c_{1,verify}  &= (n\, o_{1v} + s_{pass} (b + \phi x))\, f_{1v} + k\, s_{tok}\, a\, f_{2v} \\
        c_{2,verify}  &= (n\, o_{2v} + s_{kv}\, v (P + g/2) + (k + 1)\, s_{tok}\, a)\, f_{2v} \\
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
    token = theta["s_tok"] * a * theta["f_2v"]
    return Stages(
        c1_prefill=(layers * theta["o_1p"] + theta["s_1p"] * a * work) * theta["f_1p"]
        + theta["s_1p"] * d * work,
        c2_prefill=(layers * theta["o_2p"] + theta["s_2p"] * a * work) * theta["f_2p"]
        + theta["s_2p"] * d * work,
        c1_verify=(layers * theta["o_1v"] + theta["s_pass"] * system["shared"]) * theta["f_1v"]
        + k * token,
        c1_experts=theta["s_pass"] * system["expert"] * theta["f_1v"],
        c2_verify=(
            layers * theta["o_2v"]
            + theta["s_kv"] * system["kv_gb"] * (prompt_tokens + output_tokens / 2)
        )
        * theta["f_2v"]
        + (k + 1) * token,
        c1_draft=(theta["o_1d"] + theta["s_pass"] * d) * theta["f_1d"],
        c2_draft=(theta["o_2d"] + theta["s_tok"] * d) * theta["f_2d"],
    )


def combine(stages: Stages, k: Any, output_tokens: Any, tokens_per_cycle: Any) -> Cycle:
    r"""Sum stage costs over a request, equation (2).

    .. math:: C_i = c_{i,prefill} + \frac{g}{E} (c_{i,verify} + k\, c_{i,draft})

    Parameters
    ----------
    stages : Stages
        Stage costs in seconds.
    k : array_like
        Draft tokens per cycle; at 0 the draft costs drop out.
    output_tokens : array_like
        Output tokens `g`.
    tokens_per_cycle : array_like
        Tokens committed per cycle `E`, 1 for plain decoding.

    Returns
    -------
    Cycle
        Seconds.

    Examples
    --------
    >>> combine(Stages(0.1, 0.01, 0.02, 0.0, 0.001, 0.002, 0.0001), k=0, output_tokens=10,
    ...         tokens_per_cycle=1.0).c1
    0.30000000000000004
    """
    cycles = output_tokens / tokens_per_cycle
    return Cycle(
        c1=stages.c1_prefill + cycles * (stages.c1_verify + k * stages.c1_draft),
        c1_experts=cycles * stages.c1_experts,
        c2=stages.c2_prefill + cycles * (stages.c2_verify + k * stages.c2_draft),
    )
