"""Importing the package and asking a saved fit are light: no PyMC, no ArviZ, no matplotlib."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bayes_sd.runs.read import corpus

pytestmark = pytest.mark.process
HEAVY = ("pymc", "pytensor", "nutpie", "numba", "arviz", "matplotlib")
ASK = """
fit = b.Fit.load({fit!r})
plain, sd = b.Server("dense-60m"), b.Server("dense-60m", "draft-12m", k=5)
load, one = b.Load(rps=[1.0, 3.0], prompt=128, output=64), b.Load(rps=5, prompt=128, output=64)
for answer in (
    fit.latency(load, [plain, sd, b.Server(b.Size(1e8))]),
    fit.compare(load, sd, plain),
    fit.break_even(load, sd, plain),
    fit.schedule(load, sd, k=[2, 5], max_batch=8),
    fit.capacity(one, [plain, sd], slo_s=2.0),
    fit.next_runs(load, [plain, sd]),
):
    str(answer), answer.table, answer.draws
fit.coefficients(), fit.families(), fit.accuracy(), repr(fit)
"""


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has after this code, in which a warning is an error."""
    end = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import bayes_sd as b\n{code}\n{end}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "b.__version__, dir(b)",
        "b.Server(b.Size(8e9), b.Size(1e9), 3, 0.7, structure=b.structures.Edge(0.02))",
        f"print(b.read({str(corpus('vllm-cpu'))!r}).check())",
        "print(b.LatencyModel(law=b.Law(('host',))))",
        "b.Fit, b.errors.ConvergenceError, b.read, b.validate, b.compare_models, b.plan_sweep",
    ],
    ids=["import", "server", "read", "print-model", "names"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_a_saved_fit_is_asked_without_pymc_and_matplotlib(fit_path: Path) -> None:
    assert not loaded_after(ASK.format(fit=str(fit_path))) & set(HEAVY)


def test_plots_need_no_interactive_backend(fit_path: Path) -> None:
    plot = "fit.latency(load, [plain, sd]).plot()"
    loaded = loaded_after(ASK.format(fit=str(fit_path)) + plot)
    assert "matplotlib" in loaded and "matplotlib.pyplot" not in loaded


def test_a_bare_import_has_not_even_xarray() -> None:
    assert not loaded_after("") & {"xarray", "pandas", "scipy"}
