"""Tokens of a cycle and cycles of a request, against enumeration, recursion and simulation."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sd.physics.acceptance import (
    constant_acceptance,
    cycles,
    cycles_variance,
    tokens_per_cycle,
)

modest = settings(max_examples=60, deadline=None)
rates = st.floats(0, 1)
drafts = st.integers(0, 10)


@modest
@given(alphas=st.lists(rates, min_size=0, max_size=6))
def test_tokens_are_those_of_an_enumeration(alphas: list[float]) -> None:
    """Every accept/reject sequence by its probability: accepted until the first reject, and one."""
    expected = 0.0
    for accepted in product((True, False), repeat=len(alphas)):
        chance = np.prod([a if yes else 1 - a for a, yes in zip(alphas, accepted, strict=True)])
        before_reject = accepted.index(False) if False in accepted else len(accepted)
        expected += float(chance) * (before_reject + 1)
    assert tokens_per_cycle(alphas, len(alphas)) == pytest.approx(expected, rel=1e-12)


@modest
@given(alphas=st.lists(rates, min_size=11, max_size=11), more=rates, k=drafts)
def test_tokens_lie_between_one_and_k_plus_one_and_grow(
    alphas: list[float], more: float, k: int
) -> None:
    tokens = tokens_per_cycle(alphas, k)
    assert 1 <= tokens <= k + 1
    assert tokens_per_cycle([0.0] * 11, k) == 1
    assert tokens_per_cycle([1.0] * 11, k) == k + 1
    assert tokens_per_cycle([max(a, more) for a in alphas], k) >= tokens * (1 - 1e-12)
    gain = tokens_per_cycle(alphas, k + 1) - tokens
    assert gain == pytest.approx(np.prod(alphas[: k + 1]), abs=1e-12)


def test_k_may_differ_from_run_to_run() -> None:
    k = np.array([0, 1, 4])
    expected = [tokens_per_cycle([0.7] * 4, int(each)) for each in k]
    np.testing.assert_allclose(tokens_per_cycle([0.7] * 4, k), expected)
    with pytest.raises(IndexError, match="k = 4 needs 4 acceptance rates, 2 given"):
        tokens_per_cycle([0.9, 0.8], k)


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
    expected = cycles(output, [alpha] * k, k)
    assert expected == pytest.approx(exact, abs=0.6)
    if alpha <= 0.9 and output > 30 * (k + 1):
        assert expected == pytest.approx(exact, abs=0.1)


@modest
@given(alphas=st.lists(rates, min_size=10, max_size=10), k=drafts, output=st.integers(1, 400))
def test_a_second_token_takes_at_least_a_cycle(alphas: list[float], k: int, output: int) -> None:
    expected = cycles(output, alphas, k)
    assert expected == 0 if output == 1 else 1 <= expected <= max(output, 2) + 0.5
    if k == 0:
        assert expected == output - 1


def test_two_tokens_take_one_cycle_and_not_two_thirds_of_one() -> None:
    assert cycles(2, [0.9] * 5, 5) == 1


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 1), (0.7, 4), (0.9, 7)])
def test_mean_and_variance_of_cycles_are_those_of_drawn_requests(alpha: float, k: int) -> None:
    rng = np.random.default_rng(1)
    left, counts = np.full(20_000, 256), np.zeros(20_000)
    while (left > 0).any():
        accepted = np.cumprod(rng.random((len(left), k)) < alpha, axis=1).sum(axis=1)
        counts += left > 0
        left -= 1 + accepted
    assert counts.mean() == pytest.approx(cycles(257, [alpha] * k, k), rel=0.003)
    assert counts.var() == pytest.approx(cycles_variance(257, [alpha] * k, k), rel=0.06)


@given(alpha=rates, k=st.integers(1, 10))
def test_the_acceptance_behind_a_mean_is_the_one_that_gave_it(alpha: float, k: int) -> None:
    tokens = np.array([tokens_per_cycle([alpha] * k, k), 1.0, np.nan])
    rate = constant_acceptance(tokens, np.array([k, 0, k]))
    assert rate[0] == pytest.approx(alpha, abs=1e-9)
    assert rate[1] == 0 and np.isnan(rate[2])
