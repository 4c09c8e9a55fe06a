"""Which law: the parts it is made of, and the stage costs they add up to."""

from dataclasses import dataclass
from typing import Any

from bayes_sd.errors import InputError
from bayes_sd.physics.parts import ADDED, linear
from bayes_sd.physics.stages import Stages, add

PARTS = (*ADDED, "stalls")
OPTIONAL = ("host", "drafting")  # not in the default law
DEFAULT = tuple(part for part in PARTS if part not in OPTIONAL)
TTFT_TERMS = ("wait",)


@dataclass(frozen=True)
class Law:
    """A latency law: costs proportional to size, and what is added to them.

    Parameters
    ----------
    parts : tuple of str
        Any of ``host`` (overheads whatever the model), ``depth`` (overheads grow with layers),
        ``experts`` (a pass reads the experts it touches), ``tokens`` (verifying costs ``k + 1``
        tokens), ``context`` (keys and values are read), ``attention`` (prompts cost their square),
        ``drafting`` (a drafter's arithmetic has a price of its own),
        ``stalls`` (prefills of others stall decoding; without it they delay the first token).
        ``host`` alone is the paper's law, with the closed form ``L = C1 / (1 - rate C2)``.
    tile_tokens : float
        Tokens that a pass computes at one price: 1, or the tile of the matrix kernels (128 on
        current GPUs), which makes the knee from memory- to compute-bound passes a staircase.

    Raises
    ------
    InputError
        If a part is unknown, or needs another.

    Examples
    --------
    >>> Law(parts=("host",)).terms[:4]
    ('s_pass', 's_1p', 's_2p', 'r_tok')
    """

    parts: tuple[str, ...] = DEFAULT
    tile_tokens: float = 1.0

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise InputError(f"No part of the law is called {unknown[0]!r}; known: {PARTS}.")
        if "context" in self.parts and "depth" not in self.parts:
            raise InputError("Part 'context' needs 'depth', whose cost a sequence it spreads.")
        if not 1 <= self.tile_tokens <= 4096:
            raise InputError(f"tile_tokens = {self.tile_tokens!r}: must lie between 1 and 4096.")
        if self.tile_tokens > 1 and "tokens" not in self.parts:
            raise InputError("tile_tokens above 1 needs the part 'tokens'.")
        # One order, so that equal laws are equal.
        object.__setattr__(self, "parts", tuple(p for p in PARTS if p in self.parts))

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the coefficients this law needs."""
        added = [ADDED[part].TERMS for part in self.parts if part in ADDED]
        return (*linear.TERMS, *(term for terms in added for term in terms), *TTFT_TERMS)

    @property
    def stalls(self) -> bool:
        """Whether other requests' prefills stall decoding instead of delaying the first token."""
        return "stalls" in self.parts

    def stages(self, theta: Any, system: Any, load: Any) -> Stages:
        """Stage costs in seconds: the sum of the parts.

        Parameters
        ----------
        theta : mapping
            Coefficients by the names used in :mod:`bayes_sd.model.priors`, in seconds, and the
            factors ``f_*`` by which this verifier and drafter differ from the size laws.
        system : mapping
            ``active``, ``shared``, ``expert``, ``drafter``: parameters in 1e9 (``drafter`` 0 if
            none); ``layers``; ``kv_gb``, keys and values of one token.
        load : mapping
            ``k``, ``prompt_tokens``, ``output_tokens``.

        Returns
        -------
        Stages
        """
        on = [linear, *(ADDED[part] for part in self.parts if part in ADDED)]
        return add(*(part.costs(theta, system, load, self.tile_tokens) for part in on))


FULL = Law()
