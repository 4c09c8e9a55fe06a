"""Value of information: limits that must hold whatever the models, and the plan it writes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import bayes_sd as bsd
from bayes_sd.collector.design import write_plan
from bayes_sd.collector.plan import Plan, read_plan
from bayes_sd.decide.information import Preposterior, regret

SYSTEM = bsd.System("dense-60m", "draft-3m", 0.7)
ASKED = {"rps": [1.0, 4.0], "prompt": 128, "output": 64}
rng = np.random.default_rng(3)


def two_arms(offset: float, noise: float, n: int = 3000) -> tuple[Preposterior, np.ndarray]:
    """A known arm of loss 0 and one of loss N(offset, 1), of which a run can be made."""
    unknown = offset + np.random.default_rng(1).standard_normal(n)
    losses = np.stack([np.zeros(n), unknown])[None]
    return Preposterior(losses, unknown[None], np.full((1, n), noise)), losses


@pytest.mark.parametrize("offset", [-1.0, 0.0, 0.7])
def test_the_regret_of_two_arms_is_the_unit_normal_loss(offset: float) -> None:
    exact = norm.pdf(offset) - abs(offset) * norm.sf(abs(offset))
    assert regret(two_arms(offset, 1.0)[1]) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("offset", [0.0, 0.3, -0.8])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_a_run_saves_what_choosing_after_it_saves(offset: float, noise: float) -> None:
    """Against simulation: truths, what a run shows of them, the posterior mean, the choice."""
    draw = np.random.default_rng(5)
    truth = offset + draw.standard_normal(200_000)
    scatter = noise * np.sqrt(5 / 3)  # of a t with five degrees of freedom
    shown = truth + scatter * draw.standard_normal(truth.size)
    expected = offset + (shown - offset) / (1 + scatter**2)
    saved = min(offset, 0.0) - np.where(expected < 0, truth, 0.0).mean()
    perfect = min(offset, 0.0) - np.minimum(truth, 0.0).mean()
    known, _ = two_arms(offset, noise, 20_000)
    assert known.worth()[0] == pytest.approx(saved / perfect, abs=0.04)


def test_an_exact_run_is_worth_everything_and_a_useless_one_nothing() -> None:
    assert two_arms(0.2, 0.02)[0].worth()[0] > 0.95
    assert two_arms(0.2, 100.0)[0].worth()[0] < 0.01


@given(offset=st.floats(-1, 1), noise=st.floats(0.05, 5))
@settings(max_examples=25, deadline=None)
def test_information_never_costs(offset: float, noise: float) -> None:
    known, _ = two_arms(offset, noise, 1000)
    once, twice = known.worth()[0], known.worth([0])[0]  # the same run again
    assert -1e-12 <= once <= twice + 1e-9
    assert twice <= 1 + 1e-9


def test_the_order_of_runs_does_not_matter() -> None:
    n = 4000
    draws = rng.standard_normal((3, n))
    losses = np.stack([np.zeros(n), 0.1 + draws[0] + draws[1]])[None]
    known = Preposterior(losses, draws, np.full((3, n), 0.4))
    assert known.worth([0])[1] == pytest.approx(known.worth([1])[0])
    assert known.worth([0])[1] > max(known.worth()[:2])


def test_a_run_that_tells_of_nothing_in_question_saves_nothing() -> None:
    n = 2000
    losses = np.stack([np.zeros(n), rng.standard_normal(n)])[None]
    known = Preposterior(losses, rng.standard_normal((1, n)), np.full((1, n), 0.3))
    assert known.worth()[0] < 0.06


def test_a_run_that_may_saturate_has_a_worth() -> None:
    """A draw that says "saturated" knows no scatter; the others do."""
    n = 2000
    unknown = np.random.default_rng(1).standard_normal(n)
    losses = np.stack([np.zeros(n), unknown])[None]
    scale = np.full((2, n), 0.3)
    all_known = Preposterior(losses, np.stack([unknown] * 2), scale).worth()
    scale[0, ::10] = np.nan
    worth = Preposterior(losses, np.stack([unknown] * 2), scale).worth()
    np.testing.assert_allclose(worth, all_known)


def test_an_option_that_a_decision_lacks_is_never_chosen() -> None:
    n = 500
    pair = np.stack([np.ones(n), 1 + rng.standard_normal(n) ** 2])
    losses = np.stack([np.concatenate([pair, np.full((1, n), np.inf)])] * 2)
    assert regret(losses) == pytest.approx(0.0)
    known = Preposterior(losses, rng.standard_normal((1, n)), np.ones((1, n)))
    assert np.isfinite(known.worth()).all()
    nothing = Preposterior(np.full((1, 2, n), np.inf), rng.standard_normal((1, n)), np.ones((1, n)))
    assert list(nothing.worth()) == [0.0]


# --- of a fit -------------------------------------------------------------------------------


def test_runs_are_ranked_by_what_they_save(fit: bsd.Fit) -> None:
    found = fit.worth_measuring([0, 1, 2, 5], SYSTEM, **ASKED, runs=4)
    assert list(found.choices["rate_rps"]) == [1.0, 4.0]
    assert found.regret_ms >= 0
    assert found.regret_ms == pytest.approx(found.choices["regret_ms"].mean())
    runs = found.runs
    assert 0 < len(runs) <= 4
    assert set(runs["k"]) <= {0, 1, 2, 5} and set(runs["rate_rps"]) <= {1.0, 4.0}
    np.testing.assert_allclose(found.regret_ms - runs["saves_ms"].cumsum(), runs["regret_left_ms"])
    first = ~runs["k"].duplicated()
    np.testing.assert_allclose(runs["minutes"], np.where(first, 1.5, 0.5))
    again = fit.worth_measuring([0, 1, 2, 5], SYSTEM, **ASKED, runs=4)
    assert again.runs.equals(runs)
    assert "Deciding now" in repr(found)
    none = fit.worth_measuring([0, 5], SYSTEM, **ASKED, runs=0)
    assert none.runs.empty and "No run would pay" in repr(none)


def test_runs_tell_more_of_the_servers_measured_than_of_the_next(fit: bsd.Fit) -> None:
    """The luck of the next server is not to be learned, that of a measured one is."""
    asked = {"k": [0, 1, 2, 5], "system": SYSTEM, **ASKED, "rps": [4.0, 6.0]}
    left = {}
    for server in ("measured", "next"):
        found = fit.worth_measuring(**asked, server=server)
        left[server] = 1 - found.runs["saves_ms"].sum() / found.regret_ms
    assert left["measured"] < 0.5 < left["next"]


def test_a_run_that_saves_next_to_nothing_is_not_proposed(fit: bsd.Fit) -> None:
    """dense-25m at 10 requests/s is as good as decided: 1e-168 ms is no reason to measure."""
    decided = bsd.System("dense-25m", "draft-3m", 0.7)
    found = fit.worth_measuring([0, 2], decided, **(ASKED | {"rps": 10.0}), server="next")
    assert found.regret_ms > 0 and found.runs.empty
    some = fit.worth_measuring([0, 1, 2, 5], SYSTEM, **ASKED, runs=8).runs
    assert 0 < len(some) < 8 and some["saves_ms"].min() > 0


def test_where_every_run_would_saturate_none_is_proposed(fit: bsd.Fit) -> None:
    found = fit.worth_measuring([0, 5], SYSTEM, **(ASKED | {"rps": [500.0]}))
    assert found.runs.empty
    assert found.regret_ms == pytest.approx(0.0, abs=1e-6)  # sums in another order
    assert list(found.choices["k"]) == [0]


def plan(*arms: dict) -> Plan:
    common = {"model": "org/dense-60m", "verifier": "dense-60m",
              "points": [{"load": 0.5, "prompt": 64, "output": 64}]}  # fmt: skip
    return Plan.model_validate({"configurations": [common | arm for arm in arms]})


def test_the_runs_become_a_plan(fit: bsd.Fit, tmp_path: Path) -> None:
    found = fit.worth_measuring([0, 1, 2, 5], SYSTEM, **ASKED, runs=5)
    drafting = {"name": "sd", "arm": "sd", "drafter_model": "org/draft", "drafter": "draft-3m",
                "draft_tokens": 2, "acceptance": 0.7}  # fmt: skip
    made = found.to_plan(plan({"name": "plain"}, drafting))
    points = [(c.draft_tokens, p.rate_rps) for c in made.configurations for p in c.points]
    assert sorted(points) == sorted(zip(found.runs["k"], found.runs["rate_rps"], strict=True))
    assert len({c.name for c in made.configurations}) == len(made.configurations)
    write_plan(made, tmp_path / "next.yaml")
    assert read_plan(tmp_path / "next.yaml").configurations == made.configurations
    with pytest.raises(bsd.InputError, match="no server that drafts with draft-3m"):
        found.to_plan(plan({"name": "plain"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": [3]}, "at least two"),
        ({"rps": [0.0]}, "above 0"),
        ({"runs": -1}, "whole number"),
        ({"run_seconds": 0.0}, "positive number"),
        ({"server_seconds": float("nan")}, "positive number"),
        ({"server": "last"}, "measured or next"),
    ],
)
def test_what_cannot_be_asked(fit: bsd.Fit, change: dict, says: str) -> None:
    asked = {"k": [0, 5], **ASKED} | change
    with pytest.raises(bsd.InputError, match=says):
        fit.worth_measuring(asked.pop("k"), SYSTEM, **asked)


def test_a_run_of_an_assumed_structure_is_not_proposed(fit: bsd.Fit) -> None:
    at_the_edge = replace(SYSTEM, structure=bsd.structures.Edge(round_trip_s=0.02))
    with pytest.raises(bsd.InputError, match="cannot be measured"):
        fit.worth_measuring([0, 5], at_the_edge, **ASKED)


def test_rates_that_nothing_serves_are_no_choice(fit: bsd.Fit) -> None:
    found = fit.worth_measuring([0, 5], SYSTEM, **(ASKED | {"rps": [1.0, 1e4]}))
    low, high = found.choices.to_dict("records")
    assert low["prob_all_saturated"] == 0 and low["prob_best"] >= 0.5
    assert high["prob_all_saturated"] == 1 and high["prob_best"] == 0


def test_without_a_plain_run_plain_is_no_arm(fit: bsd.Fit) -> None:
    some = fit.tree.copy()
    runs = some["runs"].to_dataset()
    some["runs"] = xr.DataTree(runs.isel(run=(runs["draft_tokens"] > 0).values))
    with pytest.raises(bsd.EvidenceError, match="nothing is known of k = 0"):
        bsd.Fit(some).worth_measuring([0, 5], SYSTEM, **ASKED)
