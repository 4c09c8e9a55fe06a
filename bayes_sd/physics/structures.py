"""What-if structures: the same stage costs, placed otherwise than drafter and verifier on a server.

A structure's terms are numbers, or central 90% intervals ``(low, high)`` of your prior. What it
adds is assumed, never measured; where its terms vanish, the colocated server is left.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

import numpy as np

from bayes_sd.errors import InputError, require
from bayes_sd.physics.costs import Stages, scaled

PREFILL = ("prefill_alone", "prefill_others", "prompt_alone", "prompt_others")
VERIFY = ("verify_alone", "verify_others", "fixed", "experts", "compute_alone", "compute_others")
DRAFT = ("draft_alone", "draft_others")
MOST = 1e4  # seconds, or a factor; beyond that nobody serves
Z90 = 1.6448536269514722  # half a central 90% interval of a standard normal


class Placed(NamedTuple):
    """Stage costs in a structure, and what a request spends away from the server, in seconds.

    A cycle takes as long as the slowest of `ways`. Seconds away are the request's own: they hold
    up nobody else, and no load stretches them. `before_s` precede the first token, `away_s` recur
    every cycle. `pool_s` is how long a separate prefill pool works on one request; others wait for
    it.
    """

    ways: tuple[Stages, ...]
    before_s: Any = 0.0
    pool_s: Any = 0.0
    away_s: Any = 0.0


class _Kind(NamedTuple):
    """What a term may be, and the scale of its normal prior, on which an interval is finite."""

    allowed: str
    holds: Callable[[float], bool]
    to: Callable[[Any], Any] = np.log
    back: Callable[[Any], Any] = np.exp


Term = float | tuple[float, float]
_ABOVE_0 = "a number (or low, high) above 0"
_FROM_0 = f"a number from 0, or (low, high) above 0, at most {MOST:g}"
_SHARE = "a share from 0 to 1, or (low, high) between 0 and 1"
_LOGIT = (lambda p: np.log(p) - np.log1p(-p)), (lambda x: 1 / (1 + np.exp(-x)))
Factor = Annotated[Term, _Kind(f"{_ABOVE_0}, at most {MOST:g}", lambda v: 0 < v <= MOST)]
Amount = Annotated[Term, _Kind(_FROM_0, lambda v: 0 <= v <= MOST)]
Bandwidth = Annotated[Term, _Kind(_ABOVE_0, lambda v: v > 0)]
Share = Annotated[Term, _Kind(_SHARE, lambda v: 0 <= v <= 1, *_LOGIT)]


@dataclass(frozen=True)
class Structure:
    """A structure with the terms it adds, each a number or a 90% interval."""

    changes_plain: ClassVar[bool] = False
    _place: ClassVar[Callable[..., Placed]]  # puts stage costs where the structure has them

    def __post_init__(self) -> None:
        for name, kind in self._kinds().items():
            value, term = getattr(self, name), f"{type(self).__name__}: {name}"
            array = np.asarray(value)
            numeric = array.dtype.kind in "iuf" and array.shape in ((), (2,))
            ends = [float(v) for v in array.ravel()] if numeric else [np.nan]
            with np.errstate(divide="ignore"):
                fit = (kind.holds(v) and (not array.ndim or np.isfinite(kind.to(v))) for v in ends)
                require(term, value, all(fit), kind.allowed)
            low, high = ends[0], ends[-1]
            if low > high:
                raise InputError(f"{term} = {value!r}: the interval is reversed.")
            object.__setattr__(self, name, low if low == high else (low, high))

    def __str__(self) -> str:
        terms = {name: np.ravel(getattr(self, name)) for name in self._kinds()}
        said = (f"{name}={'..'.join(f'{x:g}' for x in ends)}" for name, ends in terms.items())
        return f"{type(self).__name__.lower()}:{','.join(said)}"

    def _kinds(self) -> dict[str, _Kind]:
        return {f.name: get_args(f.type)[1] for f in fields(self)}

    def drawn(self, draws: int, generator: Callable[[str], Any]) -> Callable[..., Placed]:
        """``(stages, sizes, workload) -> Placed`` with one value of each term a posterior draw."""
        terms: dict[str, Any] = {}
        for name, kind in self._kinds().items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                low, high = (kind.to(v) for v in value)
                z = generator(f"{type(self).__name__}.{name}").standard_normal(draws)
                value = kind.back((low + high) / 2 + (high - low) / (2 * Z90) * z)[:, None]
            terms[name] = value
        return partial(type(self)._place, **terms)


@dataclass(frozen=True)
class Edge(Structure):
    r"""Drafts made on the users' devices, verified by one shared server; as in SLED (2506.09397).

    .. math::
        \text{away} = o\,(t_{trip} + k\, s\, c_{1,draft}) \text{ a cycle}, \qquad
        c_{i,draft} \leftarrow (1 - o)\, c_{i,draft}

    Parameters
    ----------
    round_trip_s, slowdown, offloaded : float or (float, float)
        Network time a cycle, drafts up and verdict down; drafting time on the device over that on
        the server `s`; share of requests that draft on their device `o` (0: the colocated law).

    Examples
    --------
    >>> Edge(round_trip_s=(0.02, 0.05), slowdown=4).slowdown
    4.0
    """

    round_trip_s: Amount
    slowdown: Factor = 1.0
    offloaded: Share = 1.0

    @staticmethod
    def _place(s: Stages, m: Any, w: Any, **t: Any) -> Placed:
        k, offloaded = w["k"], t["offloaded"]
        drafted = t["round_trip_s"] + k * t["slowdown"] * s.draft_alone
        return Placed((scaled(s, DRAFT, 1 - offloaded),), away_s=offloaded * (k > 0) * drafted)


def _at_once(s: Stages, hidden: Any) -> tuple[Stages, ...]:
    """Drafts beside verification: the cycle of `Overlapped` is the larger of two sums."""
    return scaled(s, DRAFT, 1 - hidden), scaled(s, VERIFY, 1 - hidden)


@dataclass(frozen=True)
class Overlapped(Structure):
    r"""Drafting beside chunked verification on the same GPUs; as in FASER (2604.20503).

    .. math:: \text{cycle} = V + D - w \min(V, D), \qquad V = (1 + \iota)\, V_0

    with `V` and `D` the seconds of a cycle's verification and of its drafting, both at the load.

    Parameters
    ----------
    hidden, interference : float or (float, float)
        Share `w` of the shorter of the two that the longer one hides (0: the colocated law); what
        chunks and the drafter beside it add to verification, as a share of its time.

    Examples
    --------
    >>> Overlapped(hidden=(0.5, 0.9), interference=0.05)
    Overlapped(hidden=(0.5, 0.9), interference=0.05)
    """

    hidden: Share
    interference: Amount = 0.0

    @staticmethod
    def _place(s: Stages, m: Any, w: Any, **t: Any) -> Placed:
        slower = 1 + t["interference"] * (w["draft_passes"] > 0)
        return Placed(_at_once(scaled(s, VERIFY, slower), t["hidden"]))


@dataclass(frozen=True)
class Asynchronous(Structure):
    r"""Drafting and verifying at once on GPU groups of their own; as in SwiftSpec (2506.11309).

    .. math:: \text{cycle} = \max(V, D) + u \min(V, D) + t_{sync}

    A cycle whose draft made ahead is of no use, since a token before it was rejected, drafts and
    verifies in turn. A plain server has all GPUs; a schedule's k = 0 keeps the drafter's group.

    Parameters
    ----------
    sync_s : float or (float, float)
        Exchange of drafts and verdicts a cycle, which all requests of a batch wait for.
    verify_slowdown, draft_slowdown : float or (float, float)
        Times of the verifier (prompts included) and, at k > 0, of a draft pass, each on its share
        of the GPUs, over those on all.
    wasted : float or (float, float)
        Share `u` of cycles whose draft made ahead is of no use: ``1 - alpha^k`` for a single
        sequence of drafts, less for a tree. At 1, with no slowdown, the colocated law.

    Examples
    --------
    >>> Asynchronous(sync_s=0.001, verify_slowdown=(1.1, 1.4)).wasted
    0.0
    """

    sync_s: Amount = 0.0
    verify_slowdown: Factor = 1.0
    draft_slowdown: Factor = 1.0
    wasted: Share = 0.0

    @staticmethod
    def _place(s: Stages, m: Any, w: Any, **t: Any) -> Placed:
        loaded, drafting = w["draft_passes"] > 0, w["k"] > 0
        apart = scaled(s, PREFILL + VERIFY, 1 + (t["verify_slowdown"] - 1) * loaded)
        # With no draft to verify nobody waits for the drafter's group.
        apart = scaled(apart, DRAFT, t["draft_slowdown"] * drafting)
        wait = t["sync_s"] * drafting
        ways = _at_once(apart, 1 - t["wasted"])
        return Placed(tuple(way._replace(verify_alone=way.verify_alone + wait) for way in ways))


@dataclass(frozen=True)
class Disaggregated(Structure):
    r"""Prefill and decode on separate pools, with a transfer; as in StreamServe (2604.09562).

    .. math::
        \text{before} &= z\,\Big(s_p\, c_{1,prefill} + t_{transfer} + \frac{kv\, P}{bw}\Big)
            + W(z\, s_p\, c_{2,prefill}) \\
        c_{i,prefill} &\leftarrow (1 - z)\, s_d\, c_{i,prefill}, \qquad
        c_{i,verify}, c_{i,draft} \leftarrow s_d\, c_{i,verify}, s_d\, c_{i,draft}

    `W` is the wait for the pool, ``bayes_sd.physics.law.queue_s``. Plain decoding changes too.

    Parameters
    ----------
    transfer_s, bandwidth_gb_per_s : float or (float, float)
        Time of a transfer whatever its size, and bandwidth of the link in 1e9 bytes/s, infinite
        for none of its time.
    separated : float or (float, float)
        Share `z` of prompts read on the prefill pool; at 0, without a decode slowdown, the
        colocated law.
    prefill_slowdown, decode_slowdown : float or (float, float)
        Times on each pool's GPUs over those measured.

    Examples
    --------
    >>> Disaggregated(transfer_s=0.005, bandwidth_gb_per_s=(10, 25)).separated
    1.0
    """

    changes_plain: ClassVar[bool] = True
    transfer_s: Amount = 0.0
    bandwidth_gb_per_s: Bandwidth = float("inf")
    separated: Share = 1.0
    prefill_slowdown: Factor = 1.0
    decode_slowdown: Factor = 1.0

    @staticmethod
    def _place(s: Stages, m: Any, w: Any, **t: Any) -> Placed:
        separated, slower = t["separated"], t["prefill_slowdown"]
        transfer = t["transfer_s"] + m["kv_gb"] * w["prompt_tokens"] / t["bandwidth_gb_per_s"]
        # A first token that comes from the pool waits for no cycle of this server.
        left = scaled(s, (*PREFILL, "waits"), 1 - separated)
        return Placed(
            (scaled(left, PREFILL + VERIFY + DRAFT, t["decode_slowdown"]),),
            before_s=separated * (slower * (s.prefill_alone + s.prompt_alone) + transfer),
            pool_s=separated * slower * (s.prefill_others + s.prompt_others),
        )


NAMES = {kind.__name__.lower(): kind for kind in (Edge, Overlapped, Asynchronous, Disaggregated)}
"""Structures by the names they have on the command line."""
