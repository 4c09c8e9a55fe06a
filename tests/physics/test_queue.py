"""Requests in flight: fixed points that satisfy their equation, tiles, the queue of a schedule."""

import numpy as np
import pytest
from closed_forms import latency_open
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from law_inputs import WORK, rate_at, says

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Totals
from bayes_sd.physics.law import Law
from bayes_sd.physics.queue import (
    TILE_RAMP,
    computed_tokens,
    coverage,
    find_roots,
    free_tokens,
    headroom,
    in_flight_at_rate,
    mean_in_flight,
    occupancy,
    tokens_in_pass,
)

modest = settings(max_examples=60, deadline=None)
seconds = st.floats(1e-4, 10)
drafts = st.integers(0, 10)
families = pytest.mark.parametrize("family", ["dense", "moe"])
shares = pytest.mark.parametrize("share", [0.1, 0.4, 0.7])


# --- the pole -------------------------------------------------------------------------------


def test_the_rounded_pole_stays_positive_far_past_it() -> None:
    x = np.array([0.0, 0.5, 0.99, 1.0, 1.01, 1e3, 1e8, 1e12])
    room = headroom(x, 0.01)
    assert (room > 0).all() and (np.diff(room) < 0).all()
    assert (headroom(x)[3:] == 0).all()


# --- mixture of experts ---------------------------------------------------------------------


@modest
@given(
    m=st.integers(1, 128),
    spare=st.integers(0, 128),
    tokens=st.floats(0.5, 1e4),
    more=st.floats(0, 1e3),
)
def test_coverage_is_a_share_that_grows(m: int, spare: int, tokens: float, more: float) -> None:
    idle = 1 - m / (m + spare)
    assert 0 <= coverage(idle, tokens) <= coverage(idle, tokens + more) <= 1
    assert coverage(idle, 1) == pytest.approx(m / (m + spare), rel=1e-9)
    if spare == 0:
        assert coverage(idle, tokens) == 1
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
    """Up to 1e-9 from the pole, and between dense models that touch no and all experts."""
    rate = (1 - 10**near) / c2
    room = 1 - rate * c2
    assume(room > 0)
    idle = 1 - m / (m + spare)
    moe = {"expert": 1.0, "idle": idle, "log_idle": np.log(idle)}
    b = in_flight_at_rate(Totals(c1, c1 * ratio, c2), moe, rate, room, k)
    phi = 1 - idle ** ((k + 1) * (1 + b))
    assert b == pytest.approx(rate * (c1 + phi * c1 * ratio) / room, rel=1e-6, abs=1e-12)
    assert rate * c1 / room <= b * (1 + 1e-9)
    assert b <= rate * c1 * (1 + ratio) / room * (1 + 1e-9)


# --- tiles ----------------------------------------------------------------------------------


@modest
@given(tokens=st.floats(1, 2000), tile=st.sampled_from([8.0, 64.0, 128.0]))
def test_computed_tokens_are_whole_tiles_beyond_the_first(tokens: float, tile: float) -> None:
    paid = computed_tokens(tokens, tile)
    whole = tile * (np.ceil(tokens / tile) - 1)
    assert abs(paid - whole) <= tile
    beside_a_step = abs(tokens / tile - round(tokens / tile)) <= TILE_RAMP / 2
    if not beside_a_step or tokens < tile / 2:
        assert paid == pytest.approx(whole, abs=1e-9)
    assert -tile <= free_tokens(tokens, tile) <= tile


@families
@shares
def test_the_number_in_flight_solves_littles_law_with_tiles(family: str, share: float) -> None:
    law = Law(tile_tokens=16)
    rate = rate_at(family, share, law)
    tiled = says(family, law, rate_rps=rate)
    assert tiled.others == pytest.approx(rate * tiled.e2e_s, rel=1e-6)
    assert tiled.e2e_s < says(family, rate_rps=rate).e2e_s  # some tokens ride free


@families
@shares
def test_measured_tokens_stand_in_for_those_of_the_fixed_point(family: str, share: float) -> None:
    law = Law(tile_tokens=16)
    rate = rate_at(family, share, law)
    solved = says(family, law, rate_rps=rate)
    tokens = tokens_in_pass(solved.others, WORK["k"])
    again = says(family, law, rate_rps=rate, pass_tokens=tokens)
    for name in solved._fields:
        assert getattr(again, name) == pytest.approx(getattr(solved, name), rel=1e-6), name


# --- occupancy ------------------------------------------------------------------------------


@modest
@given(c1=st.floats(0.05, 5), ratio=st.floats(0.01, 1), x=st.floats(0.05, 0.85))
def test_the_linear_law_is_the_mean_of_its_occupancy(c1: float, ratio: float, x: float) -> None:
    """Equation (1), and the variance of a negative binomial of size C1/C2."""
    c2 = c1 * ratio
    rate, n = x / c2, np.arange(3000)
    latency_s = c1 + c2 * n
    p = occupancy(latency_s, rate)
    mean = p @ np.arange(3001)
    assert p.sum() == pytest.approx(1)
    assert mean / rate == pytest.approx(latency_open(c1, c2, rate), rel=1e-6)
    assert mean_in_flight(p, latency_s, rate) == pytest.approx(mean, rel=1e-6)
    variance = p @ (np.arange(3001) - mean) ** 2
    assert variance == pytest.approx(x / ratio / (1 - x) ** 2, rel=1e-4)


def test_a_full_server_lets_requests_wait_and_past_capacity_without_end() -> None:
    latency_s = np.array([1.0, 1.5, 2.0])  # three at a time: 1.5 requests/s at most
    rates = np.array([1.2, 1.5, 2.0])
    p = occupancy(latency_s, rates)
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    mean = mean_in_flight(p, latency_s, rates)
    n = np.arange(1, 2000)  # the same chain, written out far beyond the third request
    each = np.where(n <= 3, np.append(latency_s, [2.0] * 1996), 2 * n / 3)
    chain = np.append(1.0, np.exp(np.cumsum(np.log(1.2 * each / n))))
    assert mean[0] == pytest.approx((chain / chain.sum()) @ np.arange(2000))
    assert np.isinf(mean[1:]).all()
    with pytest.raises(InputError, match="above 0 s"):
        occupancy(np.array([1.0, 0.0]), 1.0)


# --- roots ----------------------------------------------------------------------------------


def test_roots_of_many_draws_are_met_and_none_is_left_behind() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    c1, others = rng.lognormal(0, 1, n), rng.integers(1, 64, n)
    c2 = c1 * rng.uniform(0.01, 1, n)

    def missed(rate: np.ndarray, i: np.ndarray) -> np.ndarray:
        return others[i] * np.maximum(1 - rate * c2[i], 0) / c1[i] - rate

    roots = find_roots(missed, 0 * c1, 1 / c2)
    np.testing.assert_allclose(roots, others / (c1 + others * c2), rtol=1e-9)


def test_roots_at_an_end_are_found_and_none_is_not_a_number() -> None:
    roots = find_roots(
        lambda x, i: np.array([2.0, 5.0, 9.0])[i] - x, np.full(3, 2.0), np.full(3, 5.0)
    )
    np.testing.assert_allclose(roots, [2.0, 5.0, np.nan])
