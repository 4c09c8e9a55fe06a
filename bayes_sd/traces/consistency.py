"""Runs that are given twice or contradict the others."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

VERIFIER_FIELDS = (
    "verifier_params",
    "verifier_active_params",
    "family",
    "experts",
    "experts_per_token",
)


def consistent(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Keep the first of equal runs and the majority where a model has two shapes.

    Returns
    -------
    runs : pandas.DataFrame
    set_aside : list of dict
        Keys source, row, reason.
    """
    reasons = dict(_duplicates(runs))
    left = runs.drop(index=list(reasons))
    reasons |= _minorities(left, "verifier", VERIFIER_FIELDS)
    left = runs.drop(index=list(reasons))
    drafters = left[left.drafter_params.notna()]
    reasons |= _minorities(drafters, "drafter", ("drafter_params",))
    left = runs.drop(index=list(reasons)).reset_index(drop=True)
    aside = [
        {"source": runs.at[i, "source"], "row": runs.at[i, "row"], "reason": reason}
        for i, reason in sorted(reasons.items())
    ]
    return left, aside


def _duplicates(runs: pd.DataFrame) -> Iterator[tuple[Any, str]]:
    first: dict[str, str] = {}
    columns = (runs.index, runs.run_id, runs.source, runs.row)
    for i, run_id, source, row in zip(*columns, strict=True):
        if run_id in first:
            reason = f"its measurements are those of {first[run_id]} again; a run counts once"
            yield i, reason
        else:
            first[run_id] = source if row < 0 else f"{source} row {row}"


def _minorities(runs: pd.DataFrame, what: str, fields: tuple[str, ...]) -> dict[Any, str]:
    reasons: dict[Any, str] = {}
    for (_, name), group in runs.groupby(["environment", what], sort=False):
        shapes = [tuple(values) for values in group[list(fields)].itertuples(index=False)]
        # max returns the first of equals, so a tie goes to the run that was read first.
        majority = max(dict.fromkeys(shapes), key=shapes.count)
        for i, shape in zip(group.index, shapes, strict=True):
            if shape == majority:
                continue
            field, here, there = next(
                (f, a, b) for f, a, b in zip(fields, shape, majority, strict=True) if a != b
            )
            reasons[i] = (
                f"{field} of {name!r} is {_text(here)} here but {_text(there)} in "
                f"{shapes.count(majority)} other runs of this environment; "
                "correct it or give the models different names"
            )
    return reasons


def _text(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
