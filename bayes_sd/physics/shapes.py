"""Depth and key-value width of a model of which only the size is known."""

from typing import Any

KV_WIDTH_MAX = 1024.0  # eight key-value heads of 128: grouped queries in nearly all current models


def typical_layers(active: Any, total: Any) -> Any:
    r"""Layers of a transformer of this size: ``25 N^0.29``, `N` in 1e9 parameters.

    For a mixture of experts `N` is the geometric mean of active and total parameters. Within 10%
    of most dense models from 25e6 (8 layers) to 70e9 (80); unusually deep small models have up to
    40% more.

    Parameters
    ----------
    active, total : array_like
        Parameters without embedding and head, 1e9.

    Examples
    --------
    >>> round(typical_layers(7.0, 7.0))
    44
    """
    return 25.0 * (active * total) ** 0.145


def typical_kv_gb(active: Any, layers: Any) -> Any:
    """Keys and values of one token in 16 bits, GB: ``4 bytes x layers x width``.

    The width is that of the model, ``sqrt(N / 12 layers)``, up to 1024.

    Examples
    --------
    >>> round(typical_kv_gb(7.0, 36) * 1e6)  # kB
    147
    """
    width = (active * 1e9 / (12 * layers)) ** 0.5
    narrow = (width + KV_WIDTH_MAX - abs(width - KV_WIDTH_MAX)) / 2  # the smaller, by operators
    return 4e-9 * layers * narrow
