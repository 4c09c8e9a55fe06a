"""One HTML file that says what a fit says of one question, and computes answers to others."""

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.answers import answer
from bayes_sd.answers.break_even import break_even
from bayes_sd.answers.compare import Comparison, compare, default_loads
from bayes_sd.answers.fitted import accuracy, coefficient_table, families, misfits, plot_collapse
from bayes_sd.answers.latency import latency
from bayes_sd.answers.next_runs import next_runs
from bayes_sd.answers.schedule import schedule
from bayes_sd.answers.servers import Server, listed, shared_name
from bayes_sd.errors import EvidenceError, InputError, shown
from bayes_sd.model.design import NONE
from bayes_sd.model.posterior import Posterior
from bayes_sd.report import figures
from bayes_sd.report.explorer import explorer
from bayes_sd.runs.load import Load

if TYPE_CHECKING:
    from markupsafe import Markup

FOLDER = Path(__file__).parent
LINES = 4  # servers in a figure
ROWS, CSV_BYTES = 200, 300_000  # of a table on the page, and in its file
RUN_COLUMNS = (
    *("source", "row", "server", "prompt_tokens", "output_tokens", "rate_rps", "concurrency"),
    *("requests", "e2e_mean_s", "fitted_e2e_s", "ttft_mean_s", "tpot_mean_s", "tokens_per_cycle"),
)


def best_measured(fit: Posterior) -> tuple[list[Server], Server | None]:
    """Of the verifier with most runs, of those that ran plain and drafting: all servers that draft,
    and the plain one."""
    ran = fit.servers.assign(runs=fit.servers["server"].map(fit.runs["server"].value_counts()))
    ran = ran.assign(plain=ran["drafter"] == NONE, drafts=ran["draft_tokens"] > 0)
    by = ran.groupby(["verifier", "environment"])[["plain", "drafts", "runs"]]
    rank = by.agg({"plain": "any", "drafts": "any", "runs": "sum"})
    rank["both"] = rank["plain"] & rank["drafts"]
    verifier, environment = rank.sort_values(["both", "runs"], kind="stable").index[-1]
    own = ran[(ran["verifier"] == verifier) & (ran["environment"] == environment)]
    plain = Server(verifier, environment=environment if len(fit.environments) > 1 else None)
    columns = own[own["drafts"]][["drafter", "draft_tokens", "acceptance_imposed"]]
    drafting = [
        Server(verifier, d, k, None if np.isnan(a) else a, plain.environment)
        for d, k, a in columns.itertuples(index=False)
    ]
    return drafting, plain if own["plain"].any() or not drafting else None


def usual_lengths(fit: Posterior, server: Server) -> tuple[float, float]:
    """Prompt and output tokens of most runs of a verifier; their medians where no two are alike."""
    runs = fit.runs[fit.runs["verifier"] == server.verifier]
    table = (runs if len(runs) else fit.runs)[["prompt_tokens", "output_tokens"]]
    counts = table.value_counts()
    alike = counts.iloc[0] > 1
    prompt, output = counts.index[0] if alike else table.median().round()
    return float(prompt), float(output)


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
    and computes answers to other questions, from a part of the draws, where it is opened.

    Parameters
    ----------
    path : path
        Overwritten if it exists; its folder must.
    load : Load, optional
        By default the lengths of most runs, at up to 95% of the baseline's capacity.
    servers, baseline : optional
        Those that draft, and what they are compared with; by default all of the verifier with most
        runs.
    extrapolate
        See :class:`bayes_sd.Fit`.

    Raises
    ------
    InputError, EvidenceError
        If the question cannot be answered.
    """
    from jinja2 import Environment, FileSystemLoader

    drafting, plain = best_measured(fit)
    if servers is not None:
        drafting, plain = listed(servers), baseline
    first = plain or drafting[0]
    if load is None:
        load = default_loads(fit, first, usual_lengths(fit, first))
    prompt, output = load.lengths
    far: dict[str, Any] = {"extrapolate": extrapolate}
    compared = compare(fit, load, drafting, plain, **far) if drafting and plain else None
    if compared:  # the best first, whose colour it has in every figure
        drafting = sorted(drafting, key=_worth(compared))
        ordered = compared.draws.sel(server=[*map(str, drafting)])
        compared = replace(compared, draws=ordered, servers=tuple(drafting))
    lead = (drafting or [first])[0]
    named = [*([plain] if plain else []), *drafting]
    own = named[: LINES + 1]
    said: dict[str, Any] = {"compared": compared, "lead": lead, "plain": plain, "load": load}
    said["latency"] = latency(fit, load, own, **far)
    if compared and plain:
        said["even"] = attempt(lambda: break_even(fit, load, lead, plain, **far))
        said["verdict"] = verdict(compared, lead)
    if drafting:
        ks = fit.servers["draft_tokens"][fit.servers["drafter"] == lead.drafter]
        ks = sorted({0, lead.k, *map(int, ks)})
        batches = Load(concurrency=1.0, prompt=prompt, output=output)
        said["schedule"] = attempt(lambda: schedule(fit, batches, lead, k=ks, **far))
    if len(named) > 1:
        said["next"] = attempt(lambda: next_runs(fit, load, named, **far))
    said["stages"] = figures.stages(fit, load, own[:2])
    said["families"] = attempt(lambda: families(fit))
    data = {"coefficients": coefficient_table(fit), "accuracy": accuracy(fit)}
    data |= {"misfits": misfits(fit), "runs": fit.runs[[c for c in RUN_COLUMNS if c in fit.runs]]}
    numbers = count()
    page = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, finalize=_safe, trim_blocks=True
    )
    page.tests["markup"] = lambda value: hasattr(value, "__html__")
    page.filters |= {"table": table_of, "csv": csv, "svg": lambda plot: drawn(plot, next(numbers))}
    plots = {n: partial(getattr(figures, n), said["latency"]) for n in ("tails",)}
    plots |= {"stages": partial(figures.bars, said["stages"])}
    plots |= {"fitted": partial(figures.fitted, fit), "collapse": partial(plot_collapse, fit)}
    plots |= {"speedup": partial(figures.speedup, compared)} if compared else {}
    text = page.get_template("page.html").render(
        fit=fit, plots=plots, explorer=explorer(fit), version=version("bayes_sd"), **said, **data
    )
    path = Path(path)
    path.write_text(text, encoding="utf-8")
    return path


def attempt(make: Callable[[], Any]) -> Any:
    """An answer, or the sentence that says why there is none."""
    try:
        return make()
    except (InputError, EvidenceError) as error:
        return str(error)


def _worth(compared: Comparison) -> Callable[[Server], Any]:
    """Sorts servers: those that have the least expected loss most often, then by P(faster)."""
    least = pd.Series(np.ravel(compared.least_loss.values)).value_counts()
    faster = compared.table.groupby("server")["prob_faster"].mean()
    return lambda server: (-least.get(str(server), 0), -faster[str(server)])


def verdict(compared: Comparison, lead: Server) -> dict[str, Any]:
    """Where a server surely is faster, slower or neither, for the first line of the page."""
    own = compared.table[compared.table["server"] == str(lead)]
    sure = (own["prob_faster"] >= answer.SURE).to_numpy()
    slower = (own["prob_slower"] >= answer.SURE).to_numpy()
    rows = own[sure] if sure.any() else own
    low = rows.iloc[0]
    kind = "yes" if sure.all() else "no" if slower.all() else "unclear"
    if sure.any() and not sure.all():
        kind = "up to" if sure[0] and (np.diff(sure.astype(int)) != 0).sum() == 1 else "some"
    ends = [f"{v:.3g}" for v in rows[compared.axis].iloc[[0, -1]]] if compared.axis else []
    prob = rows["prob_faster"].min() if sure.any() else own["prob_slower"].min()
    return {
        "kind": kind,
        "ends": ends,
        "prob": prob,
        "row": low.to_dict(),
        "stretches": stretches(compared),
    }


def stretches(compared: Comparison) -> list[tuple[str, str]]:
    """Neighbouring loads at which one server has the least expected loss, and its name."""
    names, axis = np.ravel(compared.least_loss.values), compared.axis
    short = shared_name([*compared.servers, compared.baseline])[1]
    known = dict(zip(map(str, [*compared.servers, compared.baseline]), short, strict=True))
    loads = ["any"] if axis is None else [f"{v:.3g}" for v in compared.draws[axis].values]
    said = []
    for name, group in groupby(zip(names, loads, strict=True), key=itemgetter(0)):
        ends = [load for _, load in group]
        said.append((" to ".join(dict.fromkeys((ends[0], ends[-1]))), known.get(name, str(name))))
    return said


def _safe(value: Any) -> Any:
    """What the template shows: control and direction characters of names escaped."""
    return value if hasattr(value, "__html__") else shown(str(value))


def cell(value: Any) -> str:
    """A cell of a table: four digits of a number, nothing for what is missing."""
    if isinstance(value, bool | np.bool_ | str) or not np.isscalar(value):
        return shown(str(value))
    number = float(value)  # type: ignore[arg-type]
    if not np.isfinite(number):
        return "" if np.isnan(number) else "no limit"
    return f"{number:.0f}" if number.is_integer() else f"{number:.4g}"


def table_of(table: pd.DataFrame) -> dict[str, Any]:
    """Heads and the first rows of a table, and which columns are numbers."""
    heads = [str(name).replace("_", " ") for name in table]
    rows = [[cell(v) for v in row] for row in table.head(ROWS).itertuples(index=False)]
    return {"heads": heads, "rows": rows, "numeric": [table[n].dtype.kind in "fiu" for n in table]}


def csv(table: pd.DataFrame) -> dict[str, Any]:
    """A table as a link to itself, as far as a page should carry it."""
    texts = table.select_dtypes(["object", "str"]).columns
    plain = table.assign(**{n: table[n].map(lambda v: _formula(shown(str(v)))) for n in texts})
    size = len(plain.to_csv(index=False, float_format="%.7g")) or 1
    kept = min(len(plain), int(len(plain) * CSV_BYTES / size))
    text = plain.head(kept).to_csv(index=False, float_format="%.7g").encode()
    return {"href": f"data:text/csv;base64,{base64.b64encode(text).decode()}", "rows": kept}


def _formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def drawn(plot: "figures.Plot", number: int) -> "Markup | str":
    """A figure for the page, or why there is none."""
    from markupsafe import Markup

    made = attempt(lambda: Markup(figures.svg(plot, number)))
    return made
