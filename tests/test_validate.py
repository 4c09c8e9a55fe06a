"""Refits by data, scores of held-out runs, comparison of models, checks."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayes_sd as bsd
from bayes_sd.inference.refit import AWAY, Refitter, compile_refits
from bayes_sd.model.build import t5_probability
from bayes_sd.validate.calibration import BINS, RANKS, rank_tests
from bayes_sd.validate.compare import same_runs, stacking, standard_models
from bayes_sd.validate.leave_out import folds, leave_out, psis
from bayes_sd.validate.scores import predictions, summary

QUICK = {"draws": 150, "tune": 200, "chains": 2}


@pytest.fixture(scope="module")
def few() -> bsd.Traces:
    """Two verifiers, plain and one SD arm each, with latencies of a law that is easy to fit."""
    rng, rows = np.random.default_rng(1), []
    for name, size in (("small", 1.0), ("large", 2.0)):
        for k in (0, 3):
            for share in (0.1, 0.3, 0.5, 0.7):
                c1, c2 = 1.2 * size / (1 + 0.3 * k), 0.1 * size
                mean = c1 / (1 - share) * np.exp(0.03 * rng.standard_normal())
                rows.append(
                    {
                        "verifier": name,
                        "verifier_params": 50e6 * size,
                        "drafter": "tiny" if k else "none",
                        "drafter_params": 2e6 if k else np.nan,
                        "draft_tokens": k,
                        "acceptance_imposed": 0.7 if k else np.nan,
                        "prompt_tokens": 64,
                        "output_tokens": 64,
                        "rate_rps": share / c2,
                        "duration_s": 120.0,
                        "requests": 100,
                        "e2e_mean_s": mean,
                        "e2e_std_s": 0.15 * mean,
                        "e2e_p95_s": 1.28 * mean,
                        "ttft_mean_s": 0.1 * mean,
                        "ttft_std_s": 0.02 * mean,
                    }
                )
    return bsd.read_table(pd.DataFrame(rows), environment="made up")


@pytest.fixture(scope="module")
def refitter(few: bsd.Traces) -> Refitter:
    return compile_refits(bsd.LatencyModel(server_effects=("speed",)), few)


def test_runs_left_out_do_not_matter_and_runs_kept_do(refitter: Refitter) -> None:
    large = (refitter.runs["verifier"] == "large").to_numpy()
    wrong = refitter.design.data["log_e2e"] + 1.0 * large

    def typical(**how: Any) -> np.ndarray:
        draws = refitter.refit(**how, **QUICK).draws["run_mean_e2e"]
        return np.asarray(np.log(draws).median(("chain", "draw")))

    out, absurd = typical(left_out=large), typical(left_out=large, observed={"log_e2e": wrong})
    np.testing.assert_allclose(absurd[~large], out[~large], atol=0.03)
    assert np.abs(absurd[large] - out[large]).mean() < 0.3
    kept = typical(observed={"log_e2e": wrong})
    assert (kept - refitter.design.data["log_e2e"])[large].mean() == pytest.approx(1.0, abs=0.15)
    assert AWAY > 1e3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"observed": {"log_e2e": np.zeros(3)}}, "16 runs"),
        ({"observed": {"rate_rps": np.zeros(16)}}, "cannot be replaced"),
        ({"left_out": np.zeros(4, bool)}, "16 runs"),
    ],
)
def test_arrays_of_another_size_never_reach_the_compiled_code(
    refitter: Refitter, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(bsd.InputError, match=says):
        refitter.refit(**arguments)


def test_left_out_verifiers_are_predicted_wider(refitter: Refitter) -> None:
    found = leave_out(refitter, "verifier", **QUICK)
    assert found.rows["fold"].tolist() == found.rows["verifier"].tolist()
    assert len(found.rows) == len(refitter.runs) == found.folds["runs"].sum()
    inside = predictions(refitter.refit(**QUICK), refitter.runs, np.arange(len(refitter.runs)))
    assert summary(found.rows)["width"] > 1.2 * summary(inside)["width"]
    assert summary(found.rows)["log_score"] < summary(inside)["log_score"]
    assert inside["p95_inside"].mean() > 0.5
    assert found.folds["joint_rank"].between(0, 1).all()


def test_importance_sampling_agrees_with_an_exact_refit(refitter: Refitter) -> None:
    quick = psis(refitter.refit(draws=400, tune=300, chains=4), refitter.design)
    good = np.flatnonzero(quick["pareto_k"] < 0.5)[:2]
    assert len(good)
    for i in good:
        mask = np.arange(len(refitter.runs)) == i
        exact = refitter.refit(mask, draws=400, tune=300, chains=4)
        exact = predictions(exact, refitter.runs, np.array([i]))
        assert quick["log_score"].iloc[i] == pytest.approx(exact["log_score"].iloc[0], abs=0.2)


def test_folds_leave_something_to_fit_and_to_predict(traces: bsd.Traces) -> None:
    runs = bsd.LatencyModel().design(traces).runs
    steady = ~runs["saturated"].to_numpy(bool)
    for by, count in (("verifier", 6), ("drafter", 2), ("moe", 2), ("run", 131), ("fifth", 5)):
        parts = list(folds(runs, by))
        assert len(parts) == count
        assert all((mask & steady).any() and (steady & ~mask).any() for _, mask in parts)
    masks = np.stack([mask for _, mask in folds(runs, "fifth")])
    assert (masks.sum(axis=0) == 1).all()
    (_, long), *_ = folds(runs, "long_prompts")
    assert runs["prompt_tokens"][long].min() > runs["prompt_tokens"][~long].min()
    with pytest.raises(bsd.InputError, match="by = 'colour'"):
        folds(runs, "colour")
    with pytest.raises(bsd.EvidenceError, match="at least two"):
        folds(runs[runs["drafter"] != "draft-3m"], "drafter")


def test_stacking_finds_the_mixture_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random(4000) < 0.7, rng.normal(0, 1, 4000), rng.normal(4, 1, 4000))
    scores = np.stack([stats.norm.logpdf(x, m, 1) for m in (0, 4, 9)], axis=1)
    np.testing.assert_allclose(stacking(scores), [0.7, 0.3, 0.0], atol=0.02)


def test_models_of_different_runs_are_not_compared() -> None:
    tables = {"a": pd.DataFrame({"run_id": ["1", "2", "3"]}), "b": pd.DataFrame({"run_id": ["1"]})}
    with pytest.raises(bsd.InputError, match="'b' and 'a' are of different data.*lacks 2"):
        same_runs(tables)


def test_standard_models_differ_in_one_thing_each() -> None:
    models = standard_models()
    assert models["paper's law"].law.parts == ("host",)
    assert models["no experts"].law.parts == tuple(
        p for p in models["full"].law.parts if p != "experts"
    )
    assert models["complete pooling"].pooling == "complete"
    assert len({repr(m) for m in models.values()}) == len(models) - 1  # censoring is not a prior
    for model in models.values():
        assert "nan" not in repr(model)


def test_fits_of_the_same_runs_are_ranked(fit: bsd.Fit) -> None:
    table = bsd.compare_fits({"all": fit, "half": fit.thin(1000)})
    assert table["weight"].sum() == pytest.approx(1)
    assert table["elpd_diff"].iloc[0] == 0
    assert abs(table["elpd_diff"].iloc[1]) < 5
    with pytest.raises(bsd.InputError, match="two fits"):
        bsd.compare_fits({"all": fit})


def test_closed_form_of_students_t() -> None:
    z = np.linspace(-30, 30, 41)
    np.testing.assert_allclose(t5_probability(z, np.arctan), stats.t.cdf(z, 5), atol=1e-14)


def test_rank_tests_see_skewed_ranks_and_pass_uniform_ones() -> None:
    rng = np.random.default_rng(0)
    even = rng.integers(0, RANKS + 1, 400)
    skewed = (RANKS * rng.beta(2, 1, 400)).astype(int)
    table = rank_tests(pd.DataFrame({"even": even, "skewed": skewed}))
    assert table.index[0] == "skewed" and table["p_holm"].iloc[0] < 1e-6
    assert table.loc["even", "p_holm"] > 0.01
    assert table.filter(like="bin_").sum(axis=1).tolist() == [400, 400] and BINS == 10


def test_unknown_names_are_refused(few: bsd.Traces) -> None:
    with pytest.raises(bsd.InputError, match="colour"):
        bsd.validate_model(few, only=["colour"])
    with pytest.raises(bsd.InputError, match="two models"):
        bsd.compare(few, {"one": bsd.LatencyModel()})
    with pytest.raises(bsd.InputError, match="by = 'colour'"):
        bsd.compare(few, by="colour")


def test_pairs_score_what_happened(refitter: Refitter) -> None:
    from bayes_sd.validate.pairs import brier, pairs, reliability

    runs = refitter.runs
    table = pairs(refitter.refit(**QUICK), runs, np.arange(len(runs)))
    assert len(table) == 2 * 4 * 4  # verifiers, plain runs, SD runs
    assert (table["faster"] == (table["sd_s"] < table["plain_s"])).all()
    b = brier(table)
    assert b["brier"] < 0.1 < b["regret_always_plain"]
    assert b["regret"] <= b["regret_always_sd"]
    calls = table.assign(prob_faster=table["call"])
    assert b["regret_point"] == brier(calls)["regret"]
    assert reliability(table)["pairs"].sum() == len(table)
    flipped = table.assign(prob_faster=1 - table["prob_faster"])
    assert brier(flipped)["brier"] > 0.5


def test_one_verifier_warns_that_its_scatter_is_the_priors(few: bsd.Traces) -> None:
    from bayes_sd.errors import PriorWarning

    model, alone = bsd.LatencyModel(), few.select(verifier="small")
    with pytest.warns(PriorWarning, match=r"tau_verifier \(1 verifier\), tau_drafter"):
        model._warn(model.design(alone))
    unpooled = bsd.LatencyModel(pooling="none")
    unpooled._warn(unpooled.design(alone))
