"""Is the model to be trusted on these traces? Recovery, held-out prediction, prior sensitivity."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import kstest

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.inference.refit import Refit, Refitter, compile_refits
from bayes_sd.model.latency_model import LatencyModel
from bayes_sd.validate.leave_out import leave_out
from bayes_sd.validate.pairs import brier, reliability
from bayes_sd.validate.result import CheckResult
from bayes_sd.validate.scores import PROB, draws_of, summary
from bayes_sd.validate.simulate import one_draw, replicate

if TYPE_CHECKING:
    from bayes_sd.traces import Traces

MEAN_COVERAGE, P95_COVERAGE, LEFT_COVERAGE = (0.85, 0.95), (0.80, 0.97), (0.80, 0.97)
RUN_ERROR, LEFT_ERROR = 0.08, 0.20
RECOVERED = 0.80  # of 90% intervals that hold the truth
RECOVERIES = 4
SENSITIVITY = 1.0  # posterior standard deviations that a fitted mean may move
WIDER = 1.5
PIT_P = 0.01


def recovery(refitter: Refitter, seed: int, **sampling: Any) -> CheckResult:
    """Data made by draws of the posterior, fitted again: do the intervals hold the truth?"""
    full = refitter.refit(seed=seed, **sampling)
    rng, rows = np.random.default_rng(seed), []
    draws = full.draws.sizes["chain"] * full.draws.sizes["draw"]
    for i in rng.choice(draws, RECOVERIES, replace=False):
        truth = one_draw(full, int(i))
        truth["noise_names"] = full.parameters["noise_term"].values
        made = replicate(truth, refitter.design, rng)
        again = refitter.refit(observed=made, seed=seed, **sampling)
        for name, dim in (("law", "law_term"), ("noise", "noise_term")):
            low, high = np.quantile(
                again.parameters[name].values, [(1 - PROB) / 2, (1 + PROB) / 2], axis=(0, 1)
            )
            for j, term in enumerate(again.parameters[dim].values):
                value = float(truth[name][j])
                inside = bool(low[j] <= value <= high[j])
                rows.append((str(term), value, float(low[j]), float(high[j]), inside))
    table = pd.DataFrame(rows, columns=["parameter", "truth", "low", "high", "inside"])
    share = float(table["inside"].mean())
    return CheckResult(
        "recovery",
        share >= RECOVERED,
        share,
        f">= {RECOVERED}",
        f"{share:.0%} of {len(table)} 90% intervals hold the coefficient that made the data.",
        table,
    )


def random_runs(refitter: Refitter, seed: int, **sampling: Any) -> list[CheckResult]:
    """Fifths of the runs left out: coverage of means and of 95th percentiles, error, ranks."""
    found = leave_out(refitter, "fifth", seed=seed, **sampling)
    s, rows = summary(found.rows), found.rows
    ranks = kstest(rows["pit"], "uniform")
    return [
        *_decisions("held_out_decisions", found.pairs),
        _between("held_out_coverage", s["coverage"], MEAN_COVERAGE, "of left-out run means", rows),
        _between("held_out_p95", s["p95_coverage"], P95_COVERAGE, "of left-out runs' p95", rows),
        _at_most("held_out_error", s["median_error"], RUN_ERROR, "of left-out runs", s),
        CheckResult(
            "held_out_ranks",
            bool(ranks.pvalue >= PIT_P),
            float(ranks.pvalue),
            f">= {PIT_P}",
            f"Ranks of left-out means are uniform with p = {ranks.pvalue:.3f} "
            f"(Kolmogorov-Smirnov distance {ranks.statistic:.3f}).",
            rows,
        ),
    ]


def left_out(refitter: Refitter, by: str, seed: int, **sampling: Any) -> list[CheckResult]:
    """One verifier, drafter, expert shape or corner left out at a time."""
    found = leave_out(refitter, by, seed=seed, **sampling)
    s = summary(found.rows)
    each = found.rows.groupby("fold").apply(lambda own: pd.Series(summary(own)))
    table = each.reset_index().merge(found.folds[["fold", "joint_rank", "rhat_max"]], on="fold")
    what = f"of runs left out by {by}"
    return [
        *_decisions(f"{by}_decisions", found.pairs),
        _between(f"{by}_coverage", s["coverage"], LEFT_COVERAGE, what, table),
        _at_most(f"{by}_error", s["median_error"], LEFT_ERROR, what, s, table),
    ]


def _decisions(name: str, table: pd.DataFrame) -> list[CheckResult]:
    """P(SD beats plain) against the 0/1 call; nothing where no pair was left out."""
    if table.empty:
        return []
    b = brier(table)
    return [
        CheckResult(
            name,
            b["brier"] <= b["brier_call"],
            b["brier"],
            f"<= {b['brier_call']:.3f} (0/1 call)",
            f"P(SD beats plain) has a Brier score of {b['brier']:.3f} on {b['pairs']} left-out "
            f"pairs, the 0/1 call {b['brier_call']:.3f}; acting on it loses {b['regret']:.1%} "
            f"against the better server, the medians {b['regret_point']:.1%}, always SD "
            f"{b['regret_always_sd']:.1%}, always plain {b['regret_always_plain']:.1%}.",
            reliability(table),
        )
    ]


def prior_sensitivity(
    model: LatencyModel, traces: "Traces", seed: int, **sampling: Any
) -> CheckResult:
    """All priors 1.5 times as wide, and as narrow: how far do fitted run means move?"""
    fits = {}
    for name, by in (("as stated", 1.0), ("wider", WIDER), ("narrower", 1 / WIDER)):
        priors = tuple(replace(p, b=p.b * by) for p in model.priors)
        fits[name] = compile_refits(replace(model, priors=priors), traces).refit(
            seed=seed, **sampling
        )
    middle, sd = _log_means(fits["as stated"])
    rows = []
    for name in ("wider", "narrower"):
        moved = np.abs(_log_means(fits[name])[0] - middle) / sd
        rows.append((name, float(np.median(moved)), float(moved.max())))
    table = pd.DataFrame(rows, columns=["priors", "median_moved_sd", "max_moved_sd"])
    worst = float(table["max_moved_sd"].max())
    return CheckResult(
        "prior_sensitivity",
        worst <= SENSITIVITY,
        worst,
        f"<= {SENSITIVITY}",
        f"With priors {WIDER} times as wide or narrow, no fitted mean latency moves by more than "
        f"{worst:.2f} of its posterior standard deviations.",
        table,
    )


def _log_means(refit: Refit) -> tuple[np.ndarray, np.ndarray]:
    values = np.log(draws_of(refit, "run_mean_e2e", np.arange(refit.draws.sizes["run"])))
    return values.mean(axis=0), values.std(axis=0)


def _between(
    name: str, value: float, bounds: tuple[float, float], what: str, table: pd.DataFrame
) -> CheckResult:
    low, high = bounds
    return CheckResult(
        name,
        bool(low <= value <= high),
        value,
        f"{low} .. {high}",
        f"{value:.0%} {what} lie inside their 90% predictive intervals.",
        table,
    )


def _at_most(
    name: str,
    value: float,
    bound: float,
    what: str,
    s: dict[str, float],
    table: pd.DataFrame | None = None,
) -> CheckResult:
    return CheckResult(
        name,
        bool(value <= bound),
        value,
        f"<= {bound}",
        f"The median absolute error {what} is {value:.1%} ({s['runs']} runs; mean "
        f"{s['mean_error']:.1%}, log score {s['log_score']:.2f}, interval score "
        f"{s['interval_score']:.2f}).",
        pd.DataFrame([s]) if table is None else table,
    )


LEFT_OUT = ("verifier", "drafter", "moe", "highest_load", "long_prompts")
NAMES = ("recovery", "runs", *LEFT_OUT, "priors", "calibration", "stress")


def validate_model(
    traces: "Traces",
    model: LatencyModel | None = None,
    *,
    only: Sequence[str] | None = None,
    seed: int = 1,
    fits: int = 200,
    executor: Executor | None = None,
    progress: Callable[[str], Any] | None = None,
    **sampling: Any,
) -> list[CheckResult]:
    """Check a model on traces: each check says whether it passed, with a table and a sentence.

    Parameters
    ----------
    traces : Traces
    model : LatencyModel, optional
    only : sequence of str, optional
        Of "recovery", "runs" (random fifths left out), "verifier", "drafter", "moe",
        "highest_load", "long_prompts" (left out), "priors" (sensitivity), "calibration"
        (simulation-based) and "stress" (the law against a simulated server); all by default.
    seed : int
    fits : int
        Refits of the simulation-based calibration.
    executor : concurrent.futures.Executor, optional
        Runs the refits of left-out folds side by side.
    progress : callable, optional
        Called with each sentence.
    **sampling
        ``draws``, ``tune``, ``chains``, ``cores`` of each refit.

    Returns
    -------
    list of CheckResult
        A check that the traces cannot make (one verifier only, say) has not passed, and says why.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    names = tuple(only) if only is not None else NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InputError(f"No check is called {unknown[0]!r}; known: {', '.join(NAMES)}.")
    model = model or LatencyModel()
    needs = {"recovery", "runs", *LEFT_OUT} & set(names)
    refitter = compile_refits(model, traces) if needs else None

    def run(name: str) -> list[CheckResult]:
        if name == "priors":
            return [prior_sensitivity(model, traces, seed, **sampling)]
        if name == "calibration":
            from bayes_sd.validate.calibration import calibration

            return [calibration(fits, seed, cores=sampling.get("cores"), progress=progress)]
        if name == "stress":
            from bayes_sd.validate.stress import stress

            return stress(seed)
        assert refitter is not None
        if name == "recovery":
            return [recovery(refitter, seed, **sampling)]
        if name == "runs":
            return random_runs(refitter, seed, executor=executor, **sampling)
        return left_out(refitter, name, seed, executor=executor, **sampling)

    results = []
    for name in names:
        try:
            found = run(name)
        except EvidenceError as error:
            found = [CheckResult(name, False, float("nan"), "evidence", str(error))]
        results += found
        if progress is not None:
            for one in found:
                progress(f"{one.name}: {'passed' if one.passed else 'NOT passed'}. {one.sentence}")
    return results
