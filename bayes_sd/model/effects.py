"""How verifiers, drafters and servers differ from the size laws: pooled, apart, or not at all."""

from typing import Any

import numpy as np

from bayes_sd.model.design import Design
from bayes_sd.model.priors import COEFFICIENTS, DRAFT_COEFFICIENTS, Prior
from bayes_sd.physics.costs import Law

Priors = dict[str, Prior]
LEVELS = ("verifier", "drafter", "system")
EFFECT_DIMS = (
    ("coefficient", "verifier"),
    ("draft_coefficient", "drafter"),
    ("speed", "system"),
)
POOLINGS = ("partial", "none", "complete")
APART = 1.5  # log-sd of effects that share nothing: factors of 0.08 to 12
ONES = {f"f_{name}": 1.0 for name in COEFFICIENTS + DRAFT_COEFFICIENTS}
NO_VERIFIER = dict.fromkeys(("active", "shared", "expert", "layers", "kv_gb"), 0.0)
CENTRED_RUNS = 100  # runs a verifier from which centred effects sample better


def random(prior: Prior) -> Any:
    """One prior as a random variable of the model in context."""
    import pymc as pm

    dims = prior.dims or None
    if prior.kind == "lognormal":
        return pm.LogNormal(prior.name, np.log(prior.a), prior.b, dims=dims)
    return pm.Normal(prior.name, prior.a, prior.b, dims=dims)


def scales(pooling: str, by_name: Priors) -> list[Any]:
    """Log-sd of the effects of each level; vectors over the level's coefficients."""
    if pooling == "none":
        apart = [np.full(len(names), APART) for names in (COEFFICIENTS, DRAFT_COEFFICIENTS)]
        return [*apart, random(by_name["tau_system"])]
    return [random(by_name[f"tau_{level}"]) for level in LEVELS]


def factors(
    design: Design,
    theta: dict,
    verifiers: dict,
    drafters: Any,
    by_name: Priors,
    law: Law,
    pooling: str,
    centred: bool,
) -> tuple:
    """Factors (coefficient, level) of verifiers, drafters and systems around the size laws.

    Centred, the sampled value is the log of a level's own cost, which many runs pin down while
    overhead and slope stay loose; non-centred, it is the standardized effect, which suits few runs.
    """
    import pymc as pm
    import pytensor.tensor as pt

    model = pm.modelcontext(None)
    moe: Any = 0.0
    if design.verifiers["moe"].any():
        moe = random(by_name["moe"])[:, None] * verifiers["moe"][None, :]
    if pooling == "complete":
        shapes = [[len(model.coords[name]) for name in dims] for dims in EFFECT_DIMS]
        none = [pt.zeros(shape) for shape in shapes]
        return pt.exp(none[0] + moe), pt.exp(none[1]), pt.exp(none[2])
    taus = scales(pooling, by_name)
    if not centred:
        z = [
            pm.Normal(f"z_{name}", dims=dim) for name, dim in zip(LEVELS, EFFECT_DIMS, strict=True)
        ]
        logs = [tau[:, None] * x for tau, x in zip(taus, z, strict=True)]
        return pt.exp(logs[0] + moe), pt.exp(logs[1]), pt.exp(logs[2])
    verify, draft = typical_costs(design, theta, verifiers, drafters, law)
    speed = pm.Normal("log_speed", 0.0, taus[2][0], dims="system")
    # A level's own cost and the mean speed of its servers are known only as a product: sample that.
    means = [pt.dot(_server_means(design, name), speed)[None, :] for name in LEVELS[:2]]
    verifier = pm.Normal(
        "log_verifier", verify + moe + means[0], taus[0][:, None], dims=EFFECT_DIMS[0]
    )
    drafter = pm.Normal("log_drafter", draft + means[1], taus[1][:, None], dims=EFFECT_DIMS[1])
    servers = [speed]
    if len(model.coords["speed"]) > 1:
        servers.append(taus[2][1] * pm.Normal("z_capacity", dims="system"))
    return (
        pt.exp(verifier - verify - means[0]),
        pt.exp(drafter - draft - means[1]),
        pt.exp(pt.stack(servers)),
    )


def typical_costs(
    design: Design, theta: dict, verifiers: dict, drafters: Any, law: Law
) -> tuple[Any, Any]:
    """Logs of the size laws' costs at the runs' typical load: (coefficient, level) matrices."""
    import pytensor.tensor as pt

    load = {n: float(np.mean(design.data[n])) for n in ("k", "prompt_tokens", "output_tokens")}
    own = law.stages(theta | ONES, {**verifiers, "drafter": 0.0}, load)
    draft = law.stages(theta | ONES, {**NO_VERIFIER, "drafter": drafters}, load)
    whole = own.c1_verify + own.c1_experts
    return (
        pt.log(pt.stack([own.c1_prefill, own.c2_prefill, whole, own.c2_verify])),
        pt.log(pt.stack([draft.c1_draft, draft.c2_draft])),
    )


def _server_means(design: Design, level: str) -> np.ndarray:
    """Matrix (level, system) that averages over the servers a verifier or drafter ran on."""
    member = np.zeros((len(design.levels[level]), len(design.levels["system"])))
    used = design.data["drafted"] > 0 if level == "drafter" else np.full(len(design.runs), True)
    member[design.data[f"{level}_i"][used], design.data["system_i"][used]] = 1.0
    return member / np.maximum(member.sum(axis=1, keepdims=True), 1.0)
