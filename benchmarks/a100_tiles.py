"""The staircase in the public A100 sweeps: arithmetic in tiles of 128 tokens, by least squares.

    uv run benchmarks/a100_tiles.py [--tile 128]        # about a minute

Prints the in-sample error of each verifier under two laws of seven stage costs: one in which every
token of a pass is paid for, and one with arithmetic in tiles, of which the first hides behind
reading the weights. It says what tiles explain, not what they predict. Skipped where the table is
absent.
"""

import argparse

import a100_data
import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.costs import Stages, Totals, combine
from bayes_sd.physics.law import SOFTNESS, Law, latency_beside
from bayes_sd.physics.queue import headroom, in_flight_at_rate

START_S = {
    "prefill_alone": 0.05,
    "prefill_others": 0.01,
    "verify_alone": 0.008,
    "sequence": 1e-4,
    "token": 3e-5,
    "draft_alone": 1e-3,
    "draft_others": 5e-5,
}
DENSE = {"expert": 0.0, "idle": 0.5, "log_idle": float(np.log(0.5))}
STARTS = 3


def totals_of(cost_s: dict[str, float], k: np.ndarray, passes: np.ndarray, tile: float) -> Totals:
    """Latency coefficients of each row."""
    token = cost_s["token"]
    stages = Stages(
        prefill_alone=cost_s["prefill_alone"],
        prefill_others=cost_s["prefill_others"],
        verify_alone=cost_s["verify_alone"] + k * token,
        verify_others=cost_s["sequence"] + (k + 1) * token,
        draft_alone=cost_s["draft_alone"],
        draft_others=cost_s["draft_others"],
        tile_token=token if tile > 1 else 0.0,
    )
    return combine(stages, k, passes)


def latency(cost_s: dict[str, float], rows: pd.DataFrame, tile: float) -> np.ndarray:
    """Mean latency of each row, s."""
    k = rows["k"].to_numpy(float)
    acceptance = [rows["alpha"].to_numpy(float)] * int(k.max())
    passes = cycles(rows["output_token_count_mean"].to_numpy(float), acceptance, k)
    totals = totals_of(cost_s, k, passes, tile)
    rate = np.where(rows["loop"] == "closed", 0.0, rows["requests_per_second_mean"])
    room = headroom(rate * totals.c2, SOFTNESS)
    others = in_flight_at_rate(totals, DENSE, rate, room, k, tile)
    return latency_beside(totals, DENSE, others, k, Law(tile_tokens=tile))


def error(rows: pd.DataFrame, tile: float) -> float:
    """Mean absolute relative error of the best of several fits."""
    observed = rows["request_latency_mean"].to_numpy(float)

    def relative(log_cost: np.ndarray) -> np.ndarray:
        cost = dict(zip(START_S, np.exp(log_cost), strict=True))
        return latency(cost, rows, tile) / observed - 1

    rng, start = np.random.default_rng(0), np.log(list(START_S.values()))
    solutions = [
        least_squares(
            relative,
            start + (i > 0) * rng.normal(0, 0.5, len(start)),
            bounds=(start - 9, start + 5),
            loss="soft_l1",
            f_scale=0.05,
            max_nfev=150,
        )
        for i in range(STARTS)
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    return float(np.abs(relative(best.x)).mean())


def main() -> None:
    """Print the in-sample errors of both laws, a row a verifier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=float, default=128.0)
    tile = parser.parse_args().tile
    if not a100_data.path().is_file():
        print(f"skipped: {a100_data.path()} is absent (set BAYES_SD_A100)")
        return
    for verifier, rows in a100_data.table().groupby("verifier"):
        print(f"{verifier}: {error(rows, 1.0):.2%} by tokens, {error(rows, tile):.2%} by tiles")


if __name__ == "__main__":
    main()
