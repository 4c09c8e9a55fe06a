"""From priors and a design to a PyMC model."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.model.design import Design, coefficients
from bayes_sd.model.priors import (
    ALL,
    DRAFTER_COSTS,
    HARDWARE,
    NOISE,
    POPULATION,
    SERVER_EFFECTS,
    VERIFIER_COSTS,
    Prior,
)
from bayes_sd.physics.law import FULL, SOFTNESS, Law, Outcome, outcome
from bayes_sd.physics.noise import NU, request_variance, run_scale, spread_error, t_cdf

if TYPE_CHECKING:
    import pymc as pm

Priors = dict[str, Prior]
EFFECT_DIMS = {
    "verifier": ("verifier_cost", "verifier"),
    "drafter": ("drafter_cost", "drafter"),
    "server": ("server_effect", "server"),
}
POOLINGS = ("partial", "none", "complete")
UNPOOLED_SD = 1.5  # log-sd of effects that share nothing: factors of 0.08 to 12
CENTRED_RUNS = 100  # runs a verifier from which centred effects sample better
TINY = 1e-12  # added to a probability, so that its logarithm stays finite
# A likelihood of TPOT's spread beside that of e2e would tell the means more than a spread should.
SPREADS = {"e2e": "spread", "ttft": "ttft_spread"}


def population(law: Law) -> tuple[Prior, ...]:
    """Priors of the coefficients that a law has."""
    return tuple(p for p in POPULATION if p.name in law.terms)


def build(
    design: Design,
    priors: tuple[Prior, ...] = ALL,
    server_effects: tuple[str, ...] = SERVER_EFFECTS,
    centred: bool | None = None,
    law: Law = FULL,
    pooling: str = "partial",
    keep_runs: bool = False,
) -> "pm.Model":
    """PyMC model of the run means and spreads of e2e latency and TTFT.

    `server_effects`, `law` and `pooling` as in :class:`bayes_sd.LatencyModel`. `centred` chooses
    the geometry of the effects, not the model; by default it follows the number of runs a verifier
    has. `keep_runs` keeps, draw by draw, what the law says of every run, those with a large
    ``mask_sd`` included: refits predict with it.
    """
    import pymc as pm
    from pytensor.gradient import disconnected_grad

    if centred is None:
        centred = len(design.table) >= CENTRED_RUNS * len(design.verifiers)
    by_name = {p.name: p for p in priors}
    with pm.Model(coords=_coords(design, server_effects, law)) as model:
        data = {name: pm.Data(name, values) for name, values in design.data.items()}
        verifiers = {
            str(name): pm.Data(f"verifier_{name}", values.to_numpy(float), dims="verifier")
            for name, values in design.verifiers.items()
        }
        drafters: Any = 0.0
        if len(design.drafters):
            sizes_of_drafters = design.drafters["drafter_params"].to_numpy(float)
            drafters = pm.Data("drafter_size", sizes_of_drafters, dims="drafter")
        law_terms = _positive("law", population(law), by_name)
        noise = _positive("noise", NOISE, by_name)
        factors = _factors(design, law_terms, verifiers, drafters, by_name, law, pooling, centred)
        for level, values in factors.items():
            if pooling != "complete":  # a factor that cannot move is not a parameter
                pm.Deterministic(f"factor_{level}", values, dims=EFFECT_DIMS[level])

        def of_run(level: str, effects: tuple[str, ...]) -> list[Any]:
            if level not in factors:
                return [1.0] * len(effects)
            return [factors[level][i][data[f"{level}_i"]] for i in range(len(effects))]

        terms = coefficients(
            law_terms,
            verifier=of_run("verifier", VERIFIER_COSTS),
            drafter=of_run("drafter", DRAFTER_COSTS),
            server=of_run("server", server_effects),
            environment=_environments(design, data, by_name),
        )
        sizes = {name: values[data["verifier_i"]] for name, values in verifiers.items()}
        if not design.moe:
            sizes["expert"] = 0.0  # a float says so: no fixed point to iterate
        sizes["drafter"] = drafters * data["drafted"]
        if len(design.drafters):
            sizes["drafter"] = drafters[data["drafter_i"]] * data["drafted"]
        stages = law.stages(terms, sizes, data)
        said = outcome(stages, terms["queue_cycles"], sizes, data, SOFTNESS, disconnected_grad, law)
        _likelihoods(said, noise, data, design, keep_runs)
    return model


def _coords(design: Design, server_effects: tuple[str, ...], law: Law) -> dict[str, Any]:
    """Names of all dimensions."""
    coords = {
        "run": np.arange(len(design.table)),
        "verifier_cost": list(VERIFIER_COSTS),
        "server_effect": list(server_effects),
        "hardware": list(HARDWARE),
        "law_term": [p.name for p in population(law)],
        "noise_term": [p.name for p in NOISE],
        "verifier": design.verifiers.index.tolist(),
        "server": design.servers["server"].tolist(),
        "environment": design.environments,
    }
    if len(design.drafters):
        coords |= {"drafter_cost": list(DRAFTER_COSTS), "drafter": design.drafters.index.tolist()}
    return coords


def _positive(name: str, which: tuple[Prior, ...], by_name: Priors) -> dict[str, Any]:
    """Positive scalars as one log-normal vector: a short graph compiles sooner."""
    import pymc as pm
    import pytensor.tensor as pt

    priors = [by_name[p.name] for p in which]
    logs = pm.Normal(
        f"log_{name}",
        np.log([p.a for p in priors]),
        np.array([p.b for p in priors]),
        dims=f"{name}_term",
    )
    values = pm.Deterministic(name, pt.exp(logs), dims=f"{name}_term")
    return {p.name: values[i] for i, p in enumerate(priors)}


def _random(prior: Prior) -> Any:
    """One prior as a random variable of the model in context."""
    import pymc as pm

    dims = prior.dims or None
    if prior.kind == "lognormal":
        return pm.LogNormal(prior.name, np.log(prior.a), prior.b, dims=dims)
    return pm.Normal(prior.name, prior.a, prior.b, dims=dims)


def _environments(design: Design, data: dict, by_name: Priors) -> list[Any] | None:
    """Factor of each hardware group in each run's environment; None where there is only one.

    Around the mean of the environments, which is what the size laws then describe. Many runs tell
    these factors, so they are sampled as they are.
    """
    import pymc as pm
    import pytensor.tensor as pt

    if len(design.environments) < 2:
        return None
    scatter, dims = _random(by_name["scatter_environment"]), ("hardware", "environment")
    logs = pm.ZeroSumNormal("log_environment", sigma=scatter[:, None], n_zerosum_axes=1, dims=dims)
    values = pm.Deterministic("factor_environment", pt.exp(logs), dims=dims)
    return [values[i][data["environment_i"]] for i in range(len(HARDWARE))]


def _factors(
    design: Design,
    law_terms: dict,
    verifiers: dict,
    drafters: Any,
    by_name: Priors,
    law: Law,
    pooling: str,
    centred: bool,
) -> dict[str, Any]:
    """Factors (effect, level) of verifiers, drafters and servers around the size laws.

    Centred, the sampled value is the log of a level's own cost, which many runs pin down while
    overhead and slope stay loose; non-centred, it is the standardized effect, which suits few runs.
    """
    import pymc as pm
    import pytensor.tensor as pt

    model = pm.modelcontext(None)
    levels = [level for level in EFFECT_DIMS if level != "drafter" or len(design.drafters)]
    moe: Any = 0.0
    if design.moe:
        moe = _random(by_name["moe_effect"])[:, None] * verifiers["moe"][None, :]
    shift = {"verifier": moe, "drafter": 0.0, "server": 0.0}
    if pooling == "complete":
        shapes = {n: [len(model.coords[d]) for d in EFFECT_DIMS[n]] for n in levels}
        return {n: pt.exp(pt.zeros(shape) + shift[n]) for n, shape in shapes.items()}
    scatter = {}
    for level in levels:
        if pooling == "none" and level != "server":
            scatter[level] = np.full(len(model.coords[EFFECT_DIMS[level][0]]), UNPOOLED_SD)
        else:
            scatter[level] = _random(by_name[f"scatter_{level}"])
    if not centred:
        return {
            n: pt.exp(scatter[n][:, None] * pm.Normal(f"z_{n}", dims=EFFECT_DIMS[n]) + shift[n])
            for n in levels
        }
    slowness = pm.Normal("log_slowness", 0.0, scatter["server"][0], dims="server")
    servers = [slowness]
    if len(model.coords["server_effect"]) > 1:
        servers.append(scatter["server"][1] * pm.Normal("z_crowding", dims="server"))
    factors = {"server": pt.exp(pt.stack(servers))}
    for level, typical in _typical_costs(design, law_terms, verifiers, drafters, law).items():
        # A level's cost and the mean slowness of its servers are known only as a product.
        mean = pt.dot(_server_means(design, level), slowness)[None, :]
        log_cost = pm.Normal(
            f"log_{level}",
            typical + shift[level] + mean,
            scatter[level][:, None],
            dims=EFFECT_DIMS[level],
        )
        factors[level] = pt.exp(log_cost - typical - mean)
    return {n: factors[n] for n in levels}


def _typical_costs(
    design: Design, law_terms: dict, verifiers: dict, drafters: Any, law: Law
) -> dict[str, Any]:
    """Logs of the size laws' costs at the runs' mean workload: (effect, level) matrices."""
    import pytensor.tensor as pt

    ones = coefficients(law_terms, verifier=[1.0] * 4, drafter=[1.0] * 2, server=[1.0])
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


def _server_means(design: Design, level: str) -> np.ndarray:
    """Matrix (level, server) that averages over the servers a verifier or drafter ran on."""
    levels = design.verifiers if level == "verifier" else design.drafters
    member = np.zeros((len(levels), len(design.servers)))
    used = design.data["drafted"] > 0 if level == "drafter" else np.full(len(design.table), True)
    member[design.data[f"{level}_i"][used], design.data["server_i"][used]] = 1.0
    return member / np.maximum(member.sum(axis=1, keepdims=True), 1.0)


def _likelihoods(said: Outcome, noise: dict, data: dict, design: Design, keep_runs: bool) -> None:
    """Likelihoods of means and spreads; a run cut short bounds its latency from below."""
    import pymc as pm
    import pytensor.tensor as pt
    from pytensor.gradient import disconnected_grad

    # What lengths explain of a spread follows from the law's means: spreads do not move these.
    fixed = said._replace(
        e2e_s=disconnected_grad(said.e2e_s),
        ttft_s=disconnected_grad(said.ttft_s),
        decode_s=disconnected_grad(said.decode_s),
        prefill_s=disconnected_grad(said.prefill_s),
    )
    for metric, name in SPREADS.items():
        mean_s = said.mean_s(metric, data["output_tokens"])
        scale = run_scale(metric, noise, said.growth, data["requests"])
        variance = request_variance(metric, noise, fixed, data)
        if keep_runs:
            pm.Deterministic(f"run_mean_{metric}", mean_s, dims="run")
            pm.Deterministic(f"run_scale_{metric}", scale, dims="run")
            pm.Deterministic(f"run_variance_{metric}", variance, dims="run")
        sd = (scale**2 + data[f"se_{metric}"] ** 2) ** 0.5 + data["mask_sd"]
        if len(design.data[f"{metric}_rows"]):  # what no run has observed has no likelihood
            rows = data[f"{metric}_rows"]
            observed = data[f"log_{metric}"][rows]
            pm.StudentT(metric, NU, mu=pt.log(mean_s)[rows], sigma=sd[rows], observed=observed)
        if metric == "e2e" and len(design.data["censored_rows"]):
            rows = data["censored_rows"]
            z = ((pt.log(mean_s) - data["log_e2e"]) / sd)[rows]
            pm.Potential("censored", pt.log(t_cdf(z, pt.arctan) + TINY))
        if len(design.data[f"{metric}_spread_rows"]):
            rows = data[f"{metric}_spread_rows"]
            error = spread_error(data[f"n_eff_{metric}"], noise["spread_sd"]) + data["mask_sd"]
            pm.Normal(
                name,
                mu=pt.log(variance)[rows],
                sigma=error[rows],
                observed=data[f"log_var_{metric}"][rows],
            )
