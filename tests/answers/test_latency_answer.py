"""Latency of servers over loads: the law in every draw, its scatter, and labels of support."""

from dataclasses import replace

import numpy as np
import pytest
from closed_forms import latency_open
from questions import MOE, MOE_PLAIN, NEW, PAIRS, PLAIN, SAMPLE, SD, changed, in_flight, law, rps

from bayes_sd.answers import latency
from bayes_sd.answers.latency import arm_of, scatter
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit
from bayes_sd.physics import queue
from bayes_sd.physics.noise import NU
from bayes_sd.runs.load import Load
from bayes_sd.runs.sizes import Size

OF = ("mean_s", "run_s", "request_s")

PAIR = {"verifier": "moe-e8k2", "drafter": "draft-3m", "acceptance_imposed": 0.9, "workload": ""}


def poles(fit: Fit, server: Server) -> np.ndarray:
    return 1 / law(fit, server).c2_s


def test_draws_have_the_dims_of_what_was_asked(fit: Fit) -> None:
    load = Load(rps=[0.5, 1.0], prompt=256, output=[64, 96, 128])
    answer = fit.latency(load, [PLAIN, SD])
    expected = {"chain": 4, "draw": 120, "server": 2, "rate_rps": 2, "output_tokens": 3}
    for name in OF:
        assert dict(answer.draws[name].sizes) == expected, name
        assert answer.draws[name].attrs["units"] == "s" and float(answer.draws[name].min()) > 0
    assert answer.draws["server"].values.tolist() == [str(PLAIN), str(SD)]
    assert len(answer.table) == 12
    assert set(answer.prob_saturated.dims) == {"server", "rate_rps", "output_tokens"}


def test_a_rate_is_the_concurrency_that_it_keeps_in_flight(fit: Fit) -> None:
    """Where prompts come one by one; those that come together each have their overhead."""
    for server in (PLAIN, SD):
        open_s = fit.latency(rps(1.0, 2.0), server).draws["mean_s"].values[0, 0, 0]
        held = in_flight(*(1 + open_s * [1.0, 2.0]))
        arm = arm_of(fit, server, held)
        apart_s, as_said_s = (a.outcome()[0].e2e_s[0] for a in (replace(arm, apart=True), arm))
        np.testing.assert_allclose(apart_s, open_s, rtol=1e-9)
        assert (as_said_s > open_s).all() if server is PLAIN else (as_said_s == apart_s).all()
        assert (fit.latency(held, server).prob_saturated == 0).all()


def test_alone_and_in_a_crowd_a_server_obeys_the_linear_law(fit: Fit) -> None:
    """With prompts that come one by one, as at a rate."""
    idle, crowds = law(fit, SD), in_flight(1, 50_000, 60_000)
    arm = replace(arm_of(fit, SD, crowds, extrapolate=True), apart=True)
    alone_s, many_s, more_s = arm.outcome()[0].e2e_s.T
    np.testing.assert_allclose(alone_s, idle.c1_s.ravel(), rtol=1e-9)
    np.testing.assert_allclose((more_s - many_s) / 10_000, idle.c2_s.ravel(), rtol=1e-3)


def test_draws_are_answered_in_blocks_as_all_at_once(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for load in (rps(0.5, 1.0, 3.0), in_flight(1, 8)):
        arm = arm_of(fit, MOE, load, extrapolate=True)
        whole = arm.outcome()[0]
        with monkeypatch.context() as patch:
            patch.setattr(latency, "BLOCK", 100)  # of 480 draws
            parts = arm.outcome()[0]
        for name, expected in whole._asdict().items():
            np.testing.assert_allclose(getattr(parts, name), expected, rtol=1e-8, err_msg=name)


def test_requests_in_flight_take_few_steps(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where a mixture of experts saturates: by halves it would take 33."""
    asked: list[int] = []
    coverage, capacity = queue.coverage, poles(fit, MOE).min()
    for share in (0.01, 0.5, 0.9, 0.999, 1 - 1e-9):
        with monkeypatch.context() as patch:
            patch.setattr(queue, "coverage", lambda *given: asked.append(1) or coverage(*given))
            asked.clear()
            law(fit, MOE, share * capacity)
        assert len(asked) <= 20, share


def test_a_mixture_under_load_touches_more_experts(fit: Fit) -> None:
    idle, busy = law(fit, MOE_PLAIN), law(fit, MOE_PLAIN, 1.0)
    assert (busy.e2e_s > 1.01 * latency_open(idle.c1_s, idle.c2_s, 1.0)).all()


def test_measured_runs_lie_among_the_predicted_ones(fit: Fit) -> None:
    for _, run in fit.runs[fit.runs["server"] == "dense-60m + draft-12m @ 0.8 k=5"].iterrows():
        load = Load(rps=run["rate_rps"], prompt=run["prompt_tokens"], output=run["output_tokens"])
        answer = fit.latency(load, SD)
        low, high = answer.quantile([0.005, 0.995], of="run").values.ravel()
        assert low < run["e2e_mean_s"] < high
        assert answer.draws["support"].item() == "measured"


@PAIRS
def test_quantiles_and_saturation_grow(fit: Fit, server: Server, baseline: Server) -> None:
    answer = fit.latency(rps(0.5, 2, 4, 6, 8, 12, 50), [server, baseline])
    with np.errstate(invalid="ignore"):  # inf - inf past the pole
        q = answer.quantile([0.05, 0.5, 0.95, 0.99]).values
        assert not np.isnan(q).any() and not (np.diff(q, axis=0) < 0).any()
        mean = answer.quantile(0.5, of="mean").transpose(..., "rate_rps").values
        assert not (np.diff(mean, axis=-1) < 0).any()
    p = answer.prob_saturated.transpose(..., "rate_rps").values
    assert (np.diff(p, axis=-1) >= 0).all() and (p[:, 0] == 0).all() and (p[:, -1] == 1).all()


@PAIRS
@pytest.mark.parametrize("metric", ["e2e", "ttft", "tpot"])
def test_latency_is_infinite_where_saturated_and_a_number_elsewhere(
    fit: Fit, server: Server, baseline: Server, metric: str
) -> None:
    middle = float(np.median(poles(fit, server)))
    answer = fit.latency(rps(1.0, middle), [baseline, server], metric=metric)
    stuck = answer.draws["saturated"]
    assert 0.1 < float(stuck.sel(server=str(server), rate_rps=middle).mean()) < 0.9
    for name in OF:
        draws = answer.draws[name]
        assert not draws.isnull().any(), name
        assert (np.isinf(draws) | ~stuck).all(), name
    assert (np.isfinite(answer.draws["mean_s"]) | stuck).all()


@PAIRS
def test_at_and_far_past_the_pole_no_number_is_missing_or_overflows(
    fit: Fit, server: Server, baseline: Server
) -> None:
    below = float(poles(fit, server).min()) * (1 - 1e-6)
    answer = fit.latency(rps(below), server)
    assert answer.prob_saturated.item() == 0 and np.isfinite(answer.draws["request_s"]).all()
    top = max(poles(fit, each).max() for each in (server, baseline))
    table = fit.latency(rps(1.5 * top, 1e6 * top), [server, baseline]).table
    assert (table["prob_saturated"] == 1).all() and (table["support"] == "extrapolated").all()
    assert (table[[c for c in table if c.endswith("_s")]] == np.inf).all(axis=None)


def test_a_request_scatters_more_than_a_run_and_a_run_more_than_the_mean(fit: Fit) -> None:
    draws = fit.latency(rps(3.0), [PLAIN, SD]).draws
    mean, run, request = (np.log(draws[name]).std(SAMPLE) for name in OF)
    assert (mean < run).all() and (run < request).all()
    luck = np.log(draws["run_s"] / draws["mean_s"]).squeeze("rate_rps")
    one, other = (luck.isel(server=i).values.ravel() for i in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15  # two servers do not share their luck
    draws = fit.latency(rps(2.0, 3.0), SD).draws
    luck = np.log(draws["run_s"] / draws["mean_s"])
    one, other = (luck.isel(rate_rps=i).values.ravel() for i in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15  # nor do two loads


@pytest.mark.parametrize("metric", ["e2e", "ttft"])
def test_a_run_scatters_as_runs_of_so_many_requests_do(fit: Fit, metric: str) -> None:
    """Scatter from run to run, and the sampling error of its own requests."""
    from scipy.stats import kstest

    usual = fit.latency(rps(3.0), SD, metric=metric)
    assert usual.draws["run_s"].attrs["requests"] == fit.runs["requests"].median()
    said, inputs = arm_of(fit, SD, rps(3.0)).outcome()
    for requests in (4, 40, 100_000):
        draws = fit.latency(rps(3.0), SD, metric=metric, requests=requests).draws
        scale, variance = scatter(fit, said, inputs, metric, requests)
        sd = np.sqrt(scale**2 + variance / requests)
        z = np.log(draws["run_s"] / draws["mean_s"]).values.reshape(fit.draws, 1) / sd
        assert kstest(z.ravel(), "t", args=(NU,)).pvalue > 1e-3
        assert (requests == 4) == (sd.mean() > 1.2 * scale.mean())
        assert draws["mean_s"].equals(usual.draws["mean_s"])
    text = str(fit.compare(rps(3.0), SD, PLAIN, of="run", requests=40))
    assert "mean latency of a run of 40 requests" in text


def test_metrics_add_up(fit: Fit) -> None:
    load = Load(rps=[0.1, 2.0], prompt=128, output=64)
    e2e, ttft, tpot = (
        fit.latency(load, [PLAIN, SD], metric=m).draws["mean_s"] for m in ("e2e", "ttft", "tpot")
    )
    np.testing.assert_allclose(ttft + 63 * tpot, e2e)
    assert (ttft > 0).all() and (ttft < e2e).all()


# --- support --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "rate", "work", "label"),
    [
        (SD, 2.0, {}, "measured"),
        (SD.with_k(4), 2.0, {}, "interpolated"),
        (SD, 2.0, {"prompt": 1800}, "extrapolated"),
        (SD, 500.0, {}, "extrapolated"),
        (SD, 0.01, {}, "interpolated"),
        (NEW, 1.0, {}, "interpolated"),
        (replace(NEW, verifier=Size(8e9)), 0.01, {}, "extrapolated"),
        (replace(NEW, drafter=Size(30e6)), 1.0, {}, "extrapolated"),
        (replace(SD, k=20), 1.0, {}, "extrapolated"),
    ],
)
def test_labels_say_how_far_an_answer_is_from_the_data(
    fit: Fit, server: Server, rate: float, work: dict[str, float], label: str
) -> None:
    answer = fit.latency(rps(rate, **work), server, extrapolate=True)
    assert answer.table["support"].tolist() == [label]
    assert label in str(answer)


def test_positions_nobody_measured_are_extrapolated(fit: Fit) -> None:
    """The pair ran at k = 3 with counts of three positions; another ran at k = 7."""
    three, five = (fit.latency(rps(1.0), MOE.with_k(k)).table["support"].item() for k in (3, 5))
    assert (three, five) == ("interpolated", "extrapolated")
    rates, _ = fit.acceptance(PAIR, 5)
    assert rates is not None and len(rates) == 5
    assert rates[4].std() > rates[3].std() > 2 * rates[2].std()


def test_acceptance_measured_as_falling_is_not_held_up_beyond(fit: Fit) -> None:
    """0.9, 0.6, 0.3 measured: the fourth and fifth draft token are accepted less, not as 0.656."""
    acceptance = fit.tree["acceptance"].to_dataset()
    keys = acceptance[list(PAIR)].to_dataframe()
    i = int(np.flatnonzero((keys == list(PAIR.values())).all(axis=1))[0])
    rng, values = np.random.default_rng(0), acceptance["by_position"].values.copy()
    for j, rate in enumerate((0.9, 0.6, 0.3)):
        values[:, :, i, j] = rng.normal(rate, 0.005, fit.shape)
    acceptance["by_position"] = (acceptance["by_position"].dims, values)
    falling = changed(fit, acceptance=acceptance)
    rates, _ = falling.acceptance(PAIR, 5)
    assert rates is not None
    assert 0.3 > rates[3].mean() > rates[4].mean() and rates[3].std() > 0.03
    slower = falling.latency(rps(1.0), MOE.with_k(5)).draws["mean_s"]
    assert (slower > fit.latency(rps(1.0), MOE.with_k(5)).draws["mean_s"]).mean() > 0.99
