"""Sampling with nutpie, where chains start, the convergence gate, and refits."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import InputError, require, whole
from bayes_sd.model.arrow import systems_of
from bayes_sd.model.compiled import compile_nutpie
from bayes_sd.model.design import Design
from bayes_sd.model.priors import TOLD, in_plain_words, settled_by

if TYPE_CHECKING:
    import pymc as pm

    from bayes_sd.model.turned import Axes

RHAT_MAX = 1.01
ESS_MIN = 400.0
GATES = {"rhat": "R-hat", "ess_bulk": "effective sample size", "ess_tail": "that of the tails"}
MAX_MINUTES = 10.0
SAMPLES = 4  # at most, one after the other
STEP_TARGETS = (0.95, 0.98, 0.99)  # after divergences
# Up to so many parameters nutpie turns the axes further as it goes: few runs tell little of their
# widths at a mode. Of many that takes longer than it saves, and many runs tell them.
MOST_TURNED = 100

MASKED_SD = 1e6  # added to the log-sd of a run left out: its likelihood is flat
OBSERVED = ("log_e2e", "log_ttft", "log_var_e2e", "log_var_ttft")


@dataclass(frozen=True)
class Sampling:
    """Draws kept and discarded of each chain, chains, step size target and cores; as of nutpie."""

    draws: int = 1200
    tune: int = 700
    chains: int = 4
    target_accept: float = 0.9
    cores: int | None = None

    def __post_init__(self) -> None:
        for name in ("draws", "tune", "chains"):
            whole(name, getattr(self, name), 1)
        require("target_accept", self.target_accept, 0 < self.target_accept < 1, "between 0 and 1")


# A mode does not tell the scales of effects, and axes found at wrong ones are not round.
PILOT = Sampling(draws=200, tune=200, chains=2)


def draw(compiled: Any, how: Sampling, seed: int, progress: bool = False) -> xr.DataTree:
    """Sample a compiled model; equal seeds give equal draws on one machine and set of versions."""
    import nutpie

    adaptation = "low_rank" if compiled.n_dim <= MOST_TURNED else "diag"
    asked = {"seed": seed, "progress_bar": progress, "adaptation": adaptation, **asdict(how)}
    return nutpie.sample(compiled, **asked)


def axes_of(compiled: Any, systems: Mapping[str, np.ndarray]) -> "Axes":
    """Axes on which the posterior is about round, where the scales of effects are likely."""
    from bayes_sd.model.turned import Axes

    axes = Axes.of(compiled, systems)
    if not axes.told:
        return axes
    few = draw(axes.turned(compiled), PILOT, seed=1)["posterior"].to_dataset()
    drawn = {name: few[name.replace(TOLD, "scatter_")].values for name in axes.told}
    scales = {name: np.log(values).mean(axis=(0, 1)) for name, values in drawn.items()}
    if not all(np.isfinite(x).all() for x in scales.values()):
        raise KeyboardInterrupt  # which nutpie answers with the draws until then
    return Axes.of(compiled, systems, scales)


def sample(
    model: "pm.Model",
    how: Sampling,
    seed: int,
    progress: bool | None = None,  # by default on a terminal
    initial: Mapping[str, np.ndarray] | None = None,
    max_minutes: float = MAX_MINUTES,
    systems: Mapping[str, np.ndarray] | None = None,
) -> tuple[xr.DataTree, "Convergence", dict[str, Any]]:
    """Draw until the gate is passed; chains start at `initial`, `systems` as of `systems_of`.

    Where a sample does not pass, the compiled model is drawn from again, twice as long if the draws
    were too few and with a smaller step after divergences, as long as that is expected to end
    within `max_minutes` of the first start.

    Returns
    -------
    tuple
        A tree of ``posterior`` and ``sample_stats``; its diagnostics; ``seconds_compile``,
        ``seconds_sample`` and ``samples``, what was drawn in which time and why that did not do.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    begun = time.perf_counter()
    compiled = compile_nutpie(model, initial or {})
    compiled_at = time.perf_counter()
    turned = axes_of(compiled, systems or {}).turned(compiled)
    samples: list[dict[str, Any]] = []
    now = how
    while True:
        started = time.perf_counter()
        tree = draw(turned, now, seed, shown)
        convergence = diagnose(tree)
        seconds, complaints = time.perf_counter() - started, convergence.complaints
        settings = {name: getattr(now, name) for name in ("draws", "tune", "target_accept")}
        samples.append({**settings, "seconds": seconds, "complaints": complaints})
        # What cannot be diagnosed (one chain, an interrupted one) is not mended by drawing again.
        blank = convergence.table[list(GATES)].isna().any(axis=None)
        if not complaints or blank or len(samples) == SAMPLES:
            break
        longer = 2 if convergence.refused.any(axis=None) else 1
        accept = now.target_accept
        if convergence.divergences:
            accept = next((t for t in STEP_TARGETS if t > accept), accept)
        # A smaller step takes more of them: twice as many from 0.9 to 0.99.
        expected_s = seconds * longer * ((1 - now.target_accept) / (1 - accept)) ** 0.5
        if expected_s > 60 * max_minutes - (time.perf_counter() - begun):
            break
        draws, tune = longer * now.draws, longer * now.tune
        now = replace(now, draws=draws, tune=tune, target_accept=accept)
        if shown:
            print(
                f"{' '.join(complaints)} Drawing {now.chains} x {now.draws} with "
                f"target_accept {accept:g}: about {expected_s:.0f} s.",
                file=sys.stderr,
            )
    used: dict[str, Any] = {"samples": samples, "seconds_compile": compiled_at - begun}
    used["seconds_sample"] = time.perf_counter() - compiled_at
    # Of more draws as many are kept as were asked for, which carry nearly as much.
    every = slice(None, None, now.draws // how.draws)
    return tree.isel(draw=every, missing_dims="ignore"), convergence, used


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of a fit; `table`: of every parameter, its meaning and which runs tell it."""

    table: pd.DataFrame
    divergences: int
    chains: int
    draws: int
    nonfinite: int

    @property
    def summary(self) -> dict[str, Any]:
        """Worst values over all parameters, JSON-able."""
        return {
            "rhat_max": round(float(self.table["rhat"].max()), 4),
            "ess_bulk_min": round(float(self.table["ess_bulk"].min()), 1),
            "ess_tail_min": round(float(self.table["ess_tail"].min()), 1),
            "divergences": self.divergences,
            "chains": self.chains,
            "draws": self.draws,
        }

    @property
    def complaints(self) -> list[str]:
        """What the gate refuses, one sentence each; empty when the fit passes."""
        if self.nonfinite:
            return [f"{self.nonfinite} draws are not finite (was sampling interrupted?)."]
        if self.chains < 2 or self.draws < 4:
            return [f"{self.chains} chain(s) of {self.draws} draws are too few to diagnose."]
        blank = self.table.index[self.table[list(GATES)].isna().any(axis=1)]
        if len(blank):
            return [f"{len(blank)} of {len(self.table)} parameters never moved (as {blank[0]})."]
        said = []
        if self.divergences:
            said.append(f"{self.divergences} divergent transitions, none allowed.")
        for name, refused in self.refused.items():
            if refused.any():
                bad, high = self.table[name][refused], name == "rhat"
                where = str(bad.idxmax() if high else bad.idxmin())
                bound = f"above {RHAT_MAX:g}" if high else f"below {ESS_MIN:g}"
                said.append(
                    f"{GATES[str(name)]} is {bound} for {len(bad)} of {len(self.table)} quantities "
                    f"(worst, {bad[where]:.3g}: {self.table['meaning'][where]})."
                )
        return said

    @property
    def refused(self) -> pd.DataFrame:
        """Which quantities each gate refuses: chains that have not met, too few draws."""
        few = self.table[["ess_bulk", "ess_tail"]] < ESS_MIN
        return pd.concat([self.table["rhat"] > RHAT_MAX, few], axis=1)

    @property
    def remedies(self) -> list[str]:
        """Which runs would tell the quantities that the gates refuse, worst first."""
        bad = self.table[self.refused.any(axis=1)].sort_values("ess_bulk")
        return list(dict.fromkeys(bad["settled_by"]))[:2]


def diagnose(tree: xr.DataTree) -> Convergence:
    """R-hat and effective sample sizes of every sampled parameter."""
    import arviz as az

    posterior = tree["posterior"].to_dataset()
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    # Counted first: an interrupted run is padded with NaN and shows no divergence.
    nonfinite = sum(int((~np.isfinite(v.values)).sum()) for v in posterior.data_vars.values())
    if nonfinite or chains < 2 or draws < 4:
        blank = pd.DataFrame(np.nan, ["all"], [*GATES]).assign(meaning="", settled_by="more runs")
        return Convergence(blank, 0, chains, draws, nonfinite)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a parameter that never moved
        columns = {
            "rhat": az.rhat(posterior, method="rank"),
            "ess_bulk": az.ess(posterior, method="bulk"),
            "ess_tail": az.ess(posterior, method="tail", prob=0.9),
        }
    rows = {}
    for name, array in columns["rhat"].data_vars.items():
        for index in np.ndindex(array.shape):
            pairs = zip(array.dims, index, strict=True)
            labels = tuple(str(array[dim].values[i]) for dim, i in pairs)
            values = {n: float(found[name].values[index]) for n, found in columns.items()}
            words = {"meaning": in_plain_words(str(name), labels)}
            words["settled_by"] = settled_by(str(name), labels)
            rows[f"{name}[{', '.join(labels)}]" if labels else str(name)] = values | words
    diverging = int(tree["sample_stats"]["diverging"].sum())
    return Convergence(pd.DataFrame.from_dict(rows, "index"), diverging, chains, draws, nonfinite)


@dataclass(frozen=True, eq=False)
class Refit:
    """One refit: what the law says of every run, those left out included, and all parameters."""

    draws: xr.Dataset  # run_mean_* (s), run_scale_* (log) and run_variance_* (chain, draw, run)
    sampled: xr.DataTree  # posterior and sample_stats
    left_out: np.ndarray

    @cached_property
    def parameters(self) -> xr.Dataset:
        """Draws of the model's parameters."""
        return self.sampled["posterior"].to_dataset()

    @cached_property
    def convergence(self) -> Convergence:
        """R-hat and effective sample sizes, computed when asked for, as it takes a while."""
        return diagnose(self.sampled)

    def of_runs(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Draws of a quantity of runs: (draws, rows)."""
        values = self.draws[name].values
        return np.asarray(values.reshape(-1, values.shape[-1])[:, rows])


@dataclass(frozen=True, eq=False)
class Refitter:
    """A model compiled once and sampled often: what changes between refits is data alone."""

    design: Design
    compiled: Any

    @cached_property
    def axes(self) -> "Axes":
        """Round axes of the posterior of all runs."""
        return axes_of(self.compiled, systems_of(self.design.data))

    @classmethod
    def of(cls, graph: "pm.Model", design: Design, initial: Mapping[str, np.ndarray]) -> "Refitter":
        """Compile a graph that was built with ``keep_runs``."""
        fixed = [v.name for v in graph.data_vars if v.name not in ("mask_sd", *OBSERVED)]
        return cls(design, compile_nutpie(graph, initial, fixed))

    @property
    def table(self) -> pd.DataFrame:
        """The runs, steady and censored, in the order of ``left_out``."""
        return self.design.table

    def refit(
        self,
        left_out: np.ndarray | None = None,
        *,
        seed: int = 1,
        observed: Mapping[str, np.ndarray] | None = None,
        draws: int = 500,
        tune: int = 500,
        **sampling: Any,
    ) -> Refit:
        """Sample again without the runs `left_out`, or with other values of any of `OBSERVED`."""
        how, n = Sampling(draws=draws, tune=tune, **sampling), len(self.table)
        left_out = np.zeros(n, bool) if left_out is None else np.asarray(left_out, bool)
        new = {"mask_sd": MASKED_SD * left_out, **(observed or {})}
        # Sizes are not checked by the compiled code: a wrong one would be read past its end.
        for name, values in new.items():
            if name not in ("mask_sd", *OBSERVED):
                raise InputError(f"{name!r} cannot be replaced; only {', '.join(OBSERVED)}.")
            if np.shape(values) != (n,):
                raise InputError(f"{name} has shape {np.shape(values)}; the fit has {n} runs.")
        data = {name: np.asarray(values, float) for name, values in new.items()}
        tree = draw(self.axes.turned(self.compiled.with_data(**data)), how, seed)
        posterior = tree["posterior"].to_dataset()
        of_runs = [str(name) for name in posterior.data_vars if str(name).startswith("run_")]
        tree["posterior"] = xr.DataTree(posterior.drop_vars(of_runs))
        return Refit(posterior[of_runs], tree, left_out)
