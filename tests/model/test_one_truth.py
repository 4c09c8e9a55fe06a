"""What is computed for a fit and for an answer is the same: graph, fitted runs, questions."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sd.answers.fitted import run_outcome
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit, LatencyModel
from bayes_sd.model.design import NONE, Design, build_design
from bayes_sd.model.posterior import FACTORS, SAMPLED, assemble
from bayes_sd.model.priors import population
from bayes_sd.model.start import start
from bayes_sd.physics.noise import explained, observed_scale
from bayes_sd.runs.load import Load
from bayes_sd.runs.schema import Runs

pytestmark = pytest.mark.sample
DRAWS = 3
SHEETS = {"gb_per_s": (20.0, 30.0), "tflops": (1.0, 1.4), "dies": (1, 2)}
SHEETS |= {"captured_tokens": (8.0, np.nan)}


@dataclass
class Truth:
    """A few joint draws of the graph, and a fit that holds the same draws."""

    graph: dict[str, np.ndarray]
    fit: Fit
    table: pd.DataFrame
    model: Any


def varied(runs: Runs) -> Runs:
    """Runs at rates and concurrencies, of spread lengths, with acceptance known to all digits.

    On two known machines; passes of one are beyond its captured graphs where many are in flight.
    """
    t = runs.table.copy()
    t.loc[t.index % 3 == 0, ["loop", "rate_rps"]] = "closed", np.nan
    t.loc[t.index % 3 == 0, "concurrency"] = 1 + t.index[t.index % 3 == 0] % 5
    t["prompt_tokens_sd"] = 0.3 * t["prompt_tokens"] * (t.index % 2)
    t["output_tokens_sd"] = 0.2 * t["output_tokens"] * (t.index % 2)
    first = t["environment"] == t["environment"].iloc[0]
    for name, (one, other) in SHEETS.items():
        t[name] = np.where(first, one, other)
    sd = t["draft_tokens"] > 0
    rate, accepted, total = 0.97 * t["acceptance_imposed"], 1e9, 0.0
    for j in range(1, t["draft_tokens"].max() + 1):
        accepted = accepted * rate
        t.loc[sd & (t["draft_tokens"] >= j), f"accepted_{j}"] = accepted
        total = total + accepted.where(t["draft_tokens"] >= j, 0.0)
    t.loc[sd, "drafts"], t.loc[sd, "accepted_tokens"] = 1e9, total[sd]
    t.loc[sd, "tokens_per_cycle"] = 1 + total[sd] / 1e9
    return Runs(t, runs.set_aside)


@pytest.fixture(scope="module")
def truth(small_runs: Runs) -> Truth:
    import pymc as pm

    model = LatencyModel()
    design = model.design(varied(small_runs))
    told = design.told(population(model.law))
    for prior, log in zip(told, start(design, told), strict=True):  # draws near what runs say
        model = model.with_prior(prior.name, a=float(np.exp(log)), b=0.05)
    graph = model.graph(design, keep_runs=True)
    names = [n for n in (*SAMPLED, *FACTORS) if n in graph.named_vars]
    names += [f"run_{what}_{m}" for what in ("mean", "scale", "variance") for m in ("e2e", "ttft")]
    values = pm.draw([graph[n] for n in names], DRAWS, random_seed=5, mode="FAST_COMPILE")
    drawn = dict(zip(names, values, strict=True))
    return Truth(drawn, fit_of(graph, design, asdict(model), drawn), design.table, graph)


def fit_of(graph: Any, design: Design, spec: dict, drawn: dict[str, np.ndarray]) -> Fit:
    """A fit that holds these values of the graph's variables."""
    variables = {
        n: (("chain", "draw", *graph.named_vars_to_dims.get(n, ())), v[None])
        for n, v in drawn.items()
        if not n.startswith("run_")
    }
    coords = {
        dim: list(graph.coords[dim]) for _, (dims, _) in variables.items() for dim in dims[2:]
    }
    sampled = xr.DataTree.from_dict({"posterior": xr.Dataset(variables, coords)})
    empty: dict[str, Any] = {"provenance": {}, "sampling": {}}
    posterior = assemble(sampled, design, spec, empty, seed=1)
    posterior = posterior.with_columns(utilization=np.full(len(design.table), 0.5))
    return Fit(posterior.tree)


def test_the_draws_cover_what_a_fit_can_have(truth: Truth) -> None:
    assert {"factor_environment", "factor_drafter", "moe_effect"} <= set(truth.graph)
    t = truth.table
    assert set(t["loop"]) == {"open", "closed"} and t["saturated"].any()
    assert ((t["draft_tokens"] == 0) & (t["drafter"] != NONE)).any()
    assert {"pace_dense", "pace_experts", "overhead_parallel"} <= set(truth.fit.law_terms)
    beyond = (t["draft_tokens"] + 1) * t["concurrency"] > t["captured_tokens"]
    assert beyond.any() and set(t["verifier"][beyond]) == set(t["verifier"])
    spread = np.ptp(truth.graph["run_mean_e2e"], axis=0)
    assert (spread > 0).all()


@pytest.mark.parametrize("metric", ["e2e", "ttft"])
def test_fitted_runs_are_those_of_the_graph(truth: Truth, metric: str) -> None:
    said, scale, variance = run_outcome(truth.fit, truth.table, metric)
    graph, requests = truth.graph, truth.table["requests"].to_numpy(float)
    np.testing.assert_allclose(
        said.mean_s(metric, truth.table["output_tokens"].to_numpy()),
        graph[f"run_mean_{metric}"],
        rtol=1e-6,
    )
    near = said.growth < 50  # beyond, answers stop adding scatter, which has no bound at the pole
    assert near.mean() > 0.8
    expected = graph[f"run_variance_{metric}"]
    np.testing.assert_allclose(variance[near], expected[near], rtol=1e-5)
    expected = observed_scale(graph[f"run_scale_{metric}"], expected, requests)
    np.testing.assert_allclose(scale[near], expected[near], rtol=1e-5)


def test_the_explained_spread_is_part_of_both(truth: Truth) -> None:
    """With the spread of lengths taken out, both fall by what `explained` says of the law."""
    # One wave of requests comes together whatever their lengths, which do not move the mean then.
    table = truth.table.assign(requests=truth.table["concurrency"].fillna(truth.table["requests"]))
    bare = table.assign(prompt_tokens_sd=np.nan, output_tokens_sd=np.nan)
    for metric in ("e2e", "ttft"):
        said, _, with_spread = run_outcome(truth.fit, table, metric)
        without = run_outcome(truth.fit, bare, metric)[2]
        lengths = {"cycles": np.ones(len(bare)), "cycles_var": np.zeros(len(bare))}
        for name in ("prompt", "output"):
            cv = table[f"{name}_tokens_sd"] / table[f"{name}_tokens"]
            lengths[f"{name}_cv2"] = cv.to_numpy(float) ** 2
        expected = explained(metric, said, lengths)
        assert expected.max() > 1e-3
        near = said.growth < 50
        np.testing.assert_allclose((with_spread - without)[near], expected[near], atol=1e-9)


def test_the_log_likelihood_of_arviz_is_the_models(truth: Truth) -> None:
    """Of every observed variable, and of the runs that are bounds, at a point of the sampler."""
    graph, rng = truth.model, np.random.default_rng(3)
    point = {n: v + 0.1 * rng.standard_normal(v.shape) for n, v in graph.initial_point(1).items()}
    names = [n for n in (*SAMPLED, *FACTORS) if n in graph.named_vars]
    terms = [*graph.observed_RVs, *graph.potentials]
    values = graph.replace_rvs_by_values([graph[n] for n in names])
    asked = [*graph.logp(vars=terms, sum=False), *values]
    found = graph.compile_fn(asked, mode="FAST_COMPILE")(point)
    densities, values = found[: len(terms)], found[len(terms) :]
    drawn = {n: value[None] for n, value in zip(names, values, strict=True)}
    design = build_design(Runs(truth.table, pd.DataFrame()))
    fit = fit_of(graph, design, truth.fit.spec, drawn)
    own = fit.to_datatree(prior_draws=0)["log_likelihood"].to_dataset()
    assert set(own) == {term.name for term in terms} and "censored" in own
    for term, density in zip(terms, densities, strict=True):
        np.testing.assert_allclose(own[term.name].values.ravel(), density, rtol=1e-6, atol=1e-6)
    total = sum(float(values.sum()) for values in own.values())
    assert np.isclose(total, sum(d.sum() for d in densities))


def test_the_prior_of_arviz_is_that_of_the_model(truth: Truth) -> None:
    tree = truth.fit.to_datatree(prior_draws=200, seed=2)
    prior = tree["prior"].to_dataset()
    assert set(prior) == set(truth.fit.posterior) and prior.sizes["draw"] == 200
    logs = np.log(prior["law"].values[0])
    by_name = {p["name"]: p for p in truth.fit.spec["priors"]}
    own = [by_name[str(n)] for n in prior["law_term"].values]
    middle, sd = np.log([p["a"] for p in own]), np.array([p["b"] for p in own])
    assert (np.abs(logs.mean(axis=0) - middle) < 5 * sd / 200**0.5).all()
    np.testing.assert_allclose(logs.std(axis=0), sd, rtol=0.3)
    of_runs = tree["prior_predictive"].to_dataset()
    assert set(of_runs) == set(tree["observed_data"].data_vars)
    assert all(np.isfinite(values).all() for values in of_runs.values())


def test_answers_at_the_load_of_a_run_are_those_of_the_graph(truth: Truth) -> None:
    compared = 0
    for _, rows in truth.table.groupby("server"):
        for i, run in rows.iterrows():
            axis = "concurrency" if run["loop"] == "closed" else "rps"
            if axis == "rps" and run["captured_tokens"] > 0:
                continue  # of a measured run its own latency says whether graphs were captured
            amount = run["concurrency"] if run["loop"] == "closed" else run["rate_rps"]
            load = Load(**{axis: amount}, prompt=run["prompt_tokens"], output=run["output_tokens"])
            drafter = None if run["drafter"] == NONE else run["drafter"]
            imposed = None if np.isnan(run["acceptance_imposed"]) else run["acceptance_imposed"]
            server = Server(
                run["verifier"], drafter, int(run["draft_tokens"]), imposed, run["environment"]
            )
            for metric in ("e2e", "ttft"):
                answer = truth.fit.latency(load, server, metric=metric, extrapolate=True).draws
                graph = truth.graph[f"run_mean_{metric}"][:, i]
                mean = answer["mean_s"].values.ravel()
                far_from_pole = np.isfinite(mean) & (graph < 4 * np.nanmin(mean))
                said = run_outcome(truth.fit, truth.table.loc[[i]])[0]
                use = (said.others_share[:, 0] < 0.6) & far_from_pole
                # 0.1% is the softness of the pole that only measured runs are seen through.
                as_run = getattr(said, f"{metric}_s")[use, 0]
                np.testing.assert_allclose(as_run, graph[use], rtol=2e-3)
                # At a rate a run also says itself how many prompts came within a cycle, and at a
                # concurrency how many waves came: answers are those of an endless run of these
                # lengths that was not seen.
                endless = truth.table.loc[[i]].assign(requests=1e15, output_tokens_sd=np.nan)
                unseen = run_outcome(truth.fit, endless, held_out=True)[0]
                expected = getattr(unseen, f"{metric}_s")[:, 0]
                np.testing.assert_allclose(mean[use], expected[use], rtol=2e-3)
                compared += use.sum()
    assert compared > 2 * len(truth.table)
