"""What deciding now may cost, and which runs would lower that most: value of information."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from bayes_sd.decide.deploy import WORST
from bayes_sd.decide.schedule import SERVER, require_measured
from bayes_sd.errors import InputError
from bayes_sd.physics.law import NU
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import arm_outcome, arms, scatter
from bayes_sd.predict.load import grid
from bayes_sd.predict.support import farthest, support
from bayes_sd.predict.system import System, default_system

if TYPE_CHECKING:
    from bayes_sd.collector.plan import Plan
    from bayes_sd.inference.fit import Fit

DRAWS = 1000
TAIL, TINY = 0.02, 1e-12
FULL = 0.2  # a run this likely to saturate says little and is no candidate
NEGLIGIBLE = 1e-3  # of what perfect information is worth: a run that saves less is not proposed


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

    Parameters
    ----------
    losses : numpy.ndarray
        Loss of every option of every decision in every draw, (decisions, options, draws), on a
        scale on which they are about normal; an option that a decision lacks has an infinite loss
        throughout.
    mean, scale : numpy.ndarray
        What each possible run would show: the law's log mean latency and the run's scatter about
        it (Student's t with five degrees of freedom), (runs, draws).

    References
    ----------
    Frazier, Powell, Dayanik (2009), the correlated knowledge gradient.
    """

    def __init__(self, losses: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        apart, decisions = [np.zeros((0, losses.shape[-1]))], list[int]()
        for decision, own in enumerate(losses):
            real = own[np.isfinite(own).all(axis=1)]
            if not len(real):
                continue
            best = int(real.mean(axis=1).argmin())
            others = np.delete(real, best, axis=0) - real[best]
            apart.append(others)
            decisions += [decision] * len(others)
        self._of = np.array(decisions, int)
        difference = _tame(np.concatenate(apart))
        shown = _tame(mean)
        self._mu = np.abs(difference.mean(axis=1))
        centred = [x - x.mean(axis=1, keepdims=True) for x in (difference, shown)]
        draws = losses.shape[-1]
        self._own = (centred[0] ** 2).mean(axis=1)
        self._with = centred[0] @ centred[1].T / draws
        self._runs = centred[1] @ centred[1].T / draws
        known = np.isfinite(scale)  # a draw that says "saturated" knows no scatter
        squares = np.where(known, scale, 0.0) ** 2
        self._noise = squares.sum(axis=1) / np.maximum(known.sum(axis=1), 1) * NU / (NU - 2)

    def worth(self, chosen: Sequence[int] = ()) -> np.ndarray:
        """What each run is worth after those in `chosen`, and they with it, as a share.

        Of what perfect information is worth; (runs,).
        """
        told, towards, among = np.zeros(len(self._mu)), self._with, self._runs
        for run in chosen:
            total = among[run, run] + self._noise[run]
            told = told + towards[:, run] ** 2 / total
            towards = towards - np.outer(towards[:, run], among[run]) / total
            among = among - np.outer(among[:, run], among[run]) / total
        gain = towards**2 / (np.diag(among) + self._noise)
        most = self._gain(self._own[:, None])[0]
        found = self._gain(np.minimum(told[:, None] + gain, self._own[:, None]))
        return np.asarray(found / most if most > 0 else 0.0 * found)

    def _gain(self, variance: np.ndarray) -> np.ndarray:
        """Loss that is expected to be saved, by column of what is learned of the differences."""
        sigma = np.sqrt(np.maximum(variance, TINY))
        z = self._mu[:, None] / sigma
        each = np.maximum(sigma * (_density(z) - z * ndtr(-z)), 0.0)
        best = np.zeros((self._of.max(initial=-1) + 1, variance.shape[1]))
        np.maximum.at(best, self._of, each)
        return np.asarray(best.sum(axis=0))


def regret(losses: np.ndarray) -> float:
    """Expected loss of the best choices now beyond that of choices made with all known."""
    best = losses.mean(axis=-1).min(axis=1)
    return float((best - losses.min(axis=1).mean(axis=-1)).mean())


def _density(z: np.ndarray) -> np.ndarray:
    """Standard normal density."""
    return np.asarray(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))


def _tame(values: np.ndarray) -> np.ndarray:
    """Rows with their outermost draws drawn in: moments are to speak of the bulk."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL], axis=1, keepdims=True)
    return np.asarray(np.clip(values, low, high))


@dataclass(frozen=True, eq=False, repr=False)
class Information:
    """Deciding now, and what else to measure.

    Parameters
    ----------
    choices : pandas.DataFrame
        A row a rate: ``k`` to run now, ``prob_best``, ``prob_all_saturated`` (no arm serves that
        rate), ``regret_ms`` (expected latency lost to the best arm had it been known), ``support``.
    regret_ms : float
        Its mean over the rates: what perfect information is worth, per request.
    runs : pandas.DataFrame
        Runs worth measuring, the best first: ``k``, ``rate_rps``, ``minutes``, ``saves_ms``,
        ``saves_ms_per_minute``, ``regret_left_ms``.
    system : System
    prompt, output : float
    """

    choices: pd.DataFrame
    regret_ms: float
    runs: pd.DataFrame
    system: System
    prompt: float
    output: float

    def __repr__(self) -> str:
        runs = self.runs.to_string(index=False) if len(self.runs) else "No run would pay."
        return (
            f"Deciding now\n{self.choices.to_string(index=False)}\n"
            f"Expected regret {self.regret_ms:.3g} ms a request\n\nWorth measuring next\n{runs}"
        )

    def to_plan(self, plan: "Plan") -> "Plan":
        """The runs as a plan for :func:`bayes_sd.collect`.

        Parameters
        ----------
        plan : Plan
            How the servers of this system are started: it has a plain one, and one that drafts.

        Raises
        ------
        InputError
            If it lacks one of them.
        """
        from bayes_sd.collector.plan import PointPlan

        own = [c for c in plan.configurations if (c.verifier or c.name) == self.system.verifier]
        given = self.system.acceptance
        drafting = [
            c
            for c in own
            if c.arm == "sd"
            and c.drafter == self.system.drafter
            and (not isinstance(given, float) or c.acceptance in (None, given))
        ]
        made = []
        for k in self.runs["k"].unique().tolist():
            rows = self.runs[self.runs["k"] == k]
            found = [c for c in own if c.arm == "plain"] if k == 0 else drafting
            if not found:
                kind = (
                    "plain server" if k == 0 else f"server that drafts with {self.system.drafter}"
                )
                raise InputError(f"The plan has no {kind} of {self.system.verifier}; add one.")
            points = tuple(
                PointPlan(rate_rps=r, prompt=int(self.prompt), output=int(self.output))
                for r in rows["rate_rps"]
            )
            same = next((c for c in found if c.draft_tokens == k), None)
            change: dict[str, Any] = {"points": points}
            if same is None:
                change |= {"draft_tokens": k, "name": f"{found[0].name}_k{k}"}
            made.append((same or found[0]).model_copy(update=change))
        if not made:
            raise InputError("No run would pay, so there is no plan.")
        return plan.model_copy(update={"configurations": tuple(made)})


def worth_measuring(
    fit: "Fit",
    k: Sequence[int],
    system: System | None,
    rates: Any,
    prompt: float,
    output: float,
    runs: int,
    run_seconds: float,
    server_seconds: float,
    server: str,
    seed: int,
) -> Information:
    """See :meth:`bayes_sd.Fit.worth_measuring`."""
    if server not in ("measured", "next"):
        raise InputError(f"server = {server!r}: must be measured or next.")
    ks = sorted(arms(k))
    if len(ks) < 2:
        raise InputError(f"k = {ks}: give at least two arms to choose from.")
    if not (isinstance(runs, int) and runs >= 0):
        raise InputError(f"runs = {runs!r}: must be a whole number of at least 0.")
    for name, value in (("run_seconds", run_seconds), ("server_seconds", server_seconds)):
        if not (np.isfinite(value) and value >= 0) or (name == "run_seconds" and value == 0):
            raise InputError(f"{name} = {value!r}: must be a positive number of seconds.")
    thin, system = fit.thin(DRAWS), system or default_system(fit, any(ks))
    if system.structure is not None:
        raise InputError(
            "An assumed structure cannot be measured: ask about the server as it runs, without it."
        )
    if 0 in ks and not system.extrapolate:
        require_measured(fit, system, [0])
    load = grid(rps=np.atleast_1d(rates).astype(float), prompt=prompt, output=output)
    offered = load["rate_rps"].values
    if (offered <= 0).any():
        raise InputError(f"rps = {rates!r}: must be above 0.")
    losses, means, scales, reach = [], [], [], []
    for one in ks:
        resolved, law, asked = arm_outcome(thin, system, one, load, seed)
        mean = law.e2e_s
        if server == "next":  # not one of those whose luck has been measured
            mean = arm_outcome(thin, system, one, load, seed, one > 0, SERVER)[1].e2e_s
        losses.append(_rows(mean, mean))
        requests = np.maximum(load["rate_rps"] * run_seconds, 4.0)
        scale, variance = scatter(thin, law, asked, "e2e", requests)
        shown = _rows(law.e2e_s, law.e2e_s)
        means.append(np.log(np.where(np.isfinite(shown), shown, np.nan)))
        scales.append(_rows((scale**2 + variance / requests) ** 0.5, law.e2e_s))
        reach.append(support(thin, resolved, one, load, law).values.ravel())
    latency, labels = np.stack(losses, axis=1), np.stack(reach)
    served = np.isfinite(latency).any(axis=1)
    cost = _bounded(latency)
    choices = _choices(cost, ks, offered, labels, served)
    stuck = np.isnan(np.concatenate(means)).mean(axis=1)
    usable = np.flatnonzero(stuck < FULL)
    log_mean = np.concatenate(means)[usable]
    # Where a draw says "saturated", the run would show a latency beyond all others.
    longest = np.nanmax(log_mean) if usable.size else 0.0
    log_mean = np.where(np.isnan(log_mean), longest + 3.0, log_mean)
    known = Preposterior(np.log(cost), log_mean, np.concatenate(scales)[usable])
    candidates = [(ks[i // len(offered)], float(offered[i % len(offered)])) for i in usable]
    perfect_ms = 1e3 * regret(cost)
    table = _greedy(known, perfect_ms, candidates, runs, run_seconds / 60, server_seconds / 60)
    return Information(choices, perfect_ms, table, system, prompt, output)


def _rows(values: Any, like: Any) -> np.ndarray:
    """Draws by rate: (rates, draws)."""
    both = (values + 0 * like.where(np.isfinite(like), 0.0)).transpose("rate_rps", *SAMPLE)
    return np.asarray(both.values.reshape(both.sizes["rate_rps"], -1))


def _bounded(losses: np.ndarray) -> np.ndarray:
    """Losses up to a multiple of the best arm's, so that a saturated arm has a finite one."""
    best = losses.min(axis=1)
    known = best[np.isfinite(best)]
    ceiling = WORST * (np.median(known) if known.size else 1.0)
    return np.minimum(losses, np.minimum(WORST * best[:, None, :], ceiling))


def _choices(
    cost: np.ndarray, ks: list[int], offered: np.ndarray, labels: np.ndarray, served: np.ndarray
) -> pd.DataFrame:
    pick = cost.mean(axis=-1).argmin(axis=1)
    at = np.arange(len(offered))
    chosen, best = cost[at, pick], cost.min(axis=1)
    return pd.DataFrame(
        {
            "rate_rps": offered,
            "k": np.array(ks)[pick],
            "prob_best": ((chosen <= best) & served).mean(axis=-1),
            "prob_all_saturated": (~served).mean(axis=-1),
            "regret_ms": 1e3 * (chosen - best).mean(axis=-1),
            "support": [farthest(column) for column in labels.T],
        }
    )


def _greedy(
    known: Preposterior,
    perfect_ms: float,
    candidates: list[tuple[int, float]],
    runs: int,
    run_minutes: float,
    server_minutes: float,
) -> pd.DataFrame:
    """One run after the other, each the one that saves most per minute after those before."""
    share, begun, chosen = 0.0, set[int](), list[int]()
    rows: list[dict[str, Any]] = []
    while len(chosen) < min(runs, len(candidates)):
        saves = known.worth(chosen) - share
        found = []
        for i in set(np.flatnonzero(saves > NEGLIGIBLE).tolist()) - set(chosen):
            minutes = run_minutes + (0.0 if candidates[i][0] in begun else server_minutes)
            found.append((perfect_ms * saves[i] / minutes, minutes, i))
        if not found:
            break
        rate, minutes, best = max(found)
        chosen.append(best)
        begun.add(candidates[best][0])
        share += float(saves[best])
        rows.append(
            {
                "k": candidates[best][0],
                "rate_rps": candidates[best][1],
                "minutes": minutes,
                "saves_ms": rate * minutes,
                "saves_ms_per_minute": rate,
                "regret_left_ms": perfect_ms * (1 - share),
            }
        )
    names = ["k", "rate_rps", "minutes", "saves_ms", "saves_ms_per_minute", "regret_left_ms"]
    return pd.DataFrame(rows, columns=names)
