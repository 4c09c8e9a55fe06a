"""From priors and a design to a PyMC model."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.model.design import Design
from bayes_sd.model.effects import CENTRED_RUNS, EFFECT_DIMS, LEVELS, Priors, factors, random
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
from bayes_sd.physics.costs import FULL, Law
from bayes_sd.physics.law import NU, SOFTNESS, Outcome, outcome, run_scale
from bayes_sd.physics.tails import intensity, spread_variance

if TYPE_CHECKING:
    import pymc as pm

SPEED = ("speed", "capacity")
HARDWARE_DIMS = ("hardware", "environment")
# A likelihood of TPOT's spread beside that of e2e would tell the means more than a spread should.
SPREADS = {"e2e": "spread", "ttft": "ttft_spread"}
TINY = 1e-12  # of a probability, so that its logarithm stays finite


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


def population(law: Law) -> tuple[Prior, ...]:
    """Priors of the coefficients that a law has."""
    return tuple(p for p in POPULATION if p.name in law.terms)


def build(
    design: Design,
    priors: tuple[Prior, ...] = ALL,
    server_effects: tuple[str, ...] = SPEED,
    centred: bool | None = None,
    law: Law = FULL,
    pooling: str = "partial",
    keep_runs: bool = False,
) -> "pm.Model":
    """PyMC model of the run means and spreads of e2e latency and TTFT.

    Run data and sizes are ``pm.Data``; `server_effects`, `law` and `pooling` as in `LatencyModel`.
    `centred` chooses the geometry of the effects, not the model; by default it follows the number
    of runs a verifier has. `keep_runs` also keeps, draw by draw, what the law says of every run,
    those with a large ``away`` included: that is what refits predict with.
    """
    import pymc as pm
    from pytensor.gradient import disconnected_grad

    if centred is None:
        centred = len(design.runs) >= CENTRED_RUNS * len(design.levels["verifier"])
    coords = {
        "run": np.arange(len(design.runs)),
        "coefficient": list(COEFFICIENTS),
        "draft_coefficient": list(DRAFT_COEFFICIENTS),
        "speed": list(server_effects),
        "hardware": list(HARDWARE),
        "law_term": [p.name for p in population(law)],
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
        theta = _positive("law", population(law), by_name)
        noise = _positive("noise", NOISE, by_name)
        effects = factors(design, theta, verifiers, drafters, by_name, law, pooling, centred)
        theta = _of_runs(theta, effects, data, server_effects, pooling)
        if len(design.levels["environment"]) > 1:
            theta = _somewhere(theta, data, by_name)
        system = {name: values[data["verifier_i"]] for name, values in verifiers.items()}
        if not design.verifiers["moe"].any():
            system["expert"] = 0.0  # a float says so: no fixed point to iterate
        system["drafter"] = drafters[data["drafter_i"]] * data["drafted"]
        found = outcome(theta, system, data, SOFTNESS, detach=disconnected_grad, law=law)
        scales = _scales(found, noise, data)
        variances = _variances(found, noise, data)
        # What no run has observed has no likelihood.
        seen = {name for name, rows in design.data.items() if name.endswith("rows") and len(rows)}
        _means(found, scales, data, seen)
        _spreads(variances, noise, data, seen)
        if keep_runs:
            for metric, value in (("e2e", found.e2e_s), ("ttft", found.ttft_s)):
                pm.Deterministic(f"run_variance_{metric}", variances[metric], dims="run")
                pm.Deterministic(f"run_mean_{metric}", value, dims="run")
                pm.Deterministic(f"run_scale_{metric}", scales[metric], dims="run")
    return model


def _of_runs(
    theta: dict, effects: tuple, data: dict, server_effects: tuple[str, ...], pooling: str
) -> dict[str, Any]:
    """Coefficients with the factors of each run's verifier, drafter and server."""
    import pymc as pm

    theta = {"f_speed": 1.0, "f_capacity": 1.0} | theta
    names = (COEFFICIENTS, DRAFT_COEFFICIENTS, server_effects)
    for level, own, values, dims in zip(LEVELS, names, effects, EFFECT_DIMS, strict=True):
        if pooling != "complete":  # a factor that cannot move is not a parameter
            pm.Deterministic(f"factor_{level}", values, dims=dims)
        theta |= {f"f_{n}": values[j][data[f"{level}_i"]] for j, n in enumerate(own)}
    return theta


def _somewhere(theta: dict, data: dict, by_name: Priors) -> dict[str, Any]:
    """Coefficients in each run's environment.

    Around the mean of the environments, which is what the size laws then describe. Many runs tell
    the factors, so they are sampled as they are.
    """
    import pymc as pm
    import pytensor.tensor as pt

    tau = random(by_name["tau_environment"])
    logs = pm.ZeroSumNormal(
        "log_environment", sigma=tau[:, None], n_zerosum_axes=1, dims=HARDWARE_DIMS
    )
    values = pm.Deterministic("factor_environment", pt.exp(logs), dims=HARDWARE_DIMS)
    rows = [values[i][data["environment_i"]] for i in range(len(HARDWARE))]
    here = environment_factors(theta, rows)
    return {n: x * here[n] if n in here else x for n, x in theta.items()}


def _scales(found: Outcome, noise: dict, data: dict) -> dict[str, Any]:
    """Run-to-run scatter of the log mean, sampling error apart."""
    growing = (noise["capacity_sd"] ** 2 + noise["arrival_sd"] ** 2 / data["requests"]) ** 0.5
    return {
        "e2e": run_scale(noise["run_sd"], growing, found.growth),
        "ttft": run_scale(noise["ttft_sd"], noise["ttft_capacity_sd"], found.growth),
    }


def _variances(found: Outcome, noise: dict, data: dict) -> dict[str, Any]:
    """Variance of log latencies between the requests of a run."""
    return {
        metric: spread_variance(
            noise[f"{name}_alone"],
            noise[f"{name}_load"],
            intensity(metric, found),
            data[f"counted_{metric}"],
        )
        for metric, name in SPREADS.items()
    }


def _means(found: Outcome, scales: dict, data: dict, seen: set[str]) -> None:
    """Likelihoods of the mean latency and TTFT of runs; of a run cut short, that of more."""
    import pymc as pm
    import pytensor.tensor as pt

    for metric, value in (("e2e", found.e2e_s), ("ttft", found.ttft_s)):
        if f"{metric}_rows" not in seen:
            continue
        rows = data[f"{metric}_rows"]
        sd = (scales[metric] ** 2 + data[f"se_{metric}"] ** 2) ** 0.5 + data["away"]
        pm.StudentT(
            metric,
            NU,
            mu=pt.log(value)[rows],
            sigma=sd[rows],
            observed=data[f"log_{metric}"][rows],
        )
        if metric == "e2e" and "censored_rows" in seen:
            rows = data["censored_rows"]
            z = ((pt.log(value) - data["log_e2e"]) / sd)[rows]
            pm.Potential("censored", pt.log(t5_probability(z, pt.arctan) + TINY))


def t5_probability(z: Any, arctan: Any) -> Any:
    r"""P(T <= z) of Student's t with five degrees of freedom, in closed form.

    .. math:: \frac12 + \frac1\pi \Big(\theta + \sin\theta\cos\theta\,
        (1 + \tfrac23 \cos^2\theta)\Big), \qquad \theta = \arctan(z / \sqrt5)

    Parameters
    ----------
    z : array_like
    arctan : callable
        Of NumPy or PyTensor.
    """
    tangent = z / 5**0.5
    square = 1 / (1 + tangent**2)  # of the cosine
    return 0.5 + (arctan(tangent) + tangent * square * (1 + 2 / 3 * square)) / np.pi


def _spreads(variances: dict, noise: dict, data: dict, seen: set[str]) -> None:
    """Likelihoods of the variance of log latencies between the requests of a run."""
    import pymc as pm
    import pytensor.tensor as pt

    for metric, name in SPREADS.items():
        if f"{metric}_spread_rows" not in seen:
            continue
        rows = data[f"{metric}_spread_rows"]
        # The variance of n logs has a relative error of sqrt(2 / (n - 1)).
        sampling = 2 / (data[f"worth_{metric}"] - 1)
        pm.Normal(
            name,
            mu=pt.log(variances[metric])[rows],
            sigma=((sampling + (2 * noise["spread_sd"]) ** 2) ** 0.5 + data["away"])[rows],
            observed=data[f"log_var_{metric}"][rows],
        )
