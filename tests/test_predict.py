"""Answers of a fit, against the draws and the physics they come from."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from predict_helpers import DENSE, MOE, WORK, loads, some_runs

import bayes_sd as bsd
from bayes_sd.physics import break_even_rate, latency_open, pole
from bayes_sd.predict.latency import arm_outcome
from bayes_sd.predict.support import LABELS, farthest
from bayes_sd.predict.system import resolve

SYSTEMS = pytest.mark.parametrize(("system", "k"), [(DENSE, 5), (MOE, 3)], ids=["dense", "moe"])
SAMPLE = ("chain", "draw")


def law(fit: bsd.Fit, system: bsd.System, k: int, rate: Any = 0.0) -> Any:
    """What the law says for every draw, at a rate that may differ between draws."""
    load = bsd.grid(rps=0.0, **WORK).assign(rate_rps=xr.DataArray(rate))
    return arm_outcome(fit, system, k, load, seed=0)[1]


def poles(fit: bsd.Fit, system: bsd.System, k: int) -> np.ndarray:
    return np.asarray(pole(law(fit, system, k).c2_s.transpose(*SAMPLE)))


# --- latency --------------------------------------------------------------------------------


def test_latency_has_the_dims_of_what_was_asked(fit: bsd.Fit) -> None:
    load = bsd.grid(rps=[0.5, 1.0], prompt=256, output=[64, 96, 128])
    answer = fit.latency(load, k=[0, 5], system=DENSE)
    sizes = fit.posterior.sizes
    expected = {"chain": sizes["chain"], "draw": sizes["draw"], "k": 2, "rate_rps": 2}
    for name in ("mean_s", "run_s", "request_s"):
        assert dict(answer.draws[name].sizes) == expected | {"output_tokens": 3}, name
        assert answer.draws[name].attrs["units"] == "s"
        assert float(answer.draws[name].min()) > 0
    assert answer.draws["k"].values.tolist() == [0, 5]
    assert set(answer.prob_saturated.dims) == {"k", "rate_rps", "output_tokens"}
    assert set(answer.draws["support"].dims) == {"k", "rate_rps", "output_tokens"}


def test_latency_of_a_dense_system_is_the_law(fit: bsd.Fit) -> None:
    found = fit.latency(loads(2.0), 5, DENSE).draws["mean_s"].isel(k=0, rate_rps=0)
    rest = law(fit, DENSE, 5)
    xr.testing.assert_allclose(
        found.drop_vars(["k", "rate_rps"]), latency_open(rest.c1_s, rest.c2_s, 2.0)
    )


def test_predictions_meet_the_measured_runs(fit: bsd.Fit) -> None:
    """A measured run lies among the predicted runs of its own arm and load."""
    runs = fit.runs
    own = runs[runs["system"] == "dense-60m + draft-12m @ 0.8 k=5"]
    for _, run in own.iterrows():
        load = bsd.grid(
            rps=run["rate_rps"], prompt=run["prompt_tokens"], output=run["output_tokens"]
        )
        answer = fit.latency(load, 5, DENSE)
        low, high = answer.quantile([0.005, 0.995], of="run").squeeze()
        assert low < run["e2e_mean_s"] < high
        assert answer.draws["support"].item() == "measured"


@SYSTEMS
def test_quantiles_and_saturation_grow(fit: bsd.Fit, system: bsd.System, k: int) -> None:
    answer = fit.latency(loads(0.5, 2, 4, 6, 8, 12, 50), [0, k], system)
    q = answer.quantile([0.05, 0.5, 0.95, 0.99]).transpose("quantile", "k", "rate_rps").values
    assert not np.isnan(q).any()
    with np.errstate(invalid="ignore"):
        assert not (np.diff(q, axis=0) < 0).any()
    mean = answer.quantile(0.5, of="mean").values
    with np.errstate(invalid="ignore"):
        assert not (np.diff(mean, axis=-1) < 0).any()
    p = answer.prob_saturated.transpose("k", "rate_rps").values
    assert (p >= 0).all() and (p <= 1).all()
    assert (np.diff(p, axis=1) >= 0).all()
    assert (p[:, 0] == 0).all() and (p[:, -1] == 1).all()


@SYSTEMS
@pytest.mark.parametrize("metric", ["e2e", "ttft"])
def test_latency_is_infinite_where_saturated_and_a_number_elsewhere(
    fit: bsd.Fit, system: bsd.System, k: int, metric: str
) -> None:
    middle = float(np.median(poles(fit, system, k)))
    answer = fit.latency(loads(1.0, middle), [0, k], system, metric=metric)
    stuck = answer.draws["saturated"]
    assert 0.1 < float(stuck.sel(k=k).isel(rate_rps=1).mean()) < 0.9
    for name in ("mean_s", "run_s", "request_s"):
        draws = answer.draws[name]
        assert not draws.isnull().any(), name
        assert bool(np.isinf(draws).where(stuck, True).all()), name
    assert np.isfinite(answer.draws["mean_s"].where(~stuck, 0.0)).all()


@SYSTEMS
@pytest.mark.parametrize("times", [1.5, 1e6])
def test_a_load_beyond_the_pole_is_saturated_and_no_number_is_missing(
    fit: bsd.Fit, system: bsd.System, k: int, times: float
) -> None:
    rate = times * max(poles(fit, system, 0).max(), poles(fit, system, k).max())
    answer = fit.latency(loads(rate), [0, k], system)
    table = answer.table()
    assert (table["prob_saturated"] == 1).all()
    assert (table[[c for c in table if c.endswith("_s")]] == np.inf).all(axis=None)
    assert (table["support"] == "extrapolated").all()


@SYSTEMS
def test_just_below_the_pole_no_number_overflows(fit: bsd.Fit, system: bsd.System, k: int) -> None:
    rate = float(poles(fit, system, k).min()) * (1 - 1e-6)
    answer = fit.latency(loads(rate), k, system)
    assert answer.prob_saturated.item() == 0
    assert np.isfinite(answer.draws["request_s"]).all()


def test_table_has_a_row_for_every_arm_and_load(fit: bsd.Fit) -> None:
    table = fit.latency(loads(0.5, 1.0, 2.0), [0, 5], DENSE).table(prob=0.8)
    assert len(table) == 6
    assert (table["mean_p10_s"] < table["mean_p50_s"]).all()
    assert (table["mean_p50_s"] < table["mean_p90_s"]).all()
    assert (table["request_p50_s"] < table["request_p95_s"]).all()
    assert (table["request_p95_s"] < table["request_p99_s"]).all()


def test_a_request_scatters_more_than_a_run_and_a_run_more_than_the_mean(fit: bsd.Fit) -> None:
    draws = fit.latency(loads(3.0), [0, 5], DENSE).draws
    mean, run, request = (np.log(draws[f"{of}_s"]).std(SAMPLE) for of in ("mean", "run", "request"))
    assert (mean < run).all() and (run < request).all()


def test_ttft_is_shorter_than_the_whole(fit: bsd.Fit) -> None:
    whole, first = (
        fit.latency(loads(1.0, 3.0), 5, DENSE, metric=m).draws["mean_s"] for m in ("e2e", "ttft")
    )
    assert (first > 0).all() and (first < whole).all()


def test_equal_seeds_give_equal_answers(fit: bsd.Fit) -> None:
    a, b, c = (fit.latency(loads(1.0), 5, DENSE, seed=s).draws["request_s"] for s in (3, 3, 4))
    xr.testing.assert_identical(a, b)
    assert not a.equals(c)


def test_an_answer_for_one_k_does_not_depend_on_the_others_asked(fit: bsd.Fit) -> None:
    one = fit.prob_faster(loads(1.0, 4.0), 5, DENSE, of="request")
    many = fit.prob_faster(loads(1.0, 4.0), [1, 5, 2], DENSE, of="request")
    xr.testing.assert_identical(one, many.sel(k=[5]))


def test_concurrency_is_answered_as_a_closed_loop(fit: bsd.Fit) -> None:
    load = bsd.grid(concurrency=[1, 4, 64], **WORK)
    answer = fit.latency(load, 5, DENSE)
    rest = law(fit, DENSE, 5)
    for n in (1, 4, 64):
        found = answer.draws["mean_s"].sel(concurrency=n, k=5, drop=True)
        xr.testing.assert_allclose(found, rest.c1_s + (n - 1) * rest.c2_s)
    assert (answer.prob_saturated == 0).all()


def test_a_busy_closed_loop_is_no_less_predictable_than_its_run_scatter(fit: bsd.Fit) -> None:
    """In a closed loop an error of C2 moves the latency as much at most: nothing explodes."""
    far = replace(DENSE, extrapolate=True)
    answer = fit.latency(bsd.grid(concurrency=[64, 1000], **WORK), [0, 5], far)
    high = answer.quantile(0.95, of="run").squeeze("quantile", drop=True)
    ratio = high / answer.quantile(0.5, of="mean").squeeze("quantile", drop=True)
    assert float(ratio.max()) < 2


def test_the_experts_make_a_mixture_slower_under_load(fit: bsd.Fit) -> None:
    """More requests in flight touch more experts, so the latency is no hyperbola of one C1."""
    found = fit.latency(loads(0.0, 1.0), 0, MOE).draws["mean_s"]
    rest = law(fit, MOE, 0)
    hyperbola = latency_open(rest.c1_s, rest.c2_s, 1.0)
    assert (found.sel(rate_rps=1.0, k=0, drop=True) > hyperbola * 1.01).all()


# --- comparison -----------------------------------------------------------------------------


@SYSTEMS
@pytest.mark.parametrize("of", ["mean", "run", "request"])
def test_chances_are_those_of_the_draws_and_sum_to_one(
    fit: bsd.Fit, system: bsd.System, k: int, of: str
) -> None:
    caps = poles(fit, system, 0), poles(fit, system, k)
    between = (np.median(caps[0]) + np.median(caps[1])) / 2
    load = loads(0.5, 3.0, float(between), 3 * float(max(c.max() for c in caps)))
    found = fit.prob_faster(load, k, system, of=of).squeeze("k", drop=True)
    draws = fit.latency(load, [0, k], system).draws
    finite = draws[f"{of}_s"].where(~draws["saturated"], np.inf)
    plain, sd = finite.sel(k=0, drop=True), finite.sel(k=k, drop=True)
    xr.testing.assert_allclose(found["prob_faster"], (sd < plain).mean(SAMPLE))
    xr.testing.assert_allclose(found["prob_slower"], (sd > plain).mean(SAMPLE))
    both = np.isinf(sd) & np.isinf(plain)
    xr.testing.assert_allclose(found["prob_both_saturated"], both.mean(SAMPLE))
    total = found["prob_faster"] + found["prob_slower"] + found["prob_both_saturated"]
    np.testing.assert_allclose(total, 1)
    assert found["prob_both_saturated"].values.tolist()[::3] == [0, 1]


def test_a_load_of_one_cell_is_answered_as_in_a_list(fit: bsd.Fit) -> None:
    one, listed = bsd.grid(rps=1.0, **WORK), loads(1.0)
    xr.testing.assert_identical(
        fit.prob_faster(one, [3, 5], DENSE),
        fit.prob_faster(listed, [3, 5], DENSE).isel(rate_rps=0, drop=True),
    )
    assert fit.latency(one, 5, DENSE).table()["support"].tolist() == ["measured"]


def test_the_label_of_two_is_that_of_the_farther(fit: bsd.Fit) -> None:
    assert list(LABELS) == sorted(LABELS)  # what `farthest` and pairs of arms rely on
    assert farthest(LABELS[[3, 1, 2]]) == "extrapolated"
    both = fit.prob_faster(loads(1.0), [3, 5], DENSE)["support"]  # plain is measured there
    assert both.values.ravel().tolist() == ["interpolated", "measured"]


def test_all_chances_have_the_same_order_of_dims(fit: bsd.Fit) -> None:
    found = fit.prob_faster(loads(1.0, 2.0, 3.0), [1, 5], DENSE)
    assert {array.dims for array in found.data_vars.values()} == {("k", "rate_rps")}


def test_speculation_that_accepts_nothing_does_not_pay(fit: bsd.Fit) -> None:
    useless = bsd.System("dense-60m", "draft-12m", acceptance=0)
    perfect = bsd.System("dense-60m", "draft-12m", acceptance=1)
    bad, good = (
        float(fit.prob_faster(loads(1.0), 5, s)["prob_faster"].item()) for s in (useless, perfect)
    )
    assert bad < 0.01 and good > 0.99


def test_speedup_is_the_ratio_of_the_latencies(fit: bsd.Fit) -> None:
    found = fit.speedup(loads(1.0, 3.0), [1, 5], DENSE)
    mean = fit.latency(loads(1.0, 3.0), [0, 1, 5], DENSE).draws["mean_s"]
    xr.testing.assert_allclose(
        found, mean.sel(k=0, drop=True) / mean.sel(k=[1, 5]), check_dim_order=False
    )
    assert found.name == "speedup"
    agree = (found > 1).mean(SAMPLE)
    wins = fit.prob_faster(loads(1.0, 3.0), [1, 5], DENSE)["prob_faster"]
    xr.testing.assert_allclose(agree, wins, check_dim_order=False)


def test_speedup_where_one_or_both_are_saturated(fit: bsd.Fit) -> None:
    caps = poles(fit, DENSE, 0), poles(fit, DENSE, 5)
    between = float(np.median(caps[0]) + np.median(caps[1])) / 2
    above = 2 * float(max(c.max() for c in caps))
    found = fit.speedup(loads(between, above), 5, DENSE).transpose(*SAMPLE, ...)
    plain, sd = (c <= between for c in caps)
    one = found.isel(k=0, rate_rps=0).values
    assert (plain ^ sd).any()
    assert (one[plain & ~sd] == np.inf).all() and (one[sd & ~plain] == 0).all()
    assert found.isel(rate_rps=1).isnull().all()


# --- break-even -----------------------------------------------------------------------------


@SYSTEMS
def test_latencies_are_equal_at_the_break_even_draws(
    fit: bsd.Fit, system: bsd.System, k: int
) -> None:
    found = fit.break_even(k, system, **WORK).draws.squeeze("k", drop=True)
    rate = found["rate_rps"]
    assert rate.attrs["units"] == "requests/s"
    crosses = rate.notnull()
    assert float(crosses.mean()) > 0.01
    plain, sd = (law(fit, system, arm, rate.fillna(0.0)) for arm in (0, k))
    # At a pole a rate is only known to a part in 1e9, and the latency magnifies it.
    away = crosses & (plain.utilization < 0.999) & (sd.utilization < 0.999)
    assert float((crosses & ~away).mean()) < 0.01
    np.testing.assert_allclose((sd.e2e_s / plain.e2e_s).where(away, 1.0), 1.0, rtol=1e-4)
    outcome = found["outcome"]
    assert (outcome.isin(["below", "above"]) == crosses).all()
    assert (rate.where(crosses, 1.0) > 0).all()


def test_break_even_of_a_dense_system_is_the_closed_form(fit: bsd.Fit) -> None:
    found = fit.break_even(5, DENSE, **WORK).draws.squeeze("k", drop=True)
    plain, sd = law(fit, DENSE, 0), law(fit, DENSE, 5)
    exact = break_even_rate(plain.c1_s, plain.c2_s, sd.c1_s, sd.c2_s)
    below = (sd.c1_s < plain.c1_s) & (sd.c2_s > plain.c2_s)
    always = (sd.c1_s < plain.c1_s) & (sd.c2_s <= plain.c2_s)
    xr.testing.assert_equal(found["outcome"] == "below", below)
    xr.testing.assert_equal(found["outcome"] == "always", always)
    crosses = found["rate_rps"].notnull()
    np.testing.assert_allclose(
        found["rate_rps"].where(crosses, 1.0), exact.where(crosses, 1.0), rtol=1e-6
    )


@SYSTEMS
def test_break_even_and_prob_faster_are_one_answer(
    fit: bsd.Fit, system: bsd.System, k: int
) -> None:
    draws = fit.break_even(k, system, **WORK).draws.squeeze("k", drop=True)
    outcome, rate, cap = draws["outcome"], draws["rate_rps"], pole(law(fit, system, k).c2_s)
    rps = [0.5, 2.0, 2.5, 3.0, 4.0, 6.0]
    found = fit.prob_faster(loads(*rps), k, system)["prob_faster"].squeeze("k")
    expected = [
        float(
            (
                ((outcome == "below") & (r < rate))
                | ((outcome == "above") & (r > rate) & (r < cap))
                | ((outcome == "always") & (r < cap))
            ).mean()
        )
        for r in rps
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert min(expected) < 0.9 < max(expected)


def test_break_even_table(fit: bsd.Fit) -> None:
    answer = fit.break_even([1, 5, 7], DENSE, **WORK)
    table = answer.table().set_index("k")
    chances = table[[f"prob_{o}" for o in ("below", "above", "always", "never")]]
    assert chances.ge(0).all(axis=None)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert (table["p05"] <= table["p50"]).all() and (table["p50"] <= table["p95"]).all()
    assert not table.isna().any(axis=None)
    assert table.loc[5, "support"] == "measured" and table.loc[7, "support"] != "measured"


def test_a_drafter_that_never_pays_has_a_break_even_of_zero(fit: bsd.Fit) -> None:
    useless = bsd.System("dense-60m", "draft-12m", acceptance=0.0)
    answer = fit.break_even(7, useless, **WORK)
    assert float(answer.prob("never").item()) > 0.99
    assert float(answer.quantile(0.5).item()) == 0
    assert not answer.table().isna().any(axis=None)


# --- which system ---------------------------------------------------------------------------


def test_labels_say_how_far_an_answer_is_from_the_data(fit: bsd.Fit) -> None:
    def label(rate: float, k: int, system: bsd.System = DENSE, **work: float) -> str:
        load = bsd.grid(rps=rate, **(WORK | work))
        return str(fit.latency(load, k, system).draws["support"].item())

    run = fit.runs[fit.runs["system"] == "dense-60m + draft-12m @ 0.8 k=5"].iloc[0]
    own = {"prompt": run["prompt_tokens"], "output": run["output_tokens"]}
    assert label(run["rate_rps"], 5, **own) == "measured"
    assert label(2.0, 3) == "interpolated"
    assert label(2.0, 3, prompt=2000) == "extrapolated"
    assert label(500.0, 5) == "extrapolated"
    assert label(1.0, 20) == "extrapolated"
    drafter = bsd.Size(5e6)
    assert label(1.0, 3, bsd.System(bsd.Size(100e6), drafter, 0.8)) == "interpolated"
    far = bsd.System(bsd.Size(8e9), drafter, 0.8, extrapolate=True)
    assert label(0.1, 3, far) == "extrapolated"
    assert label(1.0, 3, bsd.System(bsd.Size(100e6), bsd.Size(30e6), 0.8)) == "extrapolated"


@pytest.mark.parametrize(
    ("verifier", "new"),
    [
        ("dense-60m", bsd.Size(61726720.0)),
        ("moe-e8k2", bsd.Size(212398080.0, 75e6, experts=8, experts_per_token=2)),
    ],
)
def test_a_new_system_is_answered_wider_and_never_called_measured(
    fit: bsd.Fit, verifier: str, new: bsd.Size
) -> None:
    load = loads(0.1, 0.3)
    known = fit.latency(load, [0, 5], bsd.System(verifier, "draft-12m", 0.8)).draws
    guess = fit.latency(load, [0, 5], bsd.System(new, bsd.Size(10616832.0), 0.8)).draws
    assert "measured" not in guess["support"]
    assert "measured" in known["support"].sel(k=0)
    width = [np.log(d["mean_s"]).std(SAMPLE) for d in (guess, known)]
    assert (width[0] > 1.3 * width[1]).all()
    ratio = guess["mean_s"].median(SAMPLE) / known["mean_s"].median(SAMPLE)
    assert ((ratio > 0.5) & (ratio < 2)).all()
    found = fit.prob_faster(load, 5, bsd.System(new, bsd.Size(10616832.0), 0.8))
    assert ((found["prob_faster"] > 0) & (found["prob_faster"] <= 1)).all()


def test_effects_of_a_new_system_are_draws_from_its_population(fit: bsd.Fit) -> None:
    new = bsd.System(bsd.Size(212398080.0, 75e6, 8, 2), bsd.Size(1e7), 0.8)
    theta, posterior = resolve(fit, new, 3, seed=0).theta, fit.posterior
    families = {"verifier": "coefficient", "drafter": "draft_coefficient", "system": "speed"}
    for level, dim in families.items():
        tau = posterior[f"tau_{level}"]
        for name in tau[dim].values:
            log = np.log(theta[f"f_{name}"])
            if level == "verifier":
                log = log - posterior["moe"].sel(coefficient=name)
            z = log / tau.sel({dim: name})
            assert abs(float(z.mean())) < 0.1, name
            assert float(z.std()) == pytest.approx(1, abs=0.1), name


def test_two_servers_do_not_share_their_luck(fit: bsd.Fit) -> None:
    draws = fit.latency(loads(1.0), [0, 5], DENSE).draws.squeeze("rate_rps")
    luck = np.log(draws["run_s"] / draws["mean_s"])
    assert abs(float(xr.corr(luck.sel(k=0), luck.sel(k=5)))) < 0.1


def test_acceptance_by_position_is_used(fit: bsd.Fit) -> None:
    def c1(acceptance: Any) -> xr.DataArray:
        return law(fit, bsd.System("dense-60m", "draft-3m", acceptance), 3).c1_s

    xr.testing.assert_allclose(c1([0.9, 0.9, 0.9]), c1(0.9))
    assert (c1([0.9, 0.5, 0.1]) > c1(0.9)).all()
    assert (c1([0.9, 0.5, 0.1]) < c1([0.9, 0.0, 0.9])).all()


@pytest.mark.parametrize("kind", [int, float, np.float64, np.float32])
def test_acceptance_of_exactly_none_and_all(fit: bsd.Fit, kind: Any) -> None:
    none, all_ = (
        fit.latency(loads(0.5), 4, bsd.System("dense-60m", "draft-3m", kind(a))).draws["mean_s"]
        for a in (0, 1)
    )
    assert np.isfinite(none).all() and np.isfinite(all_).all()
    assert (all_ < none).all()


def test_a_fit_of_one_system_needs_no_name(fit: bsd.Fit) -> None:
    runs = fit.runs
    one = some_runs(fit, (runs.verifier == "dense-60m") & runs.drafter.isin(["none", "draft-12m"]))
    a = one.latency(loads(1.0), [0, 5]).draws["mean_s"]
    b = one.latency(loads(1.0), [0, 5], DENSE).draws["mean_s"]
    xr.testing.assert_identical(a, b)
    assert 0 <= float(one.prob_faster(loads(1.0), 5)["prob_faster"].item()) <= 1


def test_a_grid_has_a_dimension_for_every_list() -> None:
    load = bsd.grid(rps=[1, 2, 4], prompt=512, output=[64, 256])
    assert dict(load.sizes) == {"rate_rps": 3, "output_tokens": 2}
    assert load["prompt_tokens"].item() == 512
    assert "concurrency" in bsd.grid(concurrency=4, prompt=1, output=1)


# --- speed ----------------------------------------------------------------------------------


def test_fifty_loads_and_five_arms_cost_few_passes_over_the_draws(fit: bsd.Fit) -> None:
    """Against the random numbers alone that the answer needs: a ratio, for any machine."""
    load = bsd.grid(rps=np.linspace(0.1, 8, 50), **WORK)
    ks = [0, 1, 3, 5, 7]
    posterior = fit.posterior.sizes
    cells = posterior["chain"] * posterior["draw"] * 50 * 5
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    np.exp(rng.standard_normal(cells)).sum()
    baseline = time.perf_counter() - start
    start = time.perf_counter()
    answer = fit.latency(load, ks, DENSE)
    spent = time.perf_counter() - start
    assert answer.draws["request_s"].size == cells
    assert spent < 100 * baseline, f"{spent:.2f} s, one pass {baseline:.3f} s"


def test_time_per_token_is_what_follows_the_first(fit: bsd.Fit) -> None:
    load, system = bsd.grid(rps=0.1, prompt=128, output=64), bsd.System("dense-60m")
    mean = {
        metric: fit.latency(load, 0, system, metric=metric).draws["mean_s"]
        for metric in ("e2e", "ttft", "tpot")
    }
    np.testing.assert_allclose(mean["ttft"] + 63 * mean["tpot"], mean["e2e"])
    one = bsd.grid(rps=0.1, prompt=128, output=1)
    with pytest.raises(bsd.InputError, match="more than one token"):
        fit.latency(one, 0, replace(system, extrapolate=True), metric="tpot")


def test_families_differ_by_what_the_fit_says(fit: bsd.Fit) -> None:
    table = fit.compare_families()
    assert len(table) == 4
    assert (table["low_ms"] < table["difference_ms"]).all()
    assert (table["difference_ms"] < table["high_ms"]).all()
    assert ((table["ratio"] > 1) == (table["prob_slower"] > 0.5)).all()
    np.testing.assert_allclose(
        table["difference_ms"], table["moe_ms"] - table["dense_ms"], rtol=0.25, atol=0.05
    )


def test_runs_past_saturation_bound_the_fit_and_are_kept_apart(
    fit: bsd.Fit, traces: bsd.Traces
) -> None:
    assert len(fit.runs) == len(traces.steady)
    assert len(fit.censored_runs) == int(traces.runs.saturated.sum()) > 0
    assert fit.provenance["runs_censored"] == len(fit.censored_runs)
    # What they showed is a lower bound: the law is above most of them.
    above = fit.censored_runs.fitted_e2e_s > 0.8 * fit.censored_runs.e2e_mean_s
    assert above.mean() > 0.9
