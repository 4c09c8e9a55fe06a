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
from bayes_sd.answers.next_runs import NextRuns
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


@pytest.mark.parametrize("question", ["latency", "compare", "schedule", "next_runs"])
@each_axis
def test_a_load_is_answered_the_same_whatever_else_is_asked(
    fit: Fit, question: str, axis: str
) -> None:
    more = {"of": "run"} if question == "compare" else {}
    dim = "rate_rps" if axis == "rates" else "concurrency"

    def at_two(*values: float) -> tuple[xr.Dataset, pd.DataFrame]:
        answer = ask(fit, question, axis, *values, **more)
        rows = answer.choices if isinstance(answer, NextRuns) else answer.table
        rows = rows[rows[dim] == 2.0].reset_index(drop=True) if dim in rows else rows
        return answer.draws.sel({dim: [2.0]}), rows

    draws, rows = at_two(2.0)
    # Others beside it, before it, of no use, where all servers saturate.
    for values in ((3.0, 2.0), (1.0, 2.0, 2.5, 60.0)):
        again = at_two(*values)
        xr.testing.assert_identical(draws, again[0])
        pd.testing.assert_frame_equal(rows, again[1], check_exact=True)


def test_other_lengths_beside_it_change_no_answer(fit: Fit) -> None:
    alone = fit.latency(Load(rps=2.0, prompt=256, output=96), SD).draws
    for rates, prompts in (([2.0, 1.0], [128, 256]), ([3.0, 2.0], [256, 300, 64])):
        many = fit.latency(Load(rps=rates, prompt=prompts, output=[64, 96]), SD).draws
        at = {"rate_rps": 2.0, "prompt_tokens": 256.0, "output_tokens": 96.0}
        xr.testing.assert_equal(many.sel(at).drop_vars(at), alone)
    far = fit.latency(Load(rps=2.0, prompt=[256, 1e5], output=96), SD, extrapolate=True)
    assert far.table["support"].tolist() == ["measured", "extrapolated"]
    near = fit.latency(Load(rps=2.0, prompt=[250, 1e5], output=96), SD.with_k(4), extrapolate=True)
    assert near.table["support"].tolist() == ["interpolated", "extrapolated"]


@pytest.mark.parametrize("question", ["latency", "capacity", "next_runs"])
def test_a_server_is_answered_the_same_whoever_else_is_asked(fit: Fit, question: str) -> None:
    ask_of: dict[str, Callable[..., Answer]] = {
        "latency": lambda servers: fit.latency(rps(1.0, 4.0), servers),
        "capacity": lambda servers: fit.capacity(rps(2.0), servers, slo_s=2.0),
        "next_runs": lambda servers: fit.next_runs(rps(1.0, 4.0), servers),
    }
    few, more = (ask_of[question](each).draws for each in ([SD, PLAIN], [SHORT, PLAIN, SD]))
    for name in map(str, (PLAIN, SD)):
        xr.testing.assert_identical(few.sel(server=[name]), more.sel(server=[name]))
    assert fit.latency(rps(1.0), [SD, SD]).draws.sizes["server"] == 1


def test_a_load_of_one_cell_is_answered_as_in_a_list(fit: Fit) -> None:
    scalar = Load(rps=2.0, prompt=256, output=96)
    one = fit.compare(scalar, SD, PLAIN)
    xr.testing.assert_identical(
        one.draws, fit.compare(rps(2.0), SD, PLAIN).draws.isel(rate_rps=0, drop=True)
    )
    assert one.table["support"].tolist() == ["measured"] and len(str(one)) > 40
    assert np.isfinite(fit.latency(scalar, SD).table["mean_p50_s"]).all()


def test_names_stand_beside_the_ends_of_lines_apart_from_each_other(fit: Fit) -> None:
    servers = [PLAIN, SD, SD.with_k(2), SD.with_k(3)]
    load = Load(concurrency=[1, 4, 16], prompt=128, output=64)
    ax = fit.latency(load, servers, extrapolate=True).plot()
    fit.latency(load, servers[:2], extrapolate=True).plot(ax)  # names are placed anew, not twice
    heights = [text.get_position()[1] for text in ax.texts]
    inches = ax.get_window_extent().height / ax.figure.dpi
    assert len(heights) == 6 and min(np.diff(sorted(heights))) * inches >= 0.159
    assert {text.get_text() for text in ax.texts} == {"plain", "k = 2", "k = 3", "k = 5"}
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_legend() is None


def test_a_server_that_no_load_shows_is_named_as_saturated(fit: Fit) -> None:
    ax = fit.latency(Load(rps=[500, 600], prompt=128, output=64), [PLAIN, SD]).plot()
    assert {text.get_text() for text in ax.texts} == {"plain: saturated", "k = 5: saturated"}
