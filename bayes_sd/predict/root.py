"""Where a falling function crosses zero, in every draw at once."""

from collections.abc import Callable
from typing import Any

import xarray as xr


def root(
    missed: Callable[[Any], Any], low: Any, high: Any, above: Any, below: Any, steps: int
) -> Any:
    """Where a falling function is 0, by secants that keep it bracketed (Pegasus).

    Parameters
    ----------
    missed : callable
        The function; of arrays, elementwise.
    low, high : array_like
        Ends of the bracket.
    above, below : array_like
        The function there: at least 0 at `low`, at most 0 at `high`.
    steps : int
        Evaluations. Straight lines need one; smooth functions gain digits by a power of 1.6 a step.

    Examples
    --------
    >>> round(float(root(lambda x: 2 - x**2, 0.0, 2.0, 2.0, -2.0, steps=9)), 12)
    1.414213562373
    """
    last: Any = None  # whether the step before moved the lower end
    for _ in range(steps):
        value = missed(middle := _secant(low, high, above, below))
        up = value > 0
        # An end that stays a second time counts less, or the secant would creep towards it.
        again = (up == last) if last is not None else False
        was = xr.where(up, above, below)
        # An end that is the root already keeps the other: its rounding is no second stay.
        again = again & (was != 0)
        part = xr.where(again, was / xr.where(again, was + value, 1.0), 1.0)
        stay, hold = below * part, above * part
        low, above = xr.where(up, middle, low), xr.where(up, value, hold)
        high, below = xr.where(up, high, middle), xr.where(up, stay, value)
        last = up
    return _secant(low, high, above, below)


def _secant(low: Any, high: Any, above: Any, below: Any) -> Any:
    one = below == above  # both are 0, and so is everything between
    return xr.where(one, low, (low * below - high * above) / xr.where(one, 1.0, below - above))
