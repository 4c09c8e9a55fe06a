"""What deciding now may cost, and which runs would lower that most: value of information."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from bayes_sd.answers import answer
from bayes_sd.answers.latency import arm_of, scatter
from bayes_sd.answers.schedule import STARTED_ANEW
from bayes_sd.answers.servers import Server, listed
from bayes_sd.errors import InputError, one_of, whole
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.noise import T_VARIANCE
from bayes_sd.runs.load import Load

DRAWS = 1000
OUTERMOST, TINY = 0.02, 1e-12
LIKELY_FULL = 0.2  # a run this likely to saturate says little and is no candidate
NEGLIGIBLE = 1e-3  # of what perfect information is worth: a run that saves less is not proposed
BEYOND = 3.0  # log latency over the longest that a run shows which turns out to be saturated
FEWEST_REQUESTS = 4.0


class Preposterior:
    r"""What may be learned about some decisions from runs not yet made.

    How much worse each option is than the one chosen now, and what each run would show, are taken
    to be jointly normal with the moments of the draws (the knowledge gradient). A run then moves
    the expected difference :math:`\mu` by a normal amount of standard deviation

    .. math:: \sigma = |c| / \sqrt{v + e^2}, \qquad \text{and is worth} \quad
        \sigma \varphi(\mu/\sigma) - \mu \Phi(-\mu/\sigma)

    with `c` its covariance with the difference, `v` its variance over draws and `e` its scatter.
    Of a decision's options the one most worth it counts. Weighting draws by the likelihood of what
    a run shows needs no normality, and too many draws: a few are left, which agree by chance.

    `losses` (decisions, options, draws) are on a scale on which they are about normal, infinite
    throughout for an option that a decision lacks; `mean` and `scale` (runs, draws) are the log
    mean latency that each run would show, and its scatter. Frazier, Powell, Dayanik (2009).
    """

    def __init__(self, losses: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        real = np.isfinite(losses).all(axis=-1)
        now = np.where(real, losses.mean(axis=-1), np.inf).argmin(axis=1)  # chosen without runs
        others = real & (np.arange(losses.shape[1]) != now[:, None])
        self._decision = np.nonzero(others)[0]
        apart = losses[others] - losses[self._decision, now[self._decision]]
        difference, shown = _bulk(apart), _bulk(mean)
        self._mu = np.abs(difference.mean(axis=1))
        centred = [x - x.mean(axis=1, keepdims=True) for x in (difference, shown)]
        draws = losses.shape[-1]
        self._variance = (centred[0] ** 2).mean(axis=1)
        self._with_runs = centred[0] @ centred[1].T / draws
        self._among_runs = centred[1] @ centred[1].T / draws
        self._noise = np.nanmean(scale**2, axis=1) * T_VARIANCE  # NaN where a draw saturates

    def worth(self, chosen: Sequence[int] = ()) -> np.ndarray:
        """What each run is worth after those in `chosen`, and they with it: (runs,).

        As a share of what perfect information is worth.
        """
        told, towards, among = np.zeros(len(self._mu)), self._with_runs, self._among_runs
        for run in chosen:
            total = among[run, run] + self._noise[run]
            told = told + towards[:, run] ** 2 / total
            towards = towards - np.outer(towards[:, run], among[run]) / total
            among = among - np.outer(among[:, run], among[run]) / total
        gain = towards**2 / (np.diag(among) + self._noise)
        most = self._saved(self._variance[:, None])[0]
        saved = self._saved(np.minimum(told[:, None] + gain, self._variance[:, None]))
        return np.asarray(saved / most if most > 0 else 0.0 * saved)

    def _saved(self, variance: np.ndarray) -> np.ndarray:
        """Loss that is expected to be saved, by column of what is learned of the differences."""
        sigma = np.sqrt(np.maximum(variance, TINY))
        z = self._mu[:, None] / sigma
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        each = np.maximum(sigma * (density - z * scipy.special.ndtr(-z)), 0.0)
        return pd.DataFrame(each).groupby(self._decision).max().sum().to_numpy()


def regret(losses: np.ndarray) -> float:
    """Expected loss of the best choices now beyond that of choices made with all known."""
    best = losses.mean(axis=-1).min(axis=1)
    return float((best - losses.min(axis=1).mean(axis=-1)).mean())


def _bulk(values: np.ndarray) -> np.ndarray:
    """Rows with their outermost draws drawn in: moments are to speak of the bulk."""
    low, high = np.quantile(values, [OUTERMOST, 1 - OUTERMOST], axis=1, keepdims=True)
    return np.asarray(np.clip(values, low, high))


@dataclass(frozen=True, eq=False, repr=False)
class NextRuns(answer.Answer):
    """Deciding now, and what else to measure.

    Parameters
    ----------
    draws : xarray.Dataset
        Dims (chain, draw, server, load): ``mean_s``, of which the choice is made.
    choices : pandas.DataFrame
        A row a load: ``server`` to run now, ``prob_best``, ``prob_all_saturated`` (no server
        serves that rate), ``regret_ms`` (expected latency lost to the best server had it been
        known), ``support``.
    regret_ms : float
        Its mean over the loads: what perfect information is worth, per request.
    rows : pandas.DataFrame
        Runs worth measuring, the best first: ``server``, the load, ``minutes``, ``saves_ms``,
        ``saves_ms_per_minute``, ``regret_left_ms``.
    servers, load
        As asked.
    """

    draws: xr.Dataset
    choices: pd.DataFrame
    regret_ms: float
    rows: pd.DataFrame
    servers: list[Server]
    load: Load

    def __str__(self) -> str:
        said = f"Deciding now is expected to cost {self.regret_ms:.3g} ms a request"
        if self.rows.empty:
            return f"{said}; no run would pay."
        first, axis = self.rows.iloc[0], str(self.load.axis)
        load = answer.with_unit(f"{first[axis]:.4g}", axis)
        return (
            f"{said}; measure first {first['server']} at {load}, which saves "
            f"{first['saves_ms']:.3g} ms of it in {first['minutes']:.3g} minutes."
        )

    def plot(self, ax: "answer.Axes | None" = None) -> "answer.Axes":
        """Expected regret left against minutes of measuring."""
        ax = answer.axes_of(ax)
        minutes = [0.0, *self.rows["minutes"].cumsum()]
        left = [self.regret_ms, *self.rows["regret_left_ms"]]
        ax.step(minutes, left, where="post", color=answer.COLORS[1], marker="o")
        ax.set_ylim(0, None)
        return answer.finish(ax, "minutes of measuring", "expected regret, ms a request")

    def points(self) -> list[tuple[Server, list[dict[str, Any]]]]:
        """The proposed runs by server: rate_rps or concurrency, and lengths."""
        axis, (prompt, output) = self.load.axis, self.load.lengths
        lengths = {"prompt": int(prompt), "output": int(output)}
        values = {name: own[axis].tolist() for name, own in self.rows.groupby("server")}
        return [
            (server, [{axis: value} | lengths for value in values[str(server)]])
            for server in self.servers
            if str(server) in values
        ]


def next_runs(
    fit: Posterior,
    load: Load,
    servers: Sequence[Server],
    *,
    runs: int = 6,
    run_seconds: float = 30.0,
    server_seconds: float = 60.0,
    server: str = "measured",
    extrapolate: bool = False,
    seed: int = 0,
) -> NextRuns:
    r"""What choosing a server now may cost, and the runs that would lower that most.

    .. math:: R = E_\theta\big[L_{s^*}(\theta) - \min_s L_s(\theta)\big], \qquad
        \text{a run } y \text{ saves } R - E_y[R \mid y]

    Parameters
    ----------
    load : Load
        Loads at which the choice is made, each counting alike, and those of the runs proposed.
    servers : sequence of Server
        To choose from, at least two.
    runs : int
        How many to propose, one after the other.
    run_seconds, server_seconds : float
        What a run, and starting a server for its first one, take.
    server : {"measured", "next"}
        Whom the choice is for: the servers that were, or would be, measured; or others yet to be
        started, whose own effect no run shows.
    extrapolate, seed
        See :class:`bayes_sd.Fit`.
    """
    one_of("server", server, ("measured", "next"))
    each = listed(servers, fewest=2)
    whole("runs", runs, 0)
    answer.positive("run_seconds", run_seconds)
    if server_seconds != 0:
        answer.positive("server_seconds", server_seconds)
    if any(one.structure is not None for one in each):
        raise InputError(
            "An assumed structure cannot be measured: ask about the server as it runs, without it."
        )
    thin, values = fit.thin(DRAWS), np.ravel(load.cells[load.axis].values).astype(float)
    load = load.with_axis(values.tolist())
    if (values <= 0).any():
        raise InputError("The rates that are chosen for must be above 0.")
    losses, means, scales, reach = [], [], [], []
    for one in each:
        arm = arm_of(thin, one, load, seed, extrapolate)
        said, inputs = arm.outcome()
        mean = said.e2e_s
        if server == "next":  # not one of those whose luck has been measured
            mean = arm_of(thin, one, load, seed, extrapolate, STARTED_ANEW).outcome()[0].e2e_s
        losses.append(mean.T)
        served = values if load.axis == "rate_rps" else np.median(values / said.e2e_s, axis=0)
        requests = np.maximum(served * run_seconds, FEWEST_REQUESTS)
        scale, variance = scatter(thin, said, inputs, requests=requests)
        finite = np.isfinite(said.e2e_s)
        means.append(np.log(np.where(finite, said.e2e_s, np.nan)).T)
        scales.append(np.where(finite, scale**2 + variance / requests, np.nan).T)
        reach.append(np.ravel(arm.support(said)))
    latency_s = np.stack(losses, axis=1)  # (loads, servers, draws)
    # A saturated server counts as a multiple of the best one, so that it has a finite loss.
    least = latency_s.min(axis=1)
    served = [row[np.isfinite(row)] for row in least]
    typical = np.array([np.median(row) if row.size else 1.0 for row in served])[:, None, None]
    cost = np.minimum(latency_s, answer.WORST * np.minimum(least[:, None, :], typical))
    names = [str(one) for one in each]
    served_by_any = np.isfinite(least)
    pick = cost.mean(axis=-1).argmin(axis=1)
    chosen, best = cost[np.arange(len(values)), pick], cost.min(axis=1)
    choices = pd.DataFrame({load.axis: values, "server": np.array(names, object)[pick]}).assign(
        prob_best=((chosen <= best) & served_by_any).mean(axis=-1),
        prob_all_saturated=(~served_by_any).mean(axis=-1),
        regret_ms=1e3 * (chosen - best).mean(axis=-1),
        support=[answer.farthest(labels) for labels in zip(*reach, strict=True)],
    )
    every = np.concatenate(means)
    usable = np.flatnonzero(np.isnan(every).mean(axis=1) < LIKELY_FULL)
    # Where a draw says "saturated", the run would show a latency beyond all others.
    longest = np.nanmax(every[usable]) if usable.size else 0.0
    shown = np.where(np.isnan(every[usable]), longest + BEYOND, every[usable])
    learned = Preposterior(np.log(cost), shown, np.sqrt(np.concatenate(scales)[usable]))
    candidates = [(names[i // len(values)], float(values[i % len(values)])) for i in usable]
    perfect_ms = 1e3 * regret(cost)
    minutes = run_seconds / 60, server_seconds / 60
    rows = _greedy(learned, perfect_ms, candidates, load.axis, runs, minutes)
    shape = (*thin.shape, len(names), len(values))
    mean_s = (*answer.SAMPLE, "server", load.axis), latency_s.transpose(2, 1, 0).reshape(shape)
    draws = xr.Dataset({"mean_s": mean_s}, coords={"server": names, load.axis: values})
    return NextRuns(draws, choices, perfect_ms, rows, each, load)


def _greedy(
    known: Preposterior, perfect_ms: float, candidates: list, axis: str, runs: int, minutes: tuple
) -> pd.DataFrame:
    """One run after the other, each the one that saves most per minute after those before.

    `candidates` are servers and loads, `minutes` those of a run and of a server's start.
    """
    share, chosen, rows = 0.0, list[int](), []
    while len(chosen) < runs:
        saves, begun, options = known.worth(chosen) - share, {candidates[i][0] for i in chosen}, []
        for i in set(np.flatnonzero(saves > NEGLIGIBLE).tolist()) - set(chosen):
            takes = minutes[0] + (0.0 if candidates[i][0] in begun else minutes[1])
            options.append((perfect_ms * saves[i] / takes, takes, i))
        if not options:
            break
        rate, takes, best = max(options)
        chosen.append(best)
        share += float(saves[best])
        rows.append((*candidates[best], takes, rate * takes, rate, perfect_ms * (1 - share)))
    columns = ["server", axis, "minutes", "saves_ms", "saves_ms_per_minute", "regret_left_ms"]
    return pd.DataFrame(rows, columns=columns)
