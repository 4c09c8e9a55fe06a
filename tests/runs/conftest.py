"""What the tests of the readers share."""

from pathlib import Path

import pytest
from runs_helpers import CORPUS, METADATA, SD, raw, write

from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs


@pytest.fixture(scope="session")
def corpus() -> Runs:
    """One shipped campaign."""
    return read(CORPUS)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A speculative run without metadata, as most people have."""
    data = {k: v for k, v in raw(SD).items() if k not in METADATA}
    return write(tmp_path / "bare.json", data)
