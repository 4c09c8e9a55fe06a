"""Questions that a fit refuses, and the sentence each earns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from predict_helpers import DENSE, MOE, WORK, loads, some_runs

import bayes_sd as bsd


def refused(error: type[Exception], *words: str) -> Any:
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(error, match=pattern)


def test_names_the_fit_does_not_know_are_refused(fit: bsd.Fit) -> None:
    with refused(bsd.InputError, "llama-8b", "dense-25m", "moe-e8k2"):
        fit.latency(loads(1.0), 0, bsd.System("llama-8b"))
    with refused(bsd.InputError, "eagle", "draft-12m", "draft-3m"):
        fit.prob_faster(loads(1.0), 1, bsd.System("dense-25m", "eagle", 0.8))
    with refused(bsd.InputError, "dense-25m", "moe-e8k2"):
        fit.latency(loads(1.0))
    with refused(bsd.InputError, "needs a drafter"):
        fit.latency(loads(1.0), 2, bsd.System("dense-25m"))


def test_a_choice_of_acceptances_is_refused_until_made(fit: bsd.Fit) -> None:
    with refused(bsd.InputError, "0.5, 0.7", "choose one"):
        fit.latency(loads(1.0), 2, bsd.System("dense-25m", "draft-3m"))
    chosen = bsd.System("dense-25m", "draft-3m", 0.5)
    assert np.isfinite(fit.latency(loads(1.0), 2, chosen).draws["mean_s"]).all()


def test_an_acceptance_nobody_measured_is_refused(fit: bsd.Fit) -> None:
    with refused(bsd.EvidenceError, "No acceptance was measured", "acceptance=0.7"):
        fit.latency(loads(1.0), 2, bsd.System("dense-25m", bsd.Size(1e6)))
    with refused(bsd.InputError, "k = 3", "2 given"):
        fit.latency(loads(1.0), 3, bsd.System("dense-25m", bsd.Size(1e6), [0.9, 0.8]))


def test_without_a_plain_arm_there_is_nothing_to_beat(fit: bsd.Fit) -> None:
    runs = fit.runs
    without = some_runs(fit, runs.arm != "plain")
    one_without = some_runs(fit, (runs.arm != "plain") | (runs.verifier != "dense-60m"))
    new = bsd.System(bsd.Size(1e8), bsd.Size(1e7), 0.8)
    for less, system in ((without, DENSE), (one_without, DENSE), (without, new)):
        with refused(bsd.EvidenceError, "No plain run", "without a drafter"):
            less.prob_faster(loads(1.0), 5, system)
        with pytest.raises(bsd.EvidenceError):
            less.speedup(loads(1.0), 5, system)
        with pytest.raises(bsd.EvidenceError):
            less.break_even(5, system, **WORK)
    assert np.isfinite(without.latency(loads(1.0), 5, DENSE).draws["mean_s"]).all()
    assert one_without.prob_faster(loads(1.0), 3, MOE)["prob_faster"].notnull().all()


@pytest.mark.parametrize("k", [-1, 1.5, [1, -2], [], float("nan"), float("inf"), "3"])
def test_k_must_be_whole_and_not_negative(fit: bsd.Fit, k: Any) -> None:
    for ask in (fit.latency, fit.prob_faster, fit.speedup):
        with pytest.raises(bsd.InputError, match="k = "):
            ask(loads(1.0), k, DENSE)
    with pytest.raises(bsd.InputError, match="k = "):
        fit.break_even(k, DENSE, **WORK)


def test_plain_is_not_compared_with_itself(fit: bsd.Fit) -> None:
    for ask in (fit.prob_faster, fit.speedup):
        with pytest.raises(bsd.InputError, match="at least 1"):
            ask(loads(1.0), [0, 3], DENSE)
    with pytest.raises(bsd.InputError, match="at least 1"):
        fit.break_even(0, DENSE, **WORK)


def test_a_k_asked_twice_is_answered_once(fit: bsd.Fit) -> None:
    assert fit.prob_faster(loads(1.0), [5, 5], DENSE)["k"].values.tolist() == [5]


def test_unknown_choices_are_refused(fit: bsd.Fit) -> None:
    with refused(bsd.InputError, "itl", "ttft", "tpot"):
        fit.latency(loads(1.0), 5, DENSE, metric="itl")
    with refused(bsd.InputError, "median", "request"):
        fit.prob_faster(loads(1.0), 5, DENSE, of="median")
    with pytest.raises(bsd.InputError):
        fit.break_even(5, DENSE, prompt=0, output=96)
    found = fit.latency(loads(1.0), 5, DENSE)
    with refused(bsd.InputError, "median", "request"):
        found.quantile(0.5, of="median")
    for q in (-0.1, [0.5, 1.1], float("nan"), "high", None):
        with pytest.raises(bsd.InputError, match="probabilities"):
            found.quantile(q)  # type: ignore[arg-type]


@pytest.mark.parametrize(("verifier", "drafter"), [(3, None), (None, None), ("v", 1e9)])
def test_a_model_is_a_name_or_a_size(verifier: Any, drafter: Any) -> None:
    with pytest.raises(bsd.InputError, match=r"er = .*: must be a measured one's name, or bsd.Si"):
        bsd.System(verifier, drafter)


@pytest.mark.parametrize("acceptance", [-0.1, 1.1, float("nan"), [0.9, 2.0], "high"])
def test_acceptance_is_a_probability(acceptance: Any) -> None:
    with pytest.raises(bsd.InputError, match="acceptance"):
        bsd.System("v", "d", acceptance)


@pytest.mark.parametrize(
    "size",
    [
        {"params": 0},
        {"params": "8e9"},
        {"params": True},
        {"params": 1e9, "layers": "32"},
        {"params": -1e9},
        {"params": float("nan")},
        {"params": float("inf")},
        {"params": 1e9, "active_params": 2e9},
        {"params": 1e9, "active_params": 0},
        {"params": 1e9, "experts": 8},
        {"params": 1e9, "experts": 8, "experts_per_token": 2},
        {"params": 1e9, "active_params": 5e8, "experts": 8, "experts_per_token": 9},
        {"params": 1e9, "active_params": 5e8, "experts": 8, "experts_per_token": -1},
        # Two of eight experts a token touch at least a quarter of the parameters.
        {"params": 10e9, "active_params": 1e9, "experts": 8, "experts_per_token": 2},
    ],
)
def test_sizes_that_contradict_themselves_are_refused(size: dict[str, Any]) -> None:
    with pytest.raises(bsd.InputError):
        bsd.Size(**size)


@pytest.mark.parametrize(
    "load",
    [
        {},
        {"rps": 1, "concurrency": 1},
        {"rps": -1},
        {"rps": []},
        {"rps": [1, float("nan")]},
        {"rps": float("inf")},
        {"rps": "1:16"},
        {"rps": [[1, 2]]},
        {"concurrency": 0},
        {"concurrency": 0.5},
        {"rps": 1, "prompt": 0},
        {"rps": 1, "output": [64, 0]},
    ],
)
def test_loads_that_cannot_be_are_refused(load: dict[str, Any]) -> None:
    with pytest.raises(bsd.InputError):
        bsd.grid(**({"prompt": 512, "output": 128} | load))


@pytest.mark.parametrize(
    ("system", "k", "changes", "says"),
    [
        (bsd.System(bsd.Size(8e9), bsd.Size(5e6), 0.8), 3, {}, "verifier parameters"),
        (bsd.System(bsd.Size(100e6), bsd.Size(60e6), 0.8), 3, {}, "drafter parameters"),
        (bsd.System("dense-60m", "draft-3m", 0.7), 40, {}, "draft tokens"),
        (bsd.System("dense-60m"), 0, {"prompt": 1e5}, "prompt_tokens"),
        (bsd.System("dense-60m"), 0, {"output": 1e4}, "output_tokens"),
        (bsd.System("dense-60m"), 0, {"rps": None, "concurrency": 1e4}, "concurrency"),
    ],
)
def test_far_from_what_was_measured_an_answer_must_be_asked_for(
    fit: bsd.Fit, system: bsd.System, k: int, changes: dict[str, Any], says: str
) -> None:
    load = bsd.grid(**({"rps": 0.1, "prompt": 128, "output": 64} | changes))
    with pytest.raises(bsd.EvidenceError, match=f"{says}.*extrapolate=True"):
        fit.latency(load, k, system)
    asked = replace(system, extrapolate=True)
    answer = fit.latency(load, k, asked).draws
    assert str(answer["support"].values.ravel()[0]) == "extrapolated"


def test_an_unknown_verifier_is_called_so_and_the_known_are_named(fit: bsd.Fit) -> None:
    nobody = bsd.System("nobody", "draft-3m", 0.7)
    with pytest.raises(bsd.InputError, match="no verifier 'nobody'; it knows .*dense-60m"):
        fit.prob_faster(loads(1.0), 3, nobody)
    with pytest.raises(bsd.InputError, match="no verifier 'nobody'"):
        fit.break_even(3, nobody, prompt=128, output=64)
