"""Requests in flight: fixed points that satisfy their equation, the queue of a schedule, roots."""

from typing import Any

import numpy as np
import pytest
from closed_forms import latency_open
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import gamma

from bayes_sd.errors import InputError
from bayes_sd.physics.costs import Stages
from bayes_sd.physics.law import beside, most_added_s
from bayes_sd.physics.queue import (
    coverage,
    headroom,
    in_flight_at_rate,
    mean_in_flight,
    occupancy,
    tokens_in_pass,
)
from bayes_sd.physics.roots import find_roots

modest = settings(max_examples=60, deadline=None)
drafts = st.integers(0, 10)


# --- the pole -------------------------------------------------------------------------------


def test_the_rounded_pole_stays_positive_far_past_it() -> None:
    x = np.array([0.0, 0.5, 0.99, 1.0, 1.01, 1e3, 1e8, 1e12])
    room = headroom(x, 0.01)
    assert (room > 0).all() and (np.diff(room) < 0).all()
    assert (headroom(x)[3:] == 0).all()


@modest
@given(x=st.floats(0, 2), softness=st.floats(0.01, 0.1))
def test_rounding_changes_little_before_the_pole(x: float, softness: float) -> None:
    """By a square, within its softness where the corner is."""
    rounded, sharp = headroom(x, softness), headroom(x)
    assert 0 < rounded - sharp <= softness * (1 + 1e-9)
    assert rounded * (rounded - (1 - x)) == pytest.approx(softness**2, rel=1e-6)


# --- mixture of experts ---------------------------------------------------------------------


def experts(m: int, spare: int) -> dict[str, Any]:
    """Sizes of a model whose tokens choose `m` of its experts."""
    idle = spare / (m + spare)
    return {"expert": 1.0, "idle": idle, "log_idle": np.log(idle)}


choices = {"m": st.integers(1, 128), "spare": st.integers(1, 384)}
uneven = st.one_of(st.just(0.0), st.floats(0.1, 100))


@modest
@given(**choices, r=uneven, tokens=st.floats(0.5, 1e4), more=st.floats(0, 1e3))
def test_coverage_is_a_share_that_grows_by_its_slope(
    m: int, spare: int, r: float, tokens: float, more: float
) -> None:
    sizes = experts(m, spare)
    phi, slope = coverage(sizes, tokens, r)
    assert 0 < phi <= coverage(sizes, tokens + more, r)[0] <= 1
    step = 1e-5 * tokens
    low, high = (coverage(sizes, tokens + s, r)[0] for s in (-step, step))
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-10 / tokens)
    if r == 0:
        assert coverage(sizes, 1)[0] == pytest.approx(m / (m + spare))
    assert tokens_in_pass(7, 3) == 32


def test_popular_experts_are_touched_again_where_choices_are_uneven() -> None:
    """Few tokens touch as many, many tokens fewer; as evenly as by equation (4) for a large r."""
    sizes, tokens = experts(8, 120), np.array([1e-3, 16.0, 256.0])
    even, _ = coverage(sizes, tokens)
    some, much = (coverage(sizes, tokens, r)[0] for r in (5.0, 0.5))
    assert even[0] == pytest.approx(much[0], rel=1e-3)
    assert (even[1:] > some[1:]).all() and (some[1:] > much[1:]).all()
    np.testing.assert_allclose(coverage(sizes, tokens, 1e6)[0], even, rtol=1e-4)


@modest
@given(r=st.floats(0.1, 100), tokens=st.floats(0.5, 1e3))
def test_uneven_coverage_is_the_mean_over_popularities_of_a_gamma_distribution(
    r: float, tokens: float
) -> None:
    sizes = experts(8, 120)
    popularity = gamma.ppf((np.arange(2000) + 0.5) / 2000, r, scale=1 / r)  # of mean 1
    idle = np.exp(popularity * tokens * sizes["log_idle"])
    assert coverage(sizes, tokens, r)[0] == pytest.approx(1 - idle.mean(), abs=1e-3)


# --- requests in flight ---------------------------------------------------------------------

COSTS = {  # s: of a request, its passes, what others add to them, and how they go together
    "prompt": st.floats(1e-5, 10),
    "prompts": st.floats(1e-6, 1),
    "computed": st.floats(0, 10),
    "fixed": st.floats(1e-6, 1),
    "sequence": st.floats(1e-7, 1e-2),
    "weights": st.floats(1e-5, 1),
    "experts": st.floats(0, 1e3),
    "compute": st.floats(1e-7, 1),
    "more_compute": st.floats(0, 1),
    "draft": st.floats(0, 1e-2),
    "pace": st.floats(0, 1),
}


@settings(max_examples=400, deadline=None)
@given(
    costs=st.fixed_dictionaries(COSTS),
    near=st.floats(-9, 0),
    cycles=st.floats(0, 2000),
    k=drafts,
    r=uneven,
    knee=st.booleans(),
    paced=st.sampled_from([0.0, 1.0]),
    long=st.booleans(),
    **choices,
)
def test_the_fixed_point_solves_its_equation(
    costs: dict[str, float],
    near: float,
    cycles: float,
    k: int,
    r: float,
    knee: bool,
    paced: float,
    long: bool,
    m: int,
    spare: int,
) -> None:
    """Up to 1e-9 from the pole, memory- to compute-bound; below it requests gather, above go."""
    c, sizes = costs, experts(m, spare)
    stages = Stages(
        prefill_alone=c["prompt"],
        prefill_others=c["prompt"] * c["prompts"],
        verify_alone=c["fixed"],
        verify_others=c["sequence"],
        fixed=c["weights"],
        experts=c["weights"] * c["experts"],
        compute_alone=c["compute"],
        compute_others=c["compute"] * c["more_compute"],
        draft_alone=c["draft"],
        draft_others=c["draft"] / 10,
        pace=c["pace"],
        prompt_alone=c["computed"],
        prompt_others=c["computed"] * c["prompts"],
        uneven=r,
        waits=1.2,
    )
    sizes |= {"captured": 16.0 if long else np.inf}
    work: dict[str, Any] = {"k": k, "draft_passes": k, "cycles": cycles, "closed": 0.0}
    rate = (1 - 10**near) / most_added_s(stages, work)
    room = 1 - rate * most_added_s(stages, work)
    assume(room > 0)
    work |= {"rate_rps": rate, "prompt_tokens": 32.0}
    b = in_flight_at_rate(stages, sizes, work, room, cycles + 1.2, paced, knee)

    assert solves(b, stages, sizes, work, room, paced, knee)


def solves(
    b: Any, s: Stages, sizes: Any, work: Any, room: Any, paced: float = 0.0, knee: bool = True
) -> bool:
    """Whether more arrive than `b` while a request stays just below `b`, and fewer just above."""
    shape = s.uneven
    s = Stages(*(np.asarray(x, np.longdouble) for x in s))  # digits for near the pole
    k, n = work["k"], work["cycles"] + s.waits
    launch = s.pace * np.maximum(work["prompt_tokens"] > sizes["captured"], paced)

    def cycle(b: Any, prompts_s: Any) -> Any:
        touched = s.experts * coverage(sizes, tokens_in_pass(b, k), shape)[0]
        read, compute = s.fixed + touched, s.compute_alone + b * s.compute_others + prompts_s
        passed = np.hypot(read, compute) if knee else read + compute
        drafts = work["draft_passes"] * (s.draft_alone + b * s.draft_others)
        return s.verify_alone + b * s.verify_others + drafts + passed

    def gather(b: Any) -> Any:
        """Less what goes."""
        plain, x = np.maximum(cycle(b, 0.0), s.pace * paced), b / n
        share = -np.expm1(-x)
        taking = np.hypot(cycle(b, x / np.maximum(share, 1e-300) * s.prompt_others), launch)
        own = np.hypot(cycle(b, s.prompt_alone + x * s.prompt_others), launch)
        stays = s.prefill_alone + own + (n - 1) * (plain + share * (taking - plain))
        each = s.verify_others + s.compute_others + work["draft_passes"] * s.draft_others
        return work["rate_rps"] * (stays - b * (s.prompt_others + n * each)) - room * b

    below, above = (np.asarray(b, np.longdouble) * (1 + step) for step in (-1e-6, 1e-6))
    return bool(np.all((gather(below) >= 0) & (gather(above) <= 0)))


@pytest.mark.parametrize("even", [True, False])
def test_the_fixed_point_is_met_where_experts_bend_the_law_most(even: bool) -> None:
    """One of up to 512 experts a token, little beside them, at rates that touch some of them."""
    rng, n = np.random.default_rng(0), 20_000

    def between(low: float, high: float) -> np.ndarray:
        return np.asarray(np.exp(rng.uniform(np.log(low), np.log(high), n)))

    idle, read = 1 - 1 / rng.integers(8, 513, n), between(1e-3, 1)
    sizes = {"expert": 1.0, "idle": idle, "log_idle": np.log(idle), "captured": np.inf}
    work: dict[str, Any] = {"k": rng.integers(0, 3, n), "draft_passes": 0, "closed": 0.0}
    work |= {"cycles": between(1, 1e3), "prompt_tokens": 32.0}
    stages = Stages(
        prefill_alone=read * work["cycles"] * between(1e-6, 1e-2),
        prompt_alone=read * between(1e-6, 10),
        prompt_others=read * between(1e-6, 10),
        verify_alone=read * between(1e-6, 1e-2),
        verify_others=read * between(1e-7, 1e-3),
        fixed=read * between(1e-6, 1e-1),
        experts=read,
        compute_alone=read * between(1e-6, 1e-1),
        compute_others=read * between(1e-7, 1e-3),
        uneven=0.0 if even else between(0.1, 100),
    )
    one_more_s = read * (1 - idle) * (work["k"] + 1) * work["cycles"]  # of experts, at first
    work["rate_rps"] = np.minimum(between(0.2, 5) / one_more_s, 100 / most_added_s(stages, work))
    room = headroom(work["rate_rps"] * most_added_s(stages, work), 0.01)
    b = in_flight_at_rate(stages, sizes, work, room, work["cycles"])
    assert solves(b, stages, sizes, work, room)


@modest
@given(near=st.floats(-6, 0), x=st.floats(1, 100), r=uneven, k=drafts, **choices)
def test_the_soft_pole_has_a_fixed_point_on_both_sides(
    near: float, x: float, r: float, k: int, m: int, spare: int
) -> None:
    fixed = Stages(0.06, 0.03, 0.04, 0.02, 1e-3, 1e-4, 1e-3, 0.05, 1e-3, 1e-3, uneven=r)
    work: dict[str, Any] = {"k": k, "draft_passes": 0, "cycles": 40.0, "closed": 0.0}
    work["prompt_tokens"] = 32.0
    sizes, c2 = experts(m, spare) | {"captured": np.inf}, most_added_s(fixed, work)
    for share in (1 - 10**near, x):
        rate, room = share / c2, headroom(share, 0.01)
        at = work | {"rate_rps": rate}
        b = in_flight_at_rate(fixed, sizes, at, room, 40.0)
        others = np.array([1 - 1e-6, 1 + 1e-6]) * b
        e2e = beside(fixed, sizes, at, others, paced=0.0)[0]
        gap = rate * (e2e - others * c2) - room * others
        assert gap[0] >= 0 >= gap[1]


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
