"""What ``vllm bench sweep serve`` writes, read without metadata: a real sweep, and variations."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs import vllm
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

SWEEP = Path(__file__).parents[1] / "data" / "sweep"
SIZES = {"verifier_params": 12e6, "drafter_params": 1e6}
SD = next(SWEEP.glob("measured/*k3*/runs/*c4*/run=0.json"))


@pytest.fixture(scope="module")
def sweep() -> Runs:
    return read(SWEEP / "measured", environment="2 cores")


def result(**changes: Any) -> dict[str, Any]:
    """The SD run at concurrency 4 with keys changed, or left out where None."""
    data = json.loads(SD.read_text()) | changes
    return {key: value for key, value in data.items() if value is not None}


def row(folder: Path, data: dict[str, Any], **constants: Any) -> Any:
    path = folder / "run=0.json"
    path.write_text(json.dumps(data))
    runs = read(path, **constants)
    assert len(runs) == 1
    return runs.table.iloc[0]


def test_servers_and_loads_are_those_of_the_sweep(sweep: Runs) -> None:
    assert len(sweep) == 10 and sweep.set_aside.empty
    table = sweep.table
    assert set(table.verifier) == {"dense-12m"} and set(table.environment) == {"2 cores"}
    assert table.groupby("drafter").size().to_dict() == {"draft-3m-a80": 5, "none": 5}
    sd, plain = table[table.arm == "sd"], table[table.arm == "plain"]
    assert set(sd.draft_tokens) == {3} and set(plain.draft_tokens) == {0}
    assert set(sd.drafter_method) == {"draft_model"} and set(plain.drafter_method) == {""}
    assert set(sd.drafter_path) == {"models/draft-3m-a80"} and set(plain.drafter_path) == {""}
    for part in (sd, plain):
        assert sorted(part.concurrency.dropna()) == [1, 2, 4]
        assert sorted(part.rate_rps.dropna()) == [0.5, 1]
    assert set(table.prompt_tokens) == {32} and set(table.output_tokens) == {32}
    closed = table[table.loop == "closed"]
    np.testing.assert_allclose(closed.in_flight, closed.concurrency, rtol=0.05)


def test_acceptance_is_that_of_the_checkpoints(sweep: Runs) -> None:
    """The drafter agrees on 80% of the vocabulary, whatever came before."""
    counts = sweep.table[["drafts", "accepted_1", "accepted_2", "accepted_3"]].sum()
    shares = counts.to_numpy()[1:] / counts.to_numpy()[:-1]
    np.testing.assert_allclose(shares, 0.8, atol=4 * np.sqrt(0.16 / counts.to_numpy()[-1]))


def test_sizes_are_those_of_the_model_folders(sweep: Runs) -> None:
    # Of the shapes: 7 layers, hidden 384, feed-forward 1024; 3 layers, hidden 192, 512.
    assert set(sweep.table.verifier_params) == {7 * (4 * 384**2 + 3 * 384 * 1024)}
    assert set(sweep.table.drafter_params.dropna()) == {3 * (4 * 192**2 + 3 * 192 * 512)}
    assert set(sweep.table.verifier_layers) == {7}
    assert set(sweep.table.verifier_kv_bytes) == {4 * 7 * 384}


def test_sizes_are_given_where_the_model_folders_are_gone(tmp_path: Path) -> None:
    shutil.copytree(SWEEP / "measured", tmp_path / "measured")
    with pytest.raises(InputError, match="verifier_params is missing; give it"):
        read(tmp_path)
    table = read(tmp_path, **SIZES).table
    assert set(table.verifier_params) == {12e6} and table.verifier_layers.isna().all()
    assert set(table.drafter_params.dropna()) == {1e6}


def test_given_sizes_and_names_win(sweep: Runs) -> None:
    table = read(SWEEP / "measured", verifier="llama", verifier_params=12e6).table
    assert set(table.verifier) == {"llama"} and set(table.verifier_params) == {12e6}
    assert table.verifier_layers.isna().all()


def test_files_beside_the_runs_are_no_runs(tmp_path: Path) -> None:
    shutil.copytree(SWEEP, tmp_path / "s")
    runs = tmp_path / "s" / "measured"
    folder = next(runs.glob("*k3*/runs/*c4*"))
    (folder / "warmup.json").write_text(json.dumps(result(run_number=-1)))
    (folder / "run=1.failure.json").write_text('{"run_number": 1, "error": "gone"}')
    (folder.parent / "SERVE--x-failure.json").write_text('{"error": "gone"}')
    read_again = read(runs)
    assert len(read_again) == 10 and read_again.set_aside.empty
    with pytest.raises(InputError, match="is the warm-up of a sweep"):
        read(folder / "warmup.json")


def test_a_summary_without_its_runs_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "summary.csv").write_text("a,b\n1,2\n")
    assert not vllm.companion(tmp_path / "summary.json")
    assert not vllm.companion(tmp_path / "summary.csv")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run=0.json").write_text("{}")
    assert vllm.companion(tmp_path / "summary.csv")


CONFIG = {"method": "draft_model", "model": "models/draft-3m-a80", "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    "given",
    [
        {"speculative_config": CONFIG},
        {"speculative_config": json.dumps(CONFIG)},
        {"speculative-config": CONFIG},
        {f"speculative_config.{key}": value for key, value in CONFIG.items()},
        {f"sc.{key.replace('_', '-')}": value for key, value in CONFIG.items()},
        {"speculative_config": {k: v for k, v in CONFIG.items() if k != "method"}},
    ],
    ids=["object", "text", "hyphen", "dotted", "short", "no method"],
)
def test_ways_to_give_a_speculative_config(tmp_path: Path, given: dict[str, Any]) -> None:
    run = row(tmp_path, result(**{"speculative_config": None, **given}), **SIZES)
    assert (run.drafter, run.draft_tokens, run.drafter_method) == ("draft-3m-a80", 3, "draft_model")
    assert run.drafter_path == "models/draft-3m-a80" and run.accepted_tokens == 944


@pytest.mark.parametrize(
    ("config", "drafter", "method", "path"),
    [
        ({"model": "org/EAGLE3-llama"}, "EAGLE3-llama", "eagle3", "org/EAGLE3-llama"),
        ({"model": "org/EAGLE-llama"}, "EAGLE-llama", "eagle", "org/EAGLE-llama"),
        ({"model": "/far/draft/"}, "draft", "draft_model", "/far/draft/"),
        ({"method": "mtp"}, "mtp", "mtp", ""),
        ({"method": "ngram", "prompt_lookup_max": 4}, "ngram", "ngram", ""),
        ({"method": "[ngram]", "model": "[ngram]"}, "ngram", "ngram", ""),
        ({"model": "ngram"}, "ngram", "ngram", ""),
    ],
)
def test_drafters_are_named_by_model_or_method(
    tmp_path: Path, config: dict[str, Any], drafter: str, method: str, path: str
) -> None:
    data = result(speculative_config=config | {"num_speculative_tokens": 3})
    run = row(tmp_path, data, verifier_params=12e6)
    assert (run.drafter, run.drafter_method, run.drafter_path) == (drafter, method, path)


def test_a_drafter_that_is_loaded_and_never_used(tmp_path: Path) -> None:
    idle = CONFIG | {"num_speculative_tokens_per_batch_size": [[1, 64, 0], [65, 512, 0]]}
    counts = {key: None for key in result() if key.startswith("spec_decode")}
    run = row(tmp_path, result(speculative_config=idle, **counts), **SIZES)
    assert (run.arm, run.draft_tokens, run.drafter) == ("sd", 0, "draft-3m-a80")


def test_imposed_acceptance_is_per_token(tmp_path: Path) -> None:
    rates = {"synthetic_acceptance_rates": [0.8, 0.64, 0.512]}
    run = row(tmp_path, result(speculative_config=CONFIG | rates), **SIZES)
    assert run.acceptance_imposed == 0.8
    uneven = {"synthetic_acceptance_rates": [0.8, 0.5, 0.4]}
    run = row(tmp_path, result(speculative_config=CONFIG | uneven), **SIZES)
    assert np.isnan(run.acceptance_imposed)


@pytest.mark.parametrize(
    ("changes", "constants", "reason"),
    [
        (
            {
                "speculative_config": CONFIG
                | {"num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 64, 0]]}
            },
            {},
            "must give one number of draft tokens for all batch sizes",
        ),
        (
            {"speculative_config": CONFIG | {"num_speculative_tokens_per_batch_size": [3]}},
            {},
            "must give one number of draft tokens for all batch sizes",
        ),
        ({"speculative_config": "k=3"}, {}, "speculative_config must be a JSON object, got 'k=3'"),
        ({"speculative_config": [3]}, {}, "speculative_config must be a JSON object"),
        ({"num_speculative_tokens": 2}, {}, "draft_tokens is 2 in the metadata but 3 in spec"),
        ({}, {"draft_tokens": 5}, "draft_tokens is 3 in the file but 5 in the arguments"),
        (
            {"speculative_config": CONFIG | {"num_speculative_tokens": 2}},
            {},
            "given for 3 positions but draft_tokens is 2",
        ),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, changes: dict[str, Any], constants: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "run=0.json"
    path.write_text(json.dumps(result(**changes)))
    with pytest.raises(InputError, match=reason) as refusal:
        read(path, **SIZES, **constants)
    assert "\n" not in str(refusal.value)
