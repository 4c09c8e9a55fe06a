"""Which system a question is about: measured ones by name, new ones by size."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.model.design import pair_label, sizes

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

NONE = "none"


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

    def __post_init__(self) -> None:
        active = self.params if self.active_params is None else self.active_params
        if not (np.isfinite(self.params) and self.params > 0 and 0 < active <= self.params):
            raise InputError(
                f"{self}: needs params > 0 and 0 < active_params <= params (counts, as in 8e9)."
            )
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
        return f"new {self.params:g} ({self.active:g} active{moe})"


@dataclass(frozen=True)
class System:
    """A verifier and, for speculative decoding, a drafter.

    Parameters
    ----------
    verifier : str or Size
        A measured verifier by name, or an unmeasured one by size.
    drafter : str or Size, optional
        Likewise; needed for k > 0.
    acceptance : float or sequence of float, optional
        Per-token acceptance, or one for each position, in [0, 1]. By default what was measured on
        this pair, with its uncertainty; a pair nobody measured needs it.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.System("llama-8b", bsd.Size(0.5e9), acceptance=0.7).drafter
    Size(params=500000000.0, active_params=None, experts=0, experts_per_token=0)
    """

    verifier: str | Size
    drafter: str | Size | None = None
    acceptance: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.acceptance is not None:
            rates = np.asarray(self.acceptance)
            number = rates.dtype.kind in "iuf" and rates.ndim <= 1 and rates.size > 0
            if not number or not ((rates >= 0) & (rates <= 1)).all():
                raise InputError(
                    f"acceptance = {self.acceptance!r}: must be a number in [0, 1], or one for "
                    "each position."
                )
            plain = float(rates) if rates.ndim == 0 else tuple(float(r) for r in rates)
            object.__setattr__(self, "acceptance", plain)


def system_of(run: pd.Series) -> System:
    """The system a run was measured on."""
    imposed = run["acceptance_imposed"]
    return System(
        str(run["verifier"]), str(run["drafter"]), None if np.isnan(imposed) else float(imposed)
    )


def default_system(fit: "Fit", needs_drafter: bool) -> System:
    """The system of a fit that has only one.

    Raises
    ------
    InputError
        If it has several, with a list of them.
    """
    runs = fit.runs
    verifiers = sorted(runs["verifier"].unique())
    drafted = runs[runs["drafter"] != NONE]
    pairs = sorted(drafted["pair"].unique())
    if len(verifiers) > 1 or (needs_drafter and len(pairs) != 1):
        known = "; ".join(pairs if needs_drafter and pairs else verifiers) or "none with a drafter"
        raise InputError(f"Say which system (system=bsd.System(...)); the fit knows: {known}.")
    drafter = str(drafted["drafter"].iloc[0]) if len(pairs) == 1 else None
    return System(str(verifiers[0]), drafter)


def _generator(seed: int, label: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def _known(fit: "Fit", level: str, name: str) -> None:
    names = [str(v) for v in fit.posterior[level].values]
    if name not in names or name == "(no drafter)":
        others = ", ".join(n for n in names if n != "(no drafter)") or "none"
        raise InputError(
            f"The fit has no {level} {name!r}; it knows {others}. "
            f"For one nobody measured give its size: bsd.Size(params)."
        )


def _factors(fit: "Fit", level: str, name: str | None, new: str, seed: int, moe: float) -> Any:
    """Factors of a level, dims (chain, draw, coefficient): fitted, or drawn from its population."""
    posterior = fit.posterior
    factor, tau = posterior[f"factor_{level}"], posterior[f"tau_{level}"]
    if name is not None:
        return factor.sel({level: name}, drop=True)
    z = _generator(seed, new).standard_normal(tau.shape)
    log = tau * z
    if level == "verifier":
        log = log + moe * posterior["moe"]
    return np.exp(log)


@dataclass(frozen=True)
class Resolved:
    """A system ready to compute with: coefficients and sizes, and its names (None where new)."""

    theta: Mapping[str, Any]
    sizes: Mapping[str, Any]
    verifier: str | None
    drafter: str | None
    pair: str | None
    system: str | None
    label: str


def find_pair(fit: "Fit", system: System) -> str | None:
    """Measured pair of a system; None if it is new.

    Raises
    ------
    InputError
        If the pair was measured at several imposed acceptances and none is chosen.
    """
    if not isinstance(system.verifier, str) or not isinstance(system.drafter, str):
        return None
    runs = fit.runs
    rows = runs[(runs["verifier"] == system.verifier) & (runs["drafter"] == system.drafter)]
    pairs = sorted(rows["pair"].unique())
    plain = pair_label(system.verifier, system.drafter, np.nan)
    if plain in pairs:
        return plain
    given = system.acceptance
    if isinstance(given, int | float):
        wanted = pair_label(system.verifier, system.drafter, float(given))
        return wanted if wanted in pairs else None
    if given is None and len(pairs) > 1:
        rates = ", ".join(f"{a:g}" for a in sorted(rows["acceptance_imposed"].unique()))
        raise InputError(
            f"{system.verifier} + {system.drafter} was measured at acceptance {rates}; "
            "choose one: System(..., acceptance=...)."
        )
    return str(pairs[0]) if given is None and pairs else None


def resolve(fit: "Fit", system: System, k: int, seed: int) -> Resolved:
    """Coefficients and sizes of one arm (`k` = 0 is the plain server) of a system.

    Raises
    ------
    InputError
        If a name is not known to the fit, or k > 0 without a drafter.
    """
    posterior = fit.posterior
    v, d = system.verifier, system.drafter
    if isinstance(v, str):
        _known(fit, "verifier", v)
        table = fit.tree["verifiers"].to_dataset().sel(verifier=v)
        size = {str(n): float(table[n]) for n in table.data_vars}
    else:
        arrays = sizes(v.params, v.active, v.experts, v.experts_per_token)
        size = {n: float(x) for n, x in arrays.items()}
    if k > 0 and d is None:
        raise InputError(f"k = {k} needs a drafter: System({v!r}, drafter=...).")
    verifier_label = v if isinstance(v, str) else v.label
    drafter_label = "none" if k == 0 or d is None else d if isinstance(d, str) else d.label
    pair = None if k == 0 else find_pair(fit, system)
    runs = fit.runs
    name: str | None = f"{verifier_label} plain" if k == 0 else f"{pair} k={k}"
    if name not in set(runs["system"]):
        name = None
    label = f"{verifier_label} plain" if k == 0 else f"{verifier_label} + {drafter_label} k={k}"

    theta: dict[str, Any] = {
        str(n): posterior["law"].sel(law_term=n, drop=True) for n in posterior["law_term"].values
    }
    fv = _factors(
        fit, "verifier", v if isinstance(v, str) else None, verifier_label, seed, size["moe"]
    )
    theta |= {f"f_{c}": fv.sel(coefficient=c, drop=True) for c in fv["coefficient"].values}
    if k == 0:
        size["drafter"] = 0.0
        theta |= {"f_1d": 1.0, "f_2d": 1.0}
    else:
        if isinstance(d, str):
            _known(fit, "drafter", d)
            size["drafter"] = float(fit.tree["drafters"]["drafter_size"].sel(drafter=d))
        elif d is not None:
            size["drafter"] = d.active / 1e9
        fd = _factors(fit, "drafter", d if isinstance(d, str) else None, drafter_label, seed, 0.0)
        theta |= {
            f"f_{c}": fd.sel(draft_coefficient=c, drop=True) for c in fd["draft_coefficient"].values
        }
    fs = _factors(fit, "system", name, label, seed, 0.0)
    theta["f_capacity"] = 1.0  # where the model has no effect of the server on it
    theta |= {f"f_{c}": fs.sel(speed=c, drop=True) for c in fs["speed"].values}
    return Resolved(
        theta,
        size,
        v if isinstance(v, str) else None,
        d if isinstance(d, str) else None,
        pair,
        name,
        label,
    )


def acceptance(fit: "Fit", system: System, pair: str | None, k: int) -> list[Any]:
    """Acceptance by position, ``k`` of them: given, or measured (chain, draw).

    Raises
    ------
    EvidenceError
        If it was neither given nor measured.
    """
    given = system.acceptance
    group = fit.tree["acceptance"].to_dataset()
    imposed = pair is not None and "@" in pair  # chosen by its acceptance, measured by its counts
    if given is not None and not (imposed and isinstance(given, int | float)):
        if isinstance(given, int | float):
            return [float(given)] * k
        if len(given) < k:
            raise InputError(f"k = {k} needs {k} acceptance rates, {len(given)} given.")
        return [float(a) for a in given[:k]]
    if pair is None or bool(np.isnan(group["pooled"].sel(pair=pair)).any()):
        raise EvidenceError(
            f"No acceptance was measured for {system.verifier} + {system.drafter}; "
            "give one: System(..., acceptance=0.7)."
        )
    positions = group.sizes["position"]
    rates: list[xr.DataArray] = [
        group["by_position"].sel(pair=pair, drop=True).isel(position=j, drop=True)
        if j < positions
        else group["pooled"].sel(pair=pair, drop=True)
        for j in range(k)
    ]
    return rates
