"""Every prior of the latency model: values, units and reasons stand in ``priors.toml``."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sd.errors import one_of, require
from bayes_sd.physics.law import Law
from bayes_sd.physics.structures import Z90

VERIFIER_COSTS = ("prefill_alone", "prefill_others", "verify_alone", "verify_others")
DRAFTER_COSTS = ("draft",)  # all times of a drafter alike
SERVER_EFFECTS = ("slowness", "crowding")
TOLD = "told_"  # begins the names of shares that the runs tell of effects
EFFECT_DIMS = {
    "verifier": ("verifier_cost", "verifier"),
    "drafter": ("drafter_cost", "drafter"),
    "server": ("server_effect", "server"),
}
# Log-sd of how much a model is slower than the law says on another number of devices: 0.06 to 0.11
# of those that vLLM 2024 served on one, two and four A100, MI250 and H100.
ELSEWHERE_SD = 0.08
# Log-sd of each coefficient of a machine against that of another host with another release, both
# measured: releases move levels by 1.2 times in the median, starts of a server by 1 to 14%.
SAME_MACHINE_SD = 0.15
UNPOOLED_SD = 1.5  # log-sd of effects that share nothing: factors of 0.08 to 12


@dataclass(frozen=True)
class Prior:
    """One prior: `kind` is "lognormal" (`a` median, `b` log-sd) or "normal" (`a` mean, `b` sd)."""

    name: str
    kind: str
    a: float
    b: float
    unit: str
    meaning: str
    reason: str
    dims: tuple[str, ...] = ()
    unknown: float = 0.0

    def __post_init__(self) -> None:
        one_of(f"Prior {self.name}: kind", self.kind, ("lognormal", "normal"))
        for field in ("a", "b"):
            value, above_0 = getattr(self, field), field == "b" or self.kind == "lognormal"
            number = isinstance(value, int | float) and not isinstance(value, bool)
            holds = number and np.isfinite(value) and (value > 0 or not above_0)
            says = "a finite number" + " above 0" * above_0
            require(f"Prior {self.name}: {field}", value, holds, says)

    def interval(self) -> tuple[float, float]:
        """Central 90% interval in natural units."""
        if self.kind == "lognormal":
            return self.a * np.exp(-Z90 * self.b), self.a * np.exp(Z90 * self.b)
        return self.a - Z90 * self.b, self.a + Z90 * self.b


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
EFFECT_MEANINGS: dict[str, str] = _FILE["meanings"]
SETTLED_BY: dict[str, str] = _FILE["settled_by"]
TOGETHER: dict[str, dict[str, Any]] = _FILE["together"]
POPULATION, EFFECTS, NOISE = (
    tuple(Prior(name, **p | {"dims": tuple(p.get("dims", ()))}) for name, p in _FILE[group].items())
    for group in ("population", "effects", "noise")
)
ALL = POPULATION + EFFECTS + NOISE


def population(law: Law) -> tuple[Prior, ...]:
    """Priors of the coefficients that a law has."""
    return tuple(p for p in POPULATION if p.name in law.terms)


def correlated(terms: tuple[str, ...]) -> np.ndarray:
    """Root of the correlation of the logs of coefficients: a slow host or chip is so in all."""
    matrix = np.eye(len(terms))
    for group in TOGETHER.values():
        inside = np.array([t.startswith(tuple(group["names"])) for t in terms])
        pairs = np.outer(inside, inside) & ~np.eye(len(terms), dtype=bool)
        matrix[pairs] = group["correlation"]
    return np.linalg.cholesky(matrix)


def in_plain_words(name: str, labels: tuple[str, ...] = ()) -> str:
    """What a sampled parameter is: ``("log_law", ("queue_cycles",))`` as its prior's meaning."""
    base = name.removeprefix("log_").removeprefix("factor_")
    by_name = EFFECT_MEANINGS | {p.name: p.meaning for p in ALL}
    first, *rest = labels or ("",)
    if base in ("law", "noise"):
        return by_name[first]
    if base in by_name:
        return f"{by_name[base]}: {by_name[first]}" if labels else by_name[base]
    return " of ".join([by_name.get(first, base), *rest])


def settled_by(name: str, labels: tuple[str, ...] = ()) -> str:
    """Which runs tell a parameter, of the first of `SETTLED_BY` that its name contains."""
    full = " ".join((name, *labels[:1]))
    return next(runs for part, runs in SETTLED_BY.items() if part in full)
