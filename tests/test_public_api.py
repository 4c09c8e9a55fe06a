"""The public names: exactly these, each documented as numpydoc asks, with examples that run."""

import doctest
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_type_hints

import pytest

import bayes_sd as bsd
from bayes_sd.answers.answer import Answer
from bayes_sd.runs.schema import Runs

NAMES = {
    *("Fit", "LatencyModel", "Law", "Load", "Machine", "Server", "Size"),
    *("compare_models", "plan_sweep", "read", "reference", "validate"),
    *("errors", "structures"),
}
QUESTIONS = ("latency", "compare", "break_even", "schedule", "capacity", "next_runs")
OWN = [bsd.Fit, bsd.LatencyModel, bsd.Load, bsd.Machine, bsd.Server, bsd.Size, Runs]
MANY = 3  # parameters, from which one line no longer says what each is


def sections(thing: Any) -> set[str]:
    """Numpydoc sections of a docstring."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    return {a for a, b in pairwise(lines) if a and set(b) == {"-"}}


def members(owner: type) -> list[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    fields = getattr(owner, "__dataclass_fields__", {})
    return [
        (name, value)
        for name, value in vars(owner).items()
        if not name.startswith("_") and name not in fields
    ]


def parameters(function: Callable[..., Any]) -> list[str]:
    return [p for p in inspect.signature(function).parameters if p not in ("self", "cls", "fit")]


def says_what_it_returns(function: Callable[..., Any]) -> bool:
    """By a section, or by an annotation that names a documented class of ours."""
    if "Returns" in sections(function):
        return True
    answer = get_type_hints(function).get("return")
    name = function.__qualname__.rpartition(".")[0]
    returned = getattr(bsd, name, None) if str(answer) in ("typing.Self", f"'{name}'") else answer
    return inspect.isclass(returned) and bool(sections(returned))


def test_the_public_names_are_exactly_these() -> None:
    assert set(bsd.__all__) == NAMES and set(dir(bsd)) >= NAMES
    assert bsd.__version__.count(".") == 2
    for leaked in ("read_traces", "System", "np", "lazy_loader_stub"):
        with pytest.raises(AttributeError, match=f"attribute {leaked}"):
            getattr(bsd, leaked)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(bsd, name)
    assert thing.__name__.rpartition(".")[2] == name
    documentation = inspect.getdoc(thing) or ""
    assert len(documentation.split()) >= 4
    assert not documentation.startswith(f"{name}(")  # what a dataclass has without one
    if not inspect.ismodule(thing):
        takes = {"Parameters"} if inspect.signature(thing).parameters else set()
        assert {"Examples", *takes} <= sections(thing)
        assert inspect.isclass(thing) or says_what_it_returns(thing)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_examples_run(name: str) -> None:
    thing = getattr(bsd, name)
    where = {} if inspect.ismodule(thing) else {"globs": vars(inspect.getmodule(thing)).copy()}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(thing, name, **where):
        assert runner.run(test).failed == 0, test.name


@pytest.mark.parametrize("owner", OWN, ids=lambda owner: owner.__name__)
def test_every_public_method_is_documented(owner: type) -> None:
    for name, raw in members(owner):
        value = getattr(owner, name)
        documentation = inspect.getdoc(raw.func if hasattr(raw, "func") else value) or ""
        assert len(documentation.split()) >= 2, name
        if callable(value) and len(parameters(value)) >= MANY:
            assert "Parameters" in sections(value) and says_what_it_returns(value), name


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_one_order_of_arguments_and_documents_its_answer(name: str) -> None:
    question = getattr(bsd.Fit, name)
    assert parameters(question)[0] == "load" and "server" in parameters(question)[1]
    assert parameters(question)[-2:] == ["extrapolate", "seed"]
    assert "Parameters" in sections(question) and says_what_it_returns(question)
    text = inspect.getdoc(question) or ""
    for parameter in parameters(question):
        assert parameter in text, f"{parameter} is not documented"
    answer = get_type_hints(inspect.unwrap(question))["return"]
    assert issubclass(answer, Answer) and "Parameters" in sections(answer)
    for attribute in ("table", "plot"):
        assert inspect.getdoc(getattr(answer, attribute))
