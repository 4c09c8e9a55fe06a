"""From priors and a design to a PyMC model; the one file that imports PyMC when it is imported."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt

from bayes_sd.model import priors as known
from bayes_sd.model.arrow import systems_of
from bayes_sd.model.design import SPREADS, Design, coefficients, run_machine
from bayes_sd.model.geometry import Centred, CostShares
from bayes_sd.model.kernel import Group, per_run
from bayes_sd.model.priors import EFFECT_DIMS, TOLD, UNPOOLED_SD, Prior, population
from bayes_sd.physics.costs import whole
from bayes_sd.physics.law import FULL, SOFTNESS, Law, outcome
from bayes_sd.physics.noise import NU, TINY, run_terms, spread_error, t_cdf


def build(
    design: Design,
    priors: tuple[Prior, ...] = known.ALL,
    server_effects: tuple[str, ...] = known.SERVER_EFFECTS,
    law: Law = FULL,
    pooling: str = "partial",
    keep_runs: bool = False,
) -> pm.Model:
    """PyMC model of run means and spreads; `keep_runs` keeps what the law says of every run."""
    by_name = {p.name: p for p in priors}
    every = tuple(by_name[p.name] for p in population(law))
    told = design.told(every)
    with pm.Model(coords=_coords(design, server_effects, told)) as model:
        beside = design.data.keys() - design.inputs.keys()  # what likelihoods take beside the law
        named = [n for n in design.data if n in beside and not n.endswith("_i")]
        data = {name: pm.Data(name, design.data[name]) for name in named}
        names, axes = [p.name for p in told], CostShares(design, law)
        if len(design.sites) == 1:
            groups = {"law": Group(names, pt.exp(_law(told, axes)))}
        else:
            of_each = [design.told(every, rows) for rows in design.of_sites]
            on_each = _machines(_law(told), of_each, by_name["scatter_machine"], axes)
            groups = {"law": Group(names, pt.exp(on_each), design.data["site_i"])}
        noise_terms = [p.name for p in known.NOISE]
        noise = _positive("noise", tuple(by_name[name] for name in noise_terms))
        typical = _typical_costs(design, groups, law)
        groups["noise"] = Group(noise_terms, noise)
        factors = _factors(design, typical, by_name, pooling)
        for level, values in factors.items():
            if pooling != "complete":  # what only the family moves is no factor of its own
                pm.Deterministic(f"factor_{level}", values, dims=EFFECT_DIMS[level])
            names = model.coords[EFFECT_DIMS[level][0]]
            groups[level] = Group(names, values, design.data[f"{level}_i"])
        said = per_run(partial(_of_run, law, design), groups, design.inputs)
        _likelihoods(said, noise[noise_terms.index("spread_sd")], data, design, keep_runs)
    return model


def _coords(design: Design, effects: tuple[str, ...], told: tuple[Prior, ...]) -> dict[str, Any]:
    coords = {
        "run": np.arange(len(design.table)),
        "verifier_cost": list(known.VERIFIER_COSTS),
        "server_effect": list(effects),
        "law_term": [p.name for p in told],
        "noise_term": [p.name for p in known.NOISE],
        "verifier": design.verifiers.index.tolist(),
        "server": design.servers["server"].tolist(),
        "environment": design.sites,
    }
    if len(design.drafters):
        coords["drafter_cost"] = list(known.DRAFTER_COSTS)
        coords["drafter"] = design.drafters.index.tolist()
    return coords


def _positive(name: str, priors: tuple[Prior, ...]) -> Any:
    """Positive scalars as one log-normal vector: a short graph compiles sooner."""
    dims, sd = f"{name}_term", np.array([p.b for p in priors])
    logs = pm.Normal(f"log_{name}", np.log([p.a for p in priors]), sd, dims=dims)
    return pm.Deterministic(name, pt.exp(logs), dims=dims)


def _law(priors: tuple[Prior, ...], axes: Any = None) -> Any:
    """Logs of the law's coefficients, sampled along some axes."""
    root = known.correlated(tuple(p.name for p in priors))
    root = np.array([p.b for p in priors])[:, None] * root
    how: dict[str, Any] = {"logp": _normal, "dims": "law_term", "default_transform": axes}
    how["dist"] = lambda middle, root, size: pm.MvNormal.dist(middle, chol=root, size=size)
    how["signature"] = "(n),(n,n)->(n)"
    logs = pm.CustomDist("log_law", np.log([p.a for p in priors]), root, **how)
    pm.Deterministic("law", pt.exp(logs), dims="law_term")
    return logs


def _machines(law: Any, of_each: Any, scatter: Prior, axes: CostShares) -> Any:
    """Logs of the coefficients of each machine, (term, machine): normal about those of the law.

    As far apart as `scatter` says, in widths of the law's priors, and correlated as those are.
    """
    root, dims = known.correlated(axes.terms), ("law_term", "environment")
    shape, back = axes.loose.shape, np.linalg.inv(root)

    def random(mean: Any, sd: Any, size: Any) -> Any:
        return mean + sd * (root[:, :, None] * pm.Normal.dist(size=(1, *shape))).sum(axis=1)

    def density(value: Any, mean: Any, sd: Any) -> Any:
        z = (back[:, :, None] * ((value - mean) / sd)[None, :, :]).sum(axis=1)
        each = z**2 / 2 + pt.log(sd) + np.log(2 * np.pi) / 2 + np.log(np.diag(root))[:, None]
        return -each.sum()

    how: dict[str, Any] = {"dist": random, "logp": density, "dims": dims}
    how |= {"default_transform": axes, "signature": "(n,s),(n,s)->(n,s)"}
    apart, width = _random(scatter), np.array([[p.b for p in one] for one in of_each]).T
    logs = pm.CustomDist("log_environment", law[:, None] * np.ones(shape), apart * width, **how)
    pm.Deterministic("factor_environment", pt.exp(logs - law[:, None]), dims=dims)
    return logs


def _normal(value: Any, middle: Any, root: Any) -> Any:
    """Log density of a normal with covariance ``root root'``, without BLAS: it compiles sooner."""
    z = (pt.linalg.inv(root) * (value - middle)[None, :]).sum(axis=1)
    return (-(z**2) / 2 - np.log(2 * np.pi) / 2 - pt.log(pt.diagonal(root))).sum()


def _random(prior: Prior) -> Any:
    """One prior as a random variable of the model in context."""
    dims = prior.dims or None
    if prior.kind == "lognormal":
        return pm.LogNormal(prior.name, np.log(prior.a), prior.b, dims=dims)
    return pm.Normal(prior.name, prior.a, prior.b, dims=dims)


def _of_run(law: Law, design: Design, parameters: Any, values: Any) -> dict[str, Any]:
    """What likelihoods take of one run."""
    law = design.fitted_law(law)
    levels = [level for level in EFFECT_DIMS if level in parameters]
    effects: Any = {level: list(parameters[level].values()) for level in levels}
    terms, noise = coefficients(design.all_terms(parameters["law"]), **effects), parameters["noise"]
    values = {**values, **design.absent}
    stages = law.stages(terms, values, values)
    said = outcome(stages, values, values, SOFTNESS, law)
    return run_terms(SPREADS, noise, said, values)


def _typical_costs(design: Design, groups: dict[str, Group], law: Law) -> dict[str, Any]:
    """Logs of the law's costs of each model at its runs' mean load and machine: (effect, level)."""
    sizes = ("active", "shared", "expert", "layers", "kv_gb", "drafter", "moe")
    absent = dict.fromkeys(sizes, 0.0) | {"drafter_layers": 1.0, "queries": 1.0}
    lengths = ("k", "cycles", "prompt_tokens", "output_tokens")
    runs = pd.DataFrame(run_machine(design.table) | {n: design.data[n] for n in lengths})

    def logs(level: str, names: tuple[str, ...], sizes: pd.DataFrame, rows: np.ndarray) -> Any:
        def costs(parameters: Any, values: Any) -> dict[str, Any]:
            terms = coefficients(design.all_terms(parameters["law"]))
            stages = whole(law.stages(terms, absent | dict(values), values))
            return {"costs": [getattr(stages, name) for name in names]}

        index = design.data[f"{level}_i"][rows]
        mean = runs[rows].groupby(index).mean().set_axis(sizes.index)
        where = pd.Series(design.data["site_i"][rows]).groupby(index).first().to_numpy()
        group = groups["law"]
        here = {"law": group._replace(level=where) if len(design.sites) > 1 else group}
        columns = pd.concat([sizes, mean], axis=1)
        data = {str(name): values.to_numpy(float) for name, values in columns.items()}
        return pt.log(per_run(costs, here, data)["costs"])

    every = np.full(len(runs), True)
    verifiers = logs("verifier", known.VERIFIER_COSTS, design.touched, every)
    if not len(design.drafters):
        return {"verifier": verifiers}
    drafters = design.drafters.rename(columns={"drafter_params": "drafter"})
    drafted = design.data["drafted"] > 0
    return {"verifier": verifiers, "drafter": logs("drafter", ("draft_alone",), drafters, drafted)}


def _factors(
    design: Design, typical_costs: dict, by_name: dict[str, Prior], pooling: str
) -> dict[str, Any]:
    """Factors (effect, level) of verifiers, drafters and servers around the size laws."""
    coords = pm.modelcontext(None).coords
    shift: Any = 0.0
    if design.both_families:
        moe = design.verifiers["moe"].to_numpy(float)
        shift = _random(by_name["moe_effect"])[:, None] * moe[None, :]
    # Levels whose members differ: of one alone the law itself says what it costs.
    own = [n for n in EFFECT_DIMS if len(getattr(design, f"{n}s")) > 1 and pooling != "complete"]
    scatter = {}
    for level in own:
        if pooling == "none" and level != "server":
            scatter[level] = np.full(len(coords[EFFECT_DIMS[level][0]]), UNPOOLED_SD)
        else:
            scatter[level] = _random(by_name[f"scatter_{level}"])
    factors: dict[str, Any] = {}
    servers: Any = np.zeros((len(coords["server_effect"]), len(coords["server"])))
    if "server" in own:
        servers = _centred("server", servers, scatter["server"])
        factors["server"] = pt.exp(servers)
    for level, typical in typical_costs.items():
        family = shift if level == "verifier" else 0.0
        if level not in own:
            if design.both_families and level == "verifier":
                factors[level] = pt.exp(family)
            continue
        # The log of a level's own cost is sampled, which its runs pin down while overhead and slope
        # stay loose. It and the mean slowness of its servers are known only as a product.
        mean = (_server_means(design, level) * servers[0]).sum(axis=1)[None, :]  # needs no BLAS
        log_cost = _centred(level, typical + family + mean, scatter[level])
        factors[level] = pt.exp(log_cost - typical - mean)
    return factors


def _centred(level: str, mean: Any, scatter: Any) -> Any:
    """Normal effects (effect, level), `told_*` of which the runs tell: axes of the sampler."""
    shape = tuple(len(pm.modelcontext(None).coords[dim]) for dim in EFFECT_DIMS[level])
    told = pm.Data(f"{TOLD}{level}", np.full(shape, 0.5))
    how: dict[str, Any] = {"dims": EFFECT_DIMS[level], "default_transform": Centred()}
    how["dist"] = lambda mean, sd, told, size: pm.Normal.dist(mean, sd, size=size)
    how["logp"] = lambda value, mean, sd, told: pm.logp(pm.Normal.dist(mean, sd), value)
    return pm.CustomDist(f"log_{level}", mean, scatter[:, None], told, **how)


def _server_means(design: Design, level: str) -> np.ndarray:
    """Matrix (level, server) that averages over the servers a verifier or drafter ran on.

    None of a drafter that several verifiers have: it would tie their servers to one another.
    """
    levels = design.verifiers if level == "verifier" else design.drafters
    member = np.zeros((len(levels), len(design.servers)))
    used = design.data["drafted"] > 0 if level == "drafter" else np.full(len(design.table), True)
    member[design.data[f"{level}_i"][used], design.data["server_i"][used]] = 1.0
    member[systems_of(design.data)[level] < 0] = 0.0
    return member / np.maximum(member.sum(axis=1, keepdims=True), 1.0)


def _likelihoods(said: dict, spread_sd: Any, data: dict, design: Design, keep_runs: bool) -> None:
    """Likelihoods of means and spreads; a run cut short bounds its latency from below."""
    if keep_runs:
        for name, values in said.items():
            pm.Deterministic(name, values, dims="run")
    for metric, spread in SPREADS.items():
        log_mean, observed = pt.log(said[f"run_mean_{metric}"]), data[f"log_{metric}"]
        sd = (said[f"run_scale_{metric}"] ** 2 + data[f"se_{metric}"] ** 2) ** 0.5 + data["mask_sd"]
        if len(design.data[f"{metric}_rows"]):  # what no run has observed has no likelihood
            rows = data[f"{metric}_rows"]
            pm.StudentT(metric, NU, mu=log_mean[rows], sigma=sd[rows], observed=observed[rows])
        if metric == "e2e" and len(design.data["censored_rows"]):
            z = ((log_mean - observed) / sd)[data["censored_rows"]]
            pm.Potential("censored", pt.log(t_cdf(z, pt.arctan) + TINY))
        if len(design.data[f"{metric}_spread_rows"]):
            rows = data[f"{metric}_spread_rows"]
            error = spread_error(data[f"n_eff_{metric}"], spread_sd) + data["mask_sd"]
            log_var = data[f"log_var_{metric}"][rows]
            variance = said[f"run_variance_{metric}"]
            pm.Normal(spread, pt.log(variance)[rows], error[rows], observed=log_var)
