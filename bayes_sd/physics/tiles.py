"""Arithmetic in tiles: the knee from memory- to compute-bound passes, as a staircase."""

from typing import Any

RAMP = 0.25  # share of a tile over which a step rises: the tokens of a pass fluctuate


def _step(tokens: Any, tile: float) -> tuple[Any, Any]:
    """Whole tiles before the nearest step, and how far up that step is (not yet bounded)."""
    shifted = tokens / tile + 0.5
    beyond = shifted % 1
    return shifted - beyond, (beyond - 0.5) / RAMP + 0.5


def _bounded(x: Any) -> Any:
    """``min(max(x, 0), 1)`` by operators."""
    return (abs(x) - abs(x - 1) + 1) / 2


def computed_tokens(tokens: Any, tile: float) -> Any:
    r"""Tokens paid for beyond the first tile: ``tile x (ceil(T / tile) - 1)``, steps rounded.

    The first tile hides behind the weights that every pass reads.

    Parameters
    ----------
    tokens : array_like
        Tokens in the pass `T`, at least 1.
    tile : float
        Tokens of a tile.

    Examples
    --------
    >>> computed_tokens(100.0, 128), computed_tokens(200.0, 128)
    (0.0, 128.0)
    """
    before, up = _step(tokens, tile)
    rise = _bounded(up)
    return tile * (before > 0) * (before - 1 + rise * rise * (3 - 2 * rise))


def computed_slope(tokens: Any, tile: float) -> Any:
    """Derivative of :func:`computed_tokens`: 0 on a step's tread."""
    before, up = _step(tokens, tile)
    rise = _bounded(up)
    return (before > 0) * 6 * rise * (1 - rise) / RAMP


def free_tokens(tokens: Any, tile: float) -> Any:
    """Tokens of a pass that cost nothing: ``T - 1`` less :func:`computed_tokens`.

    Examples
    --------
    >>> free_tokens(100.0, 128)
    99.0
    """
    return tokens - 1 - computed_tokens(tokens, tile)
