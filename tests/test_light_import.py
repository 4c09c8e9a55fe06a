"""`import bayes_sd` is light, and what it exports exists and is documented."""

import json
import subprocess
import sys

import pytest
from traces_helpers import CORPUS

import bayes_sd

HEAVY = ("pymc", "pytensor", "nutpie", "arviz", "matplotlib")


def loaded_after(code: str) -> dict[str, bool]:
    """Which heavy packages a fresh interpreter has after `code`, and whether it did it at all."""
    asked = (*HEAVY, "xarray")
    end = f"import json, sys; print(json.dumps({{m: m in sys.modules for m in {asked}}}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import bayes_sd; bayes_sd.__version__; dir(bayes_sd)",
        f"import bayes_sd as b; print(b.read_traces({str(CORPUS)!r}).check())",
        "import bayes_sd as b; b.grid(rps=[1, 2], prompt=512, output=128)",
        "import bayes_sd as b; b.System(b.Size(8e9), b.Size(1e9), 0.7)",
        "import bayes_sd as b; b.System('a', 'b', structure=b.structures.Edge(0.02))",
        "import bayes_sd as b; print(b.LatencyModel())",
        "import bayes_sd as b; b.Fit, b.ConvergenceError, b.predict_runs",
    ],
    ids=["import", "traces", "grid", "system", "structure", "print-model", "names"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = loaded_after(code)
    assert not [name for name in HEAVY if loaded[name]]


def test_the_check_above_can_see_an_import() -> None:
    assert loaded_after("import bayes_sd as b; b.grid(rps=1, prompt=1, output=1)")["xarray"]


def test_bare_import_does_not_even_import_xarray() -> None:
    assert not loaded_after("import bayes_sd")["xarray"]


@pytest.mark.parametrize("name", bayes_sd.__all__)
def test_every_public_name_resolves_and_says_what_it_is(name: str) -> None:
    thing = getattr(bayes_sd, name)
    assert thing.__name__.rpartition(".")[2] == name
    assert thing.__doc__ and len(thing.__doc__.split()) >= 4
    # A dataclass without a docstring gets its signature instead.
    assert not thing.__doc__.startswith(f"{name}(")


def test_public_methods_are_documented() -> None:
    for owner in (bayes_sd.Fit, bayes_sd.LatencyModel, bayes_sd.Traces):
        public = [n for n in vars(owner) if not n.startswith("_")]
        bare = [
            n
            for n in public
            if (callable(getattr(owner, n)) or isinstance(vars(owner)[n], property))
            and not getattr(owner, n).__doc__
        ]
        assert not bare, f"{owner.__name__}: {bare}"


def test_names_are_listed_and_unknown_ones_are_refused() -> None:
    assert set(bayes_sd.__all__) <= set(dir(bayes_sd))
    with pytest.raises(AttributeError, match="no attribute 'read_trace'"):
        _ = bayes_sd.read_trace
