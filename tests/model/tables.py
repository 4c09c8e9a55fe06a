"""Small tables of runs, as a user would have them."""

from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

PLAIN = {
    "verifier": "m",
    "verifier_params": 8e9,
    "draft_tokens": 0,
    "rate_rps": [0.5, 1.0, 1.5],
    "prompt_tokens": 512,
    "output_tokens": 128,
    "requests": 100,
    "e2e_mean_s": [1.0, 1.2, 1.5],
    "e2e_std_s": 0.2,
    "environment": "gpu",
}
DRAFTING = PLAIN | {"drafter": "d", "drafter_params": 4e8, "draft_tokens": 3}


def table(kind: dict[str, Any] = PLAIN, **columns: Any) -> Runs:
    """Runs of a table like `kind` with some columns changed; None leaves one out."""
    rows = {name: value for name, value in (kind | columns).items() if value is not None}
    length = max(np.size(value) for value in rows.values())
    return read(pd.DataFrame(rows, index=range(length)))


def closed(kind: dict[str, Any] = PLAIN, **columns: Any) -> Runs:
    """Runs at 1, 8 and 32 requests in flight."""
    return table(
        kind, **({"rate_rps": None, "loop": "closed", "concurrency": [1, 8, 32]} | columns)
    )
