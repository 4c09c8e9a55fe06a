"""Acceptance of draft tokens: its own likelihood, solved exactly.

Accepted counts by position are a chain of binomials, ``accepted_j ~ Binomial(accepted_{j-1}, p_j)``
with ``accepted_0`` the number of cycles, so a Beta prior gives a Beta posterior: no sampler needed.
Latency says almost nothing more about acceptance than thousands of counted tokens do.
"""

import numpy as np
import pandas as pd
import xarray as xr

PRIOR_TRIALS = 10.0  # weight, in tokens, of a pair's pooled rate on the rate of one position


def acceptance_draws(runs: pd.DataFrame, chains: int, draws: int, seed: int) -> xr.Dataset:
    """Posterior draws of acceptance for every verifier-drafter pair.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns ``pair``, ``drafts``, ``accepted_j``, ``acceptance_imposed``.
    chains, draws : int
        Shape of the result.
    seed : int

    Returns
    -------
    xarray.Dataset
        ``pooled`` (chain, draw, pair) and ``by_position`` (chain, draw, pair, position): chance
        that a draft token is accepted given that those before it were. A position nobody measured
        has the pooled rate; a pair without counts has its imposed value, or NaN without one.
    """
    drafted = runs[runs["drafter"] != "none"]
    pairs = sorted(drafted["pair"].unique())
    columns = [c for c in runs.columns if c.startswith("accepted_") and c[9:].isdigit()]
    columns = sorted(columns, key=lambda c: int(c[9:]))
    shape = (chains, draws)
    pooled = np.full((*shape, len(pairs)), np.nan)
    by_position = np.full((*shape, len(pairs), max(len(columns), 1)), np.nan)
    for i, pair in enumerate(pairs):
        rows = drafted[drafted["pair"] == pair]
        counted = rows[rows["drafts"].notna() & (rows["draft_tokens"] > 0)]
        rng = np.random.default_rng([seed, i])
        if counted.empty:
            imposed = rows["acceptance_imposed"].to_numpy(float)
            pooled[..., i] = imposed[0] if len(imposed) else np.nan
            by_position[..., i, :] = pooled[..., i, None]
            continue
        counts = counted[["drafts", *columns]].to_numpy(float)
        won = np.nansum(counts[:, 1:], axis=0)
        tried = np.nansum(np.where(np.isnan(counts[:, 1:]), np.nan, counts[:, :-1]), axis=0)
        lost = np.maximum(tried - won, 0)
        pooled[..., i] = rng.beta(1 + won.sum(), 1 + lost.sum(), shape)
        mean = (1 + won.sum()) / (2 + won.sum() + lost.sum())
        for j in range(len(columns)):
            by_position[..., i, j] = (
                rng.beta(PRIOR_TRIALS * mean + won[j], PRIOR_TRIALS * (1 - mean) + lost[j], shape)
                if tried[j] > 0
                else pooled[..., i]
            )
    return xr.Dataset(
        {
            "pooled": (("chain", "draw", "pair"), pooled),
            "by_position": (("chain", "draw", "pair", "position"), by_position),
        },
        coords={"pair": pairs, "position": np.arange(1, by_position.shape[-1] + 1)},
    )
