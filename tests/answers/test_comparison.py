"""One server against another: chances are those of the draws, and where the order changes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from questions import MOE, MOE_PLAIN, PAIRS, PLAIN, SAMPLE, SD, SHORT, in_flight, law, rps

from bayes_sd.answers.answer import LABELS, farthest
from bayes_sd.answers.break_even import OUTCOMES, BreakEven
from bayes_sd.answers.latency import arm_of
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit
from bayes_sd.physics.structures import Asynchronous, Edge, Overlapped
from bayes_sd.runs.load import Load

E16_PLAIN = Server("moe-e16k2")
# Its experts fill up first, its capacity is less.
TWICE = Server("moe-e16k2", "draft-12m", 7, 0.75)
USELESS, PERFECT = (Server("dense-60m", "draft-12m", 5, a) for a in (0.0, 1.0))


def between_and_beyond(fit: Fit, server: Server, baseline: Server) -> tuple[float, float]:
    """A rate between the capacities of two servers, and one above both."""
    caps = [1 / law(fit, each).c2_s for each in (server, baseline)]
    return float(np.mean([np.median(c) for c in caps])), 3 * float(max(c.max() for c in caps))


# --- compare --------------------------------------------------------------------------------


@PAIRS
@pytest.mark.parametrize("of", ["mean", "run", "request"])
def test_chances_are_those_of_the_draws_and_sum_to_one(
    fit: Fit, server: Server, baseline: Server, of: str
) -> None:
    load = rps(0.5, 3.0, *between_and_beyond(fit, server, baseline))
    table = fit.compare(load, server, baseline, of=of).table
    draws = fit.latency(load, [server, baseline]).draws
    sd, plain = (draws[f"{of}_s"].isel(server=i, drop=True) for i in (0, 1))
    for name, expected in {
        "prob_faster": sd < plain,
        "prob_slower": sd > plain,
        "prob_both_saturated": np.isinf(sd) & np.isinf(plain),
    }.items():
        np.testing.assert_allclose(table[name], expected.mean(SAMPLE), err_msg=name)
    chances = table[["prob_faster", "prob_slower", "prob_both_saturated"]]
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert chances.iloc[-1].tolist() == [0, 0, 1] and chances.iloc[0, 2] == 0


def test_speedup_is_the_ratio_of_latencies_also_where_one_or_both_saturate(fit: Fit) -> None:
    between, beyond = between_and_beyond(fit, SD, PLAIN)
    answer = fit.compare(rps(1.0, between, beyond), SD, PLAIN)
    speedup = answer.draws["speedup"].isel(server=0, drop=True)
    mean = fit.latency(rps(1.0), [SD, PLAIN]).draws["mean_s"].isel(rate_rps=0)
    ratio = mean.isel(server=1, drop=True) / mean.isel(server=0, drop=True)
    np.testing.assert_allclose(speedup.isel(rate_rps=0), ratio)
    faster = answer.draws["faster"].isel(server=0, rate_rps=0)
    np.testing.assert_array_equal(speedup.isel(rate_rps=0) > 1, faster)
    full = [(1 / law(fit, each).c2_s <= between).reshape(fit.shape) for each in (SD, PLAIN)]
    one = speedup.isel(rate_rps=1).values
    assert (full[0] ^ full[1]).any()
    assert (one[full[1] & ~full[0]] == np.inf).all() and (one[full[0] & ~full[1]] == 0).all()
    assert speedup.isel(rate_rps=2).isnull().all()
    last = answer.table.iloc[-1]
    assert last[["speedup_p05", "speedup_p50", "speedup_p95"]].isna().all()


def test_speculation_that_accepts_nothing_does_not_pay_and_the_perfect_does(fit: Fit) -> None:
    bad, good = (fit.compare(rps(1.0), each, PLAIN) for each in (USELESS, PERFECT))
    assert bad.table["prob_faster"].item() < 0.01 and "plain at 1 request/s" in str(bad)
    assert good.table["prob_faster"].item() > 0.99 and "k = 5 at 1 request/s" in str(good)


def test_the_label_of_two_is_that_of_the_farther(fit: Fit) -> None:
    assert farthest(LABELS[[4, 2, 3]]) == "extrapolated"
    for k, label in ((5, "measured"), (4, "interpolated")):  # plain is measured there
        answer = fit.compare(rps(1.0), SD.with_k(k), PLAIN)
        assert answer.table["support"].tolist() == [label] and label in str(answer)


@pytest.mark.parametrize("of", ["mean", "request"])
def test_of_several_servers_the_best_is_counted_and_chosen(fit: Fit, of: str) -> None:
    load, servers = rps(1.0, 5.0, 9.0, prompt=128, output=64), [SHORT, SHORT.with_k(5)]
    answer = fit.compare(load, servers, PLAIN, of=of)
    values = fit.latency(load, [*servers, PLAIN]).draws[f"{of}_s"]
    best = (values == values.min("server")) & np.isfinite(values)
    for server in servers:
        own = answer.table[answer.table["server"] == str(server)]
        np.testing.assert_allclose(
            own["prob_best"], best.sel(server=str(server)).mean(SAMPLE), atol=1e-12
        )
        alone = fit.compare(load, server, PLAIN, of=of)
        assert "prob_best" not in alone.table
        np.testing.assert_array_equal(own["prob_faster"], alone.table["prob_faster"])
    if of == "mean":
        assert str(answer).startswith("dense-60m + draft-3m @ 0.7: k = 2 at 1 to 5 requests/s")
    assert fit.compare(load, [PLAIN, *servers], PLAIN, of=of).table.equals(answer.table)


def test_a_verdict_names_lengths_where_they_differ_and_past_capacity_nobody(fit: Fit) -> None:
    load = Load(rps=[1.0, 1e4], prompt=[64, 256], output=64)
    said = str(fit.compare(load, SD, PLAIN))
    for prompt in (64, 256):
        verdict = "k = 5 at 1 request/s, all saturated at 1e+04"
        assert f"with prompt {prompt} tokens {verdict}" in said


# --- break-even -----------------------------------------------------------------------------


@PAIRS
@pytest.mark.parametrize("axis", ["rate_rps", "concurrency"])
def test_latencies_are_equal_at_the_break_even_draws(
    fit: Fit, server: Server, baseline: Server, axis: str
) -> None:
    load = rps(1.0) if axis == "rate_rps" else in_flight(4)
    answer = fit.break_even(load, server, baseline)
    edges = answer.draws[axis].values.reshape(fit.draws, -1)
    # Each draw at the loads of its own, all at once; the ends of all loads are no change of order.
    arms = [
        arm_of(fit, each, load.with_axis([1.0]), extrapolate=True) for each in (server, baseline)
    ]
    lowest, capacity = (0.0, arms[0].capacity_rps) if axis == "rate_rps" else (1.0, np.inf)
    crosses = (edges > lowest) & (edges < capacity * (1 - 1e-8))
    there = np.where(crosses, edges, 1.0)
    sd, plain = (arm.outcome(there)[0].e2e_s for arm in arms)
    away = crosses & (sd < 50 * arms[0].outcome(there)[0].c1_s)  # from a pole, which magnifies
    np.testing.assert_allclose(sd[away], plain[away], rtol=1e-4)
    count = crosses.sum(axis=1).reshape(fit.shape)
    outcome = answer.draws["outcome"].values
    for name, least in {"always": 0, "never": 0, "below": 1, "above": 1, "between": 2}.items():
        assert (count[outcome == name] == least).all(), name
    assert (count[outcome == "several"] > 1).all()
    assert away.sum() > 100 or server is MOE


@pytest.mark.parametrize("axis", ["rate_rps", "concurrency"])
@pytest.mark.parametrize(
    ("server", "baseline"),
    [(SD, PLAIN), (MOE, MOE_PLAIN), (TWICE, E16_PLAIN), (replace(TWICE, k=2), E16_PLAIN)],
    ids=["dense", "moe", "between", "several"],
)
def test_the_set_of_loads_and_compare_are_one_answer_at_every_load(
    fit: Fit, server: Server, baseline: Server, axis: str
) -> None:
    load = rps(1.0) if axis == "rate_rps" else in_flight(4)
    values = np.geomspace(0.05, 9, 40) if axis == "rate_rps" else np.geomspace(1, 70, 40)
    answer = fit.break_even(load, server, baseline, extrapolate=True)
    stretch = answer.draws[axis]
    begin, end = stretch.sel(end="from"), stretch.sel(end="to")
    assert bool(((begin < end) | begin.isnull() & end.isnull()).all())
    asked = load.with_axis(values.tolist())
    table = fit.compare(asked, server, baseline, extrapolate=True).table
    for at, prob in zip(table[axis], table["prob_faster"], strict=True):
        faster = ((begin <= at) & (at < end)).any("stretch")
        assert prob == pytest.approx(float(faster.mean()), abs=1e-12)
        assert (prob >= 0.5) == any(low <= at < high for low, high in answer.likely())
    chances = answer.table.filter(like="prob_").iloc[0]
    assert chances.sum() == pytest.approx(1) and (chances >= 0).all()


def test_a_server_that_wins_between_two_loads_only_is_said_to(fit: Fit) -> None:
    answer = fit.break_even(rps(1.0), replace(TWICE, k=6), E16_PLAIN, extrapolate=True)
    assert max(OUTCOMES, key=answer.prob) == "between"
    (low, high), text = answer.likely()[0], str(answer)
    assert 0 < low < high < float(answer.ends("to").quantile(0.95))
    assert re.search(
        r"is faster from \S+ \(90%: .*\) to \S+ \(90%: .*\) requests/s with prob", text
    )
    assert text.endswith(f"it is faster from {low:.3g} up to {high:.3g} requests/s.")
    assert answer.table["likely_faster"].item() == f"from {low:.3g} up to {high:.3g}"
    usual = fit.break_even(rps(1.0), SD, PLAIN)
    ordinary, load = str(usual), float(usual.quantile(0.5).item())
    assert f"is faster up to a break-even load of {load:.3g} requests/s (90%: " in ordinary
    assert "likely" not in ordinary


@pytest.mark.parametrize(
    ("second", "last", "said"),
    [
        (94.001, 120.0, "up to 120"),
        (95.0, 120.0, "up to 94 and from 95 up to 120"),
        (95.0, 95.001, "up to 94"),
    ],
)
def test_stretches_and_gaps_between_them_are_said_where_a_digit_shows_them(
    second: float, last: float, said: str
) -> None:
    """Of two draws one is faster below 94 requests/s, the other from there on."""
    stretches = np.array([[[[0.0, 94.0]], [[second, last]]]])
    dims = ("chain", "draw", "stretch", "end")
    draws = xr.Dataset({"rate_rps": (dims, stretches)}, {"end": ["from", "to"]})
    draws["outcome"] = (dims[:2], np.array([["below", "between"]], object))
    answer = BreakEven(draws, "sd", "plain", "measured", np.nan, (128.0, 64.0))
    assert len(answer.likely()) == 2 and answer.table["likely_faster"].item() == said


def test_never_and_always_are_numbers_of_the_quantiles(fit: Fit) -> None:
    useless = fit.break_even(rps(1.0), USELESS, PLAIN)
    assert useless.prob("never") > 0.99 and useless.quantile(0.5).item() == 0
    assert "is slower at every load that either sustains" in str(useless)
    moe = fit.break_even(rps(1.0), MOE, MOE_PLAIN)
    assert moe.prob("always") > 0.9 and np.isinf(moe.quantile(0.5).item())
    assert "is faster at every load that either sustains" in str(moe)
    closed = fit.break_even(in_flight(4), MOE, MOE_PLAIN)
    assert closed.top > 4 and f"up to {closed.top:.3g} requests in flight" in str(closed)


def test_a_structure_without_its_terms_changes_no_comparison(fit: Fit) -> None:
    for gone in (Edge(0.3, offloaded=0.0), Overlapped(0.0), Asynchronous(wasted=1.0)):
        placed = replace(SD, structure=gone)
        for load in (rps(0.5, 2.0, 50.0), in_flight(4)):
            here, there = (fit.latency(load, each).draws for each in (SD, placed))
            for name in ("mean_s", "run_s", "request_s"):
                np.testing.assert_allclose(here[name], there[name], rtol=1e-6)
            assert set(there["support"].values.ravel()) == {"assumed structure"}


def test_a_far_edge_loses_a_free_overlap_wins_and_both_are_called_assumed(fit: Fit) -> None:
    chances = []
    for structure in (Edge(2.0), None, Overlapped(1.0)):
        answer = fit.compare(rps(3.0), replace(SD, structure=structure), PLAIN)
        chances.append(answer.table["prob_faster"].item())
        assert ("assumed structure" in str(answer)) == (structure is not None)
    assert chances[0] < 0.01 and chances[0] < chances[1] < chances[2]
    certain, drawn = (
        fit.latency(rps(1.0), replace(SD, structure=Edge(t))).draws["mean_s"]
        for t in (0.03, (0.02, 0.05))
    )
    assert float(drawn.std()) > float(certain.std())
