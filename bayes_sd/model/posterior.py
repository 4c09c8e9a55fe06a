"""The posterior as data: draws, the runs they come from, what was fitted and how."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.errors import EvidenceError, plural, whole
from bayes_sd.model import priors as known
from bayes_sd.model.acceptance import acceptance_draws, at_positions, generator, new_one
from bayes_sd.model.design import Design, sites_of
from bayes_sd.model.file import FORMAT, KIND, TABLES, read, write
from bayes_sd.physics.law import Law
from bayes_sd.runs.machine import machine_of

REFERENCE = "runs of other machines"
LEVELS = (*known.EFFECT_DIMS, "environment")
SAMPLED = ("law", "noise", "moe_effect", *(f"scatter_{level}" for level in (*LEVELS, "machine")))
FACTORS = tuple(f"factor_{level}" for level in LEVELS)
STATS = {  # kept of the sampler's, by the names that ArviZ gives them
    **{name: name for name in ("diverging", "energy", "n_steps", "step_size")},
    **{"depth": "tree_depth", "logp": "lp", "mean_tree_accept": "acceptance_rate"},
}


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """What a fit holds and how it is kept; its answers are those of :class:`bayes_sd.Fit`."""

    tree: xr.DataTree

    @cached_property
    def posterior(self) -> xr.Dataset:
        """Draws in natural units, dims (chain, draw, ...)."""
        return self.tree["posterior"].to_dataset()

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, and draws of each."""
        return self.tree["posterior"].sizes["chain"], self.tree["posterior"].sizes["draw"]

    @property
    def draws(self) -> int:
        """Draws of all chains."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The fitted steady runs, with fitted latency (s) and utilization."""
        return self._runs(saturated=False)

    def require_runs(self) -> None:
        """Refuse a fit that holds no runs, as the reference."""
        if "tokens_per_cycle" not in self.runs:
            raise EvidenceError("This fit holds no measured run; ask a fit of runs.")

    @property
    def run_requests(self) -> int:
        """Median requests of a fitted run."""
        return int(self.runs["requests"].median())

    @cached_property
    def censored_runs(self) -> pd.DataFrame:
        """The runs past saturation that bounded the latency from below; columns as `runs`."""
        return self._runs(saturated=True)

    def _runs(self, saturated: bool) -> pd.DataFrame:
        table = self._frame("runs").astype({"saturated": bool})
        return table[table["saturated"] == saturated].reset_index(drop=True)

    def _frame(self, group: str) -> pd.DataFrame:
        table = self.tree[group].to_dataset().to_dataframe()  # names are faster as plain objects
        return table.astype(dict.fromkeys(table.select_dtypes("str").columns, object))

    @cached_property
    def verifiers(self) -> pd.DataFrame:
        """Sizes of the verifiers, see ``bayes_sd.runs.sizes.features``; a row each."""
        return self._frame("verifiers")

    @cached_property
    def drafters(self) -> pd.DataFrame:
        """``drafter_params`` (1e9) and ``drafter_layers`` of the drafters; a row each."""
        return self._frame("drafters")

    @cached_property
    def servers(self) -> pd.DataFrame:
        """Verifier, drafter, imposed acceptance, draft tokens and environment of the servers."""
        return self._frame("servers").reset_index()

    @cached_property
    def server_columns(self) -> dict[str, np.ndarray]:
        """The columns of `servers`: a table is slow to look a single one up in."""
        return {str(name): values.to_numpy() for name, values in self.servers.items()}

    @cached_property
    def environments(self) -> list[str]:
        """Where the runs were made."""
        return sorted(str(e) for e in self.servers["environment"].unique())

    @cached_property
    def sites(self) -> list[str]:
        """What has factors of its own: environments, however many devices each has."""
        if "factor_environment" in self.posterior:
            return [str(name) for name in self.posterior["environment"].values]
        return sorted({self.site_of(name) for name in self.environments})

    def site_of(self, environment: str) -> str:
        """The site of an environment; one that the fit does not know is its own."""
        return self._site_of.get(environment, environment)

    def site_of_machine(self, name: str) -> str:
        """The only site of a machine, whose factors it has by its data sheet; else its own name."""
        alike = [site for site in self.sites if machine_of(site) == name]
        return alike[0] if len(alike) == 1 else name

    @cached_property
    def _site_of(self) -> dict[str, str]:
        return sites_of(self._frame("runs"))

    @cached_property
    def law(self) -> Law:
        """The law that was fitted."""
        return Law(**self.spec["law"])

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Law, priors, pooling and sampler settings."""
        return json.loads(self.tree.attrs["spec"])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """When, from what data, with which versions."""
        return json.loads(self.tree.attrs["provenance"])

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """Convergence summary and seconds spent."""
        return json.loads(self.tree.attrs["sampling"])

    def __repr__(self) -> str:
        s, p = self.sampling, self.provenance
        return (
            f"Fit of {plural(p['runs'], 'run')} ({plural(p['requests'], 'request')}) on "
            f"{p['environment']}: {plural(len(self.verifiers), 'verifier')}, "
            f"{plural(len(self.servers), 'server')}\n"
            f"R-hat <= {s['rhat_max']:.3f}, ESS >= {s['ess_bulk_min']:.0f} bulk and "
            f"{s['ess_tail_min']:.0f} tail, {s['divergences']} divergences, "
            f"{s['chains']} x {s['draws']} draws"
        )

    def _values(self, name: str) -> np.ndarray:
        """Draws of a variable with all draws on the first axis."""
        values = self.posterior[name].values
        return np.asarray(values.reshape(self.draws, *values.shape[2:]))

    def _named(self, name: str) -> dict[str, np.ndarray]:
        names = (str(term) for term in self.posterior[f"{name}_term"].values)
        return dict(zip(names, _columns(self._values(name)), strict=True))

    @cached_property
    def law_terms(self) -> dict[str, np.ndarray]:
        """Draws of the population coefficients; of those that no run tells, their prior's."""
        told = self._named("law")
        others = (name for name in self.law.terms if name not in told)
        return told | {name: self._from_prior(name, 1) for name in others}

    @cached_property
    def noise(self) -> dict[str, np.ndarray]:
        """Draws of the scales of what the law leaves open."""
        return self._named("noise")

    def _from_prior(self, name: str, effects: int) -> np.ndarray:
        """Draws (draws, effects) of what was not fitted."""
        prior = next(p for p in self.spec["priors"] if p["name"] == name)
        z = generator(0, name).standard_normal((self.draws, effects))
        if prior["kind"] == "lognormal":
            return np.asarray(prior["a"] * np.exp(prior["b"] * z))
        return np.asarray(prior["a"] + prior["b"] * z)

    @cached_property
    def moe_effect(self) -> np.ndarray:
        """Draws of the log factors of mixtures of experts; their prior where none was fitted."""
        if "moe_effect" in self.tree["posterior"]:
            return self._values("moe_effect")
        return self._from_prior("moe_effect", len(known.VERIFIER_COSTS))

    def of_machine(self, name: str) -> Self:
        """What the fit of many machines says of one of them; of another what it says of any."""
        machines = self.tree["machines"].to_dataset() if "machines" in self.tree else {}
        if name not in machines.get("machine", ()):
            return self
        tree, own = self.tree.copy(), machines["law"].sel(machine=name, drop=True)
        law, anew = self.posterior["law"], self.posterior["scatter_environment"]
        law = own.reindex_like(law).transpose(*law.dims).astype(float)
        anew = anew.where(anew == 0, known.SAME_MACHINE_SD)
        tree["posterior"] = xr.DataTree(self.posterior.assign(law=law, scatter_environment=anew))
        return type(self)(tree)

    def as_priors(self, priors: tuple[known.Prior, ...]) -> tuple[known.Prior, ...]:
        """These priors, with medians and scales as the fit says of a machine it has not seen."""
        logs = {n: np.log(x.ravel()) for n, x in (self.law_terms | self.noise).items()}
        new = zip(self.law_terms, self.factors("environment", None, "any", 0), strict=True)
        logs |= {name: logs[name] + np.log(factor.ravel()) for name, factor in new}
        logs |= {n: np.log(self._values(n)) for n in (f"scatter_{x}" for x in known.EFFECT_DIMS)}
        # Machines have heavy tails, priors have not: theirs are as wide in the middle.
        ends = {p: np.quantile(logs[p.name], [0.16, 0.5, 0.84]) for p in priors if p.name in logs}
        told = {p: (float(np.exp(x[1])), float(x[2] - x[0]) / 2) for p, x in ends.items()}
        like = {p: replace(p, a=a, b=b, reason=REFERENCE) for p, (a, b) in told.items()}
        return tuple(like.get(p, p) for p in priors)

    def scatter(self, level: str) -> np.ndarray:
        """Draws (draws, effects) of how far levels lie off the size laws (log)."""
        posterior, effects = self.tree["posterior"], self._effects(level)
        if f"scatter_{level}" in posterior:
            return self._values(f"scatter_{level}")
        if level == "environment":  # in widths of the law's priors
            name, widths = "scatter_machine", {p["name"]: p["b"] for p in self.spec["priors"]}
            apart = self._values(name)[:, None] if name in posterior else self._from_prior(name, 1)
            return apart * [widths[term] for term in self.law_terms]
        if self.spec["pooling"] == "none":
            return np.full((self.draws, effects), known.UNPOOLED_SD)
        return self._from_prior(f"scatter_{level}", effects)

    def scatter_of_new(self, level: str) -> np.ndarray:
        """As `scatter`, of one nobody measured: one alone that was measured is where the law is,
        and may itself lie as far off its population."""
        alone = len(self.sites if level == "environment" else getattr(self, f"{level}s")) == 1
        return self.scatter(level) * (2**0.5 if alone else 1.0)

    @property
    def family(self) -> float:
        """Which models the size laws describe: 1 where only mixtures of experts were measured."""
        return float(self.verifiers["moe"].all())

    def factors(self, level: str, index: int | None, label: str, seed: int, moe: float = 0) -> list:
        """Factors of a level: fitted, or with no `index` those of a new one called `label`."""
        if index is not None and (name := f"factor_{level}") in self.tree["posterior"]:
            return _columns(self._values(name)[:, :, index])
        log = np.zeros((self.draws, self._effects(level)))
        if index is None:
            z = new_one(seed, label, *log.shape)
            if level == "environment":
                z = z @ known.correlated(tuple(self.law_terms)).T
            log = self.scatter_of_new(level) * z
        if level == "verifier" and moe != self.family:
            log = log + (moe - self.family) * self.moe_effect
        return _columns(np.exp(log))

    def elsewhere_factor(self, verifier: str, environment: str, seed: int) -> Any:
        """How much slower a verifier is where it never ran, (draws, 1); else 1."""
        ran = self.server_columns
        there = ran["environment"][ran["verifier"] == verifier]
        if not len(there) or (there == environment).any():
            return 1.0
        label = f"{verifier} in {environment}"
        return np.exp(known.ELSEWHERE_SD * new_one(seed, label, self.draws, 1))

    def _effects(self, level: str) -> int:
        """How many factors a member of a level has."""
        costs, servers = (known.VERIFIER_COSTS, known.DRAFTER_COSTS), self.spec["server_effects"]
        return len((*costs, servers, self.law_terms)[LEVELS.index(level)])

    @cached_property
    def _accepted(self) -> xr.Dataset:
        return self.tree["acceptance"].to_dataset()

    def acceptance(self, pair: Mapping[str, Any], k: int, seed: int = 0) -> tuple[list, int] | None:
        """``bayes_sd.model.acceptance.at_positions`` of the pairs of this fit."""
        return at_positions(self._accepted, pair, k, seed)

    def with_columns(self, **columns: np.ndarray) -> Self:
        """The same fit with columns added to its runs."""
        runs = self.tree["runs"].to_dataset().assign({n: ("run", v) for n, v in columns.items()})
        return type(self)(self.tree.assign({"runs": xr.DataTree(runs)}))

    def thin(self, draws: int) -> Self:
        """The same fit with every n-th draw, at least `draws` of them if there are so many."""
        whole("draws", draws, 1)
        every = slice(None, None, max(1, self.draws // draws))
        thin = type(self)(self.tree.isel(draw=every, missing_dims="ignore"))
        for name in (*TABLES, "environments"):  # not made again
            thin.__dict__[name] = getattr(self, name)
        return thin

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fit to one netCDF file, whole or not at all.

        Parameters
        ----------
        path : path
            Overwritten if it exists; its folder must.
        """
        return write(self.tree, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a saved fit; needs no PyMC.

        Raises
        ------
        InputError
            If the file is missing, damaged, not a fit, or was saved in another format.
        """
        return cls(read(Path(path)))


def _columns(values: np.ndarray) -> list[np.ndarray]:
    """The columns of a matrix (draws, ...) as (draws, 1), for loads on the second axis."""
    return list(values.T[..., None])


def _dataset(table: pd.DataFrame, dim: str) -> xr.Dataset:
    """A table as netCDF can hold it: text as objects."""
    variables = {}
    for name, values in table.rename_axis(dim).reset_index().items():
        array = values.to_numpy() if values.dtype.kind in "biuf" else values.to_numpy(object)
        variables[str(name)] = (dim, array)
    return xr.Dataset(variables)


def assemble(sampled: xr.DataTree, design: Design, spec: dict, attrs: dict, seed: int) -> Posterior:
    """Put draws, data, specification and provenance into one tree."""
    posterior = sampled["posterior"].to_dataset()
    posterior = posterior[[name for name in (*SAMPLED, *FACTORS) if name in posterior]]
    posterior = posterior.drop_vars(("chain", "draw"), errors="ignore").drop_attrs(deep=False)
    shape = posterior.sizes["chain"], posterior.sizes["draw"]
    parts = {
        "posterior": posterior,
        "acceptance": acceptance_draws(design.table, shape, seed),
        "runs": _dataset(design.table, "run"),
        "verifiers": _dataset(design.verifiers, "verifier"),
        "drafters": _dataset(design.drafters, "drafter"),
        "servers": _dataset(design.servers.set_index("server"), "server"),
    }
    texts = {name: json.dumps(value) for name, value in {"spec": spec, **attrs}.items()}
    if "sample_stats" in sampled:
        stats = sampled["sample_stats"].to_dataset()
        stats = stats[[name for name in STATS if name in stats]].drop_attrs(deep=False)
        stats = stats.drop_vars(("chain", "draw"), errors="ignore")
        parts["sample_stats"] = stats.rename({n: STATS[str(n)] for n in stats})
    tree = xr.DataTree.from_dict(parts)
    tree.attrs = {"kind": KIND, "format": FORMAT, **texts}
    return Posterior(tree)
