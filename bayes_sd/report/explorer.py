"""What the page computes with: draws of a fit's servers and of new ones, the law as JavaScript."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from bayes_sd.answers.latency import Arm
from bayes_sd.answers.servers import (
    Resolved,
    Server,
    machine_facts,
    name_of,
    resolve,
    shared_name,
    workload_of,
)
from bayes_sd.model import design
from bayes_sd.model.acceptance import normal_quantiles, same_key
from bayes_sd.model.posterior import LEVELS, Posterior
from bayes_sd.model.priors import DRAFTER_COSTS, ELSEWHERE_SD, VERIFIER_COSTS, correlated
from bayes_sd.physics.noise import METRICS
from bayes_sd.report.script import DRAW, LOAD, QUESTION, Tape
from bayes_sd.runs.checkpoint import known_models
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.drafting import usual_rate
from bayes_sd.runs.load import Load
from bayes_sd.runs.machine import Machine, sheets
from bayes_sd.runs.sizes import GIGA, WEIGHTLESS, Size
from bayes_sd.runs.table import LENGTHS

BYTES = 1_000_000  # of draws in a page; in its text they take a third more
FEWEST, MOST, MOST_MOE = 200, 1000, 250  # draws: experts take eight times as long to compute
K_MOST = 16  # draft tokens
COLUMNS = 45  # of draws that new models and machines need whatever was measured
POINTS = 100  # measured runs of a server
AXES = ("rate_rps", "concurrency")
GIVEN = 0.123456789  # an acceptance that nobody imposed: stands for any that is given
METHODS = ("eagle3", "mtp", "ngram")
FACTS = ("gb_per_s", "tflops", "dies")
ANY = Machine("any", gb_per_s=1.0, tflops=1.0)
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

    The page begins with `lead`, who need not have run, at the middle of `load`.
    """
    beyond = ["The structure assumed above is left out here."] * (lead.structure is not None)
    beyond += [f"It goes to {K_MOST} draft tokens at most."] * (lead.k > K_MOST)
    lead = as_known(fit, lead)
    ran, runs = fit.servers, fit.runs
    drafting = ran.assign(runs=ran["server"].map(runs["server"].value_counts()).fillna(0))
    drafting = drafting[drafting["draft_tokens"] > 0]
    if drafting.empty:
        return None
    most = drafting.groupby("drafter")["draft_tokens"].max()
    k_most = int(min(max(most.max(), lead.k), K_MOST))
    found = drafting.groupby([*design.PAIR, "environment"], dropna=False, sort=True)
    pairs: Any = found.agg(runs=("runs", "sum"), ks=("draft_tokens", sorted)).reset_index()
    ran_lead = _ran(pairs, lead, len(fit.environments) > 1)
    pairs["lead"] = pairs.index == ran_lead
    pairs["most"] = np.fmax(most[pairs["drafter"]].to_numpy(), lead.k * pairs["lead"])
    pairs["most"] = pairs["most"].clip(upper=K_MOST).astype(int)
    # About four columns a draft length: two factors, as measured and with a given acceptance.
    pairs["columns"] = 8 + 4 * pairs["most"]
    order = pairs.sort_values(["lead", "runs"], ascending=False, kind="stable")
    asked = [] if ran_lead is not None or lead.drafter is None else _lengths(lead, k_most)
    least = COLUMNS + 8 * bool(asked) + 4 * len(asked)
    fits = least + order["columns"].cumsum() <= BYTES / 8 / FEWEST
    shown = order[fits | (order.index == order.index[0])].sort_index()
    enough = MOST_MOE if fit.verifiers["moe"].any() else MOST
    thin = fit.thin(int(np.clip(BYTES / 8 / (least + shown["columns"].sum()), FEWEST, enough)))
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
            laws[name] = law_source(fit, axis, resolved, k_most, name)
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

    def system_of(plain: Server, about: dict[str, Any]) -> dict[str, Any]:
        name = shared_name([plain])[0]
        return systems.setdefault(plain, {"name": name, "plain": told(plain), "pairs": []} | about)

    for row in shown.to_dict("records"):
        where = row["environment"] if len(fit.environments) > 1 else None
        plain = Server(row["verifier"], environment=where, workload=row["workload"])
        own = None if np.isnan(row["acceptance_imposed"]) else row["acceptance_imposed"]
        servers = {}
        for k in range(1, row["most"] + 1):
            server = replace(plain, drafter=row["drafter"], k=k, acceptance=own)
            servers[k] = told(server)
            if k in row["ks"]:  # that very server is another one's with an acceptance not its own
                server = replace(server, acceptance=GIVEN)
                servers[k] = servers[k] | {"given": told(server)["terms"]}
        system = system_of(plain, {n: row[n] for n in ("verifier", "workload")})
        name = _drafter(replace(server, acceptance=own))
        pair = {"name": name, "drafter": row["drafter"], "measured": row["ks"], "servers": servers}
        system["pairs"].append(pair)
    if asked:
        plain = replace(lead, drafter=None, k=0, acceptance=None)
        kind = "Data sheet" if isinstance(lead.environment, Machine) else "Extrapolated"
        about = {"verifier": name_of(lead.verifier), "workload": lead.workload, "asked": kind}
        own = {"drafter": name_of(lead.drafter), "asked": True}
        own |= {"rate": lead.acceptance} if isinstance(lead.acceptance, float) else {}
        own["servers"] = {k: told(lead.with_k(k)) for k in asked}
        system_of(plain, about)["pairs"].append({"name": _drafter(lead)} | own)
    new = unmeasured(thin, place, k_most)
    names = {system["name"] for system in systems.values()}
    new["models"] = [model for model in new["models"] if model["name"] not in names]
    for example in examples(thin):
        law_of(example)
    axis, middle = str(load.axis), np.ravel(load.cells[load.axis].values)
    where = shared_name([replace(lead, drafter=None, k=0)])[0]
    start = {"v": where, "d": _drafter(lead), "k": lead.k, "a": None, "m": METRICS[0]}
    if ran_lead is not None:
        own = None if np.isnan(imposed := pairs["acceptance_imposed"][ran_lead]) else imposed
        start["d"] = _drafter(replace(lead, acceptance=own))
        start["a"] = lead.acceptance if lead.acceptance != own else None
    start |= {"w": "", "n": 1, "axis": axis, "x": float(f"{middle[(len(middle) - 1) // 2]:.3g}")}
    data = {
        "systems": [*systems.values()],
        "takes": {name: takes for name, (_, takes) in laws.items()},
        "numbers": [np.frombuffer(x)[0] if len(x) == 8 else None for x in columns],
        "columns": base64.b64encode(b"".join(x for x in columns if len(x) > 8)).decode(),
        "ranges": {n: [runs[n].min(), runs[n].max()] for n in (*LENGTHS, "in_flight")},
        "new": new,
        "k_most": k_most,
        "start": start | dict(zip("pg", load.lengths, strict=True)),
        "draws": thin.draws,
    }
    source = [code for code, _ in laws.values()] + [f"const LAWS = {{{', '.join(laws)}}};"]
    left_out = len(pairs) - len(shown)
    told_of = {"left_out": left_out, "beyond": " ".join(beyond)}
    return {"source": "\n".join(source), "data": finite_or_none(data), **told_of}


def as_known(fit: Posterior, server: Server) -> Server:
    """A server with its models, place and workload called as the fit's own are."""
    found = resolve(fit, replace(server, structure=None))
    where: Any = server.environment
    if not isinstance(where, Machine):
        where = found.environment if len(fit.environments) > 1 else None
    return replace(found.server, environment=where, workload=workload_of(fit, found.server))


def _ran(pairs: Any, server: Server, several_environments: bool) -> Any:
    """Which of the pairs that ran this server is of, at any acceptance that is one number."""
    names = ["verifier", "drafter", "workload", *["environment"] * several_environments]
    own: dict[str, Any] = {name: getattr(server, name) for name in names}
    new = (server.verifier, server.drafter, server.environment, server.acceptance)
    if any(isinstance(value, Size | Machine | tuple) for value in new):
        return None
    imposed = pairs["acceptance_imposed"][same_key(pairs, names, own)]
    if imposed.empty:
        return None
    return imposed.index[np.lexsort([imposed != server.acceptance, imposed.notna()])[0]]


def _lengths(server: Server, most: int) -> list[int]:
    """Draft lengths that a server nobody measured can be asked about."""
    given = server.acceptance
    return [*range(1, min(most, len(given) if isinstance(given, tuple) else most) + 1)]


def _drafter(server: Server) -> str:
    rates = () if server.acceptance is None else np.atleast_1d(server.acceptance)
    at = " @ " * bool(len(rates)) + ", ".join(f"{rate:g}" for rate in rates)
    return f"{name_of(server.drafter)}{at}"


def unmeasured(fit: Posterior, place: Callable[[Any], int], k_most: int) -> dict[str, Any]:
    """Sizes of known models, data sheets, and draws of what a new one has; `place` keeps draws."""
    models = [_model(name) for name in known_models() if name not in fit.verifiers.index]
    stored = {m["sizes"]["bytes"] * 8 for m in models} | {*fit.servers["weight_bits"].dropna()}
    bits = sorted({design.WEIGHT_BITS, *stored})
    sizes = fit.verifiers.assign(total=fit.verifiers["shared"] + fit.verifiers["expert"])

    def where(facts: dict[str, Any], site: str) -> dict[str, Any]:
        known = fit.sites.index(site) if site in fit.sites else None
        own = None if known is None else fit.factors("environment", known, site, 0)
        return facts | {"label": site, "factors": own and [place(factor) for factor in own]}

    def drafts(machine: Any) -> list[dict[str, Any]]:
        return [machine_facts(fit, machine, Size(GIGA), k) for k in range(k_most + 1)]

    places = []
    for name in fit.environments:
        each = drafts(name)
        numbers: dict[str, Any] = {fact: float(each[0][fact]) for fact in FACTS}
        numbers |= {"name": name, "captured": [float(one["captured"]) for one in each]}
        places.append(where(numbers, fit.site_of(name)))
    machines = []
    for machine in map(Machine, sheets()) if sheets_help(fit) else ():
        tflops = [machine.tflops_at(each) for each in bits]
        sheet = {n: getattr(machine, n) for n in ("name", "gb_per_s", "dies", "memory_gb")}
        if None not in tflops:
            machines.append(where(sheet | {"tflops": tflops}, fit.site_of_machine(machine.name)))
    return {
        "models": models,
        "places": places,
        "machines": machines,
        "bits": bits,
        "captured": [float(one["captured"]) for one in drafts(ANY)] if machines else [],
        "law": [(name, place(values)) for name, values in fit.law_terms.items()],
        "scatter": {name: [*map(place, fit.scatter_of_new(name).T)] for name in LEVELS},
        "elsewhere_sd": ELSEWHERE_SD,
        "normal": place(normal_quantiles(fit.draws)),
        "moe": [*map(place, fit.moe_effect.T)],
        "family": fit.family,
        "correlated": correlated(tuple(fit.law_terms)).tolist(),
        "costs": {"verifier": VERIFIER_COSTS, "drafter": DRAFTER_COSTS},
        "ranges": {name: [sizes[name].min(), sizes[name].max()] for name in ("active", "total")},
    }


def sheets_help(fit: Posterior) -> bool:
    """Whether the fit knows what its own machines offer, without which no other compares."""
    return bool(fit.servers["gb_per_s"].notna().any())


def examples(fit: Posterior) -> Iterator[Resolved]:
    """One server of each kind that the page may be asked about, whose law it needs."""
    for size in (Size(GIGA), Size(GIGA, GIGA / 2, 8, 2)):
        anywhere: list[Any] = [*fit.environments, *[ANY] * sheets_help(fit)]
        for where in anywhere:
            yield resolve(fit, Server(size, environment=where))
            yield resolve(fit, Server(size, Size(GIGA / 10), 1, 0.5, where))


def _model(name: str) -> dict[str, Any]:
    """Sizes of a known model, and what drafts for it."""
    size, drafters = Size.read(name), []
    for method in METHODS:
        drafter = Size.public(method, name) or size
        rate = usual_rate(method, 0.0 if method in WEIGHTLESS else drafter.params)
        drafters.append({"name": method, "sizes": drafter.drafter_features(), "rate": rate})
    stored = design.machine(weight_bits=size.weight_bits or np.nan)
    sizes = size.features() | {n: float(stored[n]) for n in ("bytes", "drafter_bytes")}
    return {"name": name, "sizes": sizes, "pairs": drafters}
