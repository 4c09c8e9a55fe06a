"""Coefficients, sizes and a workload to try the law with."""

from typing import Any

import numpy as np

from bayes_sd.model.priors import DRAFTER_COSTS, VERIFIER_COSTS
from bayes_sd.physics.law import FULL, Law, Outcome, outcome

TIMES = {  # every coefficient of the law that is a time
    "weights_per_pass": 0.02,
    "prefill_token_alone": 2e-4,
    "prefill_token_others": 1.5e-4,
    "host_prefill_alone": 4e-3,
    "host_prefill_others": 1e-3,
    "host_verify_alone": 2e-3,
    "host_verify_others": 8e-5,
    "overhead_prefill_alone": 3e-4,
    "overhead_prefill_others": 1.3e-4,
    "overhead_verify_alone": 1e-4,
    "overhead_verify_others": 6e-6,
    "overhead_draft_alone": 1e-3,
    "overhead_draft_others": 5e-5,
}
RATIOS = {
    "attention_tokens": 3000.0,
    "queue_cycles": 1.2,
    "prefills_ahead": 0.3,
    "decode_token_ratio": 2.0,
    "draft_token_ratio": 3.0,
    "context_tokens": 700.0,
}
VALUES = (1.1, 0.9, 1.2, 0.8, 1.3, 0.7)
FACTORS = {
    f"factor_{name}": value
    for name, value in zip((*VERIFIER_COSTS, *DRAFTER_COSTS), VALUES, strict=True)
} | {"factor_slowness": 1.05, "factor_crowding": 0.95}
TERMS = TIMES | RATIOS | FACTORS
REST = {"drafter": 0.5, "layers": 32.0, "kv_gb": 1.3e-4}
DENSE = {"active": 8.0, "shared": 8.0, "expert": 0.0, "idle": 0.5, "log_idle": np.log(0.5)}
MOE = {"active": 3.0, "shared": 1.0, "expert": 29.0, "idle": 0.9375, "log_idle": np.log(0.9375)}
SIZES = {"dense": DENSE | REST, "moe": MOE | REST}
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


def says(family: str, law: Law = FULL, softness: float = 0.0, **work: Any) -> Outcome:
    """What the law says; the drafter passes as often as it drafts unless told otherwise."""
    work = WORK | ({"draft_passes": work["k"]} if "k" in work else {}) | work
    stages = law.stages(TERMS, SIZES[family], work)
    return outcome(stages, TERMS["queue_cycles"], SIZES[family], work, softness, law=law)


def rate_at(family: str, share: float, law: Law = FULL, **work: Any) -> float:
    """The rate at which a server is used to this share of its capacity."""
    return float(share / says(family, law, **work).c2_s)
