"""One HTML file that says what a fit says of one question, and computes answers to others."""

import base64
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.answers import answer
from bayes_sd.answers.break_even import break_even
from bayes_sd.answers.compare import Comparison, compare, default_loads, measured_systems
from bayes_sd.answers.datatree import to_datatree
from bayes_sd.answers.fitted import accuracy, coefficient_table, families, misfits, plot_collapse
from bayes_sd.answers.latency import latency
from bayes_sd.answers.next_runs import next_runs
from bayes_sd.answers.schedule import DRAWS, schedule
from bayes_sd.answers.servers import Server, listed, name_of, of_verifier
from bayes_sd.errors import EvidenceError, InputError, shown
from bayes_sd.model.file import writable, write_whole
from bayes_sd.model.posterior import Posterior
from bayes_sd.report import figures
from bayes_sd.report.explorer import explorer
from bayes_sd.runs.load import Load
from bayes_sd.runs.table import LENGTHS

UNSURE = 0.7  # Pareto shape from which importance sampling says little
LINES = 4  # servers in a figure, beside the plain one
CSV_ROWS = 2000  # of a table's file
FORMULA = ("=", "+", "-", "@")  # what spreadsheets take for the beginning of one
RUN_COLUMNS = (
    *("source", "row", "server", *LENGTHS, "rate_rps", "concurrency", "requests", "e2e_mean_s"),
    *("fitted_e2e_s", "ttft_mean_s", "tpot_mean_s", "tokens_per_cycle"),
)


def best_measured(fit: Posterior) -> tuple[list[Server], Server | None, Load]:
    """All servers of the verifier with most runs, of those that ran plain and drafting: those that
    draft, the plain one if it ran, and a load of the lengths of most runs."""
    fit.require_runs()
    systems = measured_systems(fit)
    systems.sort(key=lambda one: (one[2] and bool(one[1]), len(one[3])))
    plain, drafting, ran_plain, runs = systems[-1]
    lengths = runs[[*LENGTHS]]
    usual = lengths.value_counts()
    prompt, output = usual.index[0] if usual.iloc[0] > 1 else lengths.median().round()
    baseline = plain if ran_plain or not drafting else None
    load = default_loads(fit, baseline or drafting[0], (float(prompt), float(output)))
    return drafting, baseline, load


def report(
    fit: Posterior,
    path: str | os.PathLike[str],
    *,
    load: Load | None = None,
    servers: Server | Sequence[Server] | None = None,
    baseline: Server | None = None,
    extrapolate: bool = False,
) -> Path:
    """Write a page about this fit: one HTML file that needs nothing else.

    It says whether speculative decoding is worth it, why, how sure that is and how good the fit;
    and where it is opened it answers other questions, from a part of the draws.

    Parameters
    ----------
    path : path
        Overwritten if it exists; its folder must.
    load : Load, optional
        Of one prompt and one output length; by default those of most runs, and up to 95% of the
        baseline's capacity.
    servers, baseline : optional
        Those that draft, and what they are compared with; by default all of the verifier with most
        runs.
    extrapolate
        See :class:`bayes_sd.Fit`.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError, EvidenceError
        If the question cannot be answered, or the file not be written.
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    writable(path := Path(path))
    drafting, plain, usual = best_measured(fit)
    load = usual if load is None else load
    if servers is not None:
        drafting, plain = listed(servers), baseline
    far: dict[str, Any] = {"extrapolate": extrapolate}
    compared = compare(fit, load, drafting, plain, **far) if drafting and plain else None
    if compared:  # the best first, whose colour it has in every figure
        compared = _ranked(compared)
        drafting = [*compared.servers]
    named = [*([plain] if plain else []), *drafting]
    lead, own = (drafting or named)[0], named[: LINES + 1]
    said: dict[str, Any] = {"latency": latency(fit, load, own, **far)}
    if compared and plain:
        said["even"] = attempt(lambda: break_even(fit.thin(DRAWS), load, lead, plain, **far))
    if drafting:
        own_k = of_verifier(fit.servers, lead.verifier)
        ks = {0, lead.k, *own_k["draft_tokens"][own_k["drafter"] == lead.drafter]}
        if isinstance(lead.acceptance, tuple):  # of so many positions
            ks = {k for k in ks if k <= len(lead.acceptance)}
        batches = Load(concurrency=1.0, prompt=load.lengths[0], output=load.lengths[1])
        said["schedule"] = attempt(lambda: schedule(fit, batches, lead, k=[*map(int, ks)], **far))
    if len(named) > 1:
        said["next"] = attempt(lambda: next_runs(fit, load, named, **far))
    said |= {"families": attempt(lambda: families(fit)), "coefficients": coefficient_table(fit)}
    said |= {"stages": figures.stages(fit, load, own[:2]), "accuracy": accuracy(fit)}
    said |= {"misfits": misfits(fit), "left_out": left_out(fit.thin(DRAWS))}
    said |= {"runs": fit.runs[[n for n in RUN_COLUMNS if n in fit.runs]]}
    numbers = count()
    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=folder, autoescape=True, finalize=_safe, trim_blocks=True)
    page.filters |= {"csv": csv, "cell": answer.cell}
    page.filters["svg"] = lambda plot: attempt(lambda: Markup(figures.svg(plot, next(numbers))))
    page.globals |= {"lines": partial(partial, figures.lines), "stages_of": figures.STAGES}
    page.globals |= {"SURE": answer.SURE, "CSV_ROWS": CSV_ROWS}
    page.globals |= {"fitted": partial(figures.fitted, fit)}
    page.globals |= {"collapse": partial(plot_collapse, fit)}
    said |= {"fit": fit, "load": load, "lead": lead, "plain": plain, "compared": compared}
    said |= {"model": name_of(lead.verifier), "asked": servers is not None}
    page.filters["load_of"] = partial(answer.with_unit, axis=str(load.axis))
    html = page.get_template("page.html").render(said, explorer=explorer(fit, lead, load))
    return write_whole(path, html.encode())


def left_out(fit: Posterior) -> dict[str, Any]:
    """How many runs lie inside the 90% intervals that a fit without them would give, by PSIS."""
    from arviz_stats import loo, loo_pit  # half of what importing all of ArviZ takes

    tree = to_datatree(fit, prior_draws=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs that say much: they are counted
        shape = loo(tree, var_name="e2e", pointwise=True).pareto_k
        place = loo_pit(tree, var_names="e2e")["e2e"].values
    inside = int(((place > 0.05) & (place < 0.95)).sum())
    return {"inside": inside, "runs": place.size, "unsure": int((shape > UNSURE).sum())}


def attempt(make: Callable[[], Any]) -> Any:
    """An answer, or the sentence that says why there is none."""
    try:
        return make()
    except (InputError, EvidenceError) as error:
        return str(error)


def _ranked(compared: Comparison) -> Comparison:
    """With the server first that most often has the least expected loss, then by P(faster)."""
    least = pd.Series(np.ravel(compared.least_loss.values)).value_counts()
    faster = compared.table.groupby("server")["prob_faster"].mean()
    order = sorted(compared.servers, key=lambda s: (-least.get(str(s), 0), -faster[str(s)]))
    draws = compared.draws.sel(server=[*map(str, order)])
    return replace(compared, draws=draws, servers=tuple(order))


def _safe(value: Any) -> Any:
    """What the template shows: control and direction characters of names escaped."""
    return value if hasattr(value, "__html__") else shown(str(value))


def csv(table: pd.DataFrame) -> str:
    """The first rows of a table as the address of a file; no name in it becomes a formula."""
    rows = table.head(CSV_ROWS).map(
        lambda x: "'" * x.startswith(FORMULA) + shown(x) if isinstance(x, str) else x
    )
    text = rows.to_csv(index=False, float_format="%.7g").encode()
    return f"data:text/csv;base64,{base64.b64encode(text).decode()}"
