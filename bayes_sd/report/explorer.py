"""What the page computes with: draws of the servers of a fit, and the law as JavaScript."""

import base64
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.answers.latency import Arm
from bayes_sd.answers.servers import Resolved, Server, name_of, resolve
from bayes_sd.model.design import PAIR
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.noise import METRICS
from bayes_sd.report.script import DRAW, LOAD, QUESTION, Tape
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.load import Load

BYTES = 1_000_000  # of draws in a page; in its text they take a third more
FEWEST, MOST = 200, 1000  # draws
AXES = ("rate_rps", "concurrency")
LENGTHS = ("prompt_tokens", "output_tokens")
K_MOST = 16  # draft tokens
ACCEPTANCE = "acceptance_"
POINTS = 500  # measured runs of a server
UNLIKE = 0.123456789  # an acceptance that nobody imposed: stands for any that is given


def law_source(fit: Posterior, axis: str, resolved: Resolved, k_most: int, name: str) -> Any:
    """The law of servers like this one as a JavaScript function, and what that takes.

    Alike are servers that draft, of one family, and with captured graphs: others need no code.
    """
    tape, sizes, drafting = Tape(k_most), resolved.sizes, resolved.server.k > 0
    numbers: dict[str, Any] = tape(QUESTION, "k", *LENGTHS, *sizes)
    numbers |= {n: 0.0 for n in ("moe", "expert") if not sizes["moe"]}
    numbers |= {"captured": np.inf} if np.isinf(sizes["captured"]) else {}
    rates = tape(DRAW, *(f"{ACCEPTANCE}{j}" for j in range(k_most if drafting else 0)))
    server: Any = SimpleNamespace(**vars(resolved.server))
    server.k = numbers["k"] if drafting else 0
    traced = replace(
        resolved,
        server=server,
        coefficients=tape(DRAW, *resolved.coefficients),
        sizes=numbers,
        acceptance=[*rates.values()],
    )
    cells = {n: numbers[n] for n in LENGTHS} | tape(LOAD, axis)
    said, inputs = Arm(fit, traced, cells, np.array([])).outcome()
    means = [said.mean_s(metric, inputs["output_tokens"]) for metric in METRICS]
    means = [np.where(said.utilization >= 1, np.inf, mean) for mean in means]
    return tape.javascript(name, [*means, said.c2_s])


class Columns:
    """Draws of many quantities, each kept once; of what does not vary one number."""

    def __init__(self) -> None:
        self.kept: dict[bytes, int] = {}

    def place(self, values: Any) -> int:
        """Where a quantity is kept."""
        array = np.asarray(values, float).ravel()
        array = array[:1] if (array == array[0]).all() else array
        return self.kept.setdefault(array.tobytes(), len(self.kept))

    def to_json(self) -> dict[str, Any]:
        """Numbers by place, and in one text the columns of the others."""
        numbers = [np.frombuffer(k)[0] if len(k) == 8 else None for k in self.kept]
        columns = b"".join(k for k in self.kept if len(k) > 8)
        return {"numbers": numbers, "columns": base64.b64encode(columns).decode()}


def explorer(fit: Posterior, lead: Server, load: Load) -> dict[str, Any] | None:
    """Servers that the fit knows, with thinned draws, and the law; None where none drafts.

    The page begins with `lead` at the middle of `load`.
    """
    drafting = fit.servers[fit.servers["draft_tokens"] > 0]
    if drafting.empty:
        return None
    most = drafting.groupby("drafter")["draft_tokens"].max().clip(upper=K_MOST)
    pairs = drafting.assign(runs=drafting["server"].map(fit.runs["server"].value_counts()))
    pairs = pairs.groupby([*PAIR, "environment"], dropna=False)
    pairs = pairs.agg({"runs": "sum", "draft_tokens": sorted}).reset_index()
    pairs = pairs.sort_values("runs", ascending=False, kind="stable")
    # Of a pair about four columns a draft length: factors, and those with a given acceptance.
    sizes = 4 * most[pairs["drafter"]].to_numpy() + 8
    terms = len(fit.law.terms)
    shown = pairs[terms + np.cumsum(sizes) <= BYTES / 8 / FEWEST].sort_values(PAIR)
    thin = fit.thin(int(np.clip(BYTES / 8 / (terms + sizes.sum()), FEWEST, MOST)))
    columns, laws, systems = Columns(), dict[str, Any](), dict[Any, Any]()

    @cache
    def told(server: Server) -> dict[str, Any]:
        resolved = resolve(thin, server)
        moe, graphs = resolved.sizes["moe"] > 0, np.isfinite(resolved.sizes["captured"])
        key = f"law_{int(server.k > 0)}{int(moe)}{int(graphs)}"
        for axis in AXES if f"{key}_{AXES[0]}" not in laws else ():
            made = law_source(fit, axis, resolved, int(most.max()), f"{key}_{axis}")
            laws[f"{key}_{axis}"] = made
        terms = [columns.place(value) for value in resolved.coefficients.values()]
        rates = [columns.place(rate) for rate in resolved.acceptance]
        own = thin.servers["server"][resolved.measured]
        about = {"sizes": [*resolved.sizes.values()], "points": _points(fit.runs, own)}
        return {"law": key, "terms": terms, "acceptance": rates, **about}

    for row in shown.to_dict("records"):
        where = row["environment"] if len(fit.environments) > 1 else None
        plain = Server(row["verifier"], environment=where)
        system = systems.setdefault(
            plain, {"name": str(plain).replace(", plain", ""), "plain": told(plain), "pairs": []}
        )
        own = None if np.isnan(row["acceptance_imposed"]) else row["acceptance_imposed"]
        pair = replace(plain, drafter=row["drafter"], k=1, acceptance=own)
        servers = {
            k: told(replace(pair, k=k))
            | {"given": told(replace(pair, k=k, acceptance=UNLIKE))["terms"]}
            for k in range(1, int(most[row["drafter"]]) + 1)
        }
        name = row["drafter"] + ("" if own is None else f" @ {own:g}")
        about = {"name": name, "measured": row["draft_tokens"], "servers": servers}
        system["pairs"].append(about)
    resolved = resolve(thin, plain)
    runs, axis = fit.runs, str(load.axis)
    drafter = name_of(lead.drafter) + ("" if lead.acceptance is None else f" @ {lead.acceptance:g}")
    middle = float(np.ravel(load.cells[axis].values)[(load.cells[axis].size - 1) // 2])
    start = {"v": str(replace(lead, drafter=None, k=0)).replace(", plain", ""), "d": drafter}
    start |= {"k": lead.k, "a": None, "axis": axis, "x": float(f"{middle:.3g}"), "m": "e2e"}
    start |= dict(zip("pg", load.lengths, strict=True))
    data = {
        "systems": [*systems.values()],
        "takes": {name: takes for name, (_, takes) in laws.items()},
        "terms": [*resolved.coefficients],
        "sizes": [*resolved.sizes],
        "ranges": {n: [runs[n].min(), runs[n].max()] for n in (*LENGTHS, "in_flight")},
        "start": start,
        "draws": thin.draws,
        **columns.to_json(),
    }
    source = [code for code, _ in laws.values()] + [f"const LAWS = {{{', '.join(laws)}}};"]
    return {
        "source": "\n".join(source),
        "left_out": len(pairs) - len(shown),
        "data": finite_or_none(data),
    }


def _points(runs: pd.DataFrame, servers: pd.Series) -> list[list[float | None]]:
    """Measured runs of these servers: lengths, loads, and mean latency, TTFT and TPOT."""
    if servers.empty:
        return []
    own = runs[runs["server"].isin(servers)].head(POINTS)
    table = own[[*LENGTHS, *AXES, *(f"{m}_mean_s" for m in METRICS)]].to_numpy(float)
    return [[float(f"{v:.7g}") if np.isfinite(v) else None for v in row] for row in table]
