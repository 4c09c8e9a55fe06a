"""The root finder, in many draws at once: no draw may be left behind."""

import numpy as np
import pytest

from bayes_sd.predict.root import root

rng = np.random.default_rng(0)
N = 100_000


@pytest.mark.parametrize("steps", [2, 4, 6, 12])
def test_a_line_is_met_at_once_and_never_left(steps: int) -> None:
    """Requests in flight at a rate, ``n / L``: rounding decides on which side the root is met."""
    c1 = rng.lognormal(0, 1, N)
    c2, others = c1 * rng.uniform(0.01, 1, N), rng.integers(1, 64, N)

    def missed(rate: np.ndarray) -> np.ndarray:
        return others * np.maximum(1 - rate * c2, 0) / c1 - rate

    found = root(missed, 0 * c1, 1 / c2, missed(0 * c1), -1 / c2, steps)
    np.testing.assert_allclose(found, others / (c1 + others * c2), rtol=1e-10)


def test_a_curve_is_met() -> None:
    power, goal = rng.uniform(0.3, 5, N), rng.uniform(0.01, 0.99, N)
    found = root(lambda x: goal - x**power, 0 * goal, 1 + 0 * goal, goal, goal - 1, 25)
    np.testing.assert_allclose(found, goal ** (1 / power), rtol=1e-6)


def test_a_root_at_an_end_is_found() -> None:
    at_low = root(lambda x: 2 - x, np.array([2.0]), np.array([5.0]), 0.0, -3.0, 6)
    at_high = root(lambda x: 5 - x, np.array([2.0]), np.array([5.0]), 3.0, 0.0, 6)
    assert [at_low[0], at_high[0]] == [2.0, 5.0]
    assert root(lambda x: 0.0 * x, 1.0, 4.0, 0.0, 0.0, 3) == 1.0
