"""What all answers have: draws, a table with units, a plot, a sentence; at rates and in flight."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from questions import PLAIN, SD, SHORT, in_flight, rps

from bayes_sd.answers.answer import LABELS, Answer
from bayes_sd.fit import Fit
from bayes_sd.runs.load import Load

QUESTIONS: dict[str, Callable[..., Answer]] = {
    "latency": lambda fit, load, **more: fit.latency(load, [PLAIN, SD], **more),
    "compare": lambda fit, load, **more: fit.compare(load, SD, PLAIN, **more),
    "break_even": lambda fit, load, **more: fit.break_even(load, SD, PLAIN, **more),
    "schedule": lambda fit, load, **more: fit.schedule(load, SHORT, k=[2, 5], max_batch=8, **more),
    "capacity": lambda fit, load, **more: fit.capacity(load, [PLAIN, SD], slo_s=2.0, **more),
    "next_runs": lambda fit, load, **more: fit.next_runs(load, [PLAIN, SD], **more),
}
LOADS: dict[str, Callable[..., Load]] = {"rates": rps, "concurrencies": in_flight}
UNIT = re.compile(
    r"(_s|_ms|_rps|_minute|minutes|_tokens|_hour|concurrency|replicas|needed|_regret)$"
    r"|^(rate_rps|prob_\w+|speedup_p\d\d|lo|hi|k)$"
)
every = pytest.mark.parametrize("question", QUESTIONS)
each_axis = pytest.mark.parametrize("axis", LOADS)


def ask(fit: Fit, question: str, axis: str, *values: float, **more: Any) -> Answer:
    """Ask about several loads, or about one where a question takes only one."""
    values = values or ((2.0,) if question == "capacity" else (2.0, 3.0))
    return QUESTIONS[question](fit, LOADS[axis](*values), **more)


@every
@each_axis
def test_an_answer_has_draws_table_plot_and_sentence(fit: Fit, question: str, axis: str) -> None:
    answer = ask(fit, question, axis)
    assert isinstance(answer, Answer) and isinstance(answer.draws, xr.Dataset)
    assert (answer.draws.sizes["chain"], answer.draws.sizes["draw"]) == fit.shape
    table = answer.table
    assert isinstance(table, pd.DataFrame)
    for name, column in table.items():
        if column.dtype.kind in "iuf":
            assert UNIT.search(str(name)), f"{name} has no unit"
    if "support" in table:
        assert set(table["support"]) <= set(LABELS)
    sentence = str(answer)
    assert sentence.endswith(".") and "nan" not in sentence and len(sentence) > 40
    assert "/s" in sentence or "flight" in sentence or question in ("capacity", "next_runs")
    assert table.to_string(index=False) in repr(answer) and sentence in repr(answer)
    figure = Figure()
    given = figure.subplots()
    assert answer.plot(given) is given and given.get_xlabel()
    alone = answer.plot()
    assert isinstance(alone, Axes) and alone.figure is not figure
    assert alone.has_data()


@pytest.fixture(scope="module")
def again(fit_path: Path) -> Fit:
    return Fit.load(fit_path)


@every
def test_equal_seeds_give_equal_answers_of_a_loaded_fit_too(
    fit: Fit, again: Fit, question: str
) -> None:
    one, other = (ask(f, question, "rates", seed=3).draws for f in (fit, again))
    xr.testing.assert_identical(one, other)
    if question in ("latency", "schedule"):
        assert not one.equals(ask(fit, question, "rates", seed=4).draws)


@pytest.mark.parametrize("question", ["latency", "compare", "schedule"])
@each_axis
def test_a_load_is_answered_the_same_whatever_else_is_asked(
    fit: Fit, question: str, axis: str
) -> None:
    more = {"of": "request"} if question == "compare" else {}
    dim = "rate_rps" if axis == "rates" else "concurrency"
    many, back, alone = (
        ask(fit, question, axis, *values, **more).draws.sel({dim: [2.0]})
        for values in ((2.0, 3.0), (3.0, 2.0), (2.0,))
    )
    xr.testing.assert_identical(many, alone)
    xr.testing.assert_identical(many, back)


def test_a_server_is_answered_the_same_whoever_else_is_asked(fit: Fit) -> None:
    load = rps(1.0, 4.0)
    both = fit.latency(load, [PLAIN, SD, SHORT]).draws
    alone = fit.latency(load, SD).draws
    xr.testing.assert_identical(both.sel(server=[str(SD)]), alone)
    assert fit.latency(load, [SD, SD]).draws.sizes["server"] == 1


def test_a_load_of_one_cell_is_answered_as_in_a_list(fit: Fit) -> None:
    scalar = Load(rps=2.0, prompt=256, output=96)
    one = fit.compare(scalar, SD, PLAIN)
    xr.testing.assert_identical(
        one.draws, fit.compare(rps(2.0), SD, PLAIN).draws.isel(rate_rps=0, drop=True)
    )
    assert one.table["support"].tolist() == ["measured"] and len(str(one)) > 40
    assert np.isfinite(fit.latency(scalar, SD).table["mean_p50_s"]).all()
