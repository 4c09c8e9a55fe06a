"""What the page computes with: draws of the servers of a fit, and the law as JavaScript."""

import base64
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from bayes_sd.answers.latency import Arm
from bayes_sd.answers.servers import Resolved, Server, name_of, resolve, shared_name
from bayes_sd.model.design import PAIR
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.noise import METRICS
from bayes_sd.report.script import DRAW, LOAD, QUESTION, Tape
from bayes_sd.report.unmeasured import COLUMNS, examples, unmeasured
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.load import Load
from bayes_sd.runs.table import LENGTHS

BYTES = 1_000_000  # of draws in a page; in its text they take a third more
FEWEST, MOST, MOST_MOE = 200, 1000, 250  # draws: experts take eight times as long to compute
K_MOST = 16  # draft tokens
POINTS = 100  # measured runs of a server
AXES = ("rate_rps", "concurrency")
GIVEN = 0.123456789  # an acceptance that nobody imposed: stands for any that is given
MEASURED = [*LENGTHS, *AXES, *(f"{metric}_mean_s" for metric in METRICS)]


def law_source(fit: Posterior, axis: str, resolved: Resolved, k_most: int, name: str) -> Any:
    """The law of servers like this one as a JavaScript function, and what that takes.

    Alike are servers that draft, of one family, and with captured graphs: others need no code.
    """
    tape, sizes, drafts = Tape(k_most), resolved.sizes, resolved.server.k > 0
    numbers: dict[str, Any] = tape(QUESTION, "k", *LENGTHS, *sizes)
    numbers |= {n: 0.0 for n in ("moe", "expert") if not sizes["moe"]}
    numbers |= {"captured": np.inf} if np.isinf(sizes["captured"]) else {}
    rates = tape(DRAW, *(f"acceptance_{j}" for j in range(k_most * drafts)))
    server = SimpleNamespace(**vars(resolved.server) | {"k": numbers["k"] if drafts else 0})
    terms = tape(DRAW, *resolved.coefficients)
    traced: Any = {"server": server, "coefficients": terms, "sizes": numbers}
    traced = replace(resolved, acceptance=[*rates.values()], **traced)
    cells: Any = {n: numbers[n] for n in LENGTHS} | tape(LOAD, axis)
    said, inputs = Arm(fit, traced, cells, np.array([])).outcome()
    means = [said.mean_s(metric, inputs["output_tokens"]) for metric in METRICS]
    means = [np.where(said.utilization >= 1, np.inf, mean) for mean in means]
    return tape.javascript(name, [*means, said.c2_s])


def explorer(fit: Posterior, lead: Server, load: Load) -> dict[str, Any] | None:
    """Servers that the fit knows, with thinned draws, and the law; None where none drafts.

    The page begins with `lead` at the middle of `load`.
    """
    ran, runs = fit.servers, fit.runs
    drafting = ran.assign(runs=ran["server"].map(runs["server"].value_counts()).fillna(0))
    drafting = drafting[drafting["draft_tokens"] > 0]
    if drafting.empty:
        return None
    most = drafting.groupby("drafter")["draft_tokens"].max().clip(upper=K_MOST)
    found = drafting.groupby([*PAIR, "environment"], dropna=False, sort=True)
    pairs: Any = found.agg(runs=("runs", "sum"), ks=("draft_tokens", sorted)).reset_index()
    # About four columns a draft length: two factors, as measured and with a given acceptance.
    pairs["columns"] = 8 + 4 * most[pairs["drafter"]].to_numpy()
    order = pairs.sort_values("runs", ascending=False, kind="stable")
    fits = COLUMNS + order["columns"].cumsum() <= BYTES / 8 / FEWEST
    shown = order[fits | (order.index == order.index[0])].sort_index()
    enough = MOST_MOE if fit.verifiers["moe"].any() else MOST
    thin = fit.thin(int(np.clip(BYTES / 8 / (COLUMNS + shown["columns"].sum()), FEWEST, enough)))
    points = {
        name: own[MEASURED].head(POINTS).to_numpy(float).round(7).tolist()
        for name, own in runs.groupby("server")
    }
    columns, laws, systems = dict[bytes, int](), dict[str, Any](), dict[Server, Any]()

    def place(values: Any) -> int:
        """Where a quantity is kept, once; of one that does not vary a number."""
        array = np.asarray(values, float).ravel()
        array = array[:1] if (array == array[0]).all() else array
        return columns.setdefault(array.tobytes(), len(columns))

    def law_of(resolved: Resolved) -> str:
        moe, graphs = resolved.sizes["moe"] > 0, np.isfinite(resolved.sizes["captured"])
        key = f"law_{int(resolved.server.k > 0)}{int(moe)}{int(graphs)}"
        for axis in () if f"{key}_{AXES[0]}" in laws else AXES:
            name = f"{key}_{axis}"
            laws[name] = law_source(fit, axis, resolved, int(most.max()), name)
        return key

    @cache
    def told(server: Server) -> dict[str, Any]:
        resolved = resolve(thin, server)
        own = ran["server"][resolved.measured]
        return {
            "law": law_of(resolved),
            "terms": {name: place(value) for name, value in resolved.coefficients.items()},
            "sizes": resolved.sizes,
            "acceptance": [place(rate) for rate in resolved.acceptance],
            "points": points.get(own.iloc[0], []) if len(own) else [],
        }

    for row in shown.to_dict("records"):
        where = row["environment"] if len(fit.environments) > 1 else None
        plain = Server(row["verifier"], environment=where, workload=row["workload"])
        own = None if np.isnan(row["acceptance_imposed"]) else row["acceptance_imposed"]
        servers = {}
        for k in range(1, int(most[row["drafter"]]) + 1):
            server = replace(plain, drafter=row["drafter"], k=k, acceptance=own)
            servers[k] = told(server)
            if k in row["ks"]:  # that very server is another one's with an acceptance not its own
                server = replace(server, acceptance=GIVEN)
                servers[k] = servers[k] | {"given": told(server)["terms"]}
        system = systems.setdefault(plain, {"plain": told(plain), "pairs": []})
        system |= {"verifier": row["verifier"], "workload": row["workload"]}
        name = _drafter(replace(server, acceptance=own))
        pair = {"name": name, "drafter": row["drafter"], "measured": row["ks"], "servers": servers}
        system["pairs"].append(pair)
    new = unmeasured(thin, place, int(most.max()))
    for example in examples(thin):
        law_of(example)
    axis, middle = str(load.axis), np.ravel(load.cells[load.axis].values)
    where = shared_name([replace(lead, drafter=None, k=0)])[0]
    start = {"v": where, "d": _drafter(lead), "k": lead.k, "a": None, "m": METRICS[0]}
    start |= {"w": "", "n": 1, "axis": axis, "x": float(f"{middle[(len(middle) - 1) // 2]:.3g}")}
    data = {
        "systems": [{"name": shared_name([one])[0]} | system for one, system in systems.items()],
        "takes": {name: takes for name, (_, takes) in laws.items()},
        "numbers": [np.frombuffer(x)[0] if len(x) == 8 else None for x in columns],
        "columns": base64.b64encode(b"".join(x for x in columns if len(x) > 8)).decode(),
        "ranges": {n: [runs[n].min(), runs[n].max()] for n in (*LENGTHS, "in_flight")},
        "new": new,
        "k_most": int(most.max()),
        "start": start | dict(zip("pg", load.lengths, strict=True)),
        "draws": thin.draws,
    }
    source = [code for code, _ in laws.values()] + [f"const LAWS = {{{', '.join(laws)}}};"]
    left_out = len(pairs) - len(shown)
    return {"source": "\n".join(source), "left_out": left_out, "data": finite_or_none(data)}


def _drafter(server: Server) -> str:
    at = "" if server.acceptance is None else f" @ {server.acceptance:g}"
    return f"{name_of(server.drafter)}{at}"
