"""Parts of the latency law, one file each, to be switched on and off.

A part is a function ``costs(theta, system, load, tile_tokens) -> Stages`` that adds to the stage
costs, and ``TERMS``, the coefficients it alone needs. ``linear`` is always there; a
:class:`bayes_sd.physics.Law` names the others.
"""

from bayes_sd.physics.parts import (
    attention,
    context,
    depth,
    drafting,
    experts,
    host,
    linear,
    tokens,
)

ADDED = {
    "host": host,
    "depth": depth,
    "experts": experts,
    "tokens": tokens,
    "context": context,
    "attention": attention,
    "drafting": drafting,
}
"""Parts that add stage costs, by name. Another, ``stalls``, says where prefills are charged."""

__all__ = [
    "ADDED",
    "attention",
    "context",
    "depth",
    "drafting",
    "experts",
    "host",
    "linear",
    "tokens",
]
