"""Tokens committed per draft-verify cycle."""

from collections.abc import Sequence
from typing import Any


def tokens_per_cycle(acceptance: Any, k: Any, k_max: int | None = None) -> Any:
    r"""Expected tokens committed per cycle when every draft token is accepted alike.

    .. math:: E = \sum_{j=0}^{k} \alpha^j = \frac{1 - \alpha^{k+1}}{1 - \alpha}

    The sum, not the quotient, is evaluated: it is exact at :math:`\alpha = 1` (``E = k + 1``) and
    at ``k = 0`` (plain decoding, ``E = 1``).

    Parameters
    ----------
    acceptance : array_like
        Probability that a draft token is accepted, given that all before it were, in [0, 1].
    k : array_like of int
        Draft tokens per cycle; broadcasts with `acceptance`.
    k_max : int, optional
        Largest `k`; needed when `k` is symbolic, otherwise read from `k`.

    Returns
    -------
    array_like
        Tokens per cycle, between 1 and ``k + 1``.

    References
    ----------
    arXiv 2605.15051; Leviathan et al. (2023), equation (1).

    Examples
    --------
    >>> round(tokens_per_cycle(0.8, 3), 3)
    2.952
    """
    if k_max is None:
        k_max = int(k.max()) if hasattr(k, "max") else int(k)
    total = acceptance * 0 + k * 0 + 1.0
    reached = 1.0
    for j in range(1, k_max + 1):
        reached = reached * acceptance
        total = total + (k >= j) * reached
    return total


def tokens_per_cycle_by_position(acceptance: Sequence[Any], k: Any) -> Any:
    r"""Expected tokens per cycle when acceptance differs by position.

    .. math:: E = 1 + \sum_{j=1}^{k} \prod_{i=1}^{j} \alpha_i

    Parameters
    ----------
    acceptance : sequence of array_like
        ``acceptance[i]`` is the probability that draft token ``i + 1`` is accepted given that all
        before it were. Must reach the largest `k`.
    k : array_like of int
        Draft tokens per cycle.

    Returns
    -------
    array_like
        Tokens per cycle, between 1 and ``k + 1``.

    Raises
    ------
    IndexError
        If `k` is larger than the number of positions given.

    Examples
    --------
    >>> round(tokens_per_cycle_by_position([0.8, 0.6, 0.5], 2), 3)
    2.28
    """
    k_max = int(k.max()) if hasattr(k, "max") else int(k)
    if k_max > len(acceptance):
        raise IndexError(f"k = {k_max} needs {k_max} acceptance rates, {len(acceptance)} given")
    total = k * 0 + 1.0
    reached: Any = 1.0
    for j in range(1, k_max + 1):
        reached = reached * acceptance[j - 1]
        total = total + (k >= j) * reached
    return total
