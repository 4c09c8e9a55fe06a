"""Acceptance of draft tokens: its own likelihood, solved exactly, and positions nobody measured."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from bayes_sd.errors import InputError
from bayes_sd.model.design import NONE, PAIR, observed_acceptance
from bayes_sd.runs.drafting import usual_acceptance

PRIOR_TRIALS = 10.0  # weight, in tokens, of a pair's mean rate on the rate of one position
STEP_SD = 0.3  # of the logit of acceptance from one position to the next, before any is measured


def check_seed(seed: int) -> None:
    """Refuse a seed that is no whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed = {seed!r}: must be a whole number of at least 0.")


def generator(seed: int, label: str) -> np.random.Generator:
    """Random numbers of one named thing, so that all answers about it share them."""
    check_seed(seed)
    return np.random.default_rng([seed, zlib.crc32(label.encode("utf-8", "replace"))])


def same_key(table: Any, columns: Sequence[str], key: Mapping[str, Any]) -> np.ndarray:
    """Rows of a table or dataset that equal a key; a missing value equals a missing one."""
    equal = []
    for name in columns:
        values, value = np.asarray(table[name]), key[name]
        equal.append(pd.isna(values) if pd.isna(value) else values == value)
    return np.all(equal, axis=0)


def normal_quantiles(draws: int) -> np.ndarray:
    """Of a standard normal, of so many equal shares."""
    return scipy.special.ndtri((np.arange(draws) + 0.5) / draws)


def new_one(seed: int, label: str, draws: int, effects: int) -> np.ndarray:
    """Standard normals (draws, effects) of one named new thing, which the report's page can repeat.

    They are `normal_quantiles`, for each effect in an order of its own.
    """
    check_seed(seed)
    columns = []
    for effect in range(effects):
        start = zlib.crc32(f"{seed} {effect} {label}".encode("utf-8", "replace"))
        key = np.arange(draws, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(start)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's last
            key = (key ^ (key >> np.uint32(shift))) * np.uint32(factor)
        columns.append(normal_quantiles(draws)[np.argsort(key)])
    return np.stack(columns, axis=-1)


def acceptance_draws(table: pd.DataFrame, shape: tuple[int, int], seed: int) -> xr.Dataset:
    """Posterior draws of every pair's acceptance by position; NaN where nobody measured it.

    ``accepted_j ~ Binomial(accepted_{j-1}, p_j)`` with ``accepted_0`` the number of cycles, so that
    a Beta prior, that of its drafter's kind, gives a Beta posterior. A pair without counts has its
    imposed rate, or one of that prior, equal at all positions.
    """
    drafted = table[(table["drafter"] != NONE) & (table["draft_tokens"] > 0)]
    groups = list(drafted.groupby(PAIR, dropna=False, sort=True))
    last = int(drafted["draft_tokens"].max()) if len(drafted) else 1
    by_position = np.full((*shape, len(groups), last), np.nan)
    positions = np.zeros(len(groups), int)
    for i, (_, rows) in enumerate(groups):
        rng = np.random.default_rng([seed, i])
        counted = rows[(rows["drafts"] > 0) & rows["accepted_tokens"].notna()]
        imposed = rows["acceptance_imposed"].iloc[0]
        a, b = usual_acceptance(*rows.iloc[0][["drafter", "drafter_method", "drafter_params"]])
        if counted.empty:
            drawn = rng.beta(a, b, (*shape, 1)) if np.isnan(imposed) else imposed
            by_position[..., i, :] = drawn
            continue
        tried, won = _trials(counted, last)
        positions[i] = int((tried > 0).sum())
        lost = np.maximum(tried - won, 0)
        mean = (a + won.sum()) / (a + b + won.sum() + lost.sum())
        for j in range(positions[i]):
            a, b = PRIOR_TRIALS * mean + won[j], PRIOR_TRIALS * (1 - mean) + lost[j]
            by_position[..., i, j] = rng.beta(a, b, shape)
    keys = pd.DataFrame([key for key, _ in groups], columns=PAIR)
    variables = {
        "by_position": (("chain", "draw", "pair", "position"), by_position),
        "positions": ("pair", positions),
        "acceptance_imposed": ("pair", keys["acceptance_imposed"].to_numpy(float)),
        **{n: ("pair", keys[n].to_numpy(object)) for n in PAIR if n != "acceptance_imposed"},
    }
    return xr.Dataset(variables, coords={"position": np.arange(1, last + 1)})


def _trials(counted: pd.DataFrame, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Drafted tokens that were tried and accepted at each position, over runs."""
    # Counts without positions stand for those that one rate, equal at all, would have given.
    rates, k = observed_acceptance(counted), counted["draft_tokens"].to_numpy()
    reached, tried, won = counted["drafts"].to_numpy(float), np.zeros(last), np.zeros(last)
    for j, rate in enumerate(rates):
        here = np.where(k > j, reached, 0.0)
        reached = here * rate
        tried[j], won[j] = here.sum(), reached.sum()
    return tried, won


def at_positions(group: xr.Dataset, pair: Mapping, k: int, seed: int) -> tuple[list, int] | None:
    """Draws (draws, 1) of a pair's acceptance at `k` positions, and at how many it was counted.

    None where nothing is known of it.
    """
    found = np.flatnonzero(same_key(group, PAIR, pair))
    if not found.size:
        return None
    rates = group["by_position"].values[:, :, found[0], :].reshape(-1, group.sizes["position"])
    measured = int(group["positions"].values[found[0]])
    if not measured:  # imposed, or of the prior
        return [rates[:, :1]] * k, 0
    known = [rates[:, j, None] for j in range(min(k, measured))]
    # Positions beyond go on from the last one, with the mean step between the measured ones (in
    # the logit, never upwards) and its uncertainty, which grows with distance.
    clipped = np.clip(rates[:, :measured], 1e-6, 1 - 1e-6)
    logits = np.log(clipped) - np.log1p(-clipped)
    steps = np.diff(logits.mean(axis=0))
    mean = min(steps.sum() / (len(steps) + 1), 0.0)
    sd = np.sqrt((((steps - mean) ** 2).sum() + STEP_SD**2) / (len(steps) + 1))
    trend = mean + sd * generator(seed, f"acceptance {dict(pair)}").standard_normal(len(rates))
    further = [logits[:, -1] + step * trend for step in range(1, k - measured + 1)]
    return known + [(1 / (1 + np.exp(-beyond)))[:, None] for beyond in further], measured
