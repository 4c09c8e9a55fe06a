"""Refits on any executor: the same results, nothing lost with a worker, kept ones found again."""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stand_in import Instant, StandIn
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.checks import jobs
from bayes_sd.checks.compare import Comparison, compare_models
from bayes_sd.checks.validate import validate
from bayes_sd.cli.app import app
from bayes_sd.errors import InputError
from bayes_sd.runs.read import corpus
from bayes_sd.runs.schema import Runs

MODELS = {"good": Instant(factor=1.001), "bad": Instant(factor=1.1)}
CHECKS = ["runs", "verifier", "highest_load", "priors"]


def same(one: Comparison, other: Comparison) -> None:
    """The same to the last bit."""
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    for name, own in one.left_out.items():
        for part in ("rows", "folds", "pairs"):
            tables = (getattr(x.left_out[name], part) for x in (one, other))
            pd.testing.assert_frame_equal(*tables, check_exact=True)
            assert len(getattr(own, part))


@pytest.fixture(scope="module")
def serial(many: Runs) -> Comparison:
    """Compared in this process, one refit after the other."""
    return compare_models(many, MODELS)


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A client of a Dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster) as client:
        yield client


def pool(workers: int = 2) -> ProcessPoolExecutor:
    """New processes that share nothing with this one."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def test_threads_give_the_same_to_the_last_bit(many: Runs, serial: Comparison) -> None:
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as executor:
            same(compare_models(many, MODELS, executor=executor), serial)


@pytest.mark.process
def test_processes_give_the_same_to_the_last_bit(many: Runs, serial: Comparison) -> None:
    with pool() as executor:
        same(compare_models(many, MODELS, executor=executor), serial)


@pytest.mark.process
def test_a_dask_cluster_gives_the_same_to_the_last_bit(
    many: Runs, serial: Comparison, dask: Any
) -> None:
    same(compare_models(many, MODELS, executor=dask.get_executor()), serial)
    checks = validate(many, MODELS["good"], only=CHECKS, executor=dask.get_executor())
    assert checks and [*map(str, checks)] == [
        *map(str, validate(many, MODELS["good"], only=CHECKS))
    ]


@pytest.mark.process
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_killed_worker_loses_nothing(
    many: Runs, serial: Comparison, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "1.kill").touch()
    models = {"good": MODELS["good"], "bad": Instant(factor=1.1, folder=str(tmp_path))}
    with pool() as own:
        dask = kind == "dask"
        executor = request.getfixturevalue("dask").get_executor() if dask else own
        same(compare_models(many, models, executor=executor), serial)
    assert not [*tmp_path.glob("*.kill")]


@pytest.mark.process
def test_an_executor_that_always_dies_is_one_sentence_and_the_next_start_goes_on(
    many: Runs, serial: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "TRIES", 1)
    keep = tmp_path / "kept"
    for name in ("1.kill", "2.kill"):
        (tmp_path / name).touch()
    models = {"good": MODELS["good"], "bad": Instant(factor=1.1, folder=str(tmp_path))}
    # One worker ends all refits of the first model before it comes to the second.
    with pytest.raises(InputError) as caught, pool(1) as executor:
        compare_models(many, models, executor=executor, keep=keep)
    assert re.fullmatch(
        r"The executor died \(BrokenProcessPool\(.*\)\); 4 of 8 refits were done and are kept in "
        + re.escape(f"{keep}."),
        str(caught.value),
    )
    assert len([*keep.iterdir()]) == 4
    same(compare_models(many, models, keep=keep), serial)


class Dead(Executor):
    """Takes no work."""

    def submit(self, *what: Any, **how: Any) -> Any:
        raise RuntimeError("gone")


def test_without_a_folder_the_sentence_names_the_option(many: Runs) -> None:
    with pytest.raises(
        InputError, match=r"died \(RuntimeError\('gone'\)\); 0 of 8 .*lost, as keep="
    ):
        compare_models(many, MODELS, executor=Dead())


@pytest.fixture
def refits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is refitted."""
    done: list[Any] = []

    def refit(own: StandIn, *mask: Any, **how: Any) -> StandIn:
        done.append(how["seed"])
        return own

    monkeypatch.setattr(StandIn, "refit", refit)
    return done


def test_kept_refits_are_for_the_same_runs_model_seed_sampling_and_versions(
    many: Runs, few: Runs, tmp_path: Path, refits: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anew(runs: Runs = many, first: bsd.LatencyModel = MODELS["good"], **how: Any) -> int:
        before = len(refits)
        compare_models(runs, {**MODELS, "good": first}, keep=tmp_path, **how)
        return len(refits) - before

    assert anew() == 8 and anew() == 0
    assert anew(seed=2) == 8 and anew(draws=100) == 8 and anew(cores=1) == 0
    assert anew(runs=few) == 4 and anew(runs=few) == 0
    assert anew(first=Instant(factor=1.002)) == 4
    assert anew(first=MODELS["good"].with_prior("read_weights", b=0.3)) == 4
    assert anew(by="fifth") == 10
    next(iter(tmp_path.iterdir())).write_text("{")
    assert sum(anew(**how) for how in ({}, {"seed": 2}, {"draws": 100}, {"by": "fifth"})) <= 1
    jobs._model_key.cache_clear()
    monkeypatch.setattr(jobs, "version", lambda name: "0.0")
    assert anew() == 8
    jobs._model_key.cache_clear()


def test_validation_keeps_its_refits_too(many: Runs, tmp_path: Path, refits: list) -> None:
    first = validate(many, MODELS["good"], only=CHECKS, keep=tmp_path)
    count = len(refits)
    again = validate(many, MODELS["good"], only=CHECKS, keep=tmp_path)
    assert len(refits) == count == 5 + 4 + 1 + 3
    assert [*map(str, first)] == [*map(str, again)]


def test_the_seed_of_a_fold_is_its_own(many: Runs, refits: list) -> None:
    compare_models(many, MODELS)
    assert len(set(refits)) == 4 and refits[:4] == refits[4:]
    assert np.unique(refits).size == 4


def test_a_folder_that_cannot_be_made_is_refused(many: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"keep= .*file: cannot be a folder"):
        compare_models(many, MODELS, keep=tmp_path / "file")


def broken(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a mistake")


def test_a_mistake_in_a_refit_is_not_blamed_on_the_executor(
    many: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "refit", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake") as caught:
        compare_models(many, MODELS)
    assert "in broken" in caught.value.__notes__[0]


def test_the_command_keeps_refits_where_it_is_told(stand_ins: dict, tmp_path: Path) -> None:
    command = [
        "compare-models",
        str(corpus("vllm-cpu")),
        "--models",
        "full,no stalls",
        "--jobs",
        "2",
    ]
    first, again = (
        CliRunner().invoke(app, [*command, "--keep", str(tmp_path / "kept")]) for _ in range(2)
    )
    assert first.exit_code == 0 and first.stdout == again.stdout
    assert len([*(tmp_path / "kept").iterdir()]) == 12
    assert all(len(refitter.masks) == 6 for refitter in stand_ins.values())
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, [*command, "--keep", str(tmp_path / "file")])
    assert refused.exit_code == 1 and refused.stderr.startswith("error: --keep ")
