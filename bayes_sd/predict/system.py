"""Which system a question is about: measured ones by name, new ones by size."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.model.design import pair_label, server_label
from bayes_sd.model.priors import environment_factors
from bayes_sd.physics.structures import Placed
from bayes_sd.predict.size import Size
from bayes_sd.predict.structures import Structure

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

NONE = "none"


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
    environment : str, optional
        Where it runs, of the measured environments; may be left out when the verifier has run in
        one only.
    extrapolate : bool
        Allow answers more than a factor of 4 outside what was measured: sizes, lengths, draft
        tokens, requests in flight. They are labelled "extrapolated".
    structure : Structure, optional
        A deployment to assume, of :mod:`bayes_sd.structures`; by default drafter and verifier run
        on one server, as measured. Answers are labelled "assumed structure".

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> bsd.System("llama-8b", bsd.Size(0.5e9), acceptance=0.7).drafter.params
    500000000.0
    """

    verifier: str | Size
    drafter: str | Size | None = None
    acceptance: float | Sequence[float] | None = None
    environment: str | None = None
    extrapolate: bool = False
    structure: Structure | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("verifier", str | Size), ("drafter", str | Size | None)):
            if not isinstance(getattr(self, name), kinds):
                raise InputError(
                    f"{name} = {getattr(self, name)!r}: must be a measured one's name, or "
                    "bsd.Size(params)."
                )
        if not isinstance(self.structure, Structure | None):
            raise InputError(
                f"structure = {self.structure!r}: must be one of bsd.structures, as Edge(...)."
            )
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
        str(run["verifier"]),
        str(run["drafter"]),
        None if np.isnan(imposed) else float(imposed),
        str(run["environment"]),
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
    names = [str(v) for v in fit.unlabelled[level].values]
    if name not in names or name == "(no drafter)":
        others = ", ".join(n for n in names if n != "(no drafter)") or "none"
        raise InputError(
            f"The fit has no {level} {name!r}; it knows {others}. "
            f"For one nobody measured give its size: bsd.Size(params)."
        )


def _factors(fit: "Fit", level: str, name: str | None, new: str, seed: int, moe: float) -> Any:
    """Factors of a level, dims (chain, draw, coefficient): fitted, or drawn from its population."""
    posterior = fit.unlabelled
    factor, tau = posterior[f"factor_{level}"], posterior[f"tau_{level}"]
    if name is not None:
        return factor.sel({level: name}, drop=True)
    z = _generator(seed, new).standard_normal(tau.shape)
    log = tau * z
    if level == "verifier" and moe:
        log = log + moe * family_effect(fit)
    return np.exp(log)


def family_effect(fit: "Fit") -> Any:
    """Draws of the log factor of mixture-of-experts models; its prior where none was fitted."""
    posterior = fit.unlabelled
    if "moe" in posterior:
        return posterior["moe"]
    prior = next(p for p in fit.spec["priors"] if p["name"] == "moe")
    like = posterior["tau_verifier"] if "tau_verifier" in posterior else posterior["law"]
    shape = (like.sizes["chain"], like.sizes["draw"], posterior["coefficient"].size)
    z = _generator(0, "moe").standard_normal(shape)
    return xr.DataArray(
        prior["a"] + prior["b"] * z,
        dims=("chain", "draw", "coefficient"),
        coords={"coefficient": posterior["coefficient"].values},
    )


def environment_of(fit: "Fit", system: System) -> str:
    """Where a system runs.

    Raises
    ------
    InputError
        If it could be several environments, or one that the fit does not know.
    """
    runs = fit.runs
    known = sorted(str(e) for e in runs["environment"].unique())
    if system.environment is not None:
        if system.environment not in known:
            raise InputError(
                f"The fit has no environment {system.environment!r}; it knows {'; '.join(known)}."
            )
        return system.environment
    own = known
    if isinstance(system.verifier, str):
        ran = runs["environment"][runs["verifier"] == system.verifier]
        own = sorted(str(e) for e in ran.unique()) or known
    if len(own) > 1:
        verifier = system.verifier if isinstance(system.verifier, str) else "It"
        raise InputError(
            f"{verifier} could run in {len(own)} environments; "
            f"choose one: System(..., environment=...) of {'; '.join(own)}."
        )
    return str(own[0])


@dataclass(frozen=True)
class Resolved:
    """A system ready to compute with: coefficients and sizes, and its names (None where new).

    `place` puts stage costs where an assumed structure has them; None where it changes nothing.
    """

    theta: Mapping[str, Any]
    sizes: Mapping[str, Any]
    verifier: str | None
    drafter: str | None
    pair: str | None
    system: str | None
    label: str
    place: Callable[..., Placed] | None = None


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


def resolve(
    fit: "Fit",
    system: System,
    k: int,
    seed: int,
    drafter_loaded: bool | None = None,
    server: str | None = None,
) -> Resolved:
    """Coefficients and sizes of one arm of a system.

    `k` = 0 is the plain server, or with `drafter_loaded` one that could draft and does not. By
    default the arm is the server that was measured; with `server` it is a new one of that name,
    whose own effect is drawn, the same for every `k`.

    Raises
    ------
    InputError
        If a name is not known to the fit, or k > 0 without a drafter.
    """
    posterior = fit.unlabelled
    v, d = system.verifier, system.drafter
    drafting = k > 0 if drafter_loaded is None else drafter_loaded
    if isinstance(v, str):
        _known(fit, "verifier", v)
        table = fit.tree["verifiers"].to_dataset().sel(verifier=v)
        size = {str(n): float(table[n]) for n in table.data_vars}
    else:
        size = v.arrays()
    if drafting and d is None:
        raise InputError(f"k = {k} needs a drafter: System({v!r}, drafter=...).")
    verifier_label = v if isinstance(v, str) else v.label
    drafter_label = "none" if not drafting or d is None else d if isinstance(d, str) else d.label
    pair = find_pair(fit, system) if drafting else None
    environment, runs = environment_of(fit, system), fit.runs
    several = runs["environment"].nunique() > 1
    name: str | None = None
    if pair is not None or not drafting:
        name = server_label(verifier_label, pair, k, environment if several else "")
        name = name if name in set(runs["system"]) else None
    new_pair = f"{verifier_label} + {drafter_label}" if drafting else None
    label = server_label(verifier_label, new_pair, k, environment if several else "")
    if server is not None:
        name, label = None, f"{server} of {verifier_label}"

    theta: dict[str, Any] = {
        str(n): posterior["law"].sel(law_term=n, drop=True) for n in posterior["law_term"].values
    }
    if several:
        here = posterior["factor_environment"].sel(environment=environment, drop=True)
        parts = [here.sel(hardware=h, drop=True) for h in here["hardware"].values]
        theta |= {n: theta[n] * f for n, f in environment_factors(theta, parts).items()}
    fv = _factors(
        fit, "verifier", v if isinstance(v, str) else None, verifier_label, seed, size["moe"]
    )
    theta |= {f"f_{c}": fv.sel(coefficient=c, drop=True) for c in fv["coefficient"].values}
    if not drafting:
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
    place = None
    if system.structure is not None and (drafting or system.structure.plain):
        place = system.structure.drawn(posterior, lambda name: _generator(seed, name))
    return Resolved(
        theta,
        size,
        v if isinstance(v, str) else None,
        d if isinstance(d, str) else None,
        pair,
        name,
        label,
        place,
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
