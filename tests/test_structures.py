"""Deployments to ask about: terms, draws, labels, words, refusals; and answers of a fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd import cli
from bayes_sd.cli_options import structure_of
from bayes_sd.predict.latency import arm_outcome
from bayes_sd.predict.structures import NAMES, Structure
from bayes_sd.predict.system import resolve

S = bsd.structures
SAMPLE = ("chain", "draw")
DENSE = bsd.System("dense-60m", "draft-12m")  # measured with k = 5, acceptance 0.8
WORK = {"prompt": 256.0, "output": 96.0}
EVERY = [
    S.Edge(round_trip_s=0.02, slowdown=3),
    S.Overlapped(hidden=0.7, interference=0.1),
    S.Asynchronous(sync_s=0.001, verify_slowdown=1.3, wasted=0.3),
    S.Disaggregated(transfer_s=0.01, bandwidth_gb_per_s=10),
]
PLACES = {type(s).__name__: s for s in EVERY}
each = pytest.mark.parametrize("structure", EVERY, ids=PLACES)
VANISHED = {  # terms with which each is the colocated law, whatever the others
    "edge": {"offloaded": 0.0, "round_trip_s": 0.3, "slowdown": 9.0},
    "overlapped": {"hidden": 0.0},
    "asynchronous": {"wasted": 1.0},
    "disaggregated": {"separated": 0.0, "transfer_s": 0.3},
}


# --- what a user says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: S.Edge(round_trip_s=-0.1), "round_trip_s = -0.1: must be a number from 0 to"),
        (lambda: S.Asynchronous(sync_s=1e300), "sync_s = 1e.300: must be a number from 0 to 10000"),
        (lambda: S.Edge(round_trip_s=(0.0, 0.1)), "interval .low, high. above 0"),
        (lambda: S.Edge(round_trip_s=(0.2, 0.1)), "reversed"),
        (lambda: S.Edge(round_trip_s="fast"), "round_trip_s = 'fast'"),
        (lambda: S.Edge(round_trip_s=(0.1, 0.2, 0.3)), "round_trip_s"),
        (lambda: S.Edge(round_trip_s=float("nan")), "round_trip_s"),
        (lambda: S.Edge(round_trip_s=0.1, slowdown=0), "slowdown = 0: must be a number above 0"),
        (lambda: S.Overlapped(hidden=1.2), "hidden = 1.2: must be a share from 0 to 1"),
        (lambda: S.Overlapped(hidden=(0.5, 1.0)), "between 0 and 1"),
        (lambda: S.Overlapped(hidden=0.5, interference=-1), "interference"),
        (lambda: S.Asynchronous(wasted=-0.1), "wasted"),
        (lambda: S.Disaggregated(bandwidth_gb_per_s=0), "bandwidth_gb_per_s"),
        (lambda: replace(DENSE, structure="edge"), "must be one of bsd.structures"),
        (lambda: replace(DENSE, structure=S.Edge), "must be one of bsd.structures"),
    ],
)
def test_bad_terms_are_one_sentence(make: Any, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says) as error:
        make()
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edge:round_trip_s=0.02..0.05,slowdown=4", S.Edge((0.02, 0.05), 4)),
        ("edge: round_trip_s=1e-2", S.Edge(0.01)),
        ("overlapped:hidden=0.5..0.9", S.Overlapped((0.5, 0.9))),
        ("asynchronous", S.Asynchronous()),
        ("disaggregated:bandwidth_gb_per_s=inf", S.Disaggregated()),
    ],
)
def test_a_structure_in_words(text: str, expected: Structure) -> None:
    assert structure_of(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cloud", "known are edge, overlapped, asynchronous, disaggregated"),
        ("edge", "round_trip_s=... is needed"),
        ("edge:round_trip=1", "TERM=LOW..HIGH with terms round_trip_s"),
        ("edge:round_trip_s=1..2..3", "TERM=NUMBER"),
        ("edge:round_trip_s=soon", "TERM=NUMBER"),
        ("edge:round_trip_s", "TERM=NUMBER"),
    ],
)
def test_bad_words_are_wrong_usage(text: str, says: str) -> None:
    with pytest.raises(typer.BadParameter, match=says):
        structure_of(text)


def test_every_structure_has_a_name() -> None:
    assert set(NAMES.values()) == {type(s) for s in EVERY}
    assert structure_of(None) is None


# --- answers of a fit -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(fit: bsd.Fit) -> bsd.Fit:
    """Fewer draws of the same fit: the laws asked about here hold in every draw."""
    return fit.thin(400)


def load_at(*rps: float) -> xr.Dataset:
    return bsd.grid(rps=list(rps), **WORK)


def under(structure: Structure, system: bsd.System = DENSE) -> bsd.System:
    return replace(system, structure=structure)


def test_priors_are_the_intervals_that_were_given(fit: bsd.Fit) -> None:
    edge = S.Edge(round_trip_s=(0.02, 0.05), slowdown=4, offloaded=(0.3, 0.8))
    terms = resolve(fit, under(edge), 5, seed=3).place.keywords  # type: ignore[union-attr]
    assert terms["slowdown"] == 4.0
    for name, (low, high) in {"round_trip_s": (0.02, 0.05), "offloaded": (0.3, 0.8)}.items():
        assert dict(terms[name].sizes) == {d: fit.posterior.sizes[d] for d in SAMPLE}
        found = np.quantile(terms[name], [0.05, 0.95])
        np.testing.assert_allclose(found, [low, high], rtol=0.05)
    assert terms["round_trip_s"].min() > 0 and terms["offloaded"].max() < 1


def test_draws_are_reproducible_and_shared_by_arms(few: bsd.Fit) -> None:
    edge = under(S.Edge(round_trip_s=(0.02, 0.05)))
    draws = {
        (k, seed): resolve(few, edge, k, seed=seed).place.keywords["round_trip_s"]  # type: ignore[union-attr]
        for k in (3, 5)
        for seed in (0, 1)
    }
    xr.testing.assert_identical(draws[3, 0], draws[5, 0])
    assert not draws[3, 0].equals(draws[3, 1])
    once, again = (few.latency(load_at(1.0), 5, edge).draws for _ in range(2))
    xr.testing.assert_identical(once, again)
    certain = few.latency(load_at(1.0), 5, under(S.Edge(0.03))).draws["mean_s"]
    assert once["mean_s"].std() > certain.std()


@each
def test_plain_arms_of_a_fit(few: bsd.Fit, structure: Structure) -> None:
    own = replace(DENSE, drafter=None)
    here = few.latency(load_at(1.0, 2.0), 0, own).draws
    there = few.latency(load_at(1.0, 2.0), 0, under(structure, own)).draws
    if structure.plain:
        assert not here["mean_s"].equals(there["mean_s"])
        assert set(there["support"].values.ravel()) == {"assumed structure"}
    else:
        xr.testing.assert_identical(here, there)


@each
def test_answers_say_that_the_structure_is_assumed(few: bsd.Fit, structure: Structure) -> None:
    system = under(structure)
    load = load_at(0.5, 1.0)
    assert set(few.prob_faster(load, 5, system)["support"].values.ravel()) == {"assumed structure"}
    even = few.break_even(5, system, **WORK)
    assert even.table()["support"].tolist() == ["assumed structure"]
    rows = few.schedule([0, 5], system, max_batch=4, **WORK).rows
    assert set(rows["support"]) == {"assumed structure"}


def test_a_capacity_says_which_arm_is_of_assumed_structure(few: bsd.Fit) -> None:
    far = few.capacity(4.0, [0, 5], under(S.Edge(0.5)), **WORK)
    assert far["support"].tolist() == ["measured", "assumed structure"]
    near = few.capacity(4.0, 5, under(S.Edge(0.02)), **WORK)
    assert near["median_rps"][0] > far["median_rps"][1]


@each
def test_terms_that_vanish_change_no_answer(few: bsd.Fit, structure: Structure) -> None:
    name = type(structure).__name__.lower()
    gone = under(NAMES[name](**VANISHED[name]))
    for load in (load_at(0.5, 2.0, 50.0), bsd.grid(concurrency=[1, 4, 20], **WORK)):
        for metric in ("e2e", "ttft"):
            here = few.latency(load, [0, 5], DENSE, metric=metric).draws
            there = few.latency(load, [0, 5], gone, metric=metric).draws
            for draws in ("mean_s", "run_s", "request_s", "saturated"):
                xr.testing.assert_allclose(here[draws], there[draws], rtol=1e-6)
    even, moved = (few.break_even(5, s, **WORK).table() for s in (DENSE, gone))
    assert even.drop(columns="support").equals(moved.drop(columns="support")) or np.allclose(
        even.drop(columns="support"), moved.drop(columns="support"), rtol=1e-6
    )


@each
def test_at_the_break_even_rate_both_arms_are_equal(few: bsd.Fit, structure: Structure) -> None:
    system = under(structure)
    draws = few.break_even(5, system, **WORK).draws.isel(k=0)
    rate = draws["rate_rps"]
    load = bsd.grid(rps=0.0, **WORK).assign(rate_rps=rate.fillna(0.0).drop_vars("k"))
    plain, sd = (arm_outcome(few, system, k, load, seed=0)[1].e2e_s for k in (0, 5))
    crosses = rate.notnull()
    near = np.abs(sd / plain - 1).where(crosses & np.isfinite(plain * sd), 0.0)
    assert float(near.quantile(0.99)) < 1e-4
    always, never = draws["outcome"] == "always", draws["outcome"] == "never"
    assert bool((sd < plain).where(always, True).all())
    assert bool((sd >= plain).where(never, True).all())


def test_a_far_edge_loses_and_a_free_overlap_wins(few: bsd.Fit) -> None:
    load = load_at(0.5)
    here = float(few.prob_faster(load, 5, DENSE)["prob_faster"].squeeze())
    far = float(few.prob_faster(load, 5, under(S.Edge(2.0)))["prob_faster"].squeeze())
    hidden = float(few.prob_faster(load, 5, under(S.Overlapped(1.0)))["prob_faster"].squeeze())
    assert far < 0.01 and far <= here <= hidden


def test_draft_terms_need_no_drafter_to_ask_about_plain(few: bsd.Fit) -> None:
    plain = bsd.System("dense-60m", structure=S.Edge(0.02))
    assert few.latency(load_at(1.0), 0, plain).draws["support"].item() == "measured"
    with pytest.raises(bsd.InputError, match="needs a drafter"):
        few.latency(load_at(1.0), 5, plain)


def test_the_command_line_takes_a_structure(few: bsd.Fit, tmp_path: Path) -> None:
    path = str(few.save(tmp_path / "fit.nc"))
    pair = ["--verifier", "dense-60m", "--drafter", "draft-12m"]
    work = ["--prompt", "256", "--output", "96"]
    words = ["--structure", "edge:round_trip_s=0.02..0.05,slowdown=4"]

    def run(command: str, *more: str) -> Any:
        return CliRunner().invoke(cli.app, [command, path, *work, *pair, *more])

    for command, more in {
        "predict": ["--rps", "1", "-k", "5"],
        "decide": ["--rps", "1", "-k", "5"],
        "schedule": ["-k", "0,5", "--max-batch", "4"],
        "capacity": ["--slo", "4", "-k", "5"],
    }.items():
        result = run(command, *more, *words)
        assert result.exit_code == 0, result.output
        assert "assumed structure" in result.stdout, command
        assert "assumed structure" not in run(command, *more).stdout
    assert run("predict", "--rps", "1", "--structure", "moon").exit_code == 2
    bad = run("predict", "--rps", "1", "--structure", "edge:round_trip_s=-1")
    assert bad.exit_code == 1
