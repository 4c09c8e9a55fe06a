"""Equation (1) of arXiv 2605.15051 and what follows from it: oracles the package has no need of."""

from typing import Any

import numpy as np


def latency_open(c1: Any, c2: Any, rate: Any) -> Any:
    """Mean latency at a rate: ``C1 / (1 - rate C2)``, infinite from the pole on."""
    room = np.maximum(1 - np.asarray(rate) * c2, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(c1 / room)[()]


def break_even_rps(plain: tuple[Any, Any], sd: tuple[Any, Any]) -> Any:
    """Where two such latencies are equal: ``(A - a) / (A b - a B)`` of plain (A, B), SD (a, b)."""
    return (plain[0] - sd[0]) / (plain[0] * sd[1] - sd[0] * plain[1])
