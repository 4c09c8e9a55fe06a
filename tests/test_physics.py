"""Laws of the latency law: limits, monotonicity, identities, units, and three array libraries."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from bayes_sd.physics import (
    Cycle,
    break_even_rate,
    constant_acceptance,
    coverage,
    cycles,
    headroom,
    in_flight,
    in_flight_with_experts,
    latency_closed,
    latency_open,
    pole,
    speedup,
    tokens_in_pass,
    tokens_per_cycle,
    tokens_per_cycle_by_position,
    typical_kv_gb,
    typical_layers,
    utilization,
)
from bayes_sd.physics.law import Outcome, outcome, run_scale
from bayes_sd.physics.tails import spread_variance

modest = settings(max_examples=60, deadline=None)
rates = st.floats(0, 1)
drafts = st.integers(0, 10)
seconds = st.floats(1e-4, 10)

SECONDS = {  # every coefficient of the law that is a time
    "s_pass": 0.02,
    "s_1p": 2e-4,
    "s_2p": 1.5e-4,
    "h_1p": 4e-3,
    "h_2p": 1e-3,
    "h_1v": 2e-3,
    "h_2v": 8e-5,
    "o_1p": 3e-4,
    "o_2p": 1.3e-4,
    "o_1v": 1e-4,
    "o_2v": 6e-6,
    "o_1d": 1e-3,
    "o_2d": 5e-5,
}
FREE = {
    "attention_tokens": 3000.0,
    "wait": 1.2,
    "r_tok": 2.0,
    "r_draft": 3.0,
    "context_tokens": 700.0,
}
FACTORS = {
    "f_1p": 1.1,
    "f_2p": 0.9,
    "f_1v": 1.2,
    "f_2v": 0.8,
    "f_1d": 1.3,
    "f_2d": 0.7,
    "f_speed": 1.05,
    "f_capacity": 0.95,
}
THETA = SECONDS | FREE | FACTORS
DENSE = {"active": 8.0, "shared": 8.0, "expert": 0.0, "idle": 0.5, "log_idle": np.log(0.5)}
MOE = {"active": 3.0, "shared": 1.0, "expert": 29.0, "idle": 0.9375, "log_idle": np.log(0.9375)}
REST = {"drafter": 0.5, "layers": 32.0, "kv_gb": 1.3e-4}
SIZES = {"dense": DENSE | REST, "moe": MOE | REST}
LOAD = {
    "k": 3,
    "prompt_tokens": 512.0,
    "output_tokens": 128.0,
    "cycles": 51.0,
    "closed": 0.0,
    "rate_rps": 0.0,
    "others": 0.0,
}


def at(family: str, share: float, **changes: Any) -> Outcome:
    """The law at a share of capacity."""
    rest = outcome(THETA, SIZES[family], LOAD | changes)
    return outcome(THETA, SIZES[family], LOAD | changes | {"rate_rps": share / float(rest.c2_s)})


# --- tokens per cycle -----------------------------------------------------------------------


@modest
@given(k=drafts)
def test_tokens_at_the_limits_of_acceptance(k: int) -> None:
    assert tokens_per_cycle(0.0, k) == 1
    assert tokens_per_cycle(1.0, k) == k + 1


@modest
@given(alpha=rates, other=rates, k=drafts)
def test_tokens_grow_with_acceptance_and_with_k(alpha: float, other: float, k: int) -> None:
    low, high = sorted((alpha, other))
    assert tokens_per_cycle(low, k) <= tokens_per_cycle(high, k)
    gain = tokens_per_cycle(alpha, k + 1) - tokens_per_cycle(alpha, k)
    assert gain == pytest.approx(alpha ** (k + 1), abs=1e-12)


@modest
@given(alphas=st.lists(rates, min_size=0, max_size=6))
def test_tokens_are_those_of_an_enumeration(alphas: list[float]) -> None:
    """Every accept/reject sequence by its probability: accepted until the first reject, and one."""
    expected = 0.0
    for accepted in product((True, False), repeat=len(alphas)):
        chance = np.prod([a if yes else 1 - a for a, yes in zip(alphas, accepted, strict=True)])
        run = accepted.index(False) if False in accepted else len(accepted)
        expected += float(chance) * (run + 1)
    found = tokens_per_cycle_by_position(alphas, len(alphas))
    assert found == pytest.approx(expected, rel=1e-12)


@modest
@given(alpha=rates, k=drafts)
def test_constant_acceptance_is_equal_acceptance_by_position(alpha: float, k: int) -> None:
    by_position = tokens_per_cycle_by_position([alpha] * k, k)
    assert tokens_per_cycle(alpha, k) == pytest.approx(by_position, rel=1e-14)


def test_tokens_for_an_array_of_k() -> None:
    k = np.array([0, 1, 4])
    expected = [tokens_per_cycle(0.7, int(one)) for one in k]
    np.testing.assert_allclose(tokens_per_cycle(0.7, k), expected)
    np.testing.assert_allclose(tokens_per_cycle_by_position([0.7] * 4, k), expected)


def test_too_few_positions_are_an_error() -> None:
    with pytest.raises(IndexError, match="k = 3 needs 3"):
        tokens_per_cycle_by_position([0.9, 0.8], 3)


def first_passage(chances: list[float], tokens: int) -> float:
    """Exact expected cycles to commit `tokens`, by recursion over how many are left."""
    wanted = [0.0] * (tokens + 1)
    for left in range(1, tokens + 1):
        wanted[left] = 1 + sum(p * wanted[max(left - x, 0)] for x, p in enumerate(chances, start=1))
    return wanted[tokens]


@modest
@given(alpha=rates, k=st.integers(0, 7), output=st.integers(1, 300))
def test_cycles_are_those_of_an_exact_recursion(alpha: float, k: int, output: int) -> None:
    at_least = [alpha**j for j in range(k + 1)] + [0.0]
    exact = first_passage([a - b for a, b in pairwise(at_least)], output - 1)
    found = cycles(output, [alpha] * k, k)
    assert found == pytest.approx(exact, abs=0.6)
    if alpha <= 0.9 and output > 30 * (k + 1):
        assert found == pytest.approx(exact, abs=0.1)


@given(output=st.integers(1, 1000))
def test_plain_decoding_has_a_cycle_a_token_after_the_first(output: int) -> None:
    assert cycles(output, [], 0) == output - 1
    assert cycles(output, [0.5] * 4, 0) == output - 1


@given(alpha=rates, k=st.integers(1, 10))
def test_constant_acceptance_is_found_again(alpha: float, k: int) -> None:
    found = constant_acceptance(np.array([tokens_per_cycle(alpha, k)]), np.array([k]))
    assert float(found[0]) == pytest.approx(alpha, abs=1e-9)
    assert float(constant_acceptance(np.array([1.0]), np.array([0]))[0]) == 0


# --- steady state ---------------------------------------------------------------------------


@modest
@given(c1=seconds, c2=seconds, past=st.floats(1, 1e6))
def test_latency_at_rest_and_at_the_pole(c1: float, c2: float, past: float) -> None:
    assert latency_open(c1, c2, 0.0) == c1
    assert latency_open(c1, 0.25, pole(0.25)) == np.inf
    assert latency_open(c1, c2, pole(c2) * past * (1 + 1e-12)) == np.inf
    assert latency_open(c1, c2, pole(c2) * (1 - 1e-9)) > 1e7 * c1


@modest
@given(c1=seconds, c2=seconds, shares=st.lists(st.floats(0, 1.5), min_size=2, max_size=6))
def test_latency_grows_with_the_rate(c1: float, c2: float, shares: list[float]) -> None:
    found = latency_open(c1, c2, np.sort(np.array(shares)) / c2)
    assert all(a <= b for a, b in pairwise(found))
    assert (found >= c1).all()


@modest
@given(c1=seconds, c2=seconds, share=st.floats(0, 0.999))
def test_littles_law_makes_an_open_loop_a_closed_one(c1: float, c2: float, share: float) -> None:
    rate = share / c2
    latency = latency_open(c1, c2, rate)
    assert latency_closed(c1, c2, in_flight(latency, rate)) == pytest.approx(latency, rel=1e-9)


@modest
@given(plain=st.tuples(seconds, seconds), sd=st.tuples(seconds, seconds), share=st.floats(0, 0.99))
def test_speedup_is_the_ratio_of_latencies(
    plain: tuple[float, float], sd: tuple[float, float], share: float
) -> None:
    rate = share * min(pole(plain[1]), pole(sd[1]))
    expected = latency_open(*plain, rate) / latency_open(*sd, rate)
    r = utilization(plain[1], rate)
    assert speedup(sd[0] / plain[0], sd[1] / plain[1], r) == pytest.approx(expected, rel=1e-9)


@modest
@given(
    plain=st.tuples(seconds, seconds),
    better=st.floats(0.05, 0.95),
    worse=st.floats(1.05, 20),
    swap=st.booleans(),
)
def test_latencies_are_equal_at_the_break_even_rate(
    plain: tuple[float, float], better: float, worse: float, swap: bool
) -> None:
    ratios = (worse, better) if swap else (better, worse)
    sd = (plain[0] * ratios[0], plain[1] * ratios[1])
    rate = break_even_rate(*plain, *sd)
    assert 0 < rate < min(pole(plain[1]), pole(sd[1]))
    assert latency_open(*sd, rate) == pytest.approx(latency_open(*plain, rate), rel=1e-6)
    before = latency_open(*sd, rate * 0.9) < latency_open(*plain, rate * 0.9)
    assert before != swap


def test_softness_has_the_error_of_its_docstring() -> None:
    def error(x: float) -> float:
        return float(abs(headroom(x) / headroom(x, 0.01) - 1))

    assert error(0.7) == pytest.approx(0.001, rel=0.2)
    assert error(0.9) == pytest.approx(0.01, rel=0.2)
    past = headroom(np.array([0.99, 1.0, 1.01, 2.0]), 0.01)
    assert (past > 0).all() and (np.diff(past) < 0).all()


# --- mixture of experts ---------------------------------------------------------------------


@modest
@given(
    m=st.integers(1, 128),
    spare=st.integers(1, 128),
    tokens=st.floats(0, 1e4),
    more=st.floats(0, 1e3),
)
def test_coverage_is_a_share_that_grows(m: int, spare: int, tokens: float, more: float) -> None:
    idle = 1 - m / (m + spare)
    assert 0 <= coverage(idle, tokens) <= coverage(idle, tokens + more) <= 1
    assert coverage(idle, 1) == pytest.approx(m / (m + spare), rel=1e-9)
    assert coverage(idle, 0) == 0


@modest
@given(m=st.integers(1, 128), tokens=st.floats(0.5, 1e4))
def test_every_expert_for_every_token_covers_all(m: int, tokens: float) -> None:
    assert coverage(1 - m / m, tokens) == 1


def test_tokens_in_a_pass() -> None:
    assert tokens_in_pass(0, 0) == 1
    assert tokens_in_pass(7, 3) == 32


@settings(max_examples=200, deadline=None)
@given(
    c1=seconds,
    ratio=st.floats(1e-3, 1e3),
    c2=seconds,
    near=st.floats(-9, 0),
    m=st.integers(1, 32),
    spare=st.integers(1, 224),
    k=drafts,
)
def test_the_fixed_point_solves_its_equation(
    c1: float, ratio: float, c2: float, near: float, m: int, spare: int, k: int
) -> None:
    """Up to 1e-9 from the pole, and between the dense models that touch no and all experts."""
    rate = (1 - 10**near) / c2
    room = 1 - rate * c2
    assume(room > 0)
    idle = 1 - m / (m + spare)
    cycle = Cycle(c1, c1 * ratio, c2)
    b = in_flight_with_experts(cycle, rate, room, idle, np.log(idle), k)
    phi = 1 - idle ** ((k + 1) * (1 + b))
    assert b == pytest.approx(rate * (c1 + phi * c1 * ratio) / room, rel=1e-6, abs=1e-12)
    assert rate * c1 / room <= b * (1 + 1e-9)
    assert b <= rate * c1 * (1 + ratio) / room * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(
    curve=st.floats(0.1, 10),
    alone=st.floats(1e-4, 1),
    m=st.integers(1, 32),
    spare=st.integers(1, 224),
    k=drafts,
)
def test_the_fixed_point_is_solved_where_its_curve_is_sharpest(
    curve: float, alone: float, m: int, spare: int, k: int
) -> None:
    """Few requests in flight, most experts idle: here two Newton steps are not enough."""
    idle = 1 - m / (m + spare)
    shared = curve / (-np.log(idle) * (k + 1))
    b = in_flight_with_experts(Cycle(alone * shared, shared, 0.0), 1.0, 1.0, idle, np.log(idle), k)
    touched = 1 - idle ** ((k + 1) * (1 + b))
    assert b == pytest.approx(shared * (alone + touched), rel=1e-6)


# --- the whole law --------------------------------------------------------------------------


def by_hand(theta: dict[str, float], size: dict[str, float], load: dict[str, float]) -> float:
    """Mean latency from equations (2) and (4) written out, its fixed point by bisection."""
    t, a, d, k = theta, size["active"], size["drafter"], load["k"]
    p, g = load["prompt_tokens"], load["output_tokens"]
    work = (p + p**2 / t["attention_tokens"]) / (1 + 512 / t["attention_tokens"])
    cycles = load["cycles"]
    one = (size["layers"] * t["o_1p"] + t["s_1p"] * a * work) * t["f_1p"] + t["s_1p"] * d * work
    draft = (t["o_1d"] + t["s_pass"] * d) * t["f_1d"]
    more = (size["layers"] * t["o_2p"] + t["s_2p"] * a * work) * t["f_2p"] + t["s_2p"] * d * work
    token = t["r_tok"] * t["s_2p"]
    reading = size["kv_gb"] / 4.096e-6 * (p + g / 2) / t["context_tokens"]
    beside = t["o_2v"] * (size["layers"] + reading) / (1 + 1000 / t["context_tokens"])
    verify = (beside + (k + 1) * token * a) * t["f_2v"]
    more += cycles * (verify + k * (t["o_2d"] + token * d) * t["f_2d"])
    more *= t["f_speed"] * t["f_capacity"]

    def gap(latency: float) -> float:
        b = load["rate_rps"] * latency
        weights = size["shared"] + size["expert"] * (1 - size["idle"] ** ((k + 1) * (1 + b)))
        reading = size["layers"] * t["o_1v"] + t["s_pass"] * weights
        passes = reading * t["f_1v"] + k * token * a * t["f_2v"]
        return t["f_speed"] * (one + cycles * (passes + k * draft)) + b * more - latency

    return float(brentq(gap, 0.0, 1e7, xtol=1e-12, rtol=1e-13))


@modest
@given(
    family=st.sampled_from(["dense", "moe"]),
    share=st.floats(0, 0.99),
    k=drafts,
    alpha=rates,
    prompt=st.floats(1, 4000),
    output=st.floats(1, 2000),
)
def test_the_law_is_that_of_the_equations(
    family: str, share: float, k: int, alpha: float, prompt: float, output: float
) -> None:
    work = {"k": k, "cycles": output / tokens_per_cycle(alpha, k)}
    lengths = {"prompt_tokens": prompt, "output_tokens": output}
    law = at(family, share, **work, **lengths)
    load = LOAD | work | lengths | {"rate_rps": share / float(law.c2_s)}
    assert law.e2e_s == pytest.approx(by_hand(THETA, SIZES[family], load), rel=1e-6)


@modest
@given(family=st.sampled_from(["dense", "moe"]), share=st.floats(0.01, 0.99))
def test_shares_and_identities_of_an_offered_rate(family: str, share: float) -> None:
    law = at(family, share)
    rate = share / law.c2_s
    assert law.in_flight == pytest.approx(in_flight(law.e2e_s, rate), rel=1e-6)
    assert law.e2e_s == pytest.approx(latency_open(law.c1_s, law.c2_s, rate), rel=1e-6)
    assert law.utilization == pytest.approx(share)
    assert law.others_share == pytest.approx(share, rel=1e-6)
    assert law.growth == pytest.approx(share / (1 - share), rel=1e-6)
    assert 0 < law.ttft_s < law.e2e_s


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_a_concurrency_is_the_rate_that_keeps_it_in_flight(family: str) -> None:
    rate = at(family, 0.6)
    fixed = outcome(
        THETA, SIZES[family], LOAD | {"closed": 1.0, "others": rate.in_flight, "rate_rps": 0.0}
    )
    assert fixed.e2e_s == pytest.approx(rate.e2e_s, rel=1e-6)
    assert fixed.e2e_s == pytest.approx(latency_closed(fixed.c1_s, fixed.c2_s, fixed.in_flight))
    assert fixed.utilization == 0


@pytest.mark.parametrize("closed", [0.0, 1.0], ids=["open", "closed"])
def test_growth_is_what_an_error_of_c2_does_to_the_latency(closed: float) -> None:
    """As `run_scale` says: a relative error of C2 moves the latency `growth` times as much."""
    load = LOAD | {"closed": closed, "others": 40.0 * closed}
    if not closed:
        load["rate_rps"] = 0.8 / float(outcome(THETA, SIZES["dense"], load).c2_s)
    step = 1e-6
    law = outcome(THETA, SIZES["dense"], load)
    more = outcome(THETA | {"f_capacity": THETA["f_capacity"] * (1 + step)}, SIZES["dense"], load)
    assert law.growth == pytest.approx(np.log(more.e2e_s / law.e2e_s) / step, rel=1e-3)


@modest
@given(family=st.sampled_from(["dense", "moe"]), share=st.floats(0, 0.99), unit=st.floats(0.01, 99))
def test_another_unit_of_time_changes_nothing_but_the_unit(
    family: str, share: float, unit: float
) -> None:
    law = at(family, share)
    theta = {n: v * unit for n, v in SECONDS.items()} | FREE | FACTORS
    scaled = outcome(theta, SIZES[family], LOAD | {"rate_rps": share / float(law.c2_s) / unit})
    for name, value in law._asdict().items():
        expected = value * unit if name.endswith("_s") else value
        # Near the pole 1 - x loses digits.
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-9, abs=1e-15), name


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_plain_is_speculation_of_no_tokens_without_a_drafter(family: str) -> None:
    sizes, load = SIZES[family] | {"drafter": 0.0}, LOAD | {"k": 0, "cycles": 127.0}
    load["rate_rps"] = 0.5
    other = {"o_1d": 9.0, "o_2d": 9.0, "f_1d": 9.0, "f_2d": 9.0}
    assert outcome(THETA | other, sizes, load) == outcome(THETA, sizes, load)
    with_drafter = outcome(THETA, SIZES[family], load)
    assert with_drafter.c1_s > outcome(THETA, sizes, load).c1_s  # it reads the prompt as well


def test_no_latency_past_the_pole_is_finite() -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        law = at("moe", np.float64(1.2))
    assert not np.isfinite(law.e2e_s)
    soft = outcome(THETA, SIZES["moe"], LOAD | {"rate_rps": 1.2 / float(law.c2_s)}, softness=0.01)
    assert np.isfinite(soft.e2e_s) and soft.e2e_s > at("moe", 0.99).e2e_s


def test_scatter_adds_in_squares() -> None:
    assert run_scale(0.3, 0.4, 0.0) == pytest.approx(0.3)
    assert run_scale(0.3, 0.1, 4.0) == pytest.approx(0.5)
    assert spread_variance(0.3, 2.0, 0.25) == pytest.approx(0.09 + 1.0)


# --- one law, three libraries ---------------------------------------------------------------

SHARES = np.array([0.0, 0.3, 0.9])
DRAFTS = np.array([0.0, 1.0, 5.0])
CYCLES = np.array([127.0, 75.0, 41.0])


def numpy_load(family: str) -> dict[str, Any]:
    load: dict[str, Any] = LOAD | {"k": DRAFTS, "cycles": CYCLES}
    load |= {"closed": np.array([0.0, 0.0, 0.0]), "others": np.zeros(3)}
    rest = outcome(THETA, SIZES[family], load)
    return load | {"rate_rps": SHARES / rest.c2_s}


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_the_law_is_the_same_for_numpy_and_xarray(family: str) -> None:
    load = numpy_load(family)
    expected = outcome(THETA, SIZES[family], load)
    labelled = {n: xr.DataArray(v, dims="run") if np.ndim(v) else v for n, v in load.items()}
    theta = {n: xr.DataArray(np.full(2, v), dims="draw") for n, v in THETA.items()}
    found = outcome(theta, SIZES[family], labelled)
    for name, value in expected._asdict().items():
        array, _ = xr.broadcast(getattr(found, name), found.e2e_s)
        array = array.transpose("draw", "run")
        np.testing.assert_allclose(array, np.broadcast_to(value, (2, 3)), rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_the_law_is_the_same_for_numpy_and_pytensor_and_detached(family: str) -> None:
    pytensor = pytest.importorskip("pytensor")
    import pytensor.tensor as pt
    from pytensor.gradient import disconnected_grad

    load = numpy_load(family)
    symbols = {n: pt.dvector(n) for n, v in load.items() if np.ndim(v)}
    theta = {n: pt.dscalar(n) for n in THETA}
    free = outcome(theta, SIZES[family], load | symbols, 0.01)
    detached = outcome(theta, SIZES[family], load | symbols, 0.01, detach=disconnected_grad)
    wrt = theta["s_pass"]
    slopes = [pytensor.grad(law.e2e_s.sum(), wrt) for law in (free, detached)]
    run = pytensor.function(
        [*symbols.values(), *theta.values()],
        [*free, *detached, *slopes],
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )
    *values, slope, slope_detached = run(*(load[n] for n in symbols), *THETA.values())
    expected = outcome(THETA, SIZES[family], load, 0.01)
    for name, value, a, b in zip(
        expected._fields, expected, values[: len(expected)], values[len(expected) :], strict=True
    ):
        np.testing.assert_allclose(a, value, rtol=1e-12, err_msg=name)
        np.testing.assert_array_equal(a, b, err_msg=f"{name}, detached")
    step = 1e-6 * THETA["s_pass"]
    low, high = (
        outcome(THETA | {"s_pass": THETA["s_pass"] + s}, SIZES[family], load, 0.01).e2e_s.sum()
        for s in (-step, step)
    )
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert slope_detached == pytest.approx(slope, rel=1e-9)


def test_symbolic_k_needs_its_maximum_and_gives_the_same_tokens() -> None:
    pytest.importorskip("pytensor")
    import pytensor.tensor as pt

    k = pt.dvector("k")
    found = tokens_per_cycle(0.7, k, k_max=5).eval({k: DRAFTS}, mode="FAST_COMPILE")
    np.testing.assert_allclose(found, tokens_per_cycle(0.7, DRAFTS))


def test_the_rounded_pole_stays_finite_and_positive_far_past_it() -> None:
    x = np.array([0.0, 0.5, 0.99, 1.0, 1.01, 1e3, 1e8, 1e12])
    room = headroom(x, 0.01)
    assert (room > 0).all() and (np.diff(room) < 0).all()
    np.testing.assert_allclose(room[:2], headroom(x[:2]), rtol=1e-3)


@given(size=st.floats(0.01, 100.0), share=st.floats(0.05, 1.0))
def test_typical_shapes_grow_with_size(size: float, share: float) -> None:
    depth = typical_layers(size, size)
    assert typical_layers(2 * size, 2 * size) > depth > typical_layers(share * size / 2, size)
    assert typical_kv_gb(size, 2 * depth) > typical_kv_gb(size, depth) > 0
    assert typical_kv_gb(size, depth) <= 4e-9 * depth * 1024 * (1 + 1e-12)


@pytest.mark.parametrize(("size", "layers"), [(0.0257, 8), (0.205, 16), (6.95, 36), (70.0, 80)])
def test_typical_depth_is_near_that_of_real_models(size: float, layers: int) -> None:
    assert typical_layers(size, size) == pytest.approx(layers, rel=0.25)
