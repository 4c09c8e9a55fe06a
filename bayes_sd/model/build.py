"""From priors and a design to a PyMC model. The only file that writes the model's graph."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.model.design import Design
from bayes_sd.model.priors import (
    ALL,
    COEFFICIENTS,
    DRAFT_COEFFICIENTS,
    HARDWARE,
    NOISE,
    POPULATION,
    Prior,
    environment_factors,
)
from bayes_sd.physics.costs import stage_costs
from bayes_sd.physics.law import NU, SOFTNESS, outcome, run_scale, spread_variance

if TYPE_CHECKING:
    import pymc as pm

SPEED = ("speed", "capacity")

Priors = dict[str, Prior]
LEVELS = ("verifier", "drafter", "system")
HARDWARE_DIMS = ("hardware", "environment")
EFFECT_DIMS = (
    ("coefficient", "verifier"),
    ("draft_coefficient", "drafter"),
    ("speed", "system"),
)
ONES = {f"f_{name}": 1.0 for name in COEFFICIENTS + DRAFT_COEFFICIENTS}
NO_VERIFIER = dict.fromkeys(("active", "shared", "expert", "layers", "kv_gb"), 0.0)
CENTRED_RUNS = 100  # runs a verifier from which centred effects sample better


def _random(prior: Prior) -> Any:
    import pymc as pm

    name = prior.name
    dims = prior.dims or None
    if prior.kind == "lognormal":
        return pm.LogNormal(name, np.log(prior.a), prior.b, dims=dims)
    return pm.Normal(name, prior.a, prior.b, dims=dims)


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


def _effects(
    design: Design, theta: dict, verifiers: dict, drafters: Any, by_name: Priors, centred: bool
) -> tuple:
    """Factors (coefficient, level) of verifiers, drafters and systems around the size laws.

    Centred, the sampled value is the log of a level's own cost, which many runs pin down while
    overhead and slope stay loose; non-centred, it is the standardized effect, which suits few runs.
    """
    import pymc as pm
    import pytensor.tensor as pt

    model = pm.modelcontext(None)
    taus = [_random(by_name[name]) for name in ("tau_verifier", "tau_drafter", "tau_system")]
    moe = _random(by_name["moe"])[:, None] * verifiers["moe"][None, :]
    if not centred:
        z = [
            pm.Normal(f"z_{name}", dims=dim) for name, dim in zip(LEVELS, EFFECT_DIMS, strict=True)
        ]
        logs = [tau[:, None] * x for tau, x in zip(taus, z, strict=True)]
        return pt.exp(logs[0] + moe), pt.exp(logs[1]), pt.exp(logs[2])
    typical = {
        name: float(np.mean(design.data[name])) for name in ("k", "prompt_tokens", "output_tokens")
    }
    sizes = {**verifiers, "drafter": 0.0}
    law = stage_costs(theta | ONES, sizes, **typical)
    draft = stage_costs(theta | ONES, {**NO_VERIFIER, "drafter": drafters}, **typical)
    whole = law.c1_verify + law.c1_experts
    laws = (
        pt.log(pt.stack([law.c1_prefill, law.c2_prefill, whole, law.c2_verify])),
        pt.log(pt.stack([draft.c1_draft, draft.c2_draft])),
    )
    speed = pm.Normal("log_speed", 0.0, taus[2][0], dims="system")
    # A level's own cost and the mean speed of its servers are known only as a product: sample that.
    means = [pt.dot(_server_means(design, name), speed)[None, :] for name in LEVELS[:2]]
    verifier = pm.Normal(
        "log_verifier", laws[0] + moe + means[0], taus[0][:, None], dims=EFFECT_DIMS[0]
    )
    drafter = pm.Normal("log_drafter", laws[1] + means[1], taus[1][:, None], dims=EFFECT_DIMS[1])
    servers = [speed]
    if len(model.coords["speed"]) > 1:
        servers.append(taus[2][1] * pm.Normal("z_capacity", dims="system"))
    return (
        pt.exp(verifier - laws[0] - means[0]),
        pt.exp(drafter - laws[1] - means[1]),
        pt.exp(pt.stack(servers)),
    )


def _server_means(design: Design, level: str) -> np.ndarray:
    """Matrix (level, system) that averages over the servers a verifier or drafter ran on."""
    member = np.zeros((len(design.levels[level]), len(design.levels["system"])))
    used = design.data["drafted"] > 0 if level == "drafter" else np.full(len(design.runs), True)
    member[design.data[f"{level}_i"][used], design.data["system_i"][used]] = 1.0
    return member / np.maximum(member.sum(axis=1, keepdims=True), 1.0)


def build(
    design: Design,
    priors: tuple[Prior, ...] = ALL,
    server_effects: tuple[str, ...] = SPEED,
    centred: bool | None = None,
) -> "pm.Model":
    """PyMC model of the run means and spreads of e2e latency and TTFT.

    Run data and sizes are ``pm.Data``; `server_effects` as in `LatencyModel`. `centred` chooses
    the geometry of the effects, not the model; by default it follows the number of runs a
    verifier has.
    """
    import pymc as pm
    import pytensor.tensor as pt
    from pytensor.gradient import disconnected_grad

    if centred is None:
        centred = len(design.runs) >= CENTRED_RUNS * len(design.levels["verifier"])
    coords = {
        "run": np.arange(len(design.runs)),
        "coefficient": list(COEFFICIENTS),
        "draft_coefficient": list(DRAFT_COEFFICIENTS),
        "speed": list(server_effects),
        "hardware": list(HARDWARE),
        "law_term": [p.name for p in POPULATION],
        "noise_term": [p.name for p in NOISE],
        **design.levels,
    }
    with pm.Model(coords=coords) as model:
        data = {name: pm.Data(name, values) for name, values in design.data.items()}
        verifiers = {
            name: pm.Data(f"verifier_{name}", values, dims="verifier")
            for name, values in design.verifiers.items()
        }
        drafters = pm.Data("drafter_size", design.drafters, dims="drafter")

        by_name = {p.name: p for p in priors}
        fixed: Any = {f"f_{name}": 1.0 for name in SPEED}
        theta, noise = _positive("law", POPULATION, by_name), _positive("noise", NOISE, by_name)
        factors = _effects(design, theta, verifiers, drafters, by_name, centred)
        for name, values, dims in zip(LEVELS, factors, EFFECT_DIMS, strict=True):
            pm.Deterministic(f"factor_{name}", values, dims=dims)

        v, d, s = data["verifier_i"], data["drafter_i"], data["system_i"]
        for names, level, values in zip(
            (COEFFICIENTS, DRAFT_COEFFICIENTS, server_effects), (v, d, s), factors, strict=True
        ):
            theta |= {f"f_{name}": values[j][level] for j, name in enumerate(names)}
        if len(design.levels["environment"]) > 1:
            tau = _random(by_name["tau_environment"])
            # Around the mean of the environments, which is what the size laws then describe. Many
            # runs tell the factors, so they are sampled as they are.
            logs = pm.ZeroSumNormal(
                "log_environment", sigma=tau[:, None], n_zerosum_axes=1, dims=HARDWARE_DIMS
            )
            values = pm.Deterministic("factor_environment", pt.exp(logs), dims=HARDWARE_DIMS)
            rows = [values[i][data["environment_i"]] for i in range(len(HARDWARE))]
            here = environment_factors(theta, rows)
            theta = {n: x * here[n] if n in here else x for n, x in theta.items()}
        theta = fixed | theta
        system = {name: values[v] for name, values in verifiers.items()}
        if not design.verifiers["moe"].any():
            system["expert"] = 0.0  # a float says so: no fixed point to iterate
        system["drafter"] = drafters[d] * data["drafted"]
        law = outcome(theta, system, data, SOFTNESS, detach=disconnected_grad)

        growing = (noise["capacity_sd"] ** 2 + noise["arrival_sd"] ** 2 / data["requests"]) ** 0.5
        sd = run_scale(noise["run_sd"], growing, law.growth)
        pm.StudentT(
            "e2e",
            NU,
            mu=pt.log(law.e2e_s),
            sigma=(sd**2 + data["se_e2e"] ** 2) ** 0.5,
            observed=data["log_e2e"],
            dims="run",
        )
        rows = data["ttft_rows"]
        sd = run_scale(noise["ttft_sd"], noise["ttft_capacity_sd"], law.growth)
        pm.StudentT(
            "ttft",
            NU,
            mu=pt.log(law.ttft_s)[rows],
            sigma=((sd**2 + data["se_ttft"] ** 2) ** 0.5)[rows],
            observed=data["log_ttft"][rows],
        )
        spreads = (
            ("e2e", "spread", law.others_share * law.c2_s / law.c1_s),
            ("ttft", "ttft_spread", law.others_share**2),
        )
        for metric, name, intensity in spreads:
            rows = data[f"{name}_rows"]
            variance = spread_variance(noise[f"{name}_alone"], noise[f"{name}_load"], intensity)
            # The variance of n logs has a relative error of sqrt(2 / (n - 1)).
            sampling = 2 / (data[f"worth_{metric}"] - 1)
            pm.Normal(
                name,
                mu=pt.log(variance)[rows],
                sigma=((sampling + (2 * noise["spread_sd"]) ** 2) ** 0.5)[rows],
                observed=data[f"log_var_{metric}"][rows],
            )
    return model
