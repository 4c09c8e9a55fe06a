"""Which law, which pooling: exact leave-out refits, their ELPD differences, stacking weights."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.checks.jobs import Job, Keep, finished
from bayes_sd.checks.leave_out import LeftOut, fold, folds, summary
from bayes_sd.errors import InputError
from bayes_sd.fit import LatencyModel
from bayes_sd.model.design import build_design
from bayes_sd.physics.law import OPTIONAL, Law
from bayes_sd.runs.schema import Runs

STEPS = 2000  # of the weights' fixed point


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models ranked by how well they predict what they had not seen, left out `by`.

    Parameters
    ----------
    table : pandas.DataFrame
        A row a model, best first: ``name, elpd`` (sum of the log density of the left-out runs' log
        mean latency), ``elpd_se``, ``elpd_diff`` and ``diff_se`` (to the best), ``weight``
        (stacking), ``median_error``, ``coverage``, ``rhat_max``, ``divergences``.
    left_out : mapping
        For each model its predictions (``rows``), refits (``folds``), and pairs of a plain and an
        SD run (``pairs``).
    """

    by: str
    table: pd.DataFrame
    left_out: Mapping[str, LeftOut]

    def __str__(self) -> str:
        best, *others = self.table.to_dict("records")
        runs = len(self.left_out[best["name"]].rows)
        behind = "; ".join(
            f"{m['name']!r} lies {-m['elpd_diff']:.1f} lower (error {m['diff_se']:.1f})"
            for m in others
        )
        first = f"{best['name']!r} predicts the {runs} runs left out by {self.by} best"
        return f"{first} (ELPD {best['elpd']:.1f}); {behind}."


def standard_models() -> dict[str, LatencyModel]:
    """Models worth comparing: the full one, one part less each, the paper's law, other poolings.

    Examples
    --------
    >>> sorted(standard_models())[:3]
    ['and host', 'complete pooling', 'families alike']
    """
    base = LatencyModel()
    full = base.law.parts
    laws = {"full": full, "paper's law": ("host",), "paper's law + experts": ("host", "experts")}
    laws |= {f"no {part}": tuple(p for p in full if p != part) for part in full}
    laws |= {f"and {part}": (*full, part) for part in OPTIONAL if part not in full}
    return {name: replace(base, law=Law(parts)) for name, parts in laws.items()} | {
        "no pooling": replace(base, pooling="none"),
        "complete pooling": replace(base, pooling="complete"),
        "families alike": base.with_prior("moe_effect", b=1e-3, reason="families are alike"),
        "no censoring": replace(base, censored=False),
    }


def compare_models(
    runs: Runs,
    models: Mapping[str, LatencyModel] | None = None,
    *,
    by: str = "verifier",
    seed: int = 1,
    executor: Executor | None = None,
    keep: Keep = None,
    progress: Callable[[str], Any] | None = None,
    **sampling: Any,
) -> Comparison:
    """Compare models by exact leave-out refits: all predict the same runs from the same folds.

    Runs past saturation are left out with their verifier or drafter, bound the fits of models that
    use them, and are not predicted.

    Parameters
    ----------
    runs : Runs
    models : mapping of str to LatencyModel, optional
        By default the standard ones: the full model, the same with one part of its law less or
        more, the paper's law, other poolings, no censoring.
    by : str
        What is left out at a time: "verifier", "drafter", "moe" (verifiers with experts), "run",
        "fifth" (of the runs, at random), "highest_load" or "long_prompts".
    seed : int
    executor : concurrent.futures.Executor, optional
        Runs the refits: threads, processes, or Dask's ``client.get_executor()``, all with the same
        result. Give each refit ``cores=1``.
    keep : path, optional
        Folder of finished refits: those of the same runs, model, seed, sampling and versions are
        not made again.
    progress : callable, optional
        Called with a sentence after each model.
    **sampling
        ``draws``, ``tune``, ``chains``, ``cores`` of each refit.

    Raises
    ------
    InputError
        If there are fewer than two models, `by` is unknown, or the executor died thrice with no
        refit finished in between; lost ones are made again, and a broken process pool is replaced.
    EvidenceError
        If nothing is left to fit or to predict.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> models = {"full": bsd.LatencyModel(), "apart": bsd.LatencyModel(pooling="none")}
    >>> print(bsd.compare_models(bsd.read("runs/"), models))  # doctest: +SKIP
    """
    models = dict(models) if models is not None else standard_models()
    if len(models) < 2:
        raise InputError("A comparison needs at least two models.")
    parts = folds(build_design(runs).table, by)
    jobs = {
        name: [Job(fold, model, runs, seed, sampling, part) for part in parts.items()]
        for name, model in models.items()
    }
    left_out = {}
    for name, results in finished(jobs, executor, keep):
        left_out[name] = LeftOut.of(results)
        if progress is not None:
            progress(f"{name}: ELPD {left_out[name].rows['log_score'].sum():.1f}")
    left_out = {name: left_out[name] for name in models}
    rows = {name: result.rows.set_index("run_id") for name, result in left_out.items()}
    scores = pd.DataFrame({name: own["log_score"] for name, own in rows.items()})
    table = ranking(scores, next(iter(rows.values()))["fold"])
    for name in ("median_error", "coverage"):
        table[name] = pd.Series({n: summary(own)[name] for n, own in rows.items()})
    for name, worst in (("rhat_max", "max"), ("divergences", "sum")):
        table[name] = pd.Series({n: own.folds[name].agg(worst) for n, own in left_out.items()})
    return Comparison(by, table.reset_index(names="name"), left_out)


def ranking(scores: pd.DataFrame, fold: pd.Series) -> pd.DataFrame:
    """A row a model, best first, from log scores (runs, models); errors are of sums over folds."""
    sums = scores.groupby(fold).sum()
    less = sums.sub(sums[sums.sum().idxmax()], axis=0)
    columns = {
        "elpd": sums.sum(),
        "elpd_se": np.sqrt(len(sums)) * sums.std(ddof=1),
        "elpd_diff": less.sum(),
        "diff_se": np.sqrt(len(sums)) * less.std(ddof=1),
        "weight": pd.Series(stacking(scores.to_numpy()), scores.columns),
    }
    return pd.DataFrame(columns).sort_values("elpd", ascending=False)


def stacking(scores: np.ndarray) -> np.ndarray:
    r"""Weights of a mixture of the models that would have predicted best.

    Maximises :math:`\sum_i \log \sum_m w_m p_m(y_i)` over the simplex by its EM fixed point, given
    log densities (runs, models). Yao, Vehtari, Simpson, Gelman (2018).
    """
    density = np.exp(scores - scores.max(axis=1, keepdims=True))
    weight = np.full(scores.shape[1], 1 / scores.shape[1])
    for _ in range(STEPS):
        share = density * weight
        weight = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    return np.asarray(weight)
