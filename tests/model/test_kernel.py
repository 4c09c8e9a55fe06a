"""The law of every run as one operator: its values, its gradient, and what it is compiled for."""

from typing import Any

import numpy as np
import pytest

from bayes_sd.fit import LatencyModel
from bayes_sd.model.design import build_design
from bayes_sd.physics.queue import headroom
from bayes_sd.runs.schema import Runs

pytestmark = pytest.mark.sample  # imports PyTensor and compiles


def every_operator(parameters: Any, data: Any) -> dict[str, Any]:
    """What laws are written with: powers, absolute values, comparisons, remainders."""
    a, b, of_level = *parameters["all"].values(), parameters["level"]["c"]
    x = data["x"]
    step = (a * x > b) * (a * x) % 0.75
    return {
        "first": abs(a - b * x) ** 0.5 + step + of_level**2 + headroom(a * x, 0.01),
        "both": [a**x + (x >= 1) * b**-0.5, a**x / b / of_level],
    }


def test_values_and_gradients_are_those_of_the_function() -> None:
    import pytensor
    import pytensor.tensor as pt

    from bayes_sd.model.kernel import Group, per_run

    rng = np.random.default_rng(1)
    data, level = {"x": rng.uniform(0.5, 2, 7)}, np.arange(7) % 3
    shared, of_level = pt.dvector(), pt.dmatrix()
    groups = {"all": Group(("a", "b"), shared), "level": Group(("c",), of_level, level)}
    said = per_run(every_operator, groups, data)
    cost = (said["first"] * data["x"]).sum() + (said["both"] ** 2).sum()
    inputs = [shared, of_level]
    compiled = pytensor.function(inputs, [*said.values(), cost, *pytensor.grad(cost, inputs)])

    def direct(at: np.ndarray, levels: np.ndarray) -> Any:
        parameters = {"all": dict(zip("ab", at, strict=True)), "level": {"c": levels[0][level]}}
        return every_operator(parameters, data)

    def total(at: np.ndarray, levels: np.ndarray) -> float:
        one = direct(at, levels)
        return float((one["first"] * data["x"]).sum() + (np.array(one["both"]) ** 2).sum())

    at, levels = np.array([0.7, 0.4]), rng.uniform(1, 2, (1, 3))
    first, both, value, *slopes = compiled(at, levels)
    np.testing.assert_allclose(first, direct(at, levels)["first"], rtol=1e-12)
    np.testing.assert_allclose(both, direct(at, levels)["both"], rtol=1e-12)
    assert value == pytest.approx(total(at, levels))
    for i, slope in enumerate(slopes):
        for place in np.ndindex(slope.shape):
            moved = [[at.copy(), levels.copy()] for _ in range(2)]
            moved[0][i][place] += 1e-6
            moved[1][i][place] -= 1e-6
            expected = (total(*moved[0]) - total(*moved[1])) / 2e-6
            assert slope[place] == pytest.approx(expected, rel=1e-6)


def test_what_is_not_used_has_no_gradient() -> None:
    import pytensor
    import pytensor.tensor as pt

    from bayes_sd.model.kernel import Group, per_run

    shared = pt.dvector()
    said = per_run(
        lambda p, d: {"one": p["all"]["a"] * d["x"], "other": p["all"]["b"] * d["x"]},
        {"all": Group(("a", "b"), shared)},
        {"x": np.array([1.0, 2.0])},
    )
    slope = pytensor.function([shared], pytensor.grad(said["one"].sum(), shared))
    np.testing.assert_array_equal(slope([5.0, 7.0]), [3.0, 0.0])


def test_other_runs_need_no_other_code(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, runs, servers and their sizes are data: what is compiled knows none of them."""
    from bayes_sd.model import kernel

    written: list[set[str]] = []
    real = kernel.PerRun.__init__

    def noted(self: Any, traced: Any) -> None:
        real(self, traced)
        written[-1].add(kernel.source(self))

    monkeypatch.setattr(kernel.PerRun, "__init__", noted)
    some = {"drafter": ["none", "draft-3m", "draft-12m"]}
    for verifiers in (["dense-25m", "dense-60m"], ["dense-60m", "dense-200m", "dense-115m"]):
        written.append(set())
        LatencyModel().graph(build_design(runs.select(verifier=verifiers, **some)))
    assert written[0] == written[1] and len(written[0]) == 4
