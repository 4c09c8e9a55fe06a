"""Draft schedules: what vLLM takes, that they are the posterior's own choice, what follows."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from questions import SAMPLE, SHORT, changed, in_flight, rps, without_runs

from bayes_sd.answers.latency import arm_of
from bayes_sd.answers.schedule import STARTED_ANEW, Schedule, _choose
from bayes_sd.answers.servers import Server
from bayes_sd.errors import EvidenceError
from bayes_sd.fit import Fit
from bayes_sd.runs.vllm import PLACEHOLDER

LENGTHS: dict[str, float] = {"prompt": 128, "output": 64}
LOAD = rps(1.0, 3.0, **LENGTHS)


def ask(fit: Fit, k: Any = (2, 5), load: Any = LOAD, server: Server = SHORT, **more: Any) -> Any:
    return fit.schedule(load, server, k=k, **({"max_batch": 32} | more))


def anew(fit: Fit, k: int, load: Any) -> np.ndarray:
    """Mean latency (draws, loads) of a server that always drafts `k` and was not measured."""
    return arm_of(fit, SHORT.with_k(k), load, 0, True, STARTED_ANEW).outcome()[0].e2e_s


@pytest.mark.parametrize("loss", [{}, {"loss": "p95"}, {"slo_s": 1.0}], ids=["mean", "p95", "slo"])
def test_rows_are_those_that_vllm_accepts(fit: Fit, loss: dict[str, Any]) -> None:
    answer = ask(fit, (0, 2, 5), **loss)
    rows, table = answer.to_vllm(), answer.table
    covered = [b for low, high, _ in rows for b in range(low, high + 1)]
    assert covered == list(range(1, 33)) and all(type(x) is int for row in rows for x in row)
    assert all(a[2] != b[2] for a, b in pairwise(rows))
    assert table["prob_best"].between(0, 1).all()
    regret = table["regret_prob" if "slo_s" in loss else "regret_ms"]
    assert (regret >= 0).all()
    if "slo_s" in loss:
        assert (regret <= 1).all() and table["prob_within_slo"].between(0, 1).all()
    assert [f"k = {k} for {low}" in str(answer) for low, _, k in rows] == [True] * len(rows)


def test_the_choice_is_that_of_the_latency_at_each_concurrency(fit: Fit) -> None:
    answer, load = ask(fit, confidence=0.5), in_flight(*range(1, 33), **LENGTHS)
    two, five = (anew(fit, k, load).mean(axis=0) for k in (2, 5))
    chosen = np.concatenate([[k] * (high - low + 1) for low, high, k in answer.to_vllm()])
    clear = np.abs(two / five - 1) > 0.02  # elsewhere a majority of draws and the mean may differ
    assert clear.any()
    np.testing.assert_array_equal(chosen[clear], np.where(two <= five, 2, 5)[clear])


def test_the_luck_of_a_measured_server_is_not_the_schedules(fit: Fit) -> None:
    posterior = fit.posterior.copy(deep=True)
    slow = [n for n in posterior["server"].values if n.startswith("dense-60m + draft-3m")]
    posterior["factor_server"].loc[{"server": slow}] = 3.0
    assert slow and ask(changed(fit, posterior=posterior)).to_vllm() == ask(fit).to_vllm()


def test_ties_and_weak_evidence_draft_less() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (2, 4000, 1))
    np.testing.assert_array_equal(_choose(np.ones((2, 4000, 3)), 0.6), 0)
    for better, chosen in ((0.995, 0), (0.7, 1)):
        losses = np.array([1.0, better])[:, None, None] + noise
        assert _choose(losses, 0.9)[0] == chosen


# --- latency of a server that follows it ----------------------------------------------------


def only(fit: Fit, k: int, **more: Any) -> Schedule:
    """A schedule that always drafts `k`: the others lose by their acceptance of nothing."""
    rates = [1.0] * k + [0.0] * 7
    server = Server("dense-60m", "draft-3m", k, rates)
    answer = ask(fit, (k, 7) if k else (0, 7), server=server, **more)
    assert answer.table["k"].tolist() == [k]
    return answer


@pytest.mark.parametrize("load", [LOAD, in_flight(1, 4, 9, **LENGTHS)], ids=["rates", "in flight"])
def test_a_schedule_of_one_k_is_that_server(fit: Fit, load: Any) -> None:
    few = fit.thin(120)  # each draw is compared with itself
    answer = only(few, 2, load=load, max_batch=80, extrapolate=True)
    server = Server("dense-60m", "draft-3m", 2, [1.0, 1.0])
    expected = arm_of(few, server, load, 0, True, STARTED_ANEW).outcome()[0].e2e_s
    mean = answer.latency.draws["mean_s"].values.reshape(expected.shape)
    # Where the number in flight fluctuates, what bends between is a little more than at its mean.
    np.testing.assert_allclose(mean, expected, rtol=1e-2)
    assert (answer.latency.prob_saturated == 0).all() and answer.draws is answer.latency.draws
    request = answer.latency.quantile([0.05, 0.5, 0.95])
    assert (request.diff("quantile") > 0).all()


def test_a_schedule_is_no_worse_than_any_of_its_candidates(fit: Fit) -> None:
    load = rps(0.5, 2.0, 4.0, **LENGTHS)
    mean = ask(fit, load=load, confidence=0.5, max_batch=64).draws["mean_s"].median(SAMPLE)
    for k in (2, 5):
        alone = np.median(anew(fit, k, load), axis=0)
        assert (mean.values.ravel() <= alone * 1.01).all()


def test_past_capacity_a_schedule_is_saturated(fit: Fit) -> None:
    latency = ask(fit, load=rps(1.0, 500.0, **LENGTHS)).latency
    assert latency.prob_saturated.values.ravel().tolist() == [0, 1]
    assert np.isinf(latency.draws["request_s"].sel(rate_rps=500.0)).all()


def test_an_slo_below_the_latency_alone_is_impossible_with_the_number(fit: Fit) -> None:
    alone = min(float(np.median(anew(fit, k, in_flight(1, **LENGTHS)))) for k in (2, 5))
    with pytest.raises(EvidenceError, match="at any load; alone .* about") as caught:
        ask(fit, slo_s=alone / 100)
    said = float(str(caught.value).split("about ")[1].split(" s")[0])
    assert said == pytest.approx(alone, rel=0.01)


# --- the line to paste ----------------------------------------------------------------------


def config_of(answer: Schedule, **keys: Any) -> dict[str, Any]:
    option, quoted = answer.command_line(**keys).split(" ", 1)
    assert option == "--speculative-config"
    config: dict[str, Any] = json.loads(quoted.strip("'"))
    rows = answer.to_vllm()
    assert config.get("num_speculative_tokens_per_batch_size", rows) == rows
    assert ("num_speculative_tokens_per_batch_size" in config) == (len(rows) > 1)
    assert config["num_speculative_tokens"] == max(k for *_, k in answer.to_vllm())
    return config


def test_what_vllm_needs_is_recorded_told_or_an_obvious_placeholder(fit: Fit) -> None:
    unknown = config_of(ask(fit))
    assert unknown["model"] == f"{PLACEHOLDER}-draft-3m" and "method" not in unknown
    told = config_of(ask(fit), method="eagle3", model="org/eagle", draft_tensor_parallel_size=1)
    assert (told["method"], told["model"]) == ("eagle3", "org/eagle")
    assert told["draft_tensor_parallel_size"] == 1
    assert "model" not in config_of(ask(fit), method="ngram")
    runs = fit.tree["runs"].to_dataset()
    own = np.where(runs["drafter"].values.astype(str) == "draft-3m", "eagle3", "")
    paths = np.where(own == "eagle3", "org/Eagle3-60m", "")
    recorded = changed(
        fit,
        runs=runs.assign(
            drafter_method=("run", own.astype(object)), drafter_path=("run", paths.astype(object))
        ),
    )
    config = config_of(ask(recorded))
    assert (config["method"], config["model"]) == ("eagle3", "org/Eagle3-60m")
    assert config_of(ask(recorded), model="other")["model"] == "other"


def test_a_schedule_says_when_no_drafter_at_all_is_faster(fit: Fit) -> None:
    plain = arm_of(fit, Server("dense-60m"), in_flight(1, **LENGTHS), 0, True, STARTED_ANEW)
    for acceptance, pays in ((0.9, True), (0.0, False)):
        server = Server("dense-60m", "draft-3m", 2, acceptance)
        answer = ask(fit, (2, 5), server=server, max_batch=1)
        drafting = arm_of(fit, server, in_flight(1, **LENGTHS), 0, True, STARTED_ANEW)
        faster = drafting.outcome()[0].e2e_s < plain.outcome()[0].e2e_s
        assert answer.table["prob_faster_than_plain_hi"].item() == pytest.approx(faster.mean())
        assert answer.pays == pays and str(answer).startswith("Serve plain") != pays
    unmeasured = without_runs(fit, lambda s: s["drafter"] == "none")
    assert ask(unmeasured).table["prob_faster_than_plain_lo"].isna().all()


def test_a_schedule_says_at_which_ends_a_plain_server_is_faster(fit: Fit) -> None:
    answer = ask(fit, (0, 2, 5))
    names, top = ("prob_faster_than_plain_lo", "prob_faster_than_plain_hi"), 32
    said = f"At {top} a server with no drafter loaded is faster."
    for lo, hi, ends in ((1.0, 1.0, False), (0.9, 0.05, True), (np.nan, np.nan, False)):
        rows = answer.rows.tail(1).assign(lo=1, k=2, **dict(zip(names, (lo, hi), strict=True)))
        one = replace(answer, rows=rows)
        assert one.pays and str(one).endswith(said) == ends


def test_by_default_a_schedule_covers_the_batches_that_were_measured(fit: Fit) -> None:
    runs = fit.runs
    most = int(np.ceil(runs["in_flight"][runs["verifier"] == "dense-60m"].max()))
    for load, top in ((LOAD, most), (in_flight(most + 9, **LENGTHS), most + 9)):
        assert ask(fit, load=load, max_batch=None).table["hi"].iloc[-1] == top


def test_draft_lengths_between_none_and_those_measured_are_answered(fit: Fit) -> None:
    assert ask(fit, (0, 1, 2, 3)).candidates == (0, 1, 2, 3)
    with pytest.raises(EvidenceError, match="k = 8 is outside .*0, 1, 2, 3, 5, 7"):
        ask(fit, (0, 8))


def test_never_drafting_has_no_speculative_config(fit: Fit) -> None:
    answer = ask(fit, (0, 5), server=Server("dense-60m", "draft-3m", 5, 0.0))
    assert answer.table["k"].tolist() == [0]
    with pytest.raises(EvidenceError, match="serve without a speculative config"):
        answer.speculative_config()
