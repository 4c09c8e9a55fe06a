"""What the law knows of the machine that a question is about."""

from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError
from bayes_sd.model.design import MACHINE, WEIGHT_BITS, machine
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.machine import Machine, captured
from bayes_sd.runs.sizes import Size


def of_verifier(table: pd.DataFrame, verifier: str | Size) -> pd.DataFrame:
    """Rows of a measured verifier; all rows for a new one."""
    return table[table["verifier"] == verifier] if isinstance(verifier, str) else table


def machine_facts(
    fit: Posterior, environment: str | Machine, verifier: str | Size, k: int
) -> dict[str, float]:
    """What the law knows of an environment's machine, for passes that draft `k` tokens."""
    there = fit.servers[fit.servers["environment"] == str(environment)]
    own = of_verifier(there, verifier)
    if isinstance(verifier, Size):
        bits = verifier.weight_bits or np.nan
    else:  # as it ran here, or else elsewhere
        ran = own if len(own) else of_verifier(fit.servers, verifier)
        bits = float(ran["weight_bits"].iloc[0]) if len(ran) else np.nan
    if isinstance(environment, Machine):
        return _sheet(fit, environment, bits, k)
    facts: dict[Any, Any] = there[list(MACHINE)].iloc[0].to_dict() | {"weight_bits": bits}
    most, same = own["captured_tokens"].max(), own[own["draft_tokens"] == k]
    known = len(same) or not 0 < most < np.inf
    facts["captured_tokens"] = same["captured_tokens"].max() if len(same) else most
    facts["captured_tokens"] = facts["captured_tokens"] if known else captured(k, int(most))
    return {name: float(value) for name, value in machine(**facts).items()}


def _sheet(fit: Posterior, new: Machine, bits: float, k: int) -> dict[str, float]:
    """What the law knows of a machine that nobody measured."""
    if fit.servers["gb_per_s"].isna().all():
        raise EvidenceError(
            f"{new} cannot be answered by its data sheet: that of the fitted machine is unknown; "
            "fit its runs with <<machine>>, or with gb_per_s and tflops."
        )
    tflops = new.tflops_at(WEIGHT_BITS if np.isnan(bits) else bits)
    if tflops is None:
        how = f"name={new.name},tflops=..."
        raise EvidenceError(f"The arithmetic of {new} is unknown; give its tflops ({how}).")
    facts = machine(new.gb_per_s, tflops, new.dies, captured(k), bits)
    return {name: float(value) for name, value in facts.items()}
