"""Servers against another: probability and speedup, load by load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.latency import OF, arm_of, latency
from bayes_sd.answers.servers import Server, listed, shared_name
from bayes_sd.errors import one_of
from bayes_sd.model.design import NONE
from bayes_sd.model.posterior import Posterior
from bayes_sd.runs.load import Load
from bayes_sd.runs.table import LENGTHS

RATES = 12  # asked about where none are given
RATES_TOP = 0.95  # of the baseline's median capacity: the last rate at which it has an answer


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(answer.Answer):
    """How servers compare with a baseline over loads.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, server, load): ``speedup``, baseline over server latency (infinite where
        only the baseline is saturated, 0 where only the server is, NaN where both are);
        ``faster``, ``both_saturated``; ``best``, whether no other server nor the baseline is
        faster, ties shared; ``support`` (server, load), the farther one's of server and baseline.
    servers, baseline, of, requests
        As asked: what is compared is the "mean", a "run" of so many requests, or a "request".
    least_loss : xarray.DataArray
        By load, the name of the server or baseline whose latency is expected to be least above the
        best one's, as a ratio (counted up to `WORST`); "all saturated" where that is likelier.
    """

    draws: xr.Dataset
    servers: tuple[Server, ...]
    baseline: Server
    of: str
    requests: int
    least_loss: xr.DataArray

    @property
    def table(self) -> pd.DataFrame:
        """A row a server and load: ``prob_faster``, ``prob_slower`` and ``prob_both_saturated``,
        which sum to 1; of several servers ``prob_best``, of which the baseline and saturation of
        all have the rest; median and 90% interval of the speedup; support."""
        faster, both = self.draws["faster"], self.draws["both_saturated"]
        parts = {"prob_faster": faster, "prob_slower": ~(faster | both)}
        parts |= {"prob_both_saturated": both}
        parts |= {"prob_best": self.draws["best"]} if len(self.servers) > 1 else {}
        means = xr.Dataset(parts).mean(answer.SAMPLE)
        speedup = self.draws["speedup"].fillna(1.0)
        q = xr.Dataset(answer.percentiles(speedup, [0.05, 0.5, 0.95], "speedup_{}"))
        q = q.where(means["prob_both_saturated"] < 1).assign(support=self.draws["support"])
        return means.assign(q).to_dataframe().reset_index()

    def __str__(self) -> str:
        table, axis = self.table, self.axis
        pair, short = shared_name([*self.servers, self.baseline])
        lengths = [n for n in LENGTHS if n in table]
        parts = []
        for at, rows in table.groupby(lengths, sort=False) if lengths else [((), table)]:
            loads = rows.groupby(axis) if axis else [("", rows)]
            chosen = [(place, self._choice(own, short)) for place, own in loads]
            where = ", ".join(f"{n.split('_')[0]} {v:g}" for n, v in zip(lengths, at, strict=True))
            parts.append(f"with {where} tokens " * bool(where) + stretches(chosen, axis))
        run = f"mean latency of a run of {self.requests} requests"
        what = run if self.of == "run" else f"{self.of} latency"
        sure = f"{what}, with probability {answer.SURE:g} or more"
        return f"{pair}: {'; '.join(parts)} ({sure}; {answer.farthest(table['support'])})."

    def _choice(self, rows: pd.DataFrame, short: Mapping[str, str]) -> str:
        """The server to choose at one load: of those surely faster the likeliest best, or the
        baseline if it surely is faster than all."""
        rows = rows.set_index("server")
        faster, both = rows["prob_faster"], rows["prob_both_saturated"]
        if (sure := faster >= answer.SURE).any():
            return short[str(rows.get("prob_best", faster)[sure].idxmax())]
        if (both >= 0.5).all():
            return "all saturated"
        return short[str(self.baseline)] if (faster <= 1 - answer.SURE).all() else "unclear"

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """P(faster) against load, a line a server."""
        ax, axis = answer.axes_of(ax), self.axis_to_plot()
        pair, short = shared_name([*self.servers, self.baseline])
        for number, (name, own) in enumerate(self.table.groupby("server", sort=False), start=1):
            values = own[["prob_faster"] * 3].to_numpy().T
            answer.band(ax, own[axis], values, number, short[str(name)])
        ax.set_ylim(-0.03, 1.03)
        label = f"P(faster than {short[str(self.baseline)]})"
        return answer.finish(ax, answer.UNITS[axis], label, title=pair)


def stretches(chosen: list[tuple[Any, str]], axis: str | None) -> str:
    """Neighbouring loads of one choice joined: "k = 3 at 1 to 4 requests/s, unclear at 5"."""
    if axis is None:
        return chosen[0][1]
    said: list[str] = []
    for name, group in groupby(chosen, key=itemgetter(1)):
        loads = [load for load, _ in group]
        ends = f"{loads[0]:.3g}" + f" to {loads[-1]:.3g}" * (len(loads) > 1)
        said.append(f"{name} at {ends if said else answer.with_unit(ends, axis)}")
    return ", ".join(said)


def compare(
    fit: Posterior,
    load: Load,
    servers: Server | Sequence[Server],
    baseline: Server,
    *,
    of: str = "mean",
    requests: int | None = None,
    extrapolate: bool = False,
    seed: int = 0,
) -> Comparison:
    """P(server beats baseline | load), and the speedup; of several servers also which is best.

    Parameters
    ----------
    load : Load
    servers : Server or sequence of Server
    baseline : Server
        As plain decoding of the same verifier.
    of : {"mean", "run", "request"}
        What is compared: the long-run mean latencies, the means of one run each, or one request
        drawn at random from each server.
    requests : int, optional
        Of a run, see :func:`bayes_sd.Fit.latency`.
    extrapolate, seed
        See :class:`bayes_sd.Fit`.

    Raises
    ------
    EvidenceError
        If one is plain and its verifier has no plain run.
    """
    one_of("of", of, OF)
    asked = [each for each in listed(servers) if each != baseline]
    both = listed([*asked, baseline], fewest=2)
    said = latency(fit, load, both, requests=requests, extrapolate=extrapolate, seed=seed)
    draws = said.draws
    value, stuck, labels = draws[f"{of}_s"], draws["saturated"], draws["support"]
    plain, lowest = value.isel(server=-1, drop=True), value.min("server")
    ties = (value == lowest) & np.isfinite(lowest)
    with np.errstate(invalid="ignore"):
        speedup = plain / value
        lost = (value / lowest).clip(max=answer.WORST).fillna(answer.WORST).mean(answer.SAMPLE)
    served = xr.apply_ufunc(np.isfinite, lowest).mean(answer.SAMPLE) >= 0.5
    least = value["server"][lost.argmin("server")].drop_vars("server")
    farther = np.vectorize(lambda *pair: answer.farthest(pair), otypes=[object])
    parts = {
        "speedup": speedup,
        "faster": value < plain,
        "both_saturated": stuck & stuck.isel(server=-1, drop=True),
        "best": ties / ties.sum("server").clip(1),
        "support": labels.copy(data=farther(labels, labels.isel(server=-1))),
    }
    own, of_run = xr.Dataset(parts).isel(server=slice(-1)), draws["run_s"].attrs["requests"]
    least = least.where(served, "all saturated")
    return Comparison(own, tuple(asked), baseline, of, of_run, least)


def measured_systems(fit: Posterior) -> list[tuple[Server, list[Server], bool, pd.DataFrame]]:
    """Of each verifier, environment and workload: its plain server, those that draft, whether the
    plain one ran, and their runs."""
    systems = []
    groups = fit.servers.groupby(["verifier", "environment", "workload"])
    for (verifier, where, workload), own in groups:
        named = str(where) if len(fit.environments) > 1 else None
        plain = Server(str(verifier), environment=named, workload=str(workload))
        columns = ["drafter", "draft_tokens", "acceptance_imposed"]
        drafting = [
            replace(plain, drafter=drafter, k=k, acceptance=None if np.isnan(imposed) else imposed)
            for drafter, k, imposed in own.loc[own["draft_tokens"] > 0, columns].to_numpy()
        ]
        runs = fit.runs[fit.runs["server"].isin(own["server"])]
        systems.append((plain, drafting, bool((own["drafter"] == NONE).any()), runs))
    return systems


def default_loads(fit: Posterior, baseline: Server, lengths: tuple[float, float]) -> Load:
    """Twelve rates up to 95% of the baseline's median capacity, or the measured concurrencies where
    every run was a closed loop."""
    runs = fit.runs
    if runs["rate_rps"].isna().all() and runs["concurrency"].notna().any():
        measured = np.unique(runs["concurrency"].dropna()).tolist()
        return Load(concurrency=measured, prompt=lengths[0], output=lengths[1])
    load = Load(rps=0.0, prompt=lengths[0], output=lengths[1])
    arm = arm_of(fit, baseline, load, extrapolate=True)
    top = RATES_TOP * float(np.median(arm.capacity_rps))
    return load.with_axis(np.linspace(top / RATES, top, RATES))
