"""A few made-up runs, refits that need no compiling, and one compiled refitter for all tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stand_in import StandIn

import bayes_sd as bsd
from bayes_sd.model.sample import Refitter
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs


def made_up(verifiers: dict[str, float], saturated: bool = False) -> Runs:
    """Plain and one SD server a verifier at four rates, and one past saturation if asked for."""
    rng, rows = np.random.default_rng(1), []
    for i, (name, size) in enumerate(verifiers.items()):
        drafter, prompt = ("tiny", 64) if i < 2 else ("small", 128)
        for k in (0, 3):
            for share in (0.1, 0.3, 0.5, 0.7, *([1.2] if saturated else [])):
                c1, c2 = 1.2 * size / (1 + 0.3 * k), 0.1 * size
                mean = c1 / max(1 - share, 0.2) * np.exp(0.03 * rng.standard_normal())
                rows.append(
                    {
                        "verifier": name,
                        "verifier_params": 50e6 * size,
                        "drafter": drafter if k else "none",
                        "drafter_params": 2e6 if k else np.nan,
                        "draft_tokens": k,
                        "acceptance_imposed": 0.7 if k else np.nan,
                        "prompt_tokens": prompt,
                        "output_tokens": 64,
                        "rate_rps": share / c2,
                        "duration_s": 120.0,
                        "requests": (n := round(120 * share / c2)),
                        "e2e_mean_s": mean,
                        "e2e_std_s": 0.015 * mean * n**0.5,  # all means equally certain
                        "e2e_p95_s": 1.28 * mean,
                        "ttft_mean_s": 0.1 * mean,
                        "ttft_std_s": 0.02 * mean,
                        "saturated": share > 1,
                    }
                )
    return read(pd.DataFrame(rows), environment="made up")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the committed test data."""
    return Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def few() -> Runs:
    """Two verifiers, plain and one SD server each."""
    return made_up({"small": 1.0, "large": 2.0})


@pytest.fixture(scope="session")
def many() -> Runs:
    """Four verifiers and two drafters, with runs past saturation."""
    sizes = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0}
    return made_up(sizes, saturated=True)


@pytest.fixture(scope="session")
def stand_in() -> type[StandIn]:
    """What stands in for a refitter and its refits."""
    return StandIn


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[bsd.LatencyModel, StandIn]:
    """Refitters by the model that was asked for one: none of them compiles."""
    made: dict[bsd.LatencyModel, StandIn] = {}

    def refitter(model: bsd.LatencyModel, runs: Runs) -> StandIn:
        factor = 1.0 + 0.001 * len(made)
        return made.setdefault(model, StandIn(model.design(runs), factor))

    monkeypatch.setattr("bayes_sd.checks.jobs._compiled", {})
    monkeypatch.setattr(bsd.LatencyModel, "refitter", refitter)
    return made


@pytest.fixture(scope="session")
def refitter(few: Runs) -> Refitter:
    """The default model compiled for the few runs; takes some 20 seconds."""
    return bsd.LatencyModel(server_effects=("slowness",)).refitter(few)
