"""Draft schedules for several prompt and output lengths, and how far one table does for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.schedule import Schedule, draw_schedules, schedule
from bayes_sd.answers.servers import Server
from bayes_sd.errors import InputError
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.load import Load
from bayes_sd.runs.table import LENGTHS

ALIKE = 0.02  # share of latency that a table may lose where another would be best


@dataclass(frozen=True, eq=False, repr=False)
class Contexts(answer.Answer):
    """A schedule for every pair of lengths, as :func:`bayes_sd.Fit.contexts` returns.

    Parameters
    ----------
    schedules : dict
        From (prompt, output) tokens to its :class:`Schedule`.
    loses : pandas.DataFrame
        A row a table, a column the lengths it is followed at: the largest share of expected latency
        (or of the loss asked for) that it loses at any batch size to the table of those lengths.
    """

    schedules: dict[tuple[float, float], Schedule]
    loses: pd.DataFrame

    @property
    def draws(self) -> xr.Dataset:  # type: ignore[override]
        """Latency under each schedule, as in :class:`Latency`, by ``lengths``."""
        each = [s.draws.drop_vars(LENGTHS, errors="ignore") for s in self.schedules.values()]
        return xr.concat(each, pd.Index(list(self.loses), name="lengths"), join="override")

    @property
    def table(self) -> pd.DataFrame:
        """The rows of every schedule below its lengths."""
        rows = {at: schedule.rows for at, schedule in self.schedules.items()}
        return pd.concat(rows, names=[*LENGTHS, None]).reset_index(LENGTHS).reset_index(drop=True)

    @property
    def one_for_all(self) -> str:
        """Lengths, as in `loses`, whose table loses least where it is worst."""
        return str(self.loses.max(axis=1).idxmin())

    def __str__(self) -> str:
        best = self.one_for_all
        lost: Any = self.loses.loc[best].drop(best)
        far, said = lost[lost > ALIKE], f"The table of {best} tokens"
        if far.empty:
            most = max([0.0, *lost])
            return f"{said} does for all lengths asked about: at most {most:.1%} slower."
        places = ", ".join(f"{at} ({x:.1%} slower)" for at, x in far.items())
        return f"{said} stops being right at {places}; those need tables of their own."

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """Draft length against requests in flight, a line a pair of lengths."""
        names = (f"{name} tokens" for name in self.loses)
        return draw_schedules(ax, dict(zip(names, self.schedules.values(), strict=True)))


def contexts(
    fit: Posterior, load: Load, server: Server, *, k: Sequence[int], **how: Any
) -> Contexts:
    """A schedule for every pair of prompt and output lengths of a load.

    Parameters
    ----------
    load : Load
        Rates or concurrencies and lengths, one or more of each.
    server, k
        As of :func:`bayes_sd.Fit.schedule`, which also says what it raises.
    **how
        Its other arguments; all tables then reach as far.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> load = bsd.Load(concurrency=[1, 8], prompt=[512, 8192], output=256)
    >>> eagle = bsd.Server("Qwen3-32B", "eagle3", 3, 0.7, bsd.Machine("H100", gpus=2))
    >>> answer = bsd.reference().contexts(load, eagle, k=[0, 1, 3, 5], max_batch=16)
    >>> list(answer.loses)
    ['512 + 256', '8192 + 256']
    """
    if load.is_traffic:
        raise InputError("Schedules by length are for lists of lengths, not for traffic over time.")
    axis, cells = load.axis.removeprefix("rate_"), load.cells
    values, prompts, outputs = (np.atleast_1d(cells[n]).tolist() for n in (load.axis, *LENGTHS))
    made = {
        (p, o): schedule(fit, Load(**{axis: values}, prompt=p, output=o), server, k=k, **how)
        for p in prompts
        for o in outputs
    }
    chosen = [
        np.repeat(one.rows["k"].map(one.candidates.index), one.rows["hi"] - one.rows["lo"] + 1)
        for one in made.values()
    ]
    top, names = min(map(len, chosen)), [f"{p:g} + {o:g}" for p, o in made]
    tables = np.stack([ks[:top] for ks in chosen])
    lost = [there.losses[tables, np.arange(top)] for there in made.values()]
    loses = [(each / each[at] - 1).max(axis=1) for at, each in enumerate(lost)]
    return Contexts(made, pd.DataFrame(np.transpose(loses), names, names))
