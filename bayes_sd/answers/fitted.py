"""The law at measured runs: fitted values and predictions; and tables of what was learned."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy

from bayes_sd.answers import answer
from bayes_sd.answers.break_even import BreakEven, break_even
from bayes_sd.answers.compare import Comparison, compare, default_loads, measured_systems
from bayes_sd.answers.latency import by_draws, scatter
from bayes_sd.answers.servers import Server, resolve
from bayes_sd.errors import EvidenceError, require
from bayes_sd.model import design
from bayes_sd.model.posterior import Posterior
from bayes_sd.model.priors import ALL, EFFECT_DIMS, EFFECT_MEANINGS, VERIFIER_COSTS, in_plain_words
from bayes_sd.physics.costs import whole
from bayes_sd.physics.law import SOFTNESS, Outcome, outcome
from bayes_sd.physics.noise import NU, log_density, observed_scale
from bayes_sd.runs.check import place
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.machine import Machine, site
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import Size

FITTED_DRAWS = 400  # for the medians kept with a fit
T_DRAWS = 20  # of the scatter, each time


def _server_of(row: pd.Series, fit: Posterior) -> Server:
    """The server a run was measured on; models that the fit does not know are given by size."""
    verifier: str | Size = str(row["verifier"])
    if verifier not in fit.verifiers.index:
        total, active, experts, chosen, *others = row[[*design.SIZES, "weight_bits"]]
        known = map(finite_or_none, others)
        verifier = Size(total, active, int(experts), int(chosen), *known)
    drafter: str | Size | None = None if row["drafter"] == design.NONE else str(row["drafter"])
    if isinstance(drafter, str) and drafter not in fit.drafters.index:
        drafter = Size(row["drafter_params"], layers=finite_or_none(row["drafter_layers"]))
    # A run's own acceptance is in its workload; that of its server only tells which one it was.
    imposed, k = row["acceptance_imposed"], int(row["draft_tokens"])
    acceptance = 0.0 if np.isnan(imposed) else float(imposed)
    name, gpus = str(row["environment"]), int(row["gpus"])
    where: str | Machine = name
    if name not in fit.environments:
        where = Machine(name, gpus, gb_per_s=row["gb_per_s"] / gpus, tflops=row["tflops"] / gpus)
    return Server(verifier, drafter, k, acceptance, where, workload=str(row["workload"]))


def run_outcome(
    fit: Posterior, table: pd.DataFrame, metric: str = "e2e", seed: int = 0, held_out: bool = False
) -> tuple[Outcome, np.ndarray, np.ndarray]:
    """What the law says of every run: arrays (draws, runs).

    A verifier, drafter or server that the fit has not seen is drawn from its population, given its
    size. Acceptance is the run's own, as it is in the likelihood. Beside the outcome: the scale of
    the log mean's scatter, sampling error included, and the variance of requests' log latencies.
    """
    table, known = table.reset_index(drop=True), fit.environments
    unknown = table[["gb_per_s", "tflops"]].isna().any(axis=1)
    unknown |= bool(fit.servers["gb_per_s"].isna().all())
    if foreign := sorted(set(table["environment"][unknown].astype(str)) - set(known)):
        raise EvidenceError(
            f"Runs of environment {foreign[0]!r} cannot be predicted: the fit knows "
            f"{'; '.join(known)}; fit some runs of the other one too, or give the <<machine>> of "
            "both, so that data sheets tell how they differ."
        )
    columns = np.empty((len(Outcome._fields) + 2, fit.draws, len(table)))
    workloads = design.run_workload(table)
    for _, rows in table.groupby(design.SERVER, dropna=False):
        at: Any = rows.index.to_numpy()
        if at[-1] - at[0] == len(at) - 1:  # slices are copied several times as fast
            at = slice(at[0], at[-1] + 1)
        first = rows.iloc[0]
        inputs: dict[str, Any] = {name: values[at] for name, values in workloads.items()}
        if inputs["closed"].all():
            inputs["rate_rps"] = 0.0
        place = site(str(first["environment"]), str(first["machine"]))
        resolved = resolve(fit, _server_of(first, fit), seed, site=place)
        sizes: dict[str, Any] = dict(resolved.sizes)
        if rows["captured_tokens"].notna().all():  # a run's own, of whatever machine
            captured = design.run_machine(rows)["captured"]
            sizes["captured"] = captured if np.isfinite(captured).any() else np.inf
        if held_out:  # at a rate, from the latency that is to be predicted
            del inputs["pass_tokens"]
        terms, law = resolved.coefficients, fit.law
        of = partial(outcome, softness=SOFTNESS, law=law)
        said = by_draws(of, fit.draws, law.stages(terms, sizes, inputs), sizes, inputs)
        requests = rows["requests"].to_numpy(float)
        own, variance = scatter(fit, said, inputs, metric, requests)
        each = (*said, observed_scale(own, variance, requests), variance)
        for column, values in zip(columns, each, strict=True):
            column[:, at] = values
    return Outcome(*columns[:-2]), columns[-2], columns[-1]


def fitted_columns(fit: Posterior, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Of each fitted run: medians of mean latency and TTFT, C1, C2 (s) and utilization; and whether
    its measured means lie within the 99% intervals of a run like it."""
    thin, inside = fit.thin(FITTED_DRAWS), dict[str, np.ndarray]()
    cut = table["saturated"].to_numpy(bool)
    for metric in ("e2e", "ttft"):
        log = np.log(table[f"{metric}_mean_s"].to_numpy(float))
        if not np.isnan(log).all():
            said, scale, _ = run_outcome(thin, table, metric)
        log_mean = np.log(getattr(said, f"{metric}_s"))
        t = np.random.default_rng(0).standard_t(NU, (T_DRAWS, *log_mean.shape))
        low, high = np.quantile(log_mean + scale * t, [0.005, 0.995], axis=(0, 1))
        inside[f"{metric}_inside_99"] = cut | np.isnan(log) | (log >= low) & (log <= high)
    names = {f"fitted_{n}_s": getattr(said, f"{n}_s") for n in ("e2e", "ttft", "c1", "c2")}
    names["utilization"] = said.others_share
    return {name: np.median(values, axis=0) for name, values in names.items()} | inside


def misfits(fit: Posterior) -> list[str]:
    """What the law does not say of the fitted runs as they were measured, a sentence each."""
    fit.require_runs()
    runs, said = fit.runs, []
    for metric, name in (("e2e", "latency"), ("ttft", "TTFT")):
        outside = runs[~runs[f"{metric}_inside_99"].astype(bool)]
        named = ", ".join(
            f"{place(str(r['source']).rsplit('/', 1)[-1], int(r['row']))} "
            f"({r[f'{metric}_mean_s']:.3g} s measured, {r[f'fitted_{metric}_s']:.3g} s fitted)"
            for r in outside.head(3).to_dict("records")
        )
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        if named:
            said.append(
                f"The mean {name} of {len(outside)} of {len(runs)} runs lies outside its 99% "
                f"interval: {named}{more}."
            )
    scatter_max = next(p for p in ALL if p.name == "run_sd").interval()[1]
    if (mean_error := accuracy(fit)["mean_error"]) > scatter_max:
        said.append(
            f"The fitted means are off by {mean_error:.0%} on average; runs repeated differ by "
            f"{scatter_max:.0%} at most, so that the law does not describe these."
        )
    return said


def predict(fit: Posterior, runs: Runs, *, prob: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Predict the mean latency of measured runs, as of held-out ones.

    Parameters
    ----------
    runs : Runs
        Steady runs are predicted, saturated ones left out.
    prob : float
        Probability of the equal-tailed predictive interval.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The runs with ``predicted_s`` (median), ``low_s``, ``high_s``, ``inside``, ``log_score``
        (log density of the log mean), ``pit`` and ``support``: "data sheet" of an environment
        that the fit does not know, else "fitted environment".

    Raises
    ------
    EvidenceError
        If a run is of an environment that the fit does not know, and data sheets do not tell.
    """
    require("runs", type(runs).__name__, isinstance(runs, Runs), "from bayes_sd.read(...)")
    ends = _interval(prob)
    table = design.build_design(runs, censored=False).table
    said, scale, _ = run_outcome(fit, table, seed=seed, held_out=True)
    log_mean = np.log(said.e2e_s)
    drawn = log_mean + scale * np.random.default_rng(seed).standard_t(NU, log_mean.shape)
    low, middle, high = np.exp(np.quantile(drawn, ends, axis=0))
    observed = table["e2e_mean_s"].to_numpy()
    density = log_density(np.log(observed), log_mean, scale)
    known = table["environment"].isin(fit.environments)
    return table.assign(
        predicted_s=middle,
        low_s=low,
        high_s=high,
        inside=(observed >= low) & (observed <= high),
        log_score=scipy.special.logsumexp(density, axis=0) - np.log(len(density)),
        pit=(drawn < np.log(observed)).mean(axis=0),
        support=np.where(known, "fitted environment", "data sheet"),
    )


def _interval(prob: float) -> list[float]:
    """Probabilities of the lower end, the middle and the upper end of an equal-tailed interval."""
    answer.probability("prob", prob)
    return [(1 - prob) / 2, 0.5, (1 + prob) / 2]


def coefficient_table(fit: Posterior, prob: float = 0.9) -> pd.DataFrame:
    """Fitted coefficients: median and equal-tailed interval, unit and meaning."""
    data, units, rows, ends = fit.posterior, {p.name: p.unit for p in ALL}, [], _interval(prob)
    scatters = (f"scatter_{level}" for level in (*EFFECT_DIMS, "machine"))
    for group in (name for name in ("law", "moe_effect", *scatters, "noise") if name in data):
        values, (_, _, *dims) = data[group], data[group].dims
        for term in map(str, values[dims[0]].values) if dims else [""]:
            draws = values.sel({dim: term for dim in dims}).values
            low, middle, high = np.quantile(draws, ends)
            labels, known = (term,) * bool(term), group if group in units else term
            name = f"{group}[{term}]" if term and known == group else known
            rows.append((name, middle, low, high, units[known], in_plain_words(group, labels)))
    return pd.DataFrame(rows, columns=["name", "median", "low", "high", "unit", "meaning"])


def families(fit: Posterior, prob: float = 0.9) -> pd.DataFrame:
    """How mixtures of experts differ from dense models of the same sizes, cost by cost.

    Returns
    -------
    pandas.DataFrame
        A row a stage cost of a verifier as large as the fit's mixtures of experts, at the runs'
        mean load: ``dense_ms`` and ``moe_ms`` (medians), ``difference_ms`` with ``low_ms`` and
        ``high_ms``, ``ratio`` and ``prob_slower``.

    Raises
    ------
    EvidenceError
        If one of the families was not measured, or the fit holds no runs.
    """
    fit.require_runs()
    ends, known, runs, rows = _interval(prob), fit.verifiers, fit.runs, []
    moe = known["moe"].to_numpy() > 0
    if moe.all() or not moe.any():
        raise EvidenceError(
            f"Every verifier is {'a mixture of experts' if moe.all() else 'dense'}; "
            "a comparison of families needs both."
        )
    sizes: dict[str, Any] = {str(n): float(v) for n, v in known[moe].mean().items()}
    sizes |= design.UNDRAFTED | design.machine(**fit.servers[list(design.MACHINE)].mean())
    inputs = runs[["draft_tokens", "prompt_tokens", "output_tokens"]].mean().to_dict()
    inputs |= {"k": inputs["draft_tokens"], "cycles": design.run_workload(runs)["cycles"].mean()}
    stages = whole(fit.law.stages(design.coefficients(fit.law_terms), sizes, inputs))
    for i, name in enumerate(VERIFIER_COSTS):
        ratio = np.exp(fit.moe_effect[:, i])
        dense_ms = 1e3 * np.ravel(getattr(stages, name))
        low, middle, high = np.quantile(dense_ms * (ratio - 1), ends)
        row = {"cost": EFFECT_MEANINGS[name], "dense_ms": np.median(dense_ms)}
        row |= {"moe_ms": np.median(dense_ms * ratio), "difference_ms": middle}
        row |= {"low_ms": low, "high_ms": high}
        rows.append(row | {"ratio": np.median(ratio), "prob_slower": (ratio > 1).mean()})
    return pd.DataFrame(rows)


def accuracy(fit: Posterior) -> dict[str, float]:
    """R^2 (log scale) by family and mean relative error of the fitted run means."""
    fit.require_runs()
    table = fit.runs
    observed, fitted = np.log(table["e2e_mean_s"]), np.log(table["fitted_e2e_s"])
    result: dict[str, float] = {}
    for family in ("dense", "moe"):
        own = table["family"] == family
        residual = ((observed - fitted)[own] ** 2).sum()
        total = ((observed[own] - observed[own].mean()) ** 2).sum()
        result[f"r2_{family}"] = float(1 - residual / total) if own.sum() > 1 else float("nan")
    result["mean_error"] = float(np.abs(table["fitted_e2e_s"] / table["e2e_mean_s"] - 1).mean())
    return result


def decisions(
    fit: Posterior, prompt: float, output: float
) -> list[tuple[Comparison, list[BreakEven]]]:
    """All SD servers of a verifier against its plain one, for every verifier that ran plain too.

    At twelve rates up to 95% of the plain server's capacity, or at the measured concurrencies; and
    their break-even loads.
    """
    answers = []
    for plain, drafting, ran_plain, _ in measured_systems(fit):
        if ran_plain and drafting:
            load = default_loads(fit, plain, (prompt, output))
            evens = [break_even(fit, load, each, plain) for each in drafting]
            answers.append((compare(fit, load, drafting, plain), evens))
    return answers


def plot_collapse(fit: Posterior, ax: "answer.Axes | None" = None) -> "answer.Axes":
    """Every run on one curve: latency over C1 against utilization x, and ``1 / (1 - x)``."""
    fit.require_runs()
    ax, runs, x = answer.axes_of(ax), fit.runs, np.linspace(0, 0.97, 300)
    ax.plot(x, 1 / (1 - x), color="black", lw=1.2, label="1 / (1 - x)")
    for i, ((family, arm), own) in enumerate(runs.groupby(["family", "arm"])):
        y, label = own["e2e_mean_s"] / own["fitted_c1_s"], f"{family}, {arm} ({len(own)} runs)"
        answer.points(ax, own["utilization"], y, i, label)
    return answer.finish(ax, "utilization  x = rate x C2", "mean latency / C1", log=True)
