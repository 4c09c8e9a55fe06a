"""What deciding now may cost, and which runs would lower that most: value of information."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.decide.deploy import WORST
from bayes_sd.decide.schedule import SERVER
from bayes_sd.errors import InputError
from bayes_sd.physics.law import NU
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import arm_outcome, arms, scatter
from bayes_sd.predict.load import grid
from bayes_sd.predict.support import LABELS, support
from bayes_sd.predict.system import System, default_system

if TYPE_CHECKING:
    from bayes_sd.collector.plan import Plan
    from bayes_sd.inference.fit import Fit

DRAWS = 1000
TRUTHS = 200  # of the draws, each in turn taken for the truth
FULL = 0.2  # a run this likely to saturate says little and is no candidate


@dataclass(frozen=True)
class Preposterior:
    """What may be learned about some decisions.

    Parameters
    ----------
    losses : numpy.ndarray
        Loss of every option of every decision in every draw, (decisions, options, draws); an
        option that a decision lacks has an infinite loss throughout.
    mean, scale : numpy.ndarray
        What each possible run would show: the law's log mean latency and the run's scatter about
        it (Student's t with five degrees of freedom), (runs, draws).
    seed : int
    """

    losses: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    seed: int = 0
    _shown: np.ndarray = field(init=False, repr=False)
    _truths: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = self.losses.shape[-1]
        truths = rng.permutation(n)[: min(TRUTHS, n)]
        noise = rng.standard_t(NU, (len(self.mean), len(truths)))
        object.__setattr__(self, "_truths", truths)
        shown = self.mean[:, truths] + self.scale[:, truths] * noise
        object.__setattr__(self, "_shown", shown)

    def regret(self) -> float:
        """Expected loss of the best choices now beyond that of choices made with all known."""
        expected = self.losses.mean(axis=-1)
        return float((expected.min(axis=1) - self.losses.min(axis=1).mean(axis=-1)).mean())

    def regret_after(self, told: np.ndarray) -> float:
        """Expected regret once runs have been seen, of which `told` is the sum of :meth:`tells`.

        Half of the draws make the choice and the other half says what it costs, and the other way
        round: where few draws explain the runs, those that choose would always find they are right.
        """
        before, after = self._crossed(np.zeros((1, told.shape[1]))), self._crossed(told)
        return self.regret() * min(after / before, 1.0) if before > 0 else 0.0

    def tells(self, run: int) -> np.ndarray:
        """Log likelihood of every draw for what the run shows under every truth."""
        z = (self._shown[run][:, None] - self.mean[run]) / self.scale[run]
        found = -(NU + 1) / 2 * np.log1p(z**2 / NU) - np.log(self.scale[run])
        # A truth does not vouch for itself.
        found[np.arange(len(self._truths)), self._truths] = -np.inf
        return np.asarray(found)

    def _crossed(self, told: np.ndarray) -> float:
        halves = [slice(part, None, 2) for part in (0, 1)]
        expected, least = zip(*(self._expected(told[:, h], h) for h in halves), strict=True)
        costs = []
        for own, other in ((0, 1), (1, 0)):
            pick = expected[own].argmin(axis=1)[:, None, :]
            found = np.take_along_axis(expected[other], pick, axis=1)[:, 0]
            costs.append((found - least[other]).mean())
        return float(np.mean(costs))

    def _expected(self, told: np.ndarray, which: slice) -> tuple[np.ndarray, np.ndarray]:
        """Expected loss of every option, and of the best had it been known, by row of `told`."""
        losses = self.losses[..., which]
        weights = np.exp(told - told.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        decisions, options, draws = losses.shape
        finite = np.where(np.isfinite(losses), losses, 0.0)
        expected = (finite.reshape(-1, draws) @ weights.T).reshape(decisions, options, -1)
        expected[~np.isfinite(losses).all(axis=-1)] = np.inf
        return expected, losses.min(axis=1) @ weights.T


@dataclass(frozen=True, eq=False, repr=False)
class Information:
    """Deciding now, and what else to measure.

    Parameters
    ----------
    choices : pandas.DataFrame
        A row a rate: ``k`` to run now, ``prob_best``, ``regret_ms`` (expected latency lost to the
        best arm had it been known), ``support``.
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
    seed: int,
) -> Information:
    """See :meth:`bayes_sd.Fit.worth_measuring`."""
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
    load = grid(rps=np.atleast_1d(rates).astype(float), prompt=prompt, output=output)
    offered = load["rate_rps"].values
    if (offered <= 0).any():
        raise InputError(f"rps = {rates!r}: must be above 0.")
    losses, means, scales, reach = [], [], [], []
    for one in ks:
        # The choice is for the next server, not for those whose luck has been measured.
        mean = arm_outcome(thin, system, one, load, seed, one > 0, SERVER)[1].e2e_s
        losses.append(_rows(mean, mean))
        resolved, law, asked = arm_outcome(thin, system, one, load, seed)
        requests = np.maximum(load["rate_rps"] * run_seconds, 4.0)
        scale, variance = scatter(thin, law, asked, "e2e", requests)
        shown = _rows(law.e2e_s, law.e2e_s)
        means.append(np.log(np.where(np.isfinite(shown), shown, np.nan)))
        scales.append(_rows((scale**2 + variance / requests) ** 0.5, law.e2e_s))
        reach.append(support(thin, resolved, one, load, law).values.ravel())
    cost, labels = _bounded(np.stack(losses, axis=1)), np.stack(reach)
    choices = _choices(cost, ks, offered, labels)
    stuck = np.isnan(np.concatenate(means)).mean(axis=1)
    usable = np.flatnonzero(stuck < FULL)
    log_mean = np.concatenate(means)[usable]
    # Where a draw says "saturated", the run would show a latency beyond all others.
    longest = np.nanmax(log_mean) if usable.size else 0.0
    log_mean = np.where(np.isnan(log_mean), longest + 3.0, log_mean)
    known = Preposterior(cost, log_mean, np.concatenate(scales)[usable], seed)
    candidates = [(ks[i // len(offered)], float(offered[i % len(offered)])) for i in usable]
    table = _greedy(known, candidates, runs, run_seconds / 60, server_seconds / 60)
    return Information(choices, 1e3 * known.regret(), table, system, prompt, output)


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
    cost: np.ndarray, ks: list[int], offered: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    pick = cost.mean(axis=-1).argmin(axis=1)
    at = np.arange(len(offered))
    chosen, best = cost[at, pick], cost.min(axis=1)
    order = {str(label): i for i, label in enumerate(LABELS)}
    return pd.DataFrame(
        {
            "rate_rps": offered,
            "k": np.array(ks)[pick],
            "prob_best": (chosen <= best).mean(axis=-1),
            "regret_ms": 1e3 * (chosen - best).mean(axis=-1),
            "support": [min(column, key=lambda label: order[str(label)]) for column in labels.T],
        }
    )


def _greedy(
    known: Preposterior,
    candidates: list[tuple[int, float]],
    runs: int,
    run_minutes: float,
    server_minutes: float,
) -> pd.DataFrame:
    """One run after the other, each the one that saves most per minute after those before."""
    told: np.ndarray | float = 0.0
    tells = [known.tells(i) for i in range(len(candidates))]
    left, begun = known.regret(), set[int]()
    rows: list[dict[str, Any]] = []
    open_ = list(range(len(candidates)))
    while open_ and len(rows) < runs:
        found = []
        for i in open_:
            minutes = run_minutes + (0.0 if candidates[i][0] in begun else server_minutes)
            found.append(((left - known.regret_after(told + tells[i])) / minutes, minutes, i))
        rate, minutes, best = max(found)
        if rate <= 0:
            break
        told = told + tells[best]
        begun.add(candidates[best][0])
        open_.remove(best)
        left -= rate * minutes
        rows.append(
            {
                "k": candidates[best][0],
                "rate_rps": candidates[best][1],
                "minutes": minutes,
                "saves_ms": 1e3 * rate * minutes,
                "saves_ms_per_minute": 1e3 * rate,
                "regret_left_ms": 1e3 * left,
            }
        )
    names = ["k", "rate_rps", "minutes", "saves_ms", "saves_ms_per_minute", "regret_left_ms"]
    return pd.DataFrame(rows, columns=names)
