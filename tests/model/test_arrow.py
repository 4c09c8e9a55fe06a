"""Curvatures of systems that touch one another only through what all share."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bayes_sd.model.arrow import FLATTEST, Arrow, Blocks, sharp_root, systems_of

SHARED, SYSTEMS = 3, (2, 1, 3)


def arrow(rng: np.random.Generator, narrow: float = 1.0) -> tuple[np.ndarray, Blocks]:
    """A positive curvature with such blocks, its variables shuffled."""
    order = rng.permutation(SHARED + sum(SYSTEMS))
    shared, *systems = np.split(order, np.cumsum((SHARED, *SYSTEMS))[:-1])
    bent = np.eye(len(order))
    for own in systems:
        both = np.concatenate([shared, own])
        some = narrow * rng.standard_normal((len(both), len(own)))
        bent[np.ix_(both, both)] += some @ some.T
    return bent, Blocks(shared, systems)


def density(bent: np.ndarray) -> object:
    return lambda x: (-x @ bent @ x / 2, -bent @ x)


@given(st.integers(0, 2**32 - 1))
def test_a_root_makes_an_arrow_round(seed: int) -> None:
    bent, blocks = arrow(np.random.default_rng(seed))
    root = sharp_root(density(bent), np.zeros(len(bent)), blocks)  # type: ignore[arg-type]
    matrix = np.array([root.moved(y) for y in np.eye(len(bent))]).T
    np.testing.assert_allclose(matrix.T @ bent @ matrix, np.eye(len(bent)), atol=1e-6)
    np.testing.assert_allclose(root.variance, np.linalg.inv(bent).diagonal(), rtol=1e-6)
    slopes = np.array([root.along(e) for e in np.eye(len(bent))])
    np.testing.assert_allclose(slopes, matrix, atol=1e-12)


def test_differences_on_round_axes_see_what_is_wide_beside_what_is_narrow() -> None:
    """Beside curvatures a hundred million times as large, differences lose it at first."""
    bent, blocks = arrow(np.random.default_rng(1), narrow=1e4)
    gradient = density(bent)
    noisy = np.random.default_rng(2)

    def rounded(x: np.ndarray) -> tuple[float, np.ndarray]:  # as a sum over many runs is
        value, slope = gradient(x)  # type: ignore[operator]
        return value, slope + 1e-4 * noisy.standard_normal(len(x))

    truth = np.linalg.inv(bent).diagonal()
    once = Arrow.of(rounded, np.zeros(len(bent)), blocks).root().variance
    again = sharp_root(rounded, np.zeros(len(bent)), blocks).variance
    assert np.abs(np.log(again / truth)).max() < 0.1 < np.abs(np.log(once / truth)).max()


def test_variables_that_are_held_have_no_width_and_what_is_flat_that_of_a_prior() -> None:
    bent, blocks = arrow(np.random.default_rng(3))
    free = np.ones(len(bent), bool)
    free[blocks.shared[0]] = False
    found = Arrow.of(density(bent), np.zeros(len(bent)), blocks).root(free)  # type: ignore[arg-type]
    inside = np.linalg.inv(bent[np.ix_(free, free)]).diagonal()
    np.testing.assert_allclose(found.variance[free], inside, rtol=1e-5)
    assert found.variance[blocks.shared[0]] == 0
    flat = sharp_root(density(np.zeros((2, 2))), np.zeros(2), Blocks(np.arange(2), []))  # type: ignore[arg-type]
    np.testing.assert_allclose(flat.variance, 1 / FLATTEST)


def test_a_drafter_of_several_verifiers_is_in_none_of_their_systems() -> None:
    data = {
        "verifier_i": np.array([0, 0, 1, 1, 1, 2]),
        "server_i": np.array([3, 0, 1, 2, 1, 4]),
        "drafter_i": np.array([0, 1, 0, 1, 2, 0]),
        "drafted": np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]),
    }
    found = {level: members.tolist() for level, members in systems_of(data).items()}
    assert found == {"verifier": [0, 1, 2], "server": [0, 1, 1, 0, 2], "drafter": [-1, -1, 1]}
    none = systems_of(data | {"drafted": np.zeros(6)})
    assert len(none["drafter"]) == 0 and len(none["server"]) == 5


def test_effects_belong_to_the_system_of_their_member() -> None:
    names = ["log_law", "log_verifier_centred__", "log_server_centred__", "log_verifier"]
    places = [slice(0, 2), slice(2, 6), slice(6, 9), slice(9, 13)]
    compiled = SimpleNamespace(n_dim=9, shape_info=(names, places))
    systems = {"verifier": np.array([4, 7]), "server": np.array([7, 4, 7]), "drafter": np.empty(0)}
    blocks = Blocks.of(compiled, systems)
    assert blocks.shared.tolist() == [0, 1]
    assert [own.tolist() for own in blocks.systems] == [[2, 4, 7], [3, 5, 6, 8]]  # (effect, member)
    assert Blocks.of(compiled, {}).systems == []
