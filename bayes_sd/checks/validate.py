"""Is the model to be trusted on these runs? Recovery, held-out prediction, prior sensitivity."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.checks.jobs import Job, Keep, finished
from bayes_sd.checks.leave_out import PROB, LeftOut, brier, fold, folds, reliability, summary
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.fit import LatencyModel
from bayes_sd.model.design import build_design
from bayes_sd.model.sample import Refitter
from bayes_sd.physics.noise import replicate
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.schema import Runs

MEAN_COVERAGE, P95_COVERAGE, LEFT_COVERAGE = (0.85, 0.95), (0.80, 0.97), (0.80, 0.97)
RUN_ERROR, LEFT_ERROR = 0.08, 0.20
RECOVERED = 0.80  # of 90% intervals that hold the truth
RECOVERIES = 4
SENSITIVITY = 1.0  # posterior standard deviations that a fitted mean may move
WIDER = 1.5
WIDTHS = {"stated": 1.0, "wider": WIDER, "narrower": 1 / WIDER}
PIT_P = 0.01
NAMES = ("recovery", "runs", "verifier", "drafter", "moe", "highest_load", "long_prompts", "priors")


@dataclass(frozen=True, eq=False)
class CheckResult:
    """One check of a model; ``str()`` is its sentence.

    `value` is the number that decides, `bound` what it must satisfy, as ``"<= 0.08"`` or
    ``"0.85 .. 0.95"``, and `table` has the figures behind it.
    """

    name: str
    passed: bool
    value: float
    bound: str
    sentence: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def __str__(self) -> str:
        return f"{self.name}: {'passed' if self.passed else 'NOT passed'}. {self.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the table; a value that is not a number becomes None."""
        return finite_or_none({n: value for n, value in vars(self).items() if n != "table"})


def recovery(refitter: Refitter, seed: int, **sampling: Any) -> dict[Any, list]:
    """Data made by draws of the posterior, fitted again: coefficients and their intervals."""
    full = refitter.refit(seed=seed, **sampling)
    chains, draws = full.draws.sizes["chain"], full.draws.sizes["draw"]
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    for index in rng.choice(chains * draws, RECOVERIES, replace=False):
        chain, draw = divmod(int(index), draws)
        run = {str(name): values.values[chain, draw] for name, values in full.draws.items()}
        truth = full.parameters.isel(chain=chain, draw=draw)
        spread_sd = float(truth["noise"].sel(noise_term="spread_sd"))
        made = replicate(run, spread_sd, refitter.design.data, rng)
        again = refitter.refit(observed=made, seed=seed, **sampling).parameters
        for name, dim in (("law", "law_term"), ("noise", "noise_term")):
            probs = [(1 - PROB) / 2, (1 + PROB) / 2]
            low, high = np.quantile(again[name].values, probs, axis=(0, 1))
            rows += zip(again[dim].values, truth[name].values, low, high, strict=True)
    return pd.DataFrame(rows, columns=["parameter", "truth", "low", "high"]).to_dict("list")


def judge_recovery(results: Sequence[Any]) -> list[CheckResult]:
    """Do the intervals hold the coefficients that made the data?"""
    table = pd.DataFrame(results[0])
    table["inside"] = table["truth"].between(table["low"], table["high"])
    share = float(table["inside"].mean())
    sentence = f"{share:.0%} of {len(table)} 90% intervals hold the coefficient that made the data."
    passed, bound = share >= RECOVERED, f">= {RECOVERED}"
    return [CheckResult("recovery", passed, share, bound, sentence, table)]


def judge_fifths(result: LeftOut) -> list[CheckResult]:
    """Random fifths left out: coverage of means and of 95th percentiles, error, ranks."""
    from scipy.stats import kstest

    scored, rows = summary(result.rows), result.rows
    mean, p95 = scored["coverage"], scored["p95_coverage"]
    distance, p = (float(x) for x in kstest(rows["pit"], "uniform"))
    sentence = f"Ranks of left-out means are uniform with p = {p:.3f} (distance {distance:.3f})."
    return [
        *_decisions("held_out_decisions", result.pairs),
        _between("held_out_coverage", mean, MEAN_COVERAGE, "of left-out run means", rows),
        _between("held_out_p95", p95, P95_COVERAGE, "of left-out runs' p95", rows),
        _at_most("held_out_error", RUN_ERROR, "of left-out runs", scored, pd.DataFrame([scored])),
        CheckResult("held_out_ranks", p >= PIT_P, p, f">= {PIT_P}", sentence, rows),
    ]


def judge_left_out(result: LeftOut, by: str) -> list[CheckResult]:
    """One verifier, drafter, expert shape or corner left out at a time."""
    scored, what = summary(result.rows), f"of runs left out by {by}"
    each = [{"fold": fold, **summary(own)} for fold, own in result.rows.groupby("fold")]
    table = pd.DataFrame(each).merge(result.folds[["fold", "joint_rank", "rhat_max"]], on="fold")
    return [
        *_decisions(f"{by}_decisions", result.pairs),
        _between(f"{by}_coverage", scored["coverage"], LEFT_COVERAGE, what, table),
        _at_most(f"{by}_error", LEFT_ERROR, what, scored, table),
    ]


def log_means(refitter: Refitter, seed: int, **sampling: Any) -> list[list[float]]:
    """Posterior mean and standard deviation of every run's fitted log mean latency."""
    refit = refitter.refit(seed=seed, **sampling)
    fitted = np.log(refit.of_runs("run_mean_e2e", np.arange(len(refit.left_out))))
    return [fitted.mean(axis=0).tolist(), fitted.std(axis=0).tolist()]


def judge_priors(results: Sequence[Any]) -> list[CheckResult]:
    """All priors 1.5 times as wide, and as narrow: how far do fitted run means move?"""
    (stated, sd), *others = np.asarray(results)
    moved = {n: np.abs(x[0] - stated) / sd for n, x in zip([*WIDTHS][1:], others, strict=True)}
    rows = [(n, float(np.median(x)), float(x.max())) for n, x in moved.items()]
    table = pd.DataFrame(rows, columns=["priors", "median_moved_sd", "max_moved_sd"])
    worst = float(table["max_moved_sd"].max())
    sentence = (
        f"With priors {WIDER} times as wide or narrow, no fitted mean latency moves by more than "
        f"{worst:.2f} of its posterior standard deviations."
    )
    passed, bound = worst <= SENSITIVITY, f"<= {SENSITIVITY}"
    return [CheckResult("prior_sensitivity", passed, worst, bound, sentence, table)]


def _decisions(name: str, table: pd.DataFrame) -> list[CheckResult]:
    """P(SD beats plain) against the 0/1 call; nothing where no pair was left out."""
    if table.empty:
        return []
    b = brier(table)
    sentence = (
        f"P(SD beats plain) has a Brier score of {b['brier']:.3f} on {b['pairs']} left-out "
        f"pairs, the 0/1 call {b['brier_call']:.3f}; acting on it loses {b['regret']:.1%} "
        f"against the better server, the medians {b['regret_point']:.1%}, always SD "
        f"{b['regret_always_sd']:.1%}, always plain {b['regret_always_plain']:.1%}."
    )
    value, call = b["brier"], b["brier_call"]
    bound = f"<= {call:.3f} (0/1 call)"
    return [CheckResult(name, value <= call, value, bound, sentence, reliability(table))]


def _between(name: str, value: float, bounds: tuple, what: str, table: pd.DataFrame) -> CheckResult:
    low, high = bounds
    sentence = f"{value:.0%} {what} lie inside their 90% predictive intervals."
    return CheckResult(name, low <= value <= high, value, f"{low} .. {high}", sentence, table)


def _at_most(name: str, bound: float, what: str, scored: dict, table: pd.DataFrame) -> CheckResult:
    value = scored["median_error"]
    sentence = (
        f"The median absolute error {what} is {value:.1%} ({scored['runs']} runs; mean "
        f"{scored['mean_error']:.1%}, log score {scored['log_score']:.2f}, interval score "
        f"{scored['interval_score']:.2f})."
    )
    return CheckResult(name, value <= bound, value, f"<= {bound}", sentence, table)


def validate(
    runs: Runs,
    model: LatencyModel | None = None,
    *,
    only: str | Sequence[str] | None = None,
    seed: int = 1,
    executor: Executor | None = None,
    keep: Keep = None,
    progress: Callable[[str], Any] | None = None,
    **sampling: Any,
) -> list[CheckResult]:
    """Check a model on runs: each check says whether it passed, with a table and a sentence.

    Parameters
    ----------
    runs : Runs
    model : LatencyModel, optional
        The one that every check is made of; the default model if not given.
    only : str or sequence of str, optional
        Of "recovery" (of coefficients from data that the model made), "runs" (random fifths left
        out), "verifier", "drafter", "moe", "highest_load", "long_prompts" (left out) and "priors"
        (sensitivity); all by default.
    seed, executor, keep, **sampling
        Of the refits, as in :func:`compare_models`.
    progress : callable, optional
        Called with the sentence of each check.

    Returns
    -------
    list of CheckResult
        A check that the runs cannot make (one verifier only, say) has not passed, and says why.

    Raises
    ------
    InputError
        If a name is unknown, or the executor died.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> for check in bsd.validate(bsd.read("runs/"), only=["runs"]):  # doctest: +SKIP
    ...     print(check)
    """
    names = NAMES if only is None else (only,) if isinstance(only, str) else tuple(only)
    if unknown := [name for name in names if name not in NAMES]:
        raise InputError(f"No check is called {unknown[0]!r}; known: {', '.join(NAMES)}.")
    model = model or LatencyModel()

    def refits(name: str) -> tuple[list[Job], Callable[[list[Any]], list[CheckResult]]]:
        if name == "recovery":
            return [Job(recovery, model, runs, seed, sampling)], judge_recovery
        if name == "priors":
            wider = [tuple(replace(p, b=p.b * x) for p in model.priors) for x in WIDTHS.values()]
            models = [replace(model, priors=priors) for priors in wider]
            return [Job(log_means, each, runs, seed, sampling) for each in models], judge_priors
        judge = judge_fifths if name == "runs" else partial(judge_left_out, by=name)
        parts = folds(build_design(runs).table, "fifth" if name == "runs" else name)
        jobs = [Job(fold, model, runs, seed, sampling, part) for part in parts.items()]
        return jobs, lambda results: judge(LeftOut.of(results))

    say = progress or (lambda sentence: None)
    jobs, judges, checks = {}, {}, {}
    for name in names:
        try:
            jobs[name], judges[name] = refits(name)
        except EvidenceError as error:
            checks[name] = [CheckResult(name, False, float("nan"), "evidence", str(error))]
            say(str(checks[name][0]))
    for name, results in finished(jobs, executor, keep):
        checks[name] = judges[name](results)
        for result in checks[name]:
            say(str(result))
    return [result for name in names for result in checks[name]]
