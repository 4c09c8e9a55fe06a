"""Checkpoints with known acceptance: by following the tokens, and by their files."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.sizes import Size

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import testbed  # noqa: E402


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as float32, read by the format's description."""
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    arrays = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        assert about["dtype"] == "BF16"
        start, end = about["data_offsets"]
        bits = np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16
        arrays[name] = bits.view(np.float32).reshape(about["shape"])
    return arrays


def test_successors_form_one_cycle() -> None:
    after, token = testbed.successors(), 0
    seen = set()
    while token not in seen:
        seen.add(token)
        token = after[token]
    assert token == 0 and len(seen) == testbed.VOCABULARY


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_a_drafter_agrees_on_its_share_of_tokens(alpha: float) -> None:
    right, drafted = testbed.successors(), testbed.successors(alpha)
    assert np.mean(right == drafted) == pytest.approx(alpha, abs=1e-3)
    assert len(set(drafted)) == testbed.VOCABULARY


def test_acceptance_by_position_is_that_of_independent_tokens() -> None:
    right, drafted = testbed.successors(), testbed.successors(0.8)
    start = np.arange(testbed.VOCABULARY)
    verified, guessed, alive = start, start, np.ones(testbed.VOCABULARY, bool)
    for position in range(1, 6):
        verified, guessed = right[verified], drafted[guessed]
        alive &= verified == guessed
        assert alive.mean() == pytest.approx(0.8**position, abs=0.025)


def test_the_weights_say_the_successor(tmp_path: Path) -> None:
    (folder,) = testbed.write_testbed(tmp_path, ["tiny"])
    weights = tensors(folder)
    # Blocks add nothing, so the head sees the normed embedding of the current token.
    assert not any(np.any(w) for n, w in weights.items() if "o_proj" in n or "down_proj" in n)
    hidden = weights["model.embed_tokens.weight"]
    hidden = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True))
    said = (hidden @ weights["lm_head.weight"].T).argmax(axis=1)
    assert np.array_equal(said, testbed.successors())


@pytest.mark.parametrize(
    ("name", "params", "active"),
    [
        ("dense-25m", 25.7e6, 25.7e6),
        ("dense-60m", 61.7e6, 61.7e6),
        ("dense-115m", 117.0e6, 117.0e6),
        ("dense-200m", 205.5e6, 205.5e6),
        ("moe-e8k2", 212.4e6, 70.8e6),
        ("moe-e16k2", 306.8e6, 59.1e6),
        ("draft-3m", 1.3e6, 1.3e6),
        ("draft-12m", 10.6e6, 10.6e6),
    ],
)
def test_sizes_are_those_of_the_shipped_traces(
    tmp_path: Path, name: str, params: float, active: float
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(testbed._files(testbed.SHAPES[name], None)["config.json"])
    )
    size = Size.read(tmp_path)
    assert size.params == pytest.approx(params, abs=0.06e6)
    assert size.active == pytest.approx(active, abs=0.06e6)
    assert bool(size.experts) == name.startswith("moe")


@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_sizes_are_those_of_the_written_weights(tmp_path: Path, name: str) -> None:
    (folder,) = testbed.write_testbed(tmp_path, [name])
    skipped = ("embed", "lm_head", "norm")
    counted = sum(w.size for n, w in tensors(folder).items() if not any(s in n for s in skipped))
    assert Size.read(folder).params == counted


def test_the_command_writes_and_keeps(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "testbed.py"), str(tmp_path), "--preset", "tiny"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [Path(line) for line in written.splitlines()]
    assert {p.name for p in paths} == {"tiny", "tiny-moe", "tiny-draft-a80"}
    assert all((p / "tokenizer.json").is_file() and (p / "config.json").is_file() for p in paths)
    before = (paths[0] / "model.safetensors").stat().st_mtime_ns
    assert testbed.write_testbed(tmp_path, *testbed.PRESETS["tiny"]) == paths
    assert (paths[0] / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((33, 1, 2, 48), "even multiple"),
        ((32, 1, 2, 48, 4), "experts_per_token"),
        ((32, 1, 2, 48, 4, 5), "experts_per_token"),
    ],
)
def test_impossible_shapes_are_refused(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        testbed.Shape(*shape)


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ((["llama"],), "unknown model 'llama'; known are tiny"),
        (([], ["tiny-draft"], [1.2]), "between 0 and 1, got 1.2"),
        (([], ["tiny-draft"]), "drafters need acceptances"),
        (([], ["tiny-moe"], [0.5]), "has experts"),
    ],
)
def test_impossible_checkpoints_are_refused(
    tmp_path: Path, models: tuple[Any, ...], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        testbed.write_testbed(tmp_path, *models)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(testbed.os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        testbed.write_checkpoint(tmp_path / "tiny", testbed.SHAPES["tiny"])
    assert not list(tmp_path.iterdir())
