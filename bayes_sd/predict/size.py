"""A model nobody measured, and the features its size gives it."""

from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.model.design import sizes


@dataclass(frozen=True)
class Size:
    """A model nobody measured, given by its size only.

    Parameters
    ----------
    params : float
        Parameters without embedding and head, a count (``8e9``).
    active_params : float, optional
        Parameters used for one token; equal to `params` for a dense model.
    experts, experts_per_token : int
        Experts of a layer and how many a token uses; 0 for a dense model.
    layers : int, optional
        Layers; by default what is usual at this size.
    kv_bytes : float, optional
        Bytes of one token's keys and values; by default what is usual at this size and depth.

    Raises
    ------
    InputError
        If the numbers contradict each other.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.Size(30e9, active_params=3e9, experts=128, experts_per_token=8).experts
    128
    """

    params: float
    active_params: float | None = None
    experts: int = 0
    experts_per_token: int = 0
    layers: float | None = None
    kv_bytes: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            left_out = value is None and field.default is None
            if not left_out and (isinstance(value, bool) or not isinstance(value, Real)):
                raise InputError(f"{field.name} = {value!r}: must be a number (a count, as 8e9).")
        active = self.params if self.active_params is None else self.active_params
        if not (np.isfinite(self.params) and self.params > 0 and 0 < active <= self.params):
            raise InputError(
                f"{self}: needs params > 0 and 0 < active_params <= params (counts, as in 8e9)."
            )
        for name in ("layers", "kv_bytes"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{self}: {name} must be above 0, or left out.")
        if not 0 <= self.experts_per_token <= self.experts or (
            self.experts > 0 and self.experts_per_token == 0
        ):
            raise InputError(f"{self}: needs 1 <= experts_per_token <= experts, or 0 of both.")
        if self.experts > self.experts_per_token:
            if self.active_params is None:
                raise InputError(f"{self}: a mixture of experts needs active_params.")
            least = self.params * self.experts_per_token / self.experts
            if active < least:
                raise InputError(
                    f"{self}: {self.experts_per_token} of {self.experts} experts are at least "
                    f"{least:.3g} active parameters."
                )

    @property
    def active(self) -> float:
        """Parameters used for one token."""
        return self.params if self.active_params is None else self.active_params

    @property
    def label(self) -> str:
        """Stable name, so that all answers about one new model share its drawn effects."""
        moe = f", {self.experts_per_token}/{self.experts} experts" if self.experts else ""
        depth = "" if self.layers is None else f", {self.layers:g} layers"
        return f"new {self.params:g} ({self.active:g} active{moe}{depth})"

    def arrays(self) -> dict[str, float]:
        """Features of the size laws, see :func:`bayes_sd.model.design.sizes`."""
        shape = [np.nan if x is None else x for x in (self.layers, self.kv_bytes)]
        found = sizes(self.params, self.active, self.experts, self.experts_per_token, *shape)
        return {name: float(value) for name, value in found.items()}
