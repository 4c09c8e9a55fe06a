"""Which law, which pooling: exact leave-out refits, their ELPD differences, stacking weights."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.inference.refit import compile_refits
from bayes_sd.model.latency_model import LatencyModel
from bayes_sd.physics.costs import OPTIONAL, Law
from bayes_sd.validate.leave_out import BY, LeftOut, leave_out, psis, smoothed
from bayes_sd.validate.scores import summary

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit
    from bayes_sd.traces import Traces

PARETO_K = 0.7
STEPS = 2000  # of the weights' fixed point


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models ranked by how well they predict what they had not seen.

    Parameters
    ----------
    by : str
        What was left out at a time.
    table : pandas.DataFrame
        A row a model, best first: ``name, elpd`` (sum of the log density of the left-out runs' log
        mean latency), ``elpd_se``, ``elpd_diff`` and ``diff_se`` (to the best), ``weight``
        (stacking), ``median_error``, ``coverage``, ``elpd_psis`` and ``bad_k`` (runs with a Pareto
        k above 0.7; leave-one-run-out only), ``rhat_max``, ``divergences``.
    left_out : mapping
        A `LeftOut` a model.
    """

    by: str
    table: pd.DataFrame
    left_out: Mapping[str, LeftOut]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``{by, models: [{name, elpd, elpd_se, elpd_diff, diff_se, weight, ...}]}``."""
        rows = self.table.to_dict("records")
        models = [
            {str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
            for row in rows
        ]
        return {"by": self.by, "models": models}


def standard_models(base: LatencyModel | None = None) -> dict[str, LatencyModel]:
    """Models worth comparing: the full one, one part less each, the paper's law, other poolings.

    Parameters
    ----------
    base : LatencyModel, optional
        The full one.

    Examples
    --------
    >>> sorted(standard_models())[:3]
    ['complete pooling', 'families alike', 'full']
    """
    base = base or LatencyModel()

    def using(*parts: str, **changes: Any) -> LatencyModel:
        return replace(base, law=Law(parts), **changes)

    models = {"full": base, "paper's law": using("host")}
    models["paper's law + experts"] = using("host", "experts")
    for part in base.law.parts:
        needless = {part, "context"} if part == "depth" else {part}
        models[f"no {part}"] = using(*(p for p in base.law.parts if p not in needless))
    for part in OPTIONAL:
        if part not in base.law.parts:
            models[f"and {part}"] = using(*base.law.parts, part)
    return models | {
        "no pooling": replace(base, pooling="none"),
        "complete pooling": replace(base, pooling="complete"),
        "families alike": base.with_prior("moe", b=1e-3, reason="no difference between families"),
        "no censoring": replace(base, censored=False),
    }


def compare(
    traces: "Traces",
    models: Mapping[str, LatencyModel] | None = None,
    *,
    by: str = "verifier",
    seed: int = 1,
    executor: Executor | None = None,
    progress: Any = None,
    **sampling: Any,
) -> Comparison:
    """Compare models by exact leave-out refits on the same runs.

    Each model is compiled once and refitted by data. Runs past saturation bound the fits, and are
    not predicted.

    Parameters
    ----------
    traces : Traces
    models : mapping of str to LatencyModel, optional
        By default :func:`standard_models`.
    by : str
        "verifier" (leave one system out), "run" (leave one run out, beside which PSIS is shown),
        or another of :data:`bayes_sd.validate.leave_out.BY`.
    seed : int
    executor : concurrent.futures.Executor, optional
    progress : callable, optional
        Called with a sentence after each model.
    **sampling
        ``draws``, ``tune``, ``chains``, ``cores`` of each refit.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If there are fewer than two models, or `by` is unknown.
    """
    models = dict(models) if models is not None else standard_models()
    if len(models) < 2:
        raise InputError("A comparison needs at least two models.")
    if by not in BY:
        raise InputError(f"by = {by!r}: must be one of {', '.join(BY)}.")
    found, by_psis = {}, {}
    for name, model in models.items():
        refitter = compile_refits(model, traces)
        found[name] = leave_out(refitter, by, seed=seed, executor=executor, **sampling)
        if by == "run":
            full = refitter.refit(seed=seed, **sampling)
            by_psis[name] = psis(full, refitter.design)
        if progress is not None:
            progress(f"{name}: elpd {found[name].rows['log_score'].sum():.1f}")
    return Comparison(by, _rank(found, by_psis), found)


def _rank(found: Mapping[str, LeftOut], by_psis: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    same_runs({name: one.rows for name, one in found.items()})
    score = {name: one.rows["log_score"].to_numpy() for name, one in found.items()}
    fold = next(iter(found.values())).rows["fold"].to_numpy()
    best = max(score, key=lambda name: float(score[name].sum()))
    weight = stacking(np.stack(list(score.values()), axis=1))
    rows = []
    for (name, own), w in zip(score.items(), weight, strict=True):
        one, ps = found[name], by_psis.get(name)
        s = summary(one.rows)
        rows.append(
            {
                "name": name,
                "elpd": float(own.sum()),
                "elpd_se": _se(own, fold),
                "elpd_diff": float((own - score[best]).sum()),
                "diff_se": _se(own - score[best], fold),
                "weight": float(w),
                "median_error": s["median_error"],
                "coverage": s["coverage"],
                "elpd_psis": float(ps["log_score"].sum()) if ps is not None else np.nan,
                "bad_k": float((ps["pareto_k"] > PARETO_K).sum()) if ps is not None else np.nan,
                "rhat_max": float(one.folds["rhat_max"].max()),
                "divergences": int(one.folds["divergences"].sum()),
            }
        )
    return pd.DataFrame(rows).sort_values("elpd", ascending=False).reset_index(drop=True)


def same_runs(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse to compare scores of different data.

    Raises
    ------
    InputError
        With what one has and another lacks.
    """
    (first, reference), *others = tables.items()
    for name, table in others:
        if set(table["run_id"]) != set(reference["run_id"]):
            more = len(set(table["run_id"]) - set(reference["run_id"]))
            less = len(set(reference["run_id"]) - set(table["run_id"]))
            raise InputError(
                f"{name!r} and {first!r} are of different data: the first has {more} runs that "
                f"the second lacks, and lacks {less} of its; compare fits of the same runs."
            )


def _se(scores: np.ndarray, fold: np.ndarray) -> float:
    """Standard error of a sum over folds, whose rows share a refit and an effect."""
    sums = pd.Series(scores).groupby(fold).sum().to_numpy()
    return float(np.sqrt(len(sums) * sums.var(ddof=1))) if len(sums) > 1 else float("nan")


def stacking(scores: np.ndarray) -> np.ndarray:
    r"""Weights of a mixture of the models that would have predicted best.

    Maximises :math:`\sum_i \log \sum_m w_m p_m(y_i)` over the simplex by its EM fixed point.

    Parameters
    ----------
    scores : array (runs, models)
        Log densities of what was left out.

    Returns
    -------
    array (models,)

    References
    ----------
    Yao, Vehtari, Simpson, Gelman (2018).
    """
    density = np.exp(scores - scores.max(axis=1, keepdims=True))
    weight = np.full(scores.shape[1], 1 / scores.shape[1])
    for _ in range(STEPS):
        share = density * weight
        weight = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    return np.asarray(weight)


def compare_fits(fits: Mapping[str, "Fit"]) -> pd.DataFrame:
    """Rank saved fits of the same runs by PSIS leave-one-run-out, without refitting.

    The importance weights take out a run's mean latency only, and a `bad_k` above 0 says that
    PSIS is not to be trusted there; :func:`compare` refits.

    Parameters
    ----------
    fits : mapping of str to Fit

    Returns
    -------
    pandas.DataFrame
        A row a fit, best first: ``name, elpd, elpd_se, elpd_diff, diff_se, weight, bad_k``.

    Raises
    ------
    InputError
        If the fits are of different data, with the difference, or there are fewer than two.
    """
    from bayes_sd.predict.runs import run_log_density

    if len(fits) < 2:
        raise InputError("A comparison needs at least two fits.")
    runs = {name: fit.runs for name, fit in fits.items()}
    same_runs(runs)
    order = next(iter(runs.values()))["run_id"]
    found = {}
    for name, fit in fits.items():
        density = run_log_density(fit, runs[name].set_index("run_id").loc[order].reset_index())
        found[name] = smoothed(density, density)
    score = np.stack([table["log_score"].to_numpy() for table in found.values()], axis=1)
    best = int(score.sum(axis=0).argmax())
    n, weight = len(order), stacking(score)
    rows = [
        {
            "name": name,
            "elpd": float(score[:, i].sum()),
            "elpd_se": float(np.sqrt(n) * score[:, i].std(ddof=1)),
            "elpd_diff": float((score[:, i] - score[:, best]).sum()),
            "diff_se": float(np.sqrt(n) * (score[:, i] - score[:, best]).std(ddof=1)),
            "weight": float(weight[i]),
            "bad_k": int((found[name]["pareto_k"] > PARETO_K).sum()),
        }
        for i, name in enumerate(found)
    ]
    return pd.DataFrame(rows).sort_values("elpd", ascending=False).reset_index(drop=True)
