"""Coefficients, sizes and a workload to try the law with."""

from typing import Any

import numpy as np

from bayes_sd.model.priors import DRAFTER_COSTS, VERIFIER_COSTS
from bayes_sd.physics.law import FULL, Law, Outcome, outcome

TIMES = {  # every coefficient of the law that a time is proportional to
    "read_weights": 1.3,
    "read_keys": 1.6,
    "prefill_token": 1.5,
    "host_prefill_alone": 4e-3,
    "host_prefill_others": 1e-3,
    "host_verify_alone": 2e-3,
    "host_verify_others": 8e-5,
    "overhead_prefill_alone": 3e-4,
    "overhead_prefill_others": 1.3e-4,
    "overhead_verify_alone": 1e-4,
    "overhead_pass": 9e-4,
    "overhead_experts": 5e-5,
    "overhead_parallel": 4e-5,
    "overhead_token": 2e-6,
    "overhead_draft_alone": 1e-3,
    "overhead_draft_others": 5e-5,
    "pace_dense": 2e-3,
    "pace_experts": 3e-3,
}
RATIOS = {
    "attention_tokens": 3000.0,
    "queue_cycles": 1.2,
    "prefills_ahead": 0.3,
    "decode_token_ratio": 0.8,
    "uneven_experts": 0.9,
}
VALUES = (1.1, 0.9, 1.2, 0.8, 1.3)
FACTORS = {
    f"factor_{name}": value
    for name, value in zip((*VERIFIER_COSTS, *DRAFTER_COSTS), VALUES, strict=True)
} | {"factor_slowness": 1.05, "factor_crowding": 0.95}
TERMS = TIMES | RATIOS | FACTORS
MACHINE = {"gb_per_s": 1000.0, "tflops": 25.0, "dies": 2.0, "captured": np.inf}
MACHINE |= {"bytes": 2.0, "drafter_bytes": 2.0}
REST = {
    "drafter": 0.5,
    "drafter_layers": 1.0,
    "layers": 32.0,
    "kv_gb": 1.3e-4,
    "queries": 8.0,
} | MACHINE
DENSE = {"moe": 0.0, "active": 8.0, "shared": 8.0, "expert": 0.0, "idle": 0.5}
MOE = {"moe": 1.0, "active": 3.0, "shared": 1.0, "expert": 29.0, "idle": 0.9375}
SIZES: dict[str, dict[str, float]] = {
    family: size | REST | {"log_idle": float(np.log(size["idle"]))}
    for family, size in (("dense", DENSE), ("moe", MOE))
}
WORK: dict[str, Any] = {
    "k": 3,
    "draft_passes": 3,
    "prompt_tokens": 512.0,
    "output_tokens": 128.0,
    "cycles": 51.0,
    "closed": 0.0,
    "rate_rps": 0.0,
    "others": 0.0,
}


def says(
    family: str,
    law: Law = FULL,
    softness: float = 0.0,
    sizes: dict[str, Any] | None = None,
    terms: dict[str, Any] | None = None,
    **work: Any,
) -> Outcome:
    """What the law says, some sizes and terms changed; the drafter passes as often as it drafts."""
    work = WORK | ({"draft_passes": work["k"]} if "k" in work else {}) | work
    size, coefficients = SIZES[family] | (sizes or {}), TERMS | (terms or {})
    stages = law.stages(coefficients, size, work)
    return outcome(stages, size, work, softness, law=law)


def rate_at(family: str, share: float, law: Law = FULL, **changes: Any) -> float:
    """The rate at which a server is used to this share of its capacity."""
    return float(share / says(family, law, **changes).c2_s)
