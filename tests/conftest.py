"""What several test files share: the corpus, and one fit of all of it."""

from pathlib import Path

import pytest
from traces_helpers import CORPUS

import bayes_sd as bsd


@pytest.fixture(scope="session")
def traces() -> bsd.Traces:
    """The shipped corpus."""
    return bsd.read_traces(CORPUS)


@pytest.fixture(scope="session")
def fit(traces: bsd.Traces) -> bsd.Fit:
    """One fit of the whole corpus; takes most of a minute, so ask for it only where needed."""
    return bsd.LatencyModel().fit(traces, seed=1, progress=False)


@pytest.fixture(scope="session")
def fit_path(fit: bsd.Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same fit, saved."""
    return fit.save(tmp_path_factory.mktemp("fit") / "fit.nc")
