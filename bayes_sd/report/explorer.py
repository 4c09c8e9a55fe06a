"""What the page computes with: draws of the servers of a fit, and the law as JavaScript."""

import base64
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.answers.latency import Arm
from bayes_sd.answers.servers import Resolved, Server, resolve
from bayes_sd.model.design import NONE, PAIR
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.law import Law
from bayes_sd.report.script import DRAW, LOAD, QUESTION, Value, javascript, named

BYTES = 1_300_000  # of draws in a page; in its text they take a third more
FEWEST, MOST = 200, 1000  # draws
AXES = ("rate_rps", "concurrency")
LENGTHS = ("prompt_tokens", "output_tokens")
K_MOST = 16  # draft tokens
POINTS = 2000  # measured runs


def law_source(
    law: Law, axis: str, resolved: Resolved, k_most: int, name: str
) -> tuple[str, dict[str, list[str]]]:
    """The law of servers like this one as a JavaScript function, and what that takes.

    Alike are servers that draft, of one family, and with captured graphs: others need no code.
    """
    drafting, sizes = resolved.server.k > 0, resolved.sizes
    fixed = {n: sizes[n] for n in ("moe", "expert") if not sizes["moe"]}
    fixed |= {"captured": np.inf} if np.isinf(sizes["captured"]) else {}
    terms = named([*resolved.coefficients], DRAW)
    rates = named([f"acceptance_{j}" for j in range(1, k_most + 1) if drafting], DRAW)
    numbers = named([*sizes, *LENGTHS], QUESTION)
    k, load = Value(QUESTION, "k", most=k_most), Value(LOAD, axis)
    server = SimpleNamespace(k=k if drafting else 0, drafter=resolved.server.drafter)
    traced = SimpleNamespace(
        server=server,
        coefficients=terms,
        sizes=numbers | fixed,
        acceptance=[*rates.values()],
        place=None,
    )
    cells: dict[str, Any] = {n: numbers[n] for n in LENGTHS} | {axis: load}
    arm: Any = Arm(SimpleNamespace(law=law), traced, cells, np.array([]))  # type: ignore[arg-type]
    said, inputs = arm.outcome()
    means = {m: said.mean_s(m, inputs["output_tokens"]) for m in ("e2e", "ttft", "tpot")}
    full = said.utilization >= 1
    outputs = {n: np.where(full, np.inf, v) for n, v in means.items()} | {"c2": said.c2_s}
    given = [*terms.values(), *rates.values(), *numbers.values(), k, load]
    return javascript(name, {v.name: v for v in given}, outputs)


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


def explorer(fit: Posterior) -> dict[str, Any] | None:
    """Servers that the fit knows, with thinned draws, and the law; None where none drafts."""
    ran, runs = fit.servers, fit.runs
    drafting = ran[ran["draft_tokens"] > 0]
    if drafting.empty:
        return None
    ks = drafting.groupby("drafter")["draft_tokens"].max().clip(upper=K_MOST)
    draws = _draws(fit, drafting, ks)
    thin = fit.thin(draws)
    columns, functions, systems = Columns(), dict[str, Any](), dict[Any, Any]()
    several, left_out = len(fit.environments) > 1, 0

    def said(server: Server) -> dict[str, Any]:
        resolved = resolve(thin, server)
        moe, graphs = resolved.sizes["moe"] > 0, np.isfinite(resolved.sizes["captured"])
        key = f"law_{int(server.k > 0)}{int(moe)}{int(graphs)}"
        if key not in functions:
            functions[key] = {
                axis: law_source(fit.law, axis, resolved, int(ks.max()), f"{key}_{axis}")
                for axis in AXES
            }
        terms = {n: columns.place(v) for n, v in resolved.coefficients.items()}
        rates = [columns.place(rate) for rate in resolved.acceptance]
        return {"law": key, "terms": terms, "sizes": resolved.sizes, "acceptance": rates}

    for key, rows in drafting.groupby([*PAIR, "environment"], dropna=False):
        verifier, drafter, imposed, environment = key
        if len(columns.kept) * draws * 8 > BYTES:
            left_out += 1
            continue
        where = str(environment) if several else None
        here = ran[(ran["verifier"] == verifier) & (ran["environment"] == environment)]
        plain = Server(str(verifier), environment=where)
        if (verifier, environment) not in systems:
            bare = here["server"][here["drafter"] == NONE]
            systems[verifier, environment] = {
                "name": str(verifier) + (f" [{environment}]" if several else ""),
                "plain": said(plain) | {"points": _points(runs, bare), "measured": len(bare) > 0},
                "pairs": [],
            }
        own = None if pd.isna(imposed) else float(imposed)
        pair = replace(plain, drafter=str(drafter), k=1, acceptance=own)
        servers = {}
        for k in range(1, int(ks[drafter]) + 1):
            given = said(replace(pair, k=k, acceptance=_unlike(drafting)))
            same = rows["server"][rows["draft_tokens"] == k]
            about = {"given": given["terms"], "points": _points(runs, same)}
            servers[k] = said(replace(pair, k=k)) | about
        name = str(drafter) + ("" if own is None else f" @ {own:g}")
        measured = sorted(int(k) for k in rows["draft_tokens"])
        systems[verifier, environment]["pairs"].append(
            {"name": name, "measured": measured, "servers": servers}
        )
    takes = {f: {a: takes for a, (_, takes) in by.items()} for f, by in functions.items()}
    source = "\n".join(code for by in functions.values() for code, _ in by.values())
    ranges = {n: [float(runs[n].min()), float(runs[n].max())] for n in (*LENGTHS, "in_flight")}
    data = {"systems": [*systems.values()], "takes": takes, "ranges": ranges, "draws": draws}
    return {"source": source, "left_out": left_out, "data": data | columns.to_json()}


def _unlike(drafting: pd.DataFrame) -> float:
    """An acceptance that no pair was measured with, for servers whose acceptance is given."""
    return 0.5 + 1e-9 * float(np.pi) * (0.5 in set(drafting["acceptance_imposed"]))


def _draws(fit: Posterior, drafting: pd.DataFrame, ks: pd.Series) -> int:
    """As many draws as a page holds, of those that the fit has."""
    pairs = drafting.drop_duplicates([*PAIR, "environment"])["drafter"]
    columns = len(fit.law.terms) + 8 * len(fit.verifiers) + 4 * int(ks[pairs].sum())
    wanted = int(np.clip(BYTES / 8 / columns, FEWEST, MOST))
    every = -(-fit.draws // wanted)
    return fit.thin(max(fit.draws // every, 1)).draws


def _points(runs: pd.DataFrame, servers: pd.Series) -> list[list[float | None]]:
    """Measured runs of these servers: lengths, loads, and mean latency, TTFT and TPOT."""
    own = runs[runs["server"].isin(servers)].head(POINTS)
    means = [f"{metric}_mean_s" for metric in ("e2e", "ttft", "tpot")]
    table = own[[*LENGTHS, *AXES, *means]].to_numpy(float)
    return [[float(f"{v:.7g}") if np.isfinite(v) else None for v in row] for row in table]
