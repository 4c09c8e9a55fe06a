"""How single requests of one run differ: from accepted lengths, load, lengths, and the rest."""

from typing import Any

METRICS = ("e2e", "ttft", "tpot")


def spread_variance(alone: Any, load: Any, intensity: Any, counted: Any = 0.0) -> Any:
    r"""Variance of the log latency of single requests: ``alone^2 + load^2 intensity + counted``.

    `counted` needs no coefficient: it follows from acceptance and lengths, see :func:`counted`.
    """
    return alone**2 + load**2 * intensity + counted


def intensity(metric: str, law: Any) -> Any:
    r"""How strongly others make latencies differ.

    While a request stays for L, a Poisson number of others arrives, each adding C2, so the
    variance of its latency is about :math:`\lambda L C_2^2 / (1 - x)`, that is
    :math:`x C_2 / C_1` in units of :math:`L^2`. A first token waits for others: ``x^2``.

    Parameters
    ----------
    metric : {"e2e", "ttft", "tpot"}
    law : Outcome
    """
    share = law.others_share
    return share**2 if metric == "ttft" else share * law.c2_s / law.c1_s


def counted(metric: str, means: Any, load: Any) -> Any:
    r"""Variance of the log latency that accepted and requested lengths explain.

    .. math::
        e2e:&\; \Big(\frac{D}{L}\Big)^2 \Big(\frac{Var(n)}{n^2} + v_g\Big)
              + \Big(\frac{c_{1,prefill}}{L}\Big)^2 v_P, \qquad
        TPOT:\; \frac{Var(n)}{n^2}, \qquad
        TTFT:\; \Big(\frac{c_{1,prefill}}{TTFT}\Big)^2 v_P

    with `D` the seconds after the first token, of `n` cycles that take about the same time.

    Parameters
    ----------
    metric : {"e2e", "ttft", "tpot"}
    means : Outcome, or anything with ``e2e_s``, ``ttft_s``, ``decode_s``, ``prefill_s``
    load : mapping
        ``cycles`` and ``cycles_var``, mean and variance of a request's cycles `n` at its length,
        see :func:`bayes_sd.physics.cycles_variance`; ``output_cv2`` and ``prompt_cv2``, squared
        coefficients of variation of the lengths of a run's requests.
    """
    if metric == "ttft":
        return load["prompt_cv2"] * (means.prefill_s / means.ttft_s) ** 2
    accepted = load["cycles_var"] / (load["cycles"] + (load["cycles"] == 0)) ** 2
    if metric == "tpot":
        return accepted
    lengths = (accepted + load["output_cv2"]) * means.decode_s**2
    return (lengths + load["prompt_cv2"] * means.prefill_s**2) / means.e2e_s**2
