"""How many requests are in flight when the time of a pass may depend on it in any way."""

import numpy as np

from bayes_sd.errors import InputError


def occupancy(latency_s: np.ndarray, rate_rps: np.ndarray | float) -> np.ndarray:
    r"""Stationary distribution of the requests in flight, for a latency at every batch size.

    .. math:: \pi_n \propto \prod_{j=1}^{n} \frac{\lambda L_j}{j}

    Requests arrive at random at rate :math:`\lambda`; beside ``j - 1`` others one would take
    :math:`L_j` if they all stayed, so `j` of them leave at the rate :math:`j / L_j`. That queue
    does not ask how long single requests are. For the linear law,
    :math:`L_j = C_1 + (j - 1) C_2`, it is a negative binomial of size :math:`C_1 / C_2` and
    probability :math:`x = \lambda C_2`, whose mean over the rate is equation (1):
    :math:`C_1 / (1 - x)`. A schedule, which changes :math:`L_j` in steps, needs the sum.

    Parameters
    ----------
    latency_s : numpy.ndarray
        Mean latency with 1, 2, ..., N requests in flight, s; last axis. Beyond N requests wait.
    rate_rps : array_like
        Rate, requests/s; broadcasts against the other axes.

    Returns
    -------
    numpy.ndarray
        Probabilities of 0, 1, ..., N - 1 and of N or more in flight; last axis, N + 1 long. All of
        it on the last where the rate is at or past the capacity ``N / L_N``.

    Raises
    ------
    InputError
        If a latency is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> c1, c2, rate = 1.0, 0.1, 5.0
    >>> p = occupancy(c1 + c2 * np.arange(200), rate)
    >>> round(float(p @ np.arange(201)) / rate, 6)  # C1 / (1 - rate C2)
    2.0
    """
    latency_s = np.asarray(latency_s, dtype=float)
    if not (latency_s > 0).all():
        raise InputError("Every latency must be above 0 s.")
    rate = np.asarray(rate_rps, dtype=float)[..., None]
    n = np.arange(1, latency_s.shape[-1] + 1)
    with np.errstate(divide="ignore"):
        steps = np.log(rate * latency_s / n)
    last = np.exp(steps[..., -1:])  # load of a full server: beyond N it falls by this every step
    log_p = np.concatenate([np.zeros_like(last), np.cumsum(steps, axis=-1)], axis=-1)
    p = np.exp(log_p - log_p.max(axis=-1, keepdims=True))
    full = last >= 1
    p[..., -1:] /= np.where(full, 1.0, 1 - last)
    p /= p.sum(axis=-1, keepdims=True)
    beyond = np.zeros_like(p)
    beyond[..., -1] = 1.0
    return np.where(full, beyond, p)


def mean_in_flight(
    probabilities: np.ndarray, latency_s: np.ndarray, rate_rps: np.ndarray | float
) -> np.ndarray:
    """Mean requests in flight, those that wait beyond N included; infinite past capacity.

    Parameters
    ----------
    probabilities : numpy.ndarray
        From :func:`occupancy`.
    latency_s, rate_rps
        As there.

    Examples
    --------
    >>> import numpy as np
    >>> one_at_a_time = np.array([0.5])  # N = 1: the queue M/M/1, load 0.8
    >>> p = occupancy(one_at_a_time, 1.6)
    >>> round(float(mean_in_flight(p, one_at_a_time, 1.6)), 6)
    4.0
    """
    size = latency_s.shape[-1]
    last = np.asarray(rate_rps) * latency_s[..., -1] / size
    full = last >= 1
    waiting = np.where(full, np.inf, last / (1 - np.where(full, 0.0, last)))
    within = (probabilities * np.arange(size + 1)).sum(axis=-1)
    return within + probabilities[..., -1] * waiting
