"""What a check says: passed or not, the number and its bound, a sentence, and a table."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class CheckResult:
    """One check of a model or a fit.

    Parameters
    ----------
    name : str
        Short, words joined by ``_``.
    passed : bool
    value : float
        The number that decides.
    bound : str
        What it must satisfy, as ``"<= 0.08"`` or ``"0.85 .. 0.95"``.
    sentence : str
        What was found, in one sentence.
    table : pandas.DataFrame
        The figures behind it.
    """

    name: str
    passed: bool
    value: float
    bound: str
    sentence: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the table; a value that is not a number becomes None."""
        value = float(self.value) if np.isfinite(self.value) else None
        return {
            "name": self.name,
            "passed": bool(self.passed),
            "value": value,
            "bound": self.bound,
            "sentence": self.sentence,
        }
