"""Laws of deployments: limits, monotonicity, and the same numbers by another way."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from test_physics import LOAD, SIZES, THETA
from test_structures import VANISHED, each

from bayes_sd.physics import structures as law
from bayes_sd.physics.experts import coverage, tokens_in_pass
from bayes_sd.physics.law import Outcome, outcome, system_stages
from bayes_sd.physics.structures import Placed
from bayes_sd.predict.deployed import capacity_rps, deployed, latency_s, route
from bayes_sd.predict.structures import Structure

modest = settings(max_examples=40, deadline=None)
families = st.sampled_from(["dense", "moe"])
drafts = st.integers(0, 8)
busy = st.floats(0, 0.95)
factors = st.floats(0.5, 20)
shares = st.floats(0, 1)
seconds = st.floats(0, 0.2)
crowds = st.floats(0, 60)


def at(share: float, family: str, k: int) -> dict[str, Any]:
    """A load at a share of the colocated capacity."""
    load = LOAD | {"k": k}
    rest = outcome(THETA, SIZES[family], load)
    return load | {"rate_rps": np.float64(share / rest.c2_s)}


def beside(others: float, k: int) -> dict[str, Any]:
    return LOAD | {"k": k, "closed": 1.0, "others": np.float64(others)}


def placed(structure: Any, family: str, load: dict[str, Any], **terms: Any) -> Placed:
    return structure(system_stages(THETA, SIZES[family], load), SIZES[family], load, **terms)


def solve(structure: Any, family: str, load: dict[str, Any], **terms: Any) -> Outcome:
    return answer(placed(structure, family, load, **terms), family, load)


def answer(where: Placed, family: str, load: dict[str, Any]) -> Outcome:
    with np.errstate(divide="ignore", invalid="ignore"):  # past the pole, as in predictions
        return deployed(where, THETA, SIZES[family], load)


def same(found: Outcome, expected: Outcome, rel: float = 1e-9) -> None:
    for name in Outcome._fields:
        one, other = float(getattr(found, name)), float(getattr(expected, name))
        assert one == pytest.approx(other, rel=rel, abs=1e-12), name


# --- limits: without its terms every structure is the colocated law ---------------------------

LAWS = {name: (getattr(law, name), terms) for name, terms in VANISHED.items()}
vanished = pytest.mark.parametrize(("structure", "terms"), LAWS.values(), ids=LAWS)


@modest
@given(family=families, k=drafts, share=busy)
@vanished
def test_collapses_to_the_colocated_law_at_a_rate(
    structure: Any, terms: dict[str, float], family: str, k: int, share: float
) -> None:
    load = at(share, family, k)
    same(solve(structure, family, load, **terms), outcome(THETA, SIZES[family], load))


@modest
@given(family=families, k=drafts, others=crowds)
@vanished
def test_collapses_to_the_colocated_law_at_a_concurrency(
    structure: Any, terms: dict[str, float], family: str, k: int, others: float
) -> None:
    load = beside(others, k)
    same(solve(structure, family, load, **terms), outcome(THETA, SIZES[family], load))


@modest
@given(family=families, k=drafts)
def test_free_network_and_equal_devices_leave_the_idle_law(family: str, k: int) -> None:
    load = at(0.0, family, k)
    found = solve(law.edge, family, load, round_trip_s=0.0)
    assert found.e2e_s == pytest.approx(outcome(THETA, SIZES[family], load).e2e_s, rel=1e-12)


@modest
@given(family=families, k=drafts, share=busy)
def test_prompts_that_cost_nothing_need_no_pool(family: str, k: int, share: float) -> None:
    load = at(share, family, k)
    stages = system_stages(THETA, SIZES[family], load)._replace(c1_prefill=0.0, c2_prefill=0.0)
    apart = law.disaggregated(stages, SIZES[family], load)
    expected = deployed(Placed((stages,)), THETA, SIZES[family], load)
    assert deployed(apart, THETA, SIZES[family], load).e2e_s == pytest.approx(expected.e2e_s)


@modest
@given(family=families, k=drafts, share=busy)
def test_an_unplaced_server_is_the_law_itself(family: str, k: int, share: float) -> None:
    load = at(share, family, k)
    stages = system_stages(THETA, SIZES[family], load)
    expected = outcome(THETA, SIZES[family], load)
    assert deployed(Placed((stages,)), THETA, SIZES[family], load) == expected


@modest
@given(family=families, share=busy, hidden=shares, term=seconds)
def test_plain_decoding_is_untouched_but_by_a_prefill_pool(
    family: str, share: float, hidden: float, term: float
) -> None:
    load = at(share, family, 0)
    expected = outcome(THETA, SIZES[family], load)
    same(solve(law.edge, family, load, round_trip_s=term, slowdown=5.0), expected)
    same(solve(law.overlapped, family, load, hidden=hidden, interference=term), expected)
    terms = {"sync_s": term, "verify_slowdown": 2.0, "draft_slowdown": 3.0, "wasted": hidden}
    same(solve(law.asynchronous, family, load, **terms), expected)
    apart = [solve(law.disaggregated, family, load, transfer_s=t).e2e_s for t in (0.0, 1.0)]
    assert apart[1] - apart[0] == pytest.approx(1.0)


def test_a_drafter_group_without_drafts_keeps_its_gpus_and_holds_nobody_up() -> None:
    load = at(0.5, "dense", 0) | {"draft_passes": 1}
    terms = {"sync_s": 0.5, "verify_slowdown": 1.5, "draft_slowdown": 50.0}
    found = solve(law.asynchronous, "dense", load, **terms)
    plain = outcome(THETA, SIZES["dense"], at(0.5, "dense", 0))
    assert found.c1_s == pytest.approx(1.5 * plain.c1_s)
    away = solve(law.edge, "dense", load, round_trip_s=0.5)
    assert away.e2e_s == pytest.approx(plain.e2e_s)  # its drafter is not on the server at all


# --- monotonicity -----------------------------------------------------------------------------


@modest
@given(family=families, k=drafts, share=busy, a=seconds, b=seconds, crowd=crowds)
def test_a_longer_round_trip_is_never_faster(
    family: str, k: int, share: float, a: float, b: float, crowd: float
) -> None:
    for load in (at(share, family, k), beside(crowd, k)):
        quick, slow = (solve(law.edge, family, load, round_trip_s=t).e2e_s for t in sorted((a, b)))
        assert slow >= quick * (1 - 1e-9)


@modest
@given(family=families, k=drafts, share=busy, a=shares, b=shares, crowd=crowds)
def test_hiding_more_is_never_slower(
    family: str, k: int, share: float, a: float, b: float, crowd: float
) -> None:
    little, much = sorted((a, b))
    for load in (at(share, family, k), beside(crowd, k)):
        less = solve(law.overlapped, family, load, hidden=little).e2e_s
        more = solve(law.overlapped, family, load, hidden=much).e2e_s
        assert more <= less * (1 + 1e-12)
        wasteful = solve(law.asynchronous, family, load, wasted=much).e2e_s
        assert wasteful >= solve(law.asynchronous, family, load, wasted=little).e2e_s * (1 - 1e-12)


@modest
@given(family=families, k=drafts, share=st.floats(0, 0.9), a=factors, b=factors)
def test_slower_parts_are_never_faster(
    family: str, k: int, share: float, a: float, b: float
) -> None:
    load, (low, high) = at(share / 20, family, k), sorted((a, b))
    for structure, name, rest in (
        (law.edge, "slowdown", {"round_trip_s": 0.01}),
        (law.asynchronous, "verify_slowdown", {}),
        (law.asynchronous, "draft_slowdown", {}),
        (law.disaggregated, "prefill_slowdown", {}),
        (law.disaggregated, "decode_slowdown", {}),
    ):
        quick, slow = (solve(structure, family, load, **{name: f}, **rest) for f in (low, high))
        if slow.utilization < 1:
            assert slow.e2e_s >= quick.e2e_s * (1 - 1e-12), name


@modest
@given(family=families, k=drafts, a=st.floats(0.1, 100), b=st.floats(0.1, 100))
def test_a_faster_link_is_never_slower(family: str, k: int, a: float, b: float) -> None:
    load, (low, high) = at(0.3, family, k), sorted((a, b))
    slow, quick = (
        solve(law.disaggregated, family, load, bandwidth_gb_per_s=w).e2e_s for w in (low, high)
    )
    assert quick <= slow


@modest
@given(family=families, k=drafts, low=busy, high=busy)
@each
def test_latency_grows_with_the_rate_up_to_capacity(
    structure: Structure, family: str, k: int, low: float, high: float
) -> None:
    load, (low, high) = at(0.0, family, k), sorted((low, high))
    own = route(_place(structure, family, load), load)
    top = capacity_rps(own)
    few, many = (latency_s(own, SIZES[family], s * top, k) for s in (low, high))
    assert few <= many * (1 + 1e-12)
    where = _place(structure, family, load)
    found = [answer(where, family, load | {"rate_rps": f * top}) for f in (low, high, 1.01)]
    assert [float(f.e2e_s) for f in found[:2]] == pytest.approx([float(few), float(many)])
    assert [f.utilization < 1 for f in found] == [True, True, False]
    assert 1 / found[0].c2_s == pytest.approx(float(top))


def _place(structure: Structure, family: str, load: dict[str, Any]) -> Placed:
    one_draw = xr.Dataset(coords={"chain": [0], "draw": [0]})
    draw = structure.drawn(one_draw, lambda name: np.random.default_rng(0))
    return draw(system_stages(THETA, SIZES[family], load), SIZES[family], load)


# --- the same numbers by another way ----------------------------------------------------------


@modest
@given(family=families, k=st.integers(1, 8), share=busy, hidden=shares, slower=factors)
def test_a_cycle_is_both_less_what_is_hidden_at_every_load(
    family: str, k: int, share: float, hidden: float, slower: float
) -> None:
    """The fixed point of the cycle time as it is defined, whichever of the two is longer where."""
    load, size = at(0.0, family, k), SIZES[family]
    s = system_stages(THETA, size, load)

    def own_s(b: float) -> float:
        phi = coverage(size["idle"], tokens_in_pass(b, k))
        verify = s.c1_verify + phi * s.c1_experts + b * s.c2_verify
        draft = slower * k * (s.c1_draft + b * s.c2_draft)
        cycle = verify + draft - hidden * min(verify, draft)
        return s.c1_prefill + b * s.c2_prefill + load["cycles"] * cycle

    terms = {"wasted": 1 - hidden, "draft_slowdown": slower}
    rate = share * capacity_rps(route(placed(law.asynchronous, family, load, **terms), load))
    found = solve(law.asynchronous, family, load | {"rate_rps": rate}, **terms)
    top = 2 * float(rate * found.e2e_s) + 1
    b = brentq(lambda b: rate * own_s(b) - b, 0.0, top, xtol=1e-12, rtol=1e-12)
    assert found.e2e_s == pytest.approx(own_s(b), rel=1e-8)
    crowd = solve(law.asynchronous, family, beside(b, k), **terms)
    assert crowd.e2e_s == pytest.approx(own_s(b), rel=1e-8)


@modest
@given(family=families, k=st.integers(1, 8), trip=st.floats(1e-4, 0.5), others=crowds)
def test_at_a_concurrency_the_server_holds_who_is_not_elsewhere(
    family: str, k: int, trip: float, others: float
) -> None:
    """A share of the requests in flight is on the server: that of its time in their latency."""
    load, size = beside(others, k), SIZES[family]
    where = placed(law.edge, family, load, round_trip_s=trip)
    (s,), away = where.ways, load["cycles"] * where.away_s

    def served_s(b: float) -> float:
        phi = coverage(size["idle"], tokens_in_pass(b, k))
        cycle = s.c1_verify + phi * s.c1_experts + b * s.c2_verify
        return s.c1_prefill + b * s.c2_prefill + load["cycles"] * cycle

    b = brentq(lambda b: b * (away + served_s(b)) - others * served_s(b), 0.0, others + 1e-9)
    found = deployed(where, THETA, size, load)
    assert found.e2e_s == pytest.approx(away + served_s(b), rel=1e-7)
    assert found.utilization == 0


def test_a_round_trip_is_neither_stretched_by_load_nor_part_of_the_first_token() -> None:
    for share in (0.1, 0.9):
        load = at(share, "dense", 3)
        near, far = (solve(law.edge, "dense", load, round_trip_s=t) for t in (0.0, 0.05))
        assert far.e2e_s - near.e2e_s == pytest.approx(load["cycles"] * 0.05)
        assert far.ttft_s == near.ttft_s
        assert far.e2e_s == pytest.approx(far.ttft_s + far.decode_s)


def test_prompts_and_tokens_add_up_with_a_pool() -> None:
    load = at(0.4, "dense", 3)
    found = solve(law.disaggregated, "dense", load, transfer_s=0.02, bandwidth_gb_per_s=5.0)
    stages = system_stages(THETA, SIZES["dense"], load)
    p = stages.c2_prefill
    rho = load["rate_rps"] * p
    transfer = 0.02 + SIZES["dense"]["kv_gb"] * load["prompt_tokens"] / 5.0
    assert found.ttft_s == pytest.approx(stages.c1_prefill + transfer + rho * p / (2 * (1 - rho)))
    assert found.e2e_s == pytest.approx(found.ttft_s + found.decode_s)
    decode = load["cycles"] * (stages.c1_verify + 3 * stages.c1_draft)
    shared = load["cycles"] * (stages.c2_verify + 3 * stages.c2_draft)
    assert found.decode_s == pytest.approx(decode / (1 - load["rate_rps"] * shared))


def test_a_slow_prefill_pool_saturates_first() -> None:
    load = at(0.0, "dense", 3)
    terms = {"prefill_slowdown": 500.0}
    found = solve(law.disaggregated, "dense", load, **terms)
    stages = system_stages(THETA, SIZES["dense"], load)
    assert 1 / found.c2_s == pytest.approx(1 / (500 * stages.c2_prefill))
    past = solve(law.disaggregated, "dense", load | {"rate_rps": 1.1 / found.c2_s}, **terms)
    assert past.utilization >= 1 and np.isinf(past.e2e_s)


@modest
@given(share=st.floats(0.05, 0.9))
@each
def test_growth_is_the_relative_change_for_one_of_the_rate(
    structure: Structure, share: float
) -> None:
    family = "dense"  # experts change C1 with the requests in flight, which `growth` leaves out
    load = at(0.0, family, 3)
    where = _place(structure, family, load)
    rate, step = share * capacity_rps(route(where, load)), 1e-5
    low, middle, high = (
        deployed(where, THETA, SIZES[family], load | {"rate_rps": rate * f})
        for f in (1 - step, 1.0, 1 + step)
    )
    slope = (np.log(high.e2e_s) - np.log(low.e2e_s)) / (2 * step)
    assert middle.growth == pytest.approx(slope, rel=1e-3)
