"""Where sampling starts, the gate a fit must pass, the compiled gradient, and refits."""

import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tables import table

from bayes_sd.errors import ConvergenceError, EvidenceError, EvidenceWarning, InputError
from bayes_sd.fit import Fit, LatencyModel
from bayes_sd.model.arrow import WIDE_STEP, Arrow, Blocks
from bayes_sd.model.design import Design, build_design, coefficients
from bayes_sd.model.posterior import STATS
from bayes_sd.model.priors import ALL, Prior, in_plain_words, population, settled_by
from bayes_sd.model.sample import Refitter, Sampling, compile_nutpie, diagnose, sample
from bayes_sd.model.start import start
from bayes_sd.model.turned import Level, gradient
from bayes_sd.physics.law import FULL, Outcome, outcome
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

# --- where chains start ---------------------------------------------------------------------


def at_the_start(design: Design, priors: tuple[Prior, ...]) -> Outcome:
    """What the law says of the runs with the coefficients of the start."""
    terms = dict(zip((p.name for p in priors), np.exp(start(design, priors)), strict=True))
    sizes, data = design.inputs, design.data
    stages = FULL.stages(coefficients(design.all_terms(terms)), sizes, data)
    return outcome(stages, sizes, data, 0.01)


@pytest.mark.parametrize("slow", [1.0, 1e3], ids=["priors", "a thousand times too slow"])
def test_the_start_resembles_the_runs_however_far_the_priors_are(runs: Runs, slow: float) -> None:
    """Slow priors put every run past the pole; a chain must not start there."""
    design, names = build_design(runs), ("read_weights", "prefill_token")
    told = design.told(population(FULL))
    own = tuple(replace(p, a=p.a * slow) if p.name in names else p for p in told)
    said = at_the_start(design, own)
    data = design.data
    steady = data["e2e_rows"]
    error = np.abs(np.log(said.e2e_s) - data["log_e2e"])[steady]
    assert np.median(error) < 0.2 and error.max() < np.log(20)
    assert len(own) < len(ALL)


def test_the_law_meets_the_ttft_of_runs_at_a_concurrency() -> None:
    """Prompts that wait for each other: without that the median of these runs was missed by 45%."""
    folder = Path(__file__).parents[2] / "benchmarks" / "closed-loop" / "calibration"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        design = build_design(read(folder))
    said = at_the_start(design, design.told(population(FULL)))
    for metric in ("e2e", "ttft"):
        error = said.mean_s(metric, 1.0) / np.exp(design.data[f"log_{metric}"]) - 1
        assert np.median(np.abs(error)) < 0.12, metric


def test_no_chain_starts_where_a_coefficient_has_no_gradient() -> None:
    """The sampler refuses such a point, as the middle of a prior that no run moves."""
    model = LatencyModel()
    design = model.design(table(rate_rps=[0.1, 0.2, 0.3]))
    assert len(design.data["ttft_rows"]) == 0  # so that nothing is said of queue_cycles
    priors = design.told(population(model.law))
    logs = start(design, priors, model.law)
    assert not np.isclose(logs, np.log([p.a for p in priors])).any()


# --- the gate -------------------------------------------------------------------------------


def tree(draws: np.ndarray, divergences: int = 0) -> xr.DataTree:
    diverging = np.zeros(draws.shape[:2], dtype=bool)
    diverging.flat[:divergences] = True
    dims = ("chain", "draw")
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"a": (dims, draws)}),
            "sample_stats": xr.Dataset({"diverging": (dims, diverging)}),
        }
    )


GOOD = np.random.default_rng(0).standard_normal((4, 500))


def test_independent_draws_pass() -> None:
    convergence = diagnose(tree(GOOD))
    assert convergence.complaints == []
    assert convergence.summary["chains"] == 4 and convergence.summary["draws"] == 500
    assert convergence.summary["ess_bulk_min"] > 1000


@pytest.mark.parametrize(
    ("draws", "divergences", "complaint"),
    [
        (GOOD, 1, r"1 divergent transitions, none allowed\."),
        (
            GOOD + np.eye(4)[:, :1],
            0,
            r"R-hat is above 1.01 for 1 of 1 quantities \(worst, 1.*: a\)",
        ),
        (
            np.repeat(GOOD[:, :60], 20, axis=1),
            0,
            "effective sample size is below 400 for 1 of 1 quantities",
        ),
        (np.where(np.arange(500) < 400, GOOD, np.nan), 0, "400 draws are not finite"),
        (np.where(np.arange(500) < 499, GOOD, np.inf), 0, "4 draws are not finite"),
        (GOOD[:1], 0, r"1 chain\(s\) of 500 draws are too few to diagnose"),
        (GOOD[:, :3], 0, "of 3 draws are too few"),
        (np.ones((4, 500)), 0, r"1 of 1 parameters never moved \(as a\)"),
    ],
)
def test_the_gate_refuses(draws: np.ndarray, divergences: int, complaint: str) -> None:
    assert re.search(complaint, " ".join(diagnose(tree(draws, divergences)).complaints))


# --- the compiled model ---------------------------------------------------------------------


@pytest.mark.sample
def test_the_compiled_gradient_is_right(refitter: Refitter) -> None:
    """Leaving out PyTensor's in-place rewrites, to compile sooner, once gave wrong gradients."""
    from pytensor.compile.mode import Mode

    graph = LatencyModel().graph(refitter.design, keep_runs=True)
    rng = np.random.default_rng(3)
    point = {n: v + 0.1 * rng.standard_normal(v.shape) for n, v in graph.initial_point(1).items()}
    # Deterministic values follow the sampled ones in nutpie's list.
    slices = dict(zip(*refitter.compiled.shape_info[:2], strict=True))
    x = np.full(refitter.compiled.n_dim, np.nan)
    for name, value in point.items():
        x[slices[name]] = value.ravel()
    _, fast = refitter.compiled.logp_func(x)
    # Not even FAST_COMPILE: it joins sums of more terms than NumPy has operands for.
    plain = graph.compile_dlogp(mode=Mode("py", None))(point)
    slow, begin = np.empty_like(x), 0
    for variable in graph.continuous_value_vars:
        end = begin + point[variable.name].size
        slow[slices[variable.name]] = plain[begin:end]
        begin = end
    assert begin == x.size and np.abs(slow).max() > 1
    # Sums over runs cancel, so an entry is compared on the scale of the largest as well.
    np.testing.assert_allclose(fast, slow, rtol=1e-6, atol=1e-9 * np.abs(slow).max())


@pytest.mark.sample
def test_turned_axes_are_round_and_change_nothing_else(refitter: Refitter) -> None:
    """The same density and variables at a point, its gradient along the axes, curvature 1."""
    axes = refitter.axes
    own, turned = refitter.compiled.with_data(**axes.told), axes.turned(refitter.compiled)
    y = np.random.default_rng(1).uniform(-0.5, 0.5, own.n_dim)
    (value, slope), (same, along) = (
        gradient(own)(axes.origin + axes.root.moved(y)),
        gradient(turned)(y),
    )
    assert np.isfinite(value) and same == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(along, axes.root.along(slope), rtol=1e-6, atol=1e-6)
    every = Blocks(np.arange(own.n_dim), [])
    bent = Arrow.of(gradient(turned), np.zeros(own.n_dim), every, WIDE_STEP).shared
    # Where the density bends less than a prior, or upwards, an axis keeps that scale.
    assert np.linalg.eigvalsh(bent).max() == pytest.approx(1.0, abs=0.02)
    assert np.median(bent.diagonal()) == pytest.approx(1.0, abs=0.02)
    # Both verifiers have one drafter, whose effect they share.
    assert len(axes.root.blocks.systems) == len(refitter.design.verifiers)
    assert axes.told.keys() == {"told_verifier", "told_drafter", "told_server"}
    assert all(((share >= 0) & (share <= 0.95)).all() for share in axes.told.values())
    slowness, crowding = axes.told["told_server"].mean(axis=1)
    assert slowness > crowding  # which only the runs under load tell


class Named(NamedTuple):
    name: str


def test_scales_that_are_not_sampled_are_not_looked_for() -> None:
    """With pooling "none" effects have a fixed scale; only servers still have one."""
    names = ["log_server_centred__", "scatter_server_log__", "log_drafter_centred__"]
    places = [slice(i, i + 1) for i in range(5)]
    compiled = SimpleNamespace(
        shape_info=([*names, "log_server", "log_drafter"], places),
        shared_var_keys={Named(f"told_{n}"): n for n in ("server", "drafter")},
        shared_data=dict.fromkeys(("server", "drafter"), np.full((1, 1), 0.5)),
    )
    assert Level.of(compiled).keys() == {"told_server"}


@pytest.mark.sample
def test_equal_seeds_give_equal_draws_and_chains_differ(refitter: Refitter) -> None:
    a, b, c = (
        refitter.refit(seed=seed, draws=15, tune=30, chains=2).parameters["law"].values
        for seed in (7, 7, 8)
    )
    assert a.shape[:2] == (2, 15)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c) and not np.array_equal(a[0], a[1])


@pytest.mark.sample
def test_a_run_left_out_is_predicted_from_the_others(refitter: Refitter) -> None:
    """It may be measured as anything: what the others say of it does not move."""
    left_out = np.zeros(len(refitter.table), bool)
    left_out[refitter.design.data["e2e_rows"][::5]] = True
    slower = refitter.design.data["log_e2e"] + 3.0 * left_out
    how: dict[str, Any] = {"seed": 2, "draws": 120, "tune": 150, "chains": 2}
    a = refitter.refit(left_out, **how)
    b = refitter.refit(left_out, observed={"log_e2e": slower}, **how)
    rows = np.flatnonzero(left_out)
    a_mean, b_mean = (np.median(r.of_runs("run_mean_e2e", rows), axis=0) for r in (a, b))
    moved = np.abs(np.log(b_mean / a_mean))
    assert np.median(moved) < 0.02 and moved.max() < 0.3  # of 3.0 that was added
    measured = refitter.table["e2e_mean_s"].to_numpy()[rows]
    assert np.median(np.abs(a_mean / measured - 1)) < 0.25
    assert a.draws.sizes["run"] == len(refitter.table)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({"mask": np.zeros(3)}, "'mask' cannot be replaced; only log_e2e, log_ttft"),
        ({"log_e2e": np.zeros(3)}, "log_e2e has shape .3,.; the fit has .* runs"),
    ],
)
def test_wrong_observations_are_refused_before_compiled_code_reads_them(
    refitter: Refitter, observed: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        refitter.refit(observed=observed)


# --- the whole way --------------------------------------------------------------------------


@pytest.mark.sample
def test_a_small_fit_follows_its_runs_in_both_environments(small_fit: Fit) -> None:
    runs = small_fit.runs
    error = (runs["fitted_e2e_s"] / runs["e2e_mean_s"] - 1).abs()
    assert (error.groupby(runs["environment"]).median() < 0.12).all()
    assert (runs["fitted_c1_s"] <= runs["fitted_e2e_s"] * 1.01).all()
    assert runs["utilization"].between(0, 1).all()
    stuck = small_fit.censored_runs  # lower bounds: the law is above most of them
    assert len(stuck) and (stuck["fitted_e2e_s"] > 0.8 * stuck["e2e_mean_s"]).mean() > 0.8
    # Each machine is about the law; without data sheets its bytes and arithmetic are wider.
    of_law = [str(n).startswith("overhead_") for n in small_fit.posterior["law_term"].values]
    off = np.log(small_fit.posterior["factor_environment"].values[:, :, of_law])
    width = small_fit.scatter("environment")[:, : len(of_law)][:, of_law]
    z = off.reshape(small_fit.draws, -1, 2) / width[:, :, None]
    assert 0.5 < z.std() < 1.5
    assert small_fit.accuracy()["r2_dense"] > 0.9
    stats = small_fit.tree["sample_stats"].to_dataset()  # by the names of ArviZ
    assert set(stats) == set(STATS.values()) and stats["energy"].shape == small_fit.shape
    assert stats["diverging"].sum() == small_fit.sampling["divergences"]


@pytest.mark.sample
def test_a_fit_that_did_not_converge_is_refused_and_handed_over(
    small_runs: Runs, refitter: Refitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_sd.model.sample.compile_nutpie", lambda *_, **__: refitter.compiled)
    how: dict[str, Any] = {"draws": 20, "tune": 20, "chains": 2, "max_minutes": 0.0}
    with pytest.raises(ConvergenceError, match="did not converge: .*sample size is") as caught:
        LatencyModel().fit(small_runs, **how, progress=False)
    error = caught.value
    assert isinstance(error, EvidenceError) and isinstance(error.fit, Fit)
    assert error.fit.shape == (2, 20) and error.fit.spec["tune"] == 20
    assert len(error.fit.runs) == len(small_runs.steady)
    assert (error.table["ess_bulk"] < 400).any()
    assert "log_law[read_weights]" in error.table.index
    assert "\n" not in str(error) and "log_law" not in str(error)
    assert "Needed are " in str(error)


def test_a_refusal_reaches_another_process_with_its_fit(fit: Fit) -> None:
    error = ConvergenceError("Try <<tune>>.", fit, pd.DataFrame({"rhat": [1.2]}))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ConvergenceError) and str(again) == "Try tune=."
    assert again.fit.shape == fit.shape and again.table.equals(error.table)


@pytest.mark.parametrize(
    ("max_minutes", "fault", "drawn"),
    [
        (10.0, "apart", [500, 1000, 2000]),
        (10.0, "diverging", [500, 500, 500]),
        (0.0, "apart", [500]),
    ],
)
def test_draws_go_on_until_the_gate_is_passed_or_time_is_up(
    monkeypatch: pytest.MonkeyPatch, max_minutes: float, fault: str, drawn: list[int]
) -> None:
    """Drawn from again: longer, with smaller steps after divergences; as many draws are kept."""
    steps: list[float] = []

    def draw(_: Any, how: Sampling, seed: int, progress: bool) -> xr.DataTree:
        steps.append(how.target_accept)
        draws = np.random.default_rng(seed).standard_normal((4, how.draws))
        bad = len(steps) < 3
        apart = 2.0 * np.eye(4)[:, :1] * (bad and fault == "apart")
        return tree(draws + apart, int(bad and fault == "diverging"))

    monkeypatch.setattr("bayes_sd.model.sample.compile_nutpie", lambda *_, **__: None)
    axes = SimpleNamespace(turned=lambda compiled: compiled)
    monkeypatch.setattr("bayes_sd.model.sample.axes_of", lambda *_: axes)
    monkeypatch.setattr("bayes_sd.model.sample.draw", draw)
    how = Sampling(draws=500, tune=100)
    kept, convergence, used = sample(None, how, 1, False, {}, max_minutes)  # type: ignore[arg-type]
    assert [one["draws"] for one in used["samples"]] == drawn
    assert bool(convergence.complaints) == (len(drawn) == 1)
    assert convergence.draws == drawn[-1] and kept["posterior"].sizes["draw"] == 500
    smaller = [0.9, 0.95, 0.98] if fault == "diverging" else [0.9] * 3
    assert steps == smaller[: len(drawn)]


def test_a_parameter_has_plain_words_and_runs_that_tell_it() -> None:
    assert in_plain_words("log_law", ("queue_cycles",)).startswith("cycles between arrival")
    assert in_plain_words("scatter_server", ("slowness",)).startswith("scatter of servers: all")
    assert in_plain_words("log_drafter", ("draft", "eagle")) == "drafting of eagle"
    assert settled_by("log_law", ("prefill_token",)).startswith("runs that record TTFT")
    assert settled_by("log_law", ("read_keys",)).endswith("longer prompts and answers")
    assert settled_by("log_law", ("pace_experts",)).endswith("captured graphs hold")
    assert settled_by("log_law", ("prefills_ahead",)).endswith("several concurrencies")
    assert settled_by("log_server", ("crowding", "a plain")).endswith("at higher loads")
    assert settled_by("log_noise", ("run_sd",)) == "more runs"


@pytest.mark.sample
def test_an_interrupted_fit_is_refused(
    small_runs: Runs, refitter: Refitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nutpie pads with NaN and counts no divergence."""
    refit = refitter.refit(draws=20, tune=20, chains=2)
    padded = refit.sampled["posterior"]["noise"].values[1, 10:]
    padded[:] = np.nan
    made = refit.sampled, diagnose(refit.sampled), {"samples": [{}]}
    monkeypatch.setattr("bayes_sd.fit.sample", lambda *_, **__: made)
    with pytest.raises(ConvergenceError, match=f"{padded.size} draws are not finite"):
        LatencyModel().fit(small_runs, draws=20, tune=20, chains=2, progress=False)


@pytest.mark.sample
def test_nothing_is_compiled_with_fast_math(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a cold and a warm cache give other last digits, and so other draws."""
    import pymc as pm
    from pytensor import config

    monkeypatch.setattr("nutpie.compile_pymc_model", lambda *_, **__: config.numba__fastmath)
    with pm.Model() as model:
        pm.Normal("x")
    assert compile_nutpie(model, {}) is False


@pytest.mark.sample
def test_ten_runs_of_one_small_model_are_enough_at_default_settings() -> None:
    """What `plan` makes of two servers; a prior too narrow for a slow host gave two modes."""
    measured = Path(__file__).parents[1] / "data" / "sweep" / "measured"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        fit = LatencyModel().fit(read(measured), progress=False)
    assert len(fit.runs) == 10 and fit.accuracy()["mean_error"] < 0.1
