"""Mutated inputs of every reader: a sample of what the benchmark does."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import mutations

READERS = mutations.readers()


@pytest.mark.process
@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_are_read_or_refused_in_words(name: str) -> None:
    found = mutations.run(READERS[name], count=25, seed=len(name), show=9)
    assert sum(found.values()) == 25 and found["read"] and found["refused"]
    assert not any(found[column] for column in mutations.BAD), found


def test_faults_of_a_reader_are_counted() -> None:
    def reader(fault: object) -> mutations.Reader:
        seen = iter([True])

        def call(_: Path) -> object:
            if next(seen, False):
                return mutations.Size(1e9)
            return fault() if callable(fault) else fault

        return mutations.Reader({"a.json": {"a": 1}}, "a.json", call)

    def warn() -> mutations.Size:
        mutations.warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        return mutations.Size(1e9)

    def refuse() -> None:
        raise mutations.InputError("x" * 10_000)

    def fail() -> None:
        raise KeyError("a")

    worse = mutations.Size(1e9)
    object.__setattr__(worse, "params", -1.0)
    for fault, column in (
        (warn, "warning"),
        (fail, "other"),
        (worse, "impossible"),
        (refuse, "refused"),
    ):
        assert mutations.run(reader(fault), 3, 1)[column] == 3
