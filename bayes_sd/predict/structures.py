"""Deployments to ask about: where drafting, verifying and prefill run.

``System(..., structure=structures.Edge(round_trip_s=(0.02, 0.05)))`` answers what the fitted costs
would give in that deployment. Each term is a number, or the central 90% interval (low, high) of
your prior; nothing of it was measured, and answers say "assumed structure".
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

import numpy as np
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.physics import structures as law
from bayes_sd.physics.structures import Placed

Term = float | tuple[float, float]
MOST = 1e4  # seconds or a factor; beyond that nobody serves
Z90 = 1.6448536269514722  # half a central 90% interval of a standard normal


def _logit(p: Any) -> Any:
    return np.log(p) - np.log1p(-p)


def _expit(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


class _Kind(NamedTuple):
    """What a term may be, and the scale on which its prior is normal."""

    says: str
    holds: Callable[[float], bool]
    ends: Callable[[float], bool]
    to: Callable[[Any], Any] = np.log
    back: Callable[[Any], Any] = np.exp


_AMOUNT = _Kind(
    f"a number from 0 to {MOST:g}, or an interval (low, high) above 0",
    lambda v: 0 <= v <= MOST,
    lambda v: 0 < v <= MOST,
)
_FACTOR = _Kind(
    f"a number above 0, at most {MOST:g}, or an interval (low, high) of such",
    lambda v: 0 < v <= MOST,
    lambda v: 0 < v <= MOST,
)
_BANDWIDTH = _FACTOR._replace(
    says="a number above 0, or an interval (low, high) above 0",
    holds=lambda v: v > 0,
    ends=lambda v: 0 < v < np.inf,
)
_SHARE = _Kind(
    "a share from 0 to 1, or an interval (low, high) between 0 and 1",
    lambda v: 0 <= v <= 1,
    lambda v: 0 < v < 1,
    _logit,
    _expit,
)


Amount = Annotated[Term, _AMOUNT]
Factor = Annotated[Term, _FACTOR]
Bandwidth = Annotated[Term, _BANDWIDTH]
Share = Annotated[Term, _SHARE]


def _kinds(structure: "Structure") -> dict[str, _Kind]:
    return {f.name: get_args(f.type)[1] for f in fields(structure)}


def _checked(owner: str, name: str, kind: _Kind, value: Any) -> Term:
    array = np.asarray(value)
    number = array.dtype.kind in "iuf"
    if number and array.shape == () and kind.holds(float(array)):
        return float(array)
    if number and array.shape == (2,) and kind.ends(float(array[0])) and kind.ends(float(array[1])):
        low, high = (float(v) for v in array)
        if low > high:
            raise InputError(f"{owner}: {name} = {value!r}: the interval is reversed.")
        return low if low == high else (low, high)
    raise InputError(f"{owner}: {name} = {value!r}: must be {kind.says}.")


@dataclass(frozen=True)
class Structure:
    """A deployment with the terms it adds, each a number or a 90% interval."""

    plain: ClassVar[bool] = False  # whether it changes plain decoding as well
    place: ClassVar[Callable[..., Placed]]

    def __post_init__(self) -> None:
        for name, kind in _kinds(self).items():
            value = _checked(type(self).__name__, name, kind, getattr(self, name))
            object.__setattr__(self, name, value)

    def drawn(
        self, posterior: xr.Dataset, generator: Callable[[str], np.random.Generator]
    ) -> Callable[..., Placed]:
        """The structure's law with its terms drawn, one value a posterior draw.

        Parameters
        ----------
        posterior : xarray.Dataset
            With dims (chain, draw).
        generator : callable
            From a name to its random numbers, so that all arms share the draws.

        Returns
        -------
        callable
            ``(stages, system, load) -> Placed``.
        """
        dims = ("chain", "draw")
        shape = tuple(posterior.sizes[d] for d in dims)
        terms: dict[str, Any] = {}
        for name, kind in _kinds(self).items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                low, high = (kind.to(v) for v in value)
                z = generator(f"{type(self).__name__}.{name}").standard_normal(shape)
                value = kind.back((low + high) / 2 + (high - low) / (2 * Z90) * z)
                value = xr.DataArray(value, dims=dims)
            terms[name] = value
        return partial(type(self).place, **terms)


@dataclass(frozen=True)
class Edge(Structure):
    """Drafts made on the users' devices, a shared verifier, a round trip a cycle; as in SLED.

    Plain decoding stays as it is. The law: :func:`bayes_sd.physics.structures.edge`.

    Parameters
    ----------
    round_trip_s : float or (float, float)
        Network time a cycle.
    slowdown : float or (float, float)
        Drafting time on the device over that on the server.
    offloaded : float or (float, float)
        Share of requests that draft on their device.

    Raises
    ------
    InputError
        If a time is negative, a share outside [0, 1] or an interval reversed.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> edge = bsd.structures.Edge(round_trip_s=(0.02, 0.05), slowdown=4)
    >>> bsd.System("llama-8b", "eagle", structure=edge).structure.slowdown
    4.0
    """

    round_trip_s: Amount
    slowdown: Factor = 1.0
    offloaded: Share = 1.0
    place: ClassVar[Callable[..., Placed]] = staticmethod(law.edge)


@dataclass(frozen=True)
class Overlapped(Structure):
    """Drafting beside chunked verification on the same GPUs; as in FASER.

    Plain decoding stays as it is. The law: :func:`bayes_sd.physics.structures.overlapped`.

    Parameters
    ----------
    hidden : float or (float, float)
        Share of the shorter of drafting and verifying that the longer one hides.
    interference : float or (float, float)
        What chunks and the drafter beside it add to verification, as a share of its time.

    Raises
    ------
    InputError
        If a share lies outside [0, 1], `interference` is negative or an interval reversed.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.structures.Overlapped(hidden=(0.5, 0.9), interference=0.05)
    Overlapped(hidden=(0.5, 0.9), interference=0.05)
    """

    hidden: Share
    interference: Amount = 0.0
    place: ClassVar[Callable[..., Placed]] = staticmethod(law.overlapped)


@dataclass(frozen=True)
class Asynchronous(Structure):
    """Drafting and verifying at the same time on GPU groups of their own; as in SwiftSpec.

    A plain server has all GPUs and stays as it is; a schedule's k = 0 keeps the drafter's group.
    The law: :func:`bayes_sd.physics.structures.asynchronous`.

    Parameters
    ----------
    sync_s : float or (float, float)
        Exchange between the groups, a cycle.
    verify_slowdown : float or (float, float)
        Time of the verifier on its share of the GPUs over that on all.
    draft_slowdown : float or (float, float)
        Likewise of a draft pass.
    wasted : float or (float, float)
        Share of cycles whose draft made ahead is of no use, since a token was rejected.

    Raises
    ------
    InputError
        If a time is negative, a share outside [0, 1] or an interval reversed.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.structures.Asynchronous(sync_s=0.001, verify_slowdown=(1.1, 1.4)).wasted
    0.0
    """

    sync_s: Amount = 0.0
    verify_slowdown: Factor = 1.0
    draft_slowdown: Factor = 1.0
    wasted: Share = 0.0
    place: ClassVar[Callable[..., Placed]] = staticmethod(law.asynchronous)


@dataclass(frozen=True)
class Disaggregated(Structure):
    """Prefill and decode on separate pools, with a transfer of keys and values; as in StreamServe.

    Plain decoding changes too. The depth adapted to the load is :meth:`bayes_sd.Fit.schedule` of
    such a system. The law: :func:`bayes_sd.physics.structures.disaggregated`.

    Parameters
    ----------
    transfer_s : float or (float, float)
        Time of a transfer, whatever its size.
    bandwidth_gb_per_s : float or (float, float)
        Of the link between the pools, in 1e9 bytes/s; infinite for none of its time.
    separated : float or (float, float)
        Share of prompts read on the prefill pool.
    prefill_slowdown, decode_slowdown : float or (float, float)
        Times on each pool's GPUs over those measured.

    Raises
    ------
    InputError
        If a time is negative, a share outside [0, 1] or an interval reversed.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.structures.Disaggregated(transfer_s=0.005, bandwidth_gb_per_s=(10, 25)).separated
    1.0
    """

    transfer_s: Amount = 0.0
    bandwidth_gb_per_s: Bandwidth = float("inf")
    separated: Share = 1.0
    prefill_slowdown: Factor = 1.0
    decode_slowdown: Factor = 1.0
    plain: ClassVar[bool] = True
    place: ClassVar[Callable[..., Placed]] = staticmethod(law.disaggregated)


NAMES = {kind.__name__.lower(): kind for kind in (Edge, Overlapped, Asynchronous, Disaggregated)}
"""Structures by the names they have on the command line."""
