"""What was learned: predictions of runs, coefficients, families, accuracy, all decisions."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from questions import ELSEWHERE, with_two_environments, without_runs

from bayes_sd.answers.fitted import run_outcome
from bayes_sd.errors import EvidenceError
from bayes_sd.fit import Fit
from bayes_sd.model.priors import ALL
from bayes_sd.physics.noise import NU
from bayes_sd.runs.schema import Runs


def test_fitted_runs_are_predicted_and_scored(fit: Fit, runs: Runs) -> None:
    table = fit.predict(runs, seed=1)
    assert len(table) == len(runs.steady)
    assert (table["low_s"] < table["predicted_s"]).all()
    assert (table["predicted_s"] < table["high_s"]).all()
    expected = table["e2e_mean_s"].between(table["low_s"], table["high_s"])
    assert (table["inside"] == expected).all() and 0.8 < table["inside"].mean() < 0.99
    assert table["pit"].between(0, 1).all() and 0.4 < table["pit"].mean() < 0.6
    said, scale, _ = run_outcome(fit, fit.runs, seed=1, held_out=True)
    from scipy.stats import t as student_t

    density = student_t.pdf(np.log(fit.runs["e2e_mean_s"]), NU, np.log(said.e2e_s), scale)
    score = np.log(density.mean(axis=0))
    np.testing.assert_allclose(table["log_score"], score)
    narrow = fit.predict(runs, prob=0.5, seed=1)
    assert (narrow["high_s"] < table["high_s"]).all()
    assert 0.4 < narrow["inside"].mean() < 0.7 and NU == 5


def test_runs_of_new_models_are_predicted_from_their_sizes_and_wider(fit: Fit, runs: Runs) -> None:
    own = runs.select(verifier="dense-60m")
    unknown = own.table.assign(
        verifier="another", drafter=own.table["drafter"].replace("draft-12m", "unknown")
    )
    known, new = fit.predict(own), fit.predict(replace(own, table=unknown))
    width = [np.log(t["high_s"] / t["low_s"]) for t in (known, new)]
    assert (width[1] > 1.1 * width[0]).all()
    assert new["inside"].mean() > 0.8
    assert (new["predicted_s"] / known["predicted_s"]).between(0.5, 2).all()


def test_runs_of_an_unknown_environment_are_not_predicted(fit: Fit, runs: Runs) -> None:
    """Not even by a fit of one environment, which once was 260 times off in silence."""
    for where in ("elsewhere", ["elsewhere", *runs.table["environment"][1:]]):
        moved = replace(runs, table=runs.table.assign(environment=where))
        for own in (fit, with_two_environments(fit)):
            with pytest.raises(EvidenceError, match="'elsewhere' cannot be predicted: the fit kno"):
                own.predict(moved)


def test_coefficients_have_interval_unit_and_meaning(fit: Fit) -> None:
    table, wide = fit.coefficients(), fit.coefficients(prob=0.99)
    assert table["name"].is_unique and not table.isna().any(axis=None)
    assert (table["low"] < table["median"]).all() and (table["median"] < table["high"]).all()
    assert (wide["low"] <= table["low"]).all() and (table["high"] <= wide["high"]).all()
    row = table.set_index("name").loc["read_weights"]
    draws = fit.posterior["law"].sel(law_term="read_weights")
    assert row["median"] == pytest.approx(float(draws.median()))
    assert row["unit"] == "times the data sheet's" and "weights" in row["meaning"]
    known = {p.name for p in ALL}
    assert {name.split("[")[0] for name in table["name"]} <= known
    two = set(with_two_environments(fit).coefficients()["name"])
    assert not any(name.startswith("scatter_environment") for name in two)  # nothing was sampled


def test_families_differ_by_what_the_fit_says(fit: Fit) -> None:
    table = fit.families()
    assert len(table) == 4
    assert (table["low_ms"] < table["difference_ms"]).all()
    assert (table["difference_ms"] < table["high_ms"]).all()
    assert ((table["ratio"] > 1) == (table["prob_slower"] > 0.5)).all()
    ratio = np.exp(fit.posterior["moe_effect"]).median(("chain", "draw"))
    np.testing.assert_allclose(table["ratio"], ratio)
    verifiers = fit.tree["verifiers"].to_dataset()
    for moe, family in ((0.0, "dense"), (1.0, "a mixture of experts")):
        tree = fit.tree.copy()
        tree["verifiers"].dataset = verifiers.assign(moe=0 * verifiers["moe"] + moe)
        with pytest.raises(EvidenceError, match=f"Every verifier is {family}"):
            Fit(tree).families()


def test_the_fit_follows_its_runs(fit: Fit) -> None:
    accuracy = fit.accuracy()
    assert accuracy["r2_dense"] >= 0.97 and accuracy["r2_moe"] >= 0.95
    runs = fit.runs
    error = (runs["fitted_e2e_s"] / runs["e2e_mean_s"] - 1).abs().mean()
    assert accuracy["mean_error"] == pytest.approx(error)
    assert (runs["fitted_c1_s"] <= runs["fitted_e2e_s"] * 1.01).all()
    assert runs["utilization"].between(0, 1).all()
    stuck = fit.censored_runs  # what they showed is a lower bound: the law is above most of them
    assert (stuck["fitted_e2e_s"] > 0.8 * stuck["e2e_mean_s"]).mean() > 0.9
    assert isinstance(fit.plot_collapse(), Axes)


def test_every_measured_drafting_server_is_decided_where_it_ran(fit: Fit) -> None:
    few = without_runs(fit.thin(60), lambda s: ~s["verifier"].isin(["dense-60m", "dense-25m"]))
    decisions = few.decisions(256, 96)
    asked = [even.server for _, evens in decisions for even in evens]
    assert len(set(asked)) == (few.servers["draft_tokens"] > 0).sum() == 6
    for comparison, evens in decisions:
        assert list(map(str, comparison.servers)) == [even.server for even in evens]
        assert len(comparison.table) == 12 * len(evens)
        assert all(even.lengths == (256, 96) for even in evens)
    two = with_two_environments(few, verifiers=["dense-25m"])
    moved = without_runs(two, lambda s: (s["verifier"] == "dense-60m") & (s["drafter"] == "none"))
    ((_, evens),) = moved.decisions(256, 96)
    where = [even.server for even in evens]
    assert len(where) == len(set(where)) == 3 and all(ELSEWHERE in server for server in where)
