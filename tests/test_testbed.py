"""Checkpoints with known acceptance: by following the tokens, and by their files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd import cli
from bayes_sd.collector import testbed
from bayes_sd.collector.shapes import SHAPES, Shape, read_shapes
from bayes_sd.collector.sizes import read_size


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, list(words))
    return done.exit_code, done.stdout, done.stderr


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as float32, read by the format's description."""
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        assert about["dtype"] == "BF16"
        start, end = about["data_offsets"]
        bits = np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16
        found[name] = bits.view(np.float32).reshape(about["shape"])
    return found


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
        json.dumps(testbed._files(SHAPES[name], None)["config.json"])
    )
    size = read_size(tmp_path)
    assert size.params == pytest.approx(params, abs=0.06e6)
    assert size.active_params == pytest.approx(active, abs=0.06e6)
    assert size.family == ("moe" if name.startswith("moe") else "dense")


@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_sizes_are_those_of_the_written_weights(tmp_path: Path, name: str) -> None:
    (folder,) = testbed.write_testbed(tmp_path, [name])
    skipped = ("embed", "lm_head", "norm")
    counted = sum(w.size for n, w in tensors(folder).items() if not any(s in n for s in skipped))
    assert read_size(folder).params == counted


def test_the_command_writes_and_keeps(tmp_path: Path) -> None:
    code, out, _ = run("testbed", str(tmp_path), "--preset", "tiny", "--json")
    paths = [Path(p) for p in json.loads(out)["checkpoints"]]
    assert code == 0 and {p.name for p in paths} == {"tiny", "tiny-moe", "tiny-draft-a80"}
    assert all((p / "tokenizer.json").is_file() and (p / "config.json").is_file() for p in paths)
    before = (paths[0] / "model.safetensors").stat().st_mtime_ns
    assert run("testbed", str(tmp_path))[0] == 0
    assert (paths[0] / "model.safetensors").stat().st_mtime_ns == before


def test_own_shapes_come_from_yaml(tmp_path: Path) -> None:
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("mine: {hidden: 32, layers: 1, heads: 2, feed_forward: 48}\n")
    assert run("testbed", str(tmp_path), "--shapes", str(shapes), "--verifier", "mine")[0] == 0
    assert read_size(tmp_path / "mine").params == 4 * 32**2 + 3 * 32 * 48


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mine: {hiden: 32}", "mine has unknown key 'hiden'; known are hidden, layers"),
        ("mine: {hidden: 33, layers: 1, heads: 2, feed_forward: 48}", "even multiple"),
        ("mine: {hidden: 32, layers: 1, heads: 2, feed_forward: 48, experts: 4}", "together"),
        ("mine: [1]", "is not a mapping"),
        ("[", "is not YAML"),
    ],
)
def test_impossible_shapes_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text(text)
    with pytest.raises(bsd.InputError, match=reason):
        read_shapes(path)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; known are tiny"),
        (["--verifier", "llama"], "unknown model 'llama'; known are tiny"),
        (["--drafter", "tiny-draft", "--acceptance", "1.2"], "between 0 and 1, got 1.2"),
        (["--drafter", "tiny-moe", "--acceptance", "0.5"], "has experts"),
    ],
)
def test_bad_words_are_one_sentence(tmp_path: Path, words: list[str], reason: str) -> None:
    code, _, err = run("testbed", str(tmp_path), *words)
    assert code == 1 and reason in err and len(err.splitlines()) == 1


def test_an_interrupted_write_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(testbed.os, "replace", full)
    with pytest.raises(bsd.InputError, match="No space left"):
        testbed.write_checkpoint(tmp_path / "tiny", Shape(**SHAPES["tiny"].model_dump()))
    assert not list(tmp_path.iterdir())
