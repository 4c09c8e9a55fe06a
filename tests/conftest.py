"""What several test files share: the corpus, a small saved posterior of it, one compiled model."""

import os

# As many processes as cores already: threads of linear algebra would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported

from pathlib import Path
from typing import Any

import pytest

from bayes_sd.errors import ConvergenceError
from bayes_sd.fit import Fit, LatencyModel
from bayes_sd.model.sample import Refitter
from bayes_sd.runs.read import corpus, read
from bayes_sd.runs.schema import Runs

FIT = Path(__file__).parent / "data" / "fit.nc"


@pytest.fixture(scope="session")
def runs() -> Runs:
    """One shipped campaign: 144 runs of six verifiers."""
    return read(corpus("vllm-cpu"))


@pytest.fixture(scope="session")
def fit_path() -> Path:
    """The committed posterior of that campaign, 4 x 120 draws; never write to it."""
    return FIT


@pytest.fixture(scope="session")
def fit(fit_path: Path) -> Fit:
    """The same posterior, loaded: for tests that compile nothing."""
    return Fit.load(fit_path)


@pytest.fixture(scope="session")
def small_runs() -> Runs:
    """A dense and a MoE verifier in two environments, with loaded drafters and saturated runs."""
    both = read([corpus("vllm-cpu"), corpus("vllm-cpu-2")])
    return both.select(verifier=["dense-60m", "moe-e8k2"])


@pytest.fixture(scope="session")
def refitter(small_runs: Runs) -> Refitter:
    """The only model that is compiled in a session (tier `sample`)."""
    return LatencyModel().refitter(small_runs)


@pytest.fixture(scope="session")
def small_fit(small_runs: Runs, refitter: Refitter) -> Fit:
    """A fit of few draws through the front door, with the model that is compiled already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayes_sd.model.sample.compile_nutpie", lambda *_, **__: refitter.compiled)
        try:
            how: dict[str, Any] = {"draws": 200, "tune": 400, "chains": 2, "max_minutes": 0.0}
            return LatencyModel().fit(small_runs, **how, progress=False)
        except ConvergenceError as error:  # so few draws need not pass the gate
            return error.fit
