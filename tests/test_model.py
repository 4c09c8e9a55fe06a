"""The design, the priors, the compiled gradient, and the gate a fit must pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import bayes_sd as bsd
from bayes_sd.inference.gate import diagnose
from bayes_sd.inference.sample import Sampling, sample
from bayes_sd.model.build import build
from bayes_sd.model.design import Design, build_design, pair_label, sizes
from bayes_sd.model.priors import ALL, Prior
from bayes_sd.traces import Traces

# --- sizes and design -----------------------------------------------------------------------


@given(
    shared=st.floats(1e6, 1e12),
    expert=st.floats(1e6, 1e12),
    per_token=st.integers(1, 64),
    spare=st.integers(1, 192),
)
@settings(max_examples=50, deadline=None)
def test_sizes_are_split_into_shared_and_experts(
    shared: float, expert: float, per_token: int, spare: int
) -> None:
    experts = per_token + spare
    found = sizes(shared + expert, shared + expert * per_token / experts, experts, per_token)
    assert found["shared"] == pytest.approx(shared / 1e9, rel=1e-6, abs=(shared + expert) * 1e-19)
    assert found["expert"] == pytest.approx(expert / 1e9, rel=1e-6, abs=(shared + expert) * 1e-19)
    assert found["idle"] == pytest.approx(1 - per_token / experts)
    assert np.exp(found["log_idle"]) == pytest.approx(found["idle"])
    assert found["moe"] == 1


def test_a_dense_model_is_all_shared() -> None:
    found = sizes([8e9, 1e9], [8e9, 1e9], [0, 4], [0, 4])
    np.testing.assert_array_equal(found["shared"], [8, 1])
    np.testing.assert_array_equal(found["active"], [8, 1])
    np.testing.assert_array_equal(found["expert"], 0)
    np.testing.assert_array_equal(found["moe"], 0)
    assert (found["idle"] > 0).all() and (found["idle"] < 1).all()


@pytest.fixture(scope="module")
def design(traces: Traces) -> Design:
    return build_design(traces)


def test_levels_of_the_corpus(traces: Traces, design: Design) -> None:
    runs, steady = traces.runs, traces.steady.runs
    assert len(design.data["e2e_rows"]) == len(steady) < len(design.runs) == len(runs)
    assert design.runs.saturated[design.data["censored_rows"]].all()
    assert len(build_design(traces, censored=False).runs) == len(steady)
    assert design.levels["verifier"] == sorted(runs.verifier.unique())
    assert design.levels["drafter"] == ["draft-12m", "draft-3m"]
    keys = ["verifier", "drafter", "draft_tokens", "acceptance_imposed"]
    assert len(design.levels["system"]) == len(runs[keys].drop_duplicates())
    assert "dense-60m plain" in design.levels["system"]
    assert "moe-e8k2 + draft-3m @ 0.9 k=3" in design.levels["system"]
    assert design.environment == runs.environment.iloc[0]


@pytest.mark.parametrize("level", ["verifier", "system"])
def test_indices_point_at_the_names_of_the_runs(design: Design, level: str) -> None:
    """PyMC on numba does not check bounds, so this must."""
    index, names = design.data[f"{level}_i"], np.array(design.levels[level])
    assert index.min() >= 0 and index.max() < len(names)
    assert names[index].tolist() == design.runs[level].tolist()


def test_arrays_of_the_corpus(design: Design) -> None:
    runs, data = design.runs, design.data
    drafted = runs.drafter != "none"
    names = np.array(design.levels["drafter"])
    assert names[data["drafter_i"]][drafted].tolist() == runs.drafter[drafted].tolist()
    assert (data["drafter_i"] < len(names)).all() and (data["drafter_i"] >= 0).all()
    np.testing.assert_array_equal(data["drafted"], drafted)
    np.testing.assert_allclose(np.exp(data["log_e2e"]), runs.e2e_mean_s)
    steady = data["e2e_rows"]
    np.testing.assert_allclose(
        (data["se_e2e"] ** 2 * runs.requests)[steady], runs.e2e_log_var[steady]
    )
    np.testing.assert_array_equal(data["rate_rps"], runs.rate_rps)
    np.testing.assert_array_equal(data["others"], 0)
    for name, array in data.items():
        assert np.isfinite(array).all(), name
        if not name.endswith("rows"):
            assert array.shape == (len(runs),), name
    by_drafter = dict(zip(names, design.drafters, strict=True))
    sizes_of_runs = runs[drafted].groupby("drafter").drafter_params.first() / 1e9
    assert by_drafter == pytest.approx(sizes_of_runs.to_dict())


def table(**columns: Any) -> Traces:
    """Traces of three runs of one server."""
    rows = {
        "verifier": "m",
        "verifier_params": 8e9,
        "draft_tokens": 0,
        "prompt_tokens": 512,
        "output_tokens": 128,
        "requests": 100,
        "duration_s": 300.0,
        "e2e_mean_s": [1.0, 1.2, 1.5],
        "e2e_std_s": 0.2,
        "environment": "gpu",
    }
    return bsd.read_table(pd.DataFrame(rows | columns))


def test_a_concurrency_is_the_number_of_others_and_one() -> None:
    design = build_design(table(loop="closed", concurrency=[1, 8, 32]))
    np.testing.assert_array_equal(design.data["others"], [0, 7, 31])
    np.testing.assert_array_equal(design.data["closed"], 1)
    np.testing.assert_array_equal(design.data["rate_rps"], 0)
    assert design.levels["drafter"] == ["(no drafter)"]


def test_runs_without_ttft_are_left_out_of_its_likelihood() -> None:
    design = build_design(
        table(rate_rps=[1.0, 2.0, 3.0], ttft_mean_s=[0.1, np.nan, 0.2], ttft_std_s=0.02)
    )
    assert design.data["ttft_rows"].tolist() == [0, 2]
    np.testing.assert_allclose(np.exp(design.data["log_ttft"][[0, 2]]), [0.1, 0.2])


def test_a_table_without_ttft_has_a_gradient_everywhere_where_chains_start() -> None:
    """The sampler refuses a point at which a coefficient has none, as in the middle of a prior."""
    model = bsd.LatencyModel()
    design = model.design(table(rate_rps=[0.1, 0.2, 0.3]))
    assert len(design.data["ttft_rows"]) == 0
    graph = model.graph(design)
    point = graph.initial_point() | model.start(design)
    slopes = graph.compile_dlogp(vars=graph["log_law"], mode="FAST_COMPILE")(point)
    assert np.isfinite(slopes).all()
    assert (slopes != 0).all()


def test_imposed_acceptance_tells_pairs_apart() -> None:
    assert pair_label("v", "d", np.nan) == "v + d"
    assert pair_label("v", "d", 0.5) != pair_label("v", "d", 0.7)


def test_servers_of_two_environments_are_two_servers(traces: Traces) -> None:
    one = build_design(traces)
    runs = traces.runs.copy()
    runs.loc[runs.index % 2 == 0, "environment"] = "another machine"
    two = build_design(replace(traces, runs=runs))
    assert two.levels["environment"] == sorted(set(runs.environment))
    assert len(one.levels["environment"]) == 1
    assert len(two.levels["system"]) > 1.8 * len(one.levels["system"])
    assert two.levels["verifier"] == one.levels["verifier"]
    here = np.array(two.levels["environment"])[two.data["environment_i"]]
    assert (here == two.runs.environment.to_numpy()).all()
    names = {v.name for v in build(two).free_RVs} - {v.name for v in build(one).free_RVs}
    assert names == {"tau_environment", "log_environment"}


def test_nothing_to_fit_is_refused(traces: Traces) -> None:
    none = replace(traces, runs=traces.runs.iloc[:0])
    stuck = replace(traces, runs=traces.runs.assign(saturated=True))
    for bad in (none, stuck):
        with pytest.raises(bsd.EvidenceError, match="no steady run"):
            bsd.LatencyModel().fit(bad)


def test_one_name_of_two_sizes_is_refused(traces: Traces) -> None:
    runs = traces.runs.copy()
    runs.loc[runs.index[0], "verifier_params"] *= 2
    with pytest.raises(bsd.InputError, match="dense-115m"):
        build_design(replace(traces, runs=runs))


def test_a_drafter_without_a_size_is_refused(traces: Traces) -> None:
    runs = traces.runs.copy()
    runs.loc[runs.drafter == "draft-3m", "drafter_params"] = np.nan
    with pytest.raises(bsd.EvidenceError, match="draft-3m"):
        build_design(replace(traces, runs=runs))


# --- priors ---------------------------------------------------------------------------------


def test_print_shows_every_prior_its_interval_its_unit_and_its_reason() -> None:
    lines = str(bsd.LatencyModel()).splitlines()
    shown = [one.split(" ", 1)[0] for one in lines]
    assert "h_1p" not in shown  # the default law has no such part
    assert "h_1p" in str(bsd.LatencyModel(law=bsd.Law(("host",))))
    for prior in bsd.LatencyModel().used:
        (line,) = [one for one in lines if one.split(" ", 1)[0] == prior.name]
        assert len(prior.reason) > 10
        for part in (prior.unit, prior.meaning, prior.reason):
            assert part in line
        for end in prior.interval():
            assert f"{end:.2g}" in line


@pytest.mark.parametrize(
    ("kind", "a", "b", "expected"),
    [
        ("lognormal", 0.02, 1.5, stats.lognorm(1.5, scale=0.02).interval(0.9)),
        ("normal", 0.1, 0.3, stats.norm(0.1, 0.3).interval(0.9)),
        ("halfnormal", 0.0, 0.3, stats.halfnorm(scale=0.3).interval(0.9)),
    ],
)
def test_intervals_hold_ninety_percent(
    kind: str, a: float, b: float, expected: tuple[float, float]
) -> None:
    prior = Prior("x", kind, a, b, "s", (), "meaning", "reason")
    assert prior.interval() == pytest.approx(expected, rel=1e-3)


def test_an_unknown_prior_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(bsd.InputError, match=r"'s_pas'.*s_pass.*tau_system"):
        bsd.LatencyModel().with_prior("s_pas", a=1.0)


def test_unknown_server_effects_are_refused() -> None:
    with pytest.raises(bsd.InputError, match="server_effects"):
        bsd.LatencyModel(server_effects=("capacity",))


def test_a_changed_prior_is_shown_and_used_and_the_model_it_came_from_is_not(
    traces: Traces,
) -> None:
    pm = pytest.importorskip("pymc")
    base = bsd.LatencyModel()
    changed = base.with_prior("wait", a=40.0, b=1e-9, reason="a queue of forty")
    assert "a queue of forty" in str(changed) and "a queue of forty" not in str(base)
    some = traces.select(verifier=["dense-25m"])
    model = changed.build(some)
    law = pm.draw(model["law"], random_seed=1, mode="FAST_COMPILE")
    where = list(model.coords["law_term"])
    assert law[where.index("wait")] == pytest.approx(40.0, rel=1e-6)
    assert law[where.index("s_pass")] != pytest.approx(40.0)


# --- the compiled model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(traces: Traces) -> Traces:
    """One dense and one MoE verifier, to keep compilation short."""
    return traces.select(verifier=["moe-e8k2", "dense-25m"])


@pytest.fixture(scope="module")
def model(few: Traces) -> Any:
    return bsd.LatencyModel().build(few)


@pytest.fixture(scope="module")
def compiled(model: Any) -> Any:
    return pytest.importorskip("nutpie").compile_pymc_model(model, freeze_model=True)


@pytest.fixture
def compile_once(monkeypatch: pytest.MonkeyPatch, compiled: Any) -> None:
    """Sampling in this file takes the model that is compiled already: same runs, same model."""
    monkeypatch.setattr("nutpie.compile_pymc_model", lambda *_, **__: compiled)


def gradients(model: Any, compiled: Any) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Gradient and log density, of the compiled model and of PyTensor without rewrites."""
    rng = np.random.default_rng(3)
    point = {n: v + 0.1 * rng.standard_normal(v.shape) for n, v in model.initial_point(1).items()}
    # Deterministic values follow the sampled ones in nutpie's list.
    slices = dict(zip(*compiled.shape_info[:2], strict=True))
    x = np.full(compiled.n_dim, np.nan)
    for name, value in point.items():
        x[slices[name]] = value.ravel()
    assert np.isfinite(x).all()
    logp, fast = compiled.logp_func(x)
    # Not even FAST_COMPILE: it joins sums of more terms than NumPy has operands for.
    from pytensor.compile.mode import Mode

    plain = model.compile_dlogp(mode=Mode("py", None))(point)
    reference, start = np.empty_like(x), 0
    for variable in model.continuous_value_vars:
        stop = start + point[variable.name].size
        reference[slices[variable.name]] = plain[start:stop]
        start = stop
    assert start == x.size
    expected = float(model.compile_logp(mode=Mode("py", None))(point))
    return fast, reference, float(logp), expected


def check_gradients(model: Any, compiled: Any) -> None:
    fast, reference, logp, expected = gradients(model, compiled)
    assert logp == pytest.approx(expected, rel=1e-9)
    assert np.abs(reference).max() > 1
    # Sums over runs cancel, so an entry is compared on the scale of the largest as well.
    np.testing.assert_allclose(fast, reference, rtol=1e-6, atol=1e-9 * np.abs(reference).max())


def test_the_compiled_gradient_is_right(model: Any, compiled: Any) -> None:
    """Leaving out PyTensor's in-place rewrites, to compile sooner, once gave wrong gradients."""
    check_gradients(model, compiled)


def test_the_compiled_gradient_is_right_with_centred_effects(few: Traces) -> None:
    from bayes_sd.model.build import build

    nutpie = pytest.importorskip("nutpie")
    centred = build(build_design(few), centred=True)
    assert "log_verifier" in centred.named_vars and "z_verifier" not in centred.named_vars
    check_gradients(centred, nutpie.compile_pymc_model(centred, freeze_model=True))


def test_equal_seeds_give_equal_draws(model: Any, compile_once: None) -> None:
    how = Sampling(draws=15, tune=30, chains=2, sampler="nutpie")
    trees = [sample(model, how, seed, progress=False)[0] for seed in (7, 7, 8)]
    a, b, c = (tree["posterior"]["law"].values for tree in trees)
    assert a.shape[:2] == (2, 15)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not np.array_equal(a[0], a[1])


def test_a_fit_that_did_not_converge_is_refused_and_handed_over(
    few: Traces, compile_once: None
) -> None:
    with pytest.raises(bsd.ConvergenceError, match="ess_bulk is below 400") as caught:
        bsd.LatencyModel().fit(few, draws=20, tune=20, chains=2, progress=False)
    error = caught.value
    assert isinstance(error, bsd.EvidenceError)
    assert isinstance(error.fit, bsd.Fit)
    assert error.fit.posterior.sizes["draw"] == 20
    assert error.fit.spec["seed"] == 1 and error.fit.spec["tune"] == 20
    assert len(error.fit.runs) == len(few.steady)
    assert (error.table["ess_bulk"] < 400).any()
    assert {"rhat", "ess_bulk", "ess_tail"} <= set(error.table.columns)
    assert any("s_pass" in name for name in error.table.index)


def test_with_complete_pooling_all_obey_the_laws_and_new_models_the_prior(few: Traces) -> None:
    from bayes_sd.predict.system import resolve

    model = bsd.LatencyModel(pooling="complete")
    with pytest.raises(bsd.ConvergenceError) as caught:
        model.fit(few, draws=200, tune=20, chains=2, progress=False)
    fit = caught.value.fit
    posterior = fit.posterior
    for level in ("drafter", "system"):
        assert (posterior[f"factor_{level}"] == 1).all()
    assert (posterior["factor_verifier"].sel(verifier="dense-25m") == 1).all()
    np.testing.assert_allclose(
        posterior["factor_verifier"].sel(verifier="moe-e8k2"), np.exp(posterior["moe"])
    )
    known, new = (
        resolve(fit, bsd.System(v), 0, 0).theta["f_1v"] for v in ("dense-25m", bsd.Size(25e6))
    )
    assert (known == 1).all()
    tau = next(p for p in model.used if p.name == "tau_verifier")
    assert float(abs(np.log(new)).quantile(0.68)) == pytest.approx(tau.a, rel=0.3)


def test_a_fit_of_one_chain_is_refused_as_such(few: Traces, compile_once: None) -> None:
    with pytest.raises(bsd.ConvergenceError):
        bsd.LatencyModel().fit(few, draws=20, tune=20, chains=1, progress=False)


def test_an_interrupted_fit_is_refused(
    few: Traces, compile_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nutpie pads with NaN and counts no divergence."""

    def interrupted(*arguments: Any) -> Any:
        tree, used = sample(*arguments)
        tree["posterior"]["noise"][1, 10:] = np.nan
        return tree, used

    monkeypatch.setattr("bayes_sd.model.latency_model.sample", interrupted)
    with pytest.raises(bsd.ConvergenceError, match="not finite"):
        bsd.LatencyModel().fit(few, draws=20, tune=20, chains=2, progress=False)


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


@pytest.fixture
def good() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 500))


def test_independent_draws_pass(good: np.ndarray) -> None:
    found = diagnose(tree(good))
    assert found.complaints == []
    assert found.summary["chains"] == 4 and found.summary["draws"] == 500
    assert found.summary["ess_bulk_min"] > 1000


def test_one_divergence_is_refused(good: np.ndarray) -> None:
    (said,) = diagnose(tree(good, divergences=1)).complaints
    assert said.startswith("1 divergent")


def test_a_chain_elsewhere_is_refused(good: np.ndarray) -> None:
    good[2] += 1
    said = " ".join(diagnose(tree(good)).complaints)
    assert "rhat is above 1.01 for 1 of 1 parameters (worst: a" in said


def test_sticky_chains_are_refused(good: np.ndarray) -> None:
    said = " ".join(diagnose(tree(np.repeat(good[:, :60], 20, axis=1))).complaints)
    assert "ess_bulk is below 400" in said


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_draws_that_are_not_finite_are_refused(good: np.ndarray, bad: float) -> None:
    good[1, 400:] = bad
    found = diagnose(tree(good))
    assert found.nonfinite == 100
    assert found.complaints == ["100 draws are not finite (was sampling interrupted?)."]


def test_one_chain_cannot_pass(good: np.ndarray) -> None:
    complaints = diagnose(tree(good[:1])).complaints
    assert complaints and all(isinstance(said, str) for said in complaints)


# --- where sampling starts ------------------------------------------------------------------


def test_the_start_resembles_the_runs_however_far_the_priors_are(design: Design) -> None:
    """Priors a thousand times too slow put every run past the pole; the start must not be there."""
    from bayes_sd.inference.start import FACTORS, start
    from bayes_sd.model.build import population
    from bayes_sd.physics.costs import FULL
    from bayes_sd.physics.law import outcome

    slow = tuple(replace(p, a=p.a * 1e3) if p.name in ("s_pass", "s_2p") else p for p in ALL)
    data, v = design.data, design.data["verifier_i"]
    system = {name: values[v] for name, values in design.verifiers.items()}
    system["drafter"] = design.drafters[data["drafter_i"]] * data["drafted"]
    names = [p.name for p in population(FULL)]
    steady = data["e2e_rows"]
    for priors in (ALL, slow):
        own = tuple(p for p in priors if p.name in names)
        found = np.exp(start(design, own))
        theta = dict.fromkeys(FACTORS, 1.0) | dict(zip(names, found, strict=True))
        law = outcome(theta, system, data, 0.01)
        off = np.abs(np.log(law.e2e_s) - data["log_e2e"])[steady]
        assert np.median(off) < 0.2
        assert (law.e2e_s < 20 * np.exp(data["log_e2e"]))[steady].all()


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**32])
def test_a_seed_that_is_none_is_refused(traces: Traces, seed: Any) -> None:
    with pytest.raises(bsd.InputError, match="seed"):
        bsd.LatencyModel().fit(traces, seed=seed)


@pytest.mark.parametrize("change", [{"a": 0.0}, {"a": -1.0}, {"b": 0.0}, {"b": np.inf}, {"a": "x"}])
def test_an_impossible_prior_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(bsd.InputError, match="Prior s_pass"):
        bsd.LatencyModel().with_prior("s_pass", **change)


@pytest.mark.parametrize("change", [{"kind": "normal"}, {"median": 1.0}])
def test_only_the_numbers_of_a_prior_can_be_changed(change: dict[str, Any]) -> None:
    with pytest.raises(bsd.InputError, match="cannot change"):
        bsd.LatencyModel().with_prior("s_pass", **change)
