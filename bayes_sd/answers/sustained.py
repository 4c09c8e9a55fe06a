"""What one server sustains of a load: the multiple of it that just meets a latency target."""

import math
from typing import Any

import numpy as np

from bayes_sd.answers.answer import farthest
from bayes_sd.answers.latency import Arm
from bayes_sd.physics.law import Outcome
from bayes_sd.physics.noise import request_quantile_s, share_within
from bayes_sd.physics.queue import find_roots
from bayes_sd.runs.load import Load

HALVINGS = 20  # of a latency, in its range over windows
NEAR_POLE = 34.0  # -log of the headroom left at the last rate looked at: that of a float
WIDEST = 1e6  # times the concurrency asked about, the largest that is looked at


class Windows:
    """One server at the windows of a load, each counting by its requests."""

    def __init__(self, arm: Arm, load: Load) -> None:
        self.arm, self.axis = arm, load.axis
        self.shares = load.shares if load.is_traffic else np.ones(1)
        self.values = arm.cells[load.axis]

    def at(self, scale: np.ndarray) -> tuple[Outcome, np.ndarray]:
        """The law at `scale` (draws, 1) times the load, and the variance of log latency."""
        values = self.values * scale
        if self.axis == "concurrency":
            values = np.maximum(values, 1.0)
        said, inputs = self.arm.outcome(values)
        return said, self.arm.scatter(said, inputs)[1]

    def within(self, said: Outcome, variance: np.ndarray, seconds: Any) -> np.ndarray:
        """Share of all requests served within so many seconds; none of a saturated window."""
        return np.asarray((share_within(seconds, said.e2e_s, variance) * self.shares).sum(axis=1))

    def sustained(self, slo_s: float, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The multiple at which the target is met exactly, whether it is at rest, latency there."""
        draws = self.arm.posterior.draws
        at_rest = self.at(np.zeros((draws, 1)))
        possible = self.within(*at_rest, slo_s) >= share
        top = self._top(at_rest[0], share)

        # Latency is about C1 / (1 - u) at u = scale / top, so that what is missed falls about in a
        # straight line with -log(1 - u).
        def scale_of(depth: np.ndarray) -> np.ndarray:
            if self.axis == "concurrency":
                return np.expm1(depth) / np.min(self.values)
            return -np.expm1(-depth) * top

        def missed(depth: np.ndarray, index: np.ndarray) -> np.ndarray:
            full = np.zeros(draws)
            full[rows[index]] = depth
            return (self.within(*self.at(scale_of(full)[:, None]), slo_s) - share)[rows[index]]

        rows, scale = np.flatnonzero(possible), np.zeros(draws)
        if rows.size:
            deepest = math.log1p(WIDEST) if self.axis == "concurrency" else NEAR_POLE
            depth = np.zeros(draws)
            depth[rows] = find_roots(missed, np.zeros(rows.size), np.full(rows.size, deepest))
            scale = np.where(possible, scale_of(np.nan_to_num(depth, nan=deepest)), 0.0)
        return scale, possible, self._quantile_s(*at_rest, share)

    def _top(self, at_rest: Outcome, share: float) -> np.ndarray:
        """The multiple at which windows with more requests saturate than may miss the target."""
        if self.axis == "concurrency":
            return np.ones(len(at_rest.e2e_s))
        c2 = np.broadcast_to(at_rest.c2_s, at_rest.e2e_s.shape)
        poles = 1 / (c2 * np.maximum(self.values, 1e-300))
        order = np.argsort(poles, axis=-1)
        saturated = np.cumsum(self.shares[order], axis=-1)
        first = (saturated > 1 - share + 1e-12).argmax(axis=-1)[:, None]
        return np.take_along_axis(np.take_along_axis(poles, order, -1), first, -1)[:, 0]

    def _quantile_s(self, said: Outcome, variance: np.ndarray, share: float) -> np.ndarray:
        """Percentile of latency over the requests of all windows."""
        tail = request_quantile_s(said.e2e_s, variance, share)
        low, high = tail.min(axis=1), tail.max(axis=1)
        for _ in range(HALVINGS if tail.shape[1] > 1 else 0):
            middle = (low * high) ** 0.5
            enough = self.within(said, variance, middle[:, None]) >= share
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return high

    def with_replicas(
        self, count: float, slo_s: float, share: float
    ) -> tuple[dict[str, float], np.ndarray]:
        """What so many replicas do, and draws of their mean latency (s)."""
        draws = self.arm.posterior.draws
        names = ("prob_kept", "mean_s", "mean_p05_s", "mean_p95_s", "prob_saturated")
        if math.isnan(count):
            return {"replicas": count} | dict.fromkeys(names, count), np.full(draws, np.nan)
        said, variance = self.at(np.full((draws, 1), 1 / count))
        mean = (said.e2e_s * self.shares).sum(axis=1)
        low, middle, high = np.quantile(mean, [0.05, 0.5, 0.95], method="inverted_cdf")
        kept = float((self.within(said, variance, slo_s) >= share).mean())
        saturated = float((said.utilization >= 1).any(axis=1).mean())
        values = (kept, float(middle), float(low), float(high), saturated)
        return {"replicas": count} | dict(zip(names, values, strict=True)), mean

    def label(self, count: float) -> str:
        """Support of the window farthest from the data, with the load split among replicas."""
        scale = 0.0 if math.isnan(count) else 1 / count
        values = self.values * scale
        if self.axis == "concurrency":
            values = np.maximum(values, 1.0)
        arm = Arm(self.arm.posterior, self.arm.resolved, {**self.arm.cells, self.axis: values})
        return farthest(arm.support(arm.outcome()[0]).ravel())
