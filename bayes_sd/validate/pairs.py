"""P(SD beats plain) on pairs of held-out runs: Brier score and reliability."""

from itertools import product

import numpy as np
import pandas as pd

from bayes_sd.inference.refit import Refit
from bayes_sd.validate.scores import drawn_means

BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


def pairs(refit: Refit, runs: pd.DataFrame, rows: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Every plain and SD run of one verifier and one pair of lengths, each at its own rate.

    Parameters
    ----------
    refit : Refit
        One that left `rows` out.
    runs : pandas.DataFrame
        All runs of the refit.
    rows : numpy.ndarray
        Positions of the runs to pair.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row a pair: ``verifier``, ``faster`` (SD was), ``prob_faster``, ``call`` (0 or 1, by the
        medians), and the mean latencies ``plain_s``, ``sd_s``.
    """
    drawn = drawn_means(refit, runs, rows, np.random.default_rng(seed))
    own = runs.iloc[rows].reset_index(drop=True)
    found = []
    for (verifier, *_), part in own.groupby(["verifier", "prompt_tokens", "output_tokens"]):
        plain, sd = part.index[part["arm"] == "plain"], part.index[part["draft_tokens"] > 0]
        for i, j in product(plain, sd):
            found.append(
                {
                    "verifier": verifier,
                    "plain_s": float(own["e2e_mean_s"][i]),
                    "sd_s": float(own["e2e_mean_s"][j]),
                    "faster": bool(own["e2e_mean_s"][j] < own["e2e_mean_s"][i]),
                    "prob_faster": float((drawn[:, j] < drawn[:, i]).mean()),
                    "call": float(np.median(drawn[:, j]) < np.median(drawn[:, i])),
                }
            )
    columns = ["verifier", "plain_s", "sd_s", "faster", "prob_faster", "call"]
    return pd.DataFrame(found, columns=columns)


def brier(table: pd.DataFrame) -> dict[str, float]:
    """Brier score of the probabilities and of the 0/1 call of the medians, and their regrets.

    The regret is the relative latency lost against the faster server of each pair, in the mean, by
    the choice that a probability above one half makes; beside it those of the lower point estimate
    (the medians), of always choosing SD, and of never.
    """
    faster = table["faster"].to_numpy(float)
    best = np.minimum(table["plain_s"], table["sd_s"])

    def regret(sd: np.ndarray) -> float:
        return float((np.where(sd, table["sd_s"], table["plain_s"]) / best - 1).mean())

    return {
        "pairs": len(table),
        "brier": float(((table["prob_faster"] - faster) ** 2).mean()),
        "brier_call": float(((table["call"] - faster) ** 2).mean()),
        "regret": regret((table["prob_faster"] > 0.5).to_numpy()),
        "regret_point": regret((table["call"] > 0.5).to_numpy()),
        "regret_always_sd": regret(np.ones(len(table), bool)),
        "regret_always_plain": regret(np.zeros(len(table), bool)),
    }


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """By ranges of the stated probability: pairs, its mean, the share in which SD was faster."""
    where = pd.cut(table["prob_faster"], BINS, include_lowest=True)
    parts = table.groupby(where, observed=True)
    return parts.agg(
        pairs=("faster", "size"), stated=("prob_faster", "mean"), observed=("faster", "mean")
    ).reset_index(names="range")
