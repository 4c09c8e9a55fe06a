"""Stand-ins for refits and models, in a module that worker processes can import."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

import bayes_sd as bsd
from bayes_sd.model.design import Design
from bayes_sd.runs.schema import Runs

CHAINS, DRAWS = 2, 200


class StandIn:
    """A refit or refitter without a model: run means are those observed, times `factor`."""

    def __init__(self, design: Design, factor: float = 1.0, sd: float = 0.02) -> None:
        self.design, self.table, self.factor, self.sd = design, design.table, factor, sd
        self.masks: list[np.ndarray] = []
        self.left_out = np.zeros(len(self.table), bool)
        summary = {"rhat_max": 1.0, "ess_bulk_min": 500.0, "ess_tail_min": 450.0, "divergences": 0}
        self.convergence = SimpleNamespace(summary=summary)
        noise = (("chain", "draw", "noise_term"), np.full((CHAINS, DRAWS, 1), 0.3))
        self.parameters = xr.Dataset({"noise": noise}, {"noise_term": ["spread_sd"]})

    def refit(self, left_out: np.ndarray | None = None, **how: Any) -> "StandIn":
        """Itself; what was left out is remembered."""
        if left_out is not None:
            self.masks.append(left_out)
        return self

    def of_runs(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Draws (draws, rows) of a quantity of runs."""
        shape = (CHAINS * DRAWS, len(rows))
        if not name.startswith("run_mean"):
            return np.full(shape, 0.02)
        error = self.sd * np.random.default_rng(3).standard_normal(shape)
        return self.factor * self.table["e2e_mean_s"].to_numpy()[rows] * np.exp(error)


@dataclass(frozen=True, repr=False)
class Instant(bsd.LatencyModel):
    """A model that needs no compiling; its process is killed as often as `folder` has files."""

    factor: float = 1.0
    folder: str = ""

    def refitter(self, runs: Runs) -> Any:
        """A stand-in for one."""
        for file in sorted(Path(self.folder).glob("*.kill")) if self.folder else ():
            file.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return StandIn(self.design(runs), self.factor)
