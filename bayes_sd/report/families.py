"""Dense models and mixtures of experts: posterior contrasts in milliseconds."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError
from bayes_sd.model.effects import ONES
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.report.tables import EFFECT_NAMES

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit


def compare_families(fit: "Fit", prob: float) -> pd.DataFrame:
    """See :meth:`bayes_sd.Fit.compare_families`."""
    known = fit.tree["verifiers"].to_dataset()
    moe = known["moe"].values > 0
    if moe.all() or not moe.any():
        raise EvidenceError(
            f"All {len(moe)} verifiers are {'mixtures of experts' if moe.all() else 'dense'}; "
            "a comparison of families needs both."
        )
    posterior = fit.posterior
    theta: dict[str, Any] = {
        str(n): posterior["law"].sel(law_term=n, drop=True) for n in posterior["law_term"].values
    }
    sizes = {str(n): float(v.values[moe].mean()) for n, v in known.data_vars.items()}
    load = {
        n: float(fit.runs[column].mean())
        for n, column in (
            ("k", "draft_tokens"),
            ("prompt_tokens", "prompt_tokens"),
            ("output_tokens", "output_tokens"),
        )
    }
    stages = fit.law.stages(theta | ONES, sizes | {"drafter": 0.0}, load)
    costs = {
        "1p": stages.c1_prefill,
        "2p": stages.c2_prefill,
        "1v": stages.c1_verify + stages.c1_experts,
        "2v": stages.c2_verify,
    }
    tail, rows = (1 - prob) / 2, []
    for name, dense in costs.items():
        log_ratio = posterior["moe"].sel(coefficient=name, drop=True)
        ratio: Any = np.exp(log_ratio)
        more = 1e3 * dense * (ratio - 1)
        low, middle, high = more.quantile([tail, 0.5, 1 - tail], SAMPLE).values
        rows.append(
            {
                "cost": EFFECT_NAMES[name],
                "dense_ms": float(1e3 * dense.median()),
                "moe_ms": float(1e3 * (dense * ratio).median()),
                "difference_ms": float(middle),
                "low_ms": float(low),
                "high_ms": float(high),
                "ratio": float(ratio.median()),
                "prob_slower": float((ratio > 1).mean()),
            }
        )
    return pd.DataFrame(rows)
