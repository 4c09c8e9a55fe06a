"""Value of information: limits that hold whatever the models, and the runs that are proposed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from questions import PLAIN, SHORT, in_flight, rps
from scipy.special import ndtr

from bayes_sd.answers.next_runs import Preposterior, regret
from bayes_sd.answers.servers import Server
from bayes_sd.fit import Fit
from bayes_sd.physics.noise import T_VARIANCE

rng = np.random.default_rng(3)
# Near the rate at which drafting stops to pay, so that there is something to learn.
LOAD = rps(4.0, 6.0, prompt=128, output=64)
CROWD = in_flight(8, 12, prompt=128, output=64)
SERVERS = [PLAIN, SHORT.with_k(1), SHORT, SHORT.with_k(5)]


def two_options(offset: float, noise: float, n: int = 3000) -> tuple[Preposterior, np.ndarray]:
    """One of loss 0 and one of loss N(offset, 1), of which a run can be made."""
    unknown = offset + np.random.default_rng(1).standard_normal(n)
    losses = np.stack([np.zeros(n), unknown])[None]
    return Preposterior(losses, unknown[None], np.full((1, n), noise)), losses


@pytest.mark.parametrize("offset", [-1.0, 0.0, 0.7])
def test_the_regret_of_two_options_is_the_unit_normal_loss(offset: float) -> None:
    exact = np.exp(-(offset**2) / 2) / np.sqrt(2 * np.pi) - abs(offset) * ndtr(-abs(offset))
    assert regret(two_options(offset, 1.0)[1]) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("offset", [0.0, 0.3, -0.8])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_a_run_saves_what_choosing_after_it_saves(offset: float, noise: float) -> None:
    """Against simulation: truths, what a run shows of them, the posterior mean, the choice."""
    draw = np.random.default_rng(5)
    truth = offset + draw.standard_normal(200_000)
    scatter = noise * np.sqrt(T_VARIANCE)
    shown = truth + scatter * draw.standard_normal(truth.size)
    expected = offset + (shown - offset) / (1 + scatter**2)
    saved = min(offset, 0.0) - np.where(expected < 0, truth, 0.0).mean()
    perfect = min(offset, 0.0) - np.minimum(truth, 0.0).mean()
    worth = two_options(offset, noise, 20_000)[0].worth()[0]
    assert worth == pytest.approx(saved / perfect, abs=0.04)


@given(offset=st.floats(-1, 1), noise=st.floats(0.05, 5))
@settings(max_examples=25, deadline=None)
def test_information_never_costs(offset: float, noise: float) -> None:
    known = two_options(offset, noise, 1000)[0]
    once, twice = known.worth()[0], known.worth([0])[0]  # the same run again
    assert -1e-12 <= once <= twice + 1e-9 and twice <= 1 + 1e-9


def test_the_order_of_runs_does_not_matter() -> None:
    draws = rng.standard_normal((3, 4000))
    losses = np.stack([np.zeros(4000), 0.1 + draws[0] + draws[1]])[None]
    known = Preposterior(losses, draws, np.full((3, 4000), 0.4))
    assert known.worth([0])[1] == pytest.approx(known.worth([1])[0])
    assert known.worth([0])[1] > max(known.worth()[:2])
    assert known.worth()[2] < 0.06  # it tells of nothing in question


def test_an_option_that_a_decision_lacks_is_never_chosen() -> None:
    pair = np.stack([np.ones(500), 1 + rng.standard_normal(500) ** 2])
    losses = np.stack([np.concatenate([pair, np.full((1, 500), np.inf)])] * 2)
    assert regret(losses) == pytest.approx(0.0)
    shown, scale = rng.standard_normal((1, 500)), np.ones((1, 500))
    assert np.isfinite(Preposterior(losses, shown, scale).worth()).all()
    assert list(Preposterior(np.full((1, 2, 500), np.inf), shown, scale).worth()) == [0.0]


# --- of a fit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "load", [LOAD, in_flight(8, 12, prompt=128, output=64)], ids=["rates", "concurrencies"]
)
def test_runs_are_ranked_by_what_they_save(fit: Fit, load: Any) -> None:
    answer = fit.next_runs(load, SERVERS, runs=3, run_seconds=60.0, server_seconds=30.0)
    axis, table = load.axis, answer.table
    assert answer.choices[axis].tolist() == load.cells[axis].values.tolist()
    assert answer.regret_ms == pytest.approx(answer.choices["regret_ms"].mean())
    assert 0 < len(table) <= 3 and set(table["server"]) <= {str(s) for s in SERVERS}
    left = answer.regret_ms - table["saves_ms"].cumsum()
    np.testing.assert_allclose(left, table["regret_left_ms"])
    new_server = ~table["server"].duplicated()
    np.testing.assert_allclose(table["minutes"], np.where(new_server, 1.5, 1.0))
    np.testing.assert_allclose(table["saves_ms_per_minute"], table["saves_ms"] / table["minutes"])
    first = table.iloc[0]
    assert f"measure first {first['server']} at {first[axis]:g}" in str(answer)
    points = {server: runs for server, runs in answer.points()}
    proposed = [(str(s), run[axis]) for s, runs in points.items() for run in runs]
    assert sorted(proposed) == sorted(zip(table["server"], table[axis], strict=True))
    assert all(run["prompt"] == 128 and run["output"] == 64 for r in points.values() for run in r)


def test_no_runs_asked_for_and_none_that_would_pay(fit: Fit) -> None:
    none = fit.next_runs(LOAD, SERVERS, runs=0)
    assert none.table.empty and none.points() == [] and "no run would pay" in str(none)
    decided = fit.next_runs(rps(1.0), [PLAIN, Server("dense-60m", "draft-12m", 5, 0.0)])
    assert decided.table.empty and decided.regret_ms == pytest.approx(0, abs=1e-3)


def test_runs_tell_more_of_the_servers_measured_than_of_the_next(fit: Fit) -> None:
    """The luck of the next server is not to be learned, that of a measured one is."""
    left = {}
    for whom in ("measured", "next"):
        answer = fit.next_runs(LOAD, SERVERS, server=whom)
        left[whom] = 1 - answer.table["saves_ms"].sum() / answer.regret_ms
    assert left["measured"] < 0.5 < left["next"]


def test_rates_that_nothing_serves_are_no_choice_and_no_run(fit: Fit) -> None:
    answer = fit.next_runs(rps(1.0, 1e4), [PLAIN, SHORT])
    low, high = answer.choices.to_dict("records")
    assert low["prob_all_saturated"] == 0 and low["prob_best"] >= 0.5
    assert high["prob_all_saturated"] == 1 and high["prob_best"] == 0
    assert not (answer.table["rate_rps"] == 1e4).any()
