"""From priors and a design to a PyMC model; the one file that imports PyMC when it is imported."""

from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad

from bayes_sd.model import priors as known
from bayes_sd.model.design import SPREADS, Design, coefficients
from bayes_sd.model.geometry import CENTRED, Centred, CostShares
from bayes_sd.model.priors import EFFECT_DIMS, UNPOOLED_SD, Prior, population
from bayes_sd.physics.law import FULL, SOFTNESS, Law, Outcome, outcome
from bayes_sd.physics.noise import NU, request_variance, run_scale, spread_error, t_cdf

TINY = 1e-12  # added to a probability, so that its logarithm stays finite


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
    with pm.Model(coords=_coords(design, server_effects, law)) as model:
        data = {name: pm.Data(name, values) for name, values in design.data.items()}
        verifiers = {
            str(name): pm.Data(f"verifier_{name}", values.to_numpy(float), dims="verifier")
            for name, values in design.verifiers.items()
        }
        drafters: Any = 0.0
        if len(design.drafters):
            params = design.drafters["drafter_params"].to_numpy(float)
            drafters = pm.Data("drafter_size", params, dims="drafter")
        shares = CostShares(design, law)
        law_terms = _positive("law", population(law), by_name, shares)
        noise = _positive("noise", known.NOISE, by_name)
        typical = _typical_costs(design, law_terms, verifiers, drafters, law)
        factors = _factors(design, typical, verifiers["moe"], by_name, pooling)
        of_run: dict[str, Any] = {}
        for level, values in factors.items():
            dims, index = EFFECT_DIMS[level], data[f"{level}_i"]
            if pooling != "complete":  # what only the family moves is no factor of its own
                pm.Deterministic(f"factor_{level}", values, dims=dims)
            of_run[level] = [values[i][index] for i in range(len(model.coords[dims[0]]))]
        environment = _environments(design, data, by_name)
        terms = coefficients(law_terms, **of_run, environment=environment)
        sizes = {name: values[data["verifier_i"]] for name, values in verifiers.items()}
        if not design.moe:
            sizes["expert"] = 0.0  # a float says so: no fixed point to iterate
        drafter_size = drafters[data["drafter_i"]] if len(design.drafters) else 0.0
        sizes["drafter"] = drafter_size * data["drafted"]
        stages = law.stages(terms, sizes, data)
        said = outcome(stages, terms["queue_cycles"], sizes, data, SOFTNESS, disconnected_grad, law)
        _likelihoods(said, noise, data, design, keep_runs)
    return model


def _coords(design: Design, server_effects: tuple[str, ...], law: Law) -> dict[str, Any]:
    """Names of all dimensions."""
    coords = {
        "run": np.arange(len(design.table)),
        "verifier_cost": list(known.VERIFIER_COSTS),
        "server_effect": list(server_effects),
        "hardware": list(known.HARDWARE),
        "law_term": [p.name for p in population(law)],
        "noise_term": [p.name for p in known.NOISE],
        "verifier": design.verifiers.index.tolist(),
        "server": design.servers["server"].tolist(),
        "environment": design.environments,
    }
    if len(design.drafters):
        coords["drafter_cost"] = list(known.DRAFTER_COSTS)
        coords["drafter"] = design.drafters.index.tolist()
    return coords


def _positive(
    name: str, which: tuple[Prior, ...], by_name: dict[str, Prior], transform: Any = None
) -> dict[str, Any]:
    """Positive scalars as one log-normal vector: a short graph compiles sooner."""
    priors = [by_name[p.name] for p in which]
    middle, sd = np.log([p.a for p in priors]), np.array([p.b for p in priors])
    dims = f"{name}_term"
    if transform is None:
        logs = pm.Normal(f"log_{name}", middle, sd, dims=dims)
    else:
        cov = known.correlation(tuple(p.name for p in which)) * np.outer(sd, sd)
        logs = pm.MvNormal(f"log_{name}", middle, cov, dims=dims, default_transform=transform)
    values = pm.Deterministic(name, pt.exp(logs), dims=f"{name}_term")
    return {p.name: values[i] for i, p in enumerate(priors)}


def _random(prior: Prior) -> Any:
    """One prior as a random variable of the model in context."""
    if prior.kind == "lognormal":
        return pm.LogNormal(prior.name, np.log(prior.a), prior.b, dims=prior.dims)
    return pm.Normal(prior.name, prior.a, prior.b, dims=prior.dims)


def _environments(design: Design, data: dict, by_name: dict[str, Prior]) -> list[Any] | None:
    """Factor of each hardware group in each run's environment; None where there is only one."""
    if len(design.environments) < 2:
        return None
    # Around the mean of the environments, which is what the size laws then describe. Many runs tell
    # these factors, so they are sampled as they are.
    scatter, dims = _random(by_name["scatter_environment"]), ("hardware", "environment")
    logs = pm.ZeroSumNormal("log_environment", sigma=scatter[:, None], n_zerosum_axes=1, dims=dims)
    values = pm.Deterministic("factor_environment", pt.exp(logs), dims=dims)
    return [values[i][data["environment_i"]] for i in range(len(known.HARDWARE))]


def _typical_costs(
    design: Design, law_terms: dict, verifiers: dict, drafters: Any, law: Law
) -> dict[str, Any]:
    """Logs of the size laws' costs at the runs' mean workload: (effect, level) matrices."""
    ones = coefficients(law_terms)
    mean = {n: float(np.mean(design.data[n])) for n in ("k", "prompt_tokens", "output_tokens")}
    verify = law.stages(ones, {**verifiers, "drafter": 0.0}, mean)
    whole = verify.verify_alone + verify.experts
    costs = [verify.prefill_alone, verify.prefill_others, whole, verify.verify_others]
    logs = {"verifier": pt.log(pt.stack(costs))}
    if len(design.drafters):
        nothing = dict.fromkeys(("active", "shared", "expert", "layers", "kv_gb"), 0.0)
        draft = law.stages(ones, {**nothing, "drafter": drafters}, mean)
        logs["drafter"] = pt.log(pt.stack([draft.draft_alone, draft.draft_others]))
    return logs


def _factors(
    design: Design, typical_costs: dict[str, Any], moe: Any, by_name: dict[str, Prior], pooling: str
) -> dict[str, Any]:
    """Factors (effect, level) of verifiers, drafters and servers around the size laws."""
    coords = pm.modelcontext(None).coords
    shift: Any = 0.0
    if design.both_families:
        shift = _random(by_name["moe_effect"])[:, None] * moe[None, :]
    own = design.own_factors if pooling != "complete" else ()
    scatter = {}
    for level in own:
        if pooling == "none" and level != "server":
            scatter[level] = np.full(len(coords[EFFECT_DIMS[level][0]]), UNPOOLED_SD)
        else:
            scatter[level] = _random(by_name[f"scatter_{level}"])
    factors: dict[str, Any] = {}
    servers: Any = np.zeros((len(coords["server_effect"]), len(coords["server"])))
    if "server" in own:
        centring: Any = Centred(CENTRED["server"][: len(servers), None])
        dims = EFFECT_DIMS["server"]
        sd = scatter["server"][:, None]
        servers = pm.Normal("log_server", 0.0, sd, dims=dims, default_transform=centring)
        factors["server"] = pt.exp(servers)
    for level, typical in typical_costs.items():
        family = shift if level == "verifier" else 0.0
        if level not in own:
            if design.both_families and level == "verifier":
                factors[level] = pt.exp(family)
            continue
        # The log of a level's own cost is sampled, which its runs pin down while overhead and slope
        # stay loose. It and the mean slowness of its servers are known only as a product.
        mean = pt.dot(_server_means(design, level), servers[0])[None, :]
        around, sd = typical + family + mean, scatter[level][:, None]
        share = CENTRED[level][:, None]
        centring = None if (share == 1).all() else Centred(share)
        log_cost = pm.Normal(
            f"log_{level}", around, sd, dims=EFFECT_DIMS[level], default_transform=centring
        )
        factors[level] = pt.exp(log_cost - typical - mean)
    return factors


def _server_means(design: Design, level: str) -> np.ndarray:
    """Matrix (level, server) that averages over the servers a verifier or drafter ran on."""
    levels = design.verifiers if level == "verifier" else design.drafters
    member = np.zeros((len(levels), len(design.servers)))
    used = design.data["drafted"] > 0 if level == "drafter" else np.full(len(design.table), True)
    member[design.data[f"{level}_i"][used], design.data["server_i"][used]] = 1.0
    return member / np.maximum(member.sum(axis=1, keepdims=True), 1.0)


def _likelihoods(said: Outcome, noise: dict, data: dict, design: Design, keep_runs: bool) -> None:
    """Likelihoods of means and spreads; a run cut short bounds its latency from below."""
    for metric, spread in SPREADS.items():
        mean_s = said.mean_s(metric, data["output_tokens"])
        scale = run_scale(metric, noise, said.growth, data["requests"], said.others_share)
        variance = request_variance(metric, noise, said, data)
        if keep_runs:
            for what, values in (("mean", mean_s), ("scale", scale), ("variance", variance)):
                pm.Deterministic(f"run_{what}_{metric}", values, dims="run")
        log_mean, observed = pt.log(mean_s), data[f"log_{metric}"]
        sd = (scale**2 + data[f"se_{metric}"] ** 2) ** 0.5 + data["mask_sd"]
        if len(design.data[f"{metric}_rows"]):  # what no run has observed has no likelihood
            rows = data[f"{metric}_rows"]
            pm.StudentT(metric, NU, mu=log_mean[rows], sigma=sd[rows], observed=observed[rows])
        if metric == "e2e" and len(design.data["censored_rows"]):
            z = ((log_mean - observed) / sd)[data["censored_rows"]]
            pm.Potential("censored", pt.log(t_cdf(z, pt.arctan) + TINY))
        if len(design.data[f"{metric}_spread_rows"]):
            rows = data[f"{metric}_spread_rows"]
            error = spread_error(data[f"n_eff_{metric}"], noise["spread_sd"]) + data["mask_sd"]
            log_var = data[f"log_var_{metric}"][rows]
            pm.Normal(spread, pt.log(variance)[rows], error[rows], observed=log_var)
