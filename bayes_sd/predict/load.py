"""Loads to ask about."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from bayes_sd.errors import InputError


def _axis(name: str, values: Any, lowest: float) -> xr.DataArray:
    array = np.asarray(values)
    number = array.dtype.kind in "iuf" and array.ndim <= 1 and array.size > 0
    array = array.astype(float) if number else array
    if not number or not np.isfinite(array).all() or (array < lowest).any():
        raise InputError(f"{name} = {values!r}: must be finite numbers of at least {lowest:g}.")
    return xr.DataArray(array) if array.ndim == 0 else xr.DataArray(array, {name: array}, [name])


def grid(
    *,
    rps: float | Sequence[float] | None = None,
    concurrency: float | Sequence[float] | None = None,
    prompt: float | Sequence[float],
    output: float | Sequence[float],
) -> xr.Dataset:
    """Loads as a grid: every list becomes a dimension, every number holds everywhere.

    Parameters
    ----------
    rps : float or sequence, optional
        Offered rate, requests/s.
    concurrency : float or sequence, optional
        Requests kept in flight, at least 1; instead of `rps`.
    prompt, output : float or sequence
        Prompt and output tokens of a request, at least 1.

    Returns
    -------
    xarray.Dataset
        ``rate_rps`` or ``concurrency``, ``prompt_tokens``, ``output_tokens``.

    Raises
    ------
    InputError
        If not exactly one of `rps` and `concurrency` is given, or a number is out of range.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> dict(bsd.grid(rps=[1, 2, 4], prompt=512, output=[64, 256]).sizes)
    {'rate_rps': 3, 'output_tokens': 2}
    """
    if (rps is None) == (concurrency is None):
        raise InputError("A load needs exactly one of rps= and concurrency=.")
    if rps is not None:
        first = {"rate_rps": _axis("rate_rps", rps, 0.0)}
    else:
        first = {"concurrency": _axis("concurrency", concurrency, 1.0)}
    return xr.Dataset(
        first
        | {
            "prompt_tokens": _axis("prompt_tokens", prompt, 1.0),
            "output_tokens": _axis("output_tokens", output, 1.0),
        }
    )
