"""From runs or questions to the inputs of the law: one builder for the model and for answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.model.priors import DRAFTER_COSTS, VERIFIER_COSTS, Prior
from bayes_sd.physics.acceptance import constant_acceptance, cycles, cycles_variance, share_together
from bayes_sd.physics.costs import draft_passes
from bayes_sd.physics.law import Law
from bayes_sd.physics.queue import coverage, past_graphs, tokens_in_pass
from bayes_sd.physics.structures import DRAFT
from bayes_sd.runs.check import fitted_as
from bayes_sd.runs.machine import site
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import features

NONE = "none"  # the drafter of a plain server, in the run table
# Fitted spreads, and their likelihoods: TPOT's beside e2e's would tell the means too much.
SPREADS = {"e2e": "spread", "ttft": "ttft_spread"}
SIZES = (
    *("verifier_params", "verifier_active_params", "experts", "experts_per_token"),
    *("verifier_layers", "verifier_kv_bytes", "verifier_queries_per_key"),
)
SHEET = ("gb_per_s", "tflops")
MACHINE = (*SHEET, "dies", "captured_tokens", "weight_bits")
DRAFTER_SIZES = ("drafter_params", "drafter_layers")  # a head has one layer, if nothing is said
UNDRAFTED = {"drafter": 0.0, "drafter_layers": 1.0}
PAIR = ["verifier", "drafter", "acceptance_imposed", "workload"]
SERVER = [*PAIR, "draft_tokens", "environment"]
# Stand in for a data sheet that is not known; priors of what it multiplies are then wide.
TYPICAL_GB_PER_S, TYPICAL_TFLOPS = 230.0, 24.0
WEIGHT_BITS, UNEVEN = 16.0, 1.0  # of experts, where only the order of a cost matters
TYPICAL_LOG_VAR = 0.04  # where no run of a table gives a variance: requests differ by 20%


def workload(
    *,
    k: Any,
    drafter_loaded: Any,
    acceptance: Sequence[Any],
    prompt_tokens: Any,
    output_tokens: Any,
    prompt_cv: Any = 0.0,
    output_cv: Any = 0.0,
    rate_rps: Any = np.nan,
    concurrency: Any = np.nan,
    requests: Any = None,
) -> dict[str, Any]:
    """Inputs of the law for measured runs, or for loads asked about at a rate or a concurrency."""
    closed, decoding = ~np.isnan(concurrency), cycles(output_tokens, acceptance, k)
    variance = cycles_variance(output_tokens, acceptance, k)
    first = None if requests is None else np.nan_to_num(np.minimum(concurrency / requests, 1.0))
    return {
        "k": k,
        "draft_passes": draft_passes(k, drafter_loaded),
        "cycles": decoding,
        "cycles_var": variance,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "prompt_cv2": prompt_cv**2,
        "output_cv2": output_cv**2,
        "closed": np.asarray(closed, float),
        "together": closed * share_together(variance + (decoding * output_cv) ** 2, first),
        "rate_rps": 0.0 if np.all(closed) else np.where(closed, 0.0, rate_rps),
        "others": np.where(closed, np.subtract(concurrency, 1.0), 0.0),  # beside one's own
    }


def coefficients(
    law_terms: Mapping[str, Any],
    *,
    verifier: Sequence[Any] = (1.0,) * len(VERIFIER_COSTS),
    drafter: Sequence[Any] = (1.0,) * len(DRAFTER_COSTS),
    server: Sequence[Any] = (1.0,),  # slowness, and crowding if servers differ in it
    environment: Sequence[Any] = (),  # of each coefficient, in their order
) -> dict[str, Any]:
    """Coefficients of the law with the factors of a verifier, drafter, server and environment."""
    own = zip(law_terms, environment, strict=False)
    combined = dict(law_terms) | {name: law_terms[name] * factor for name, factor in own}
    names = (f"factor_{cost}" for cost in (*VERIFIER_COSTS, *DRAFTER_COSTS))
    combined |= dict(zip(names, (*verifier, *drafter), strict=True))
    crowding = server[1] if len(server) > 1 else 1.0
    return combined | {"factor_slowness": server[0], "factor_crowding": crowding}


def machine(
    gb_per_s: Any = np.nan,
    tflops: Any = np.nan,
    dies: Any = 1.0,
    captured_tokens: Any = np.nan,
    weight_bits: Any = np.nan,
) -> dict[str, Any]:
    """What the law knows of machines and stored weights: typical values where it is NaN."""
    given = (np.asarray(x, float) for x in (gb_per_s, tflops, captured_tokens, weight_bits))
    gb_per_s, tflops, captured, bits = given
    bits = np.where(np.isnan(bits), WEIGHT_BITS, bits)
    return {
        "gb_per_s": np.where(np.isnan(gb_per_s), TYPICAL_GB_PER_S, gb_per_s),
        "tflops": np.where(np.isnan(tflops), TYPICAL_TFLOPS, tflops),
        "dies": np.asarray(dies, float),
        "captured": np.where(np.isnan(captured), np.inf, captured),
        "bytes": bits / 8,
        "drafter_bytes": np.maximum(bits, WEIGHT_BITS) / 8,  # heads are seldom quantized
    }


def run_machine(table: pd.DataFrame) -> dict[str, Any]:
    """:func:`machine` of measured runs."""
    return machine(**{name: _numbers(table, name) for name in MACHINE})


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].to_numpy(float)


def observed_acceptance(table: pd.DataFrame) -> list[np.ndarray]:
    """Acceptance rate of every run by position; equal at all where positions were not counted."""
    k = table["draft_tokens"].to_numpy()
    constant = constant_acceptance(_numbers(table, "tokens_per_cycle"), k)
    before, rates = _numbers(table, "drafts"), []
    for j in range(1, int(k.max()) + 1):
        accepted = _numbers(table, f"accepted_{j}")
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(before > 0, accepted / before, 0.0)
        rates.append(np.where(np.isfinite(before) & np.isfinite(accepted), rate, constant))
        before = accepted
    return rates


def run_workload(table: pd.DataFrame) -> dict[str, Any]:
    """:func:`workload` of measured runs, with the acceptance and the passes that they had."""
    closed = (table["loop"] == "closed").to_numpy()
    prompt, output = _numbers(table, "prompt_tokens"), _numbers(table, "output_tokens")
    by_little = _numbers(table, "rate_rps") * _numbers(table, "e2e_mean_s")
    others = np.where(closed, _numbers(table, "concurrency") - 1, by_little)
    inputs = workload(
        k=_numbers(table, "draft_tokens"),
        drafter_loaded=(table["drafter"] != NONE).to_numpy(float),
        acceptance=observed_acceptance(table),
        prompt_tokens=prompt,
        output_tokens=output,
        prompt_cv=np.nan_to_num(_numbers(table, "prompt_tokens_sd")) / prompt,
        output_cv=np.nan_to_num(_numbers(table, "output_tokens_sd")) / output,
        rate_rps=_numbers(table, "rate_rps"),
        concurrency=np.where(closed, _numbers(table, "concurrency"), np.nan),
        requests=_numbers(table, "requests"),
    )
    # What a fit takes from the requests that were in flight: it may not jump, nor solve for them.
    inputs["pass_tokens"] = tokens_in_pass(others, inputs["k"])
    return inputs | {"rate_rps": np.where(closed, 0.0, _numbers(table, "rate_rps"))}


def sites_of(table: pd.DataFrame) -> dict[str, str]:
    """Of each environment of runs what has factors of its own: its machine, however many."""
    machines = table.groupby("environment")["machine"].first()
    return {str(name): site(str(name), str(one)) for name, one in machines.items()}


def server_label(server: Mapping[Any, Any], several_environments: bool) -> str:
    """Name of a server for people: never read back."""
    plain = server["drafter"] == NONE
    name = f"{server['verifier']} plain" if plain else f"{server['verifier']} + {server['drafter']}"
    if not pd.isna(server["acceptance_imposed"]):
        name += f" @ {server['acceptance_imposed']:g}"
    name += "" if plain else f" k={int(server['draft_tokens'])}"
    name += f", {server['workload']}" if server["workload"] else ""
    return f"{name} [{server['environment']}]" if several_environments else name


@dataclass(frozen=True, eq=False)
class Design:
    """Levels and arrays of one data set."""

    table: pd.DataFrame  # steady runs, and those past saturation that bound the latency from below
    verifiers: pd.DataFrame
    drafters: pd.DataFrame
    servers: pd.DataFrame
    environments: list[str]
    data: dict[str, np.ndarray]  # arrays over runs; ``*_rows`` say which runs a likelihood takes

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What the law takes of every run beside coefficients: its workload, sizes, machine."""
        data, plain = self.data, [[*UNDRAFTED.values()]]
        drafters = self.drafters.to_numpy(float) if len(self.drafters) else np.array(plain)
        drafter, layers = drafters[data["drafter_i"]].T
        verifier = self.verifiers.iloc[data["verifier_i"]]
        sizes = {str(name): values.to_numpy(float) for name, values in verifier.items()}
        return {
            **run_workload(self.table),
            **run_machine(self.table),
            **sizes,
            **{name: data[name] for name in ("requests", "drafted")},
            "drafter": drafter * data["drafted"],
            "drafter_layers": layers,
        }

    @property
    def moe(self) -> bool:
        """Whether there is a mixture of experts among the verifiers."""
        return bool(self.verifiers["moe"].any())

    @property
    def absent(self) -> dict[str, float]:
        """Inputs that no run has, as floats: they then need no fixed point."""
        there = {"expert": self.moe, "rate_rps": self.data["rate_rps"].any()}
        return {name: 0.0 for name, some in there.items() if not some}

    @property
    def both_families(self) -> bool:
        """Whether there are dense verifiers as well; one family alone is what the law describes."""
        return self.moe and not self.verifiers["moe"].all()

    @property
    def sites(self) -> list[str]:
        """What has factors of its own, see :func:`sites_of`."""
        return sorted(set(sites_of(self.table).values()))

    @property
    def of_sites(self) -> list[np.ndarray]:
        """Which runs are of each site."""
        return [self.data["site_i"] == i for i in range(len(self.sites))]

    @cached_property
    def untold(self) -> frozenset[str]:
        """Coefficients of the law that multiply nothing in these runs."""
        return self.untold_in(np.full(len(self.table), True))

    def untold_in(self, rows: np.ndarray) -> frozenset[str]:
        """Coefficients that multiply nothing in some of them."""
        d = {name: x[rows] for name, x in self.data.items() if len(x) == len(rows)}
        moe = self.verifiers["moe"].to_numpy()[d["verifier_i"]] > 0
        prompts = d["prompt_tokens"] * (1 + d["closed"] * d["others"])
        past = (1 - d["together"]) * past_graphs(d, d, d["pass_tokens"] / (d["k"] + 1) - 1) > 0
        past |= np.maximum(d["pass_tokens"], prompts) > d["captured"]
        nothing: dict[str, Any] = {"overhead_parallel": (d["dies"] <= 1).all()}
        nothing |= dict.fromkeys((f"overhead_{cost}" for cost in DRAFT), not d["drafted"].any())
        nothing |= dict.fromkeys(("overhead_experts", "uneven_experts"), not moe.any())
        nothing |= {"pace_experts": not (past & moe).any(), "pace_dense": not (past & ~moe).any()}
        return frozenset(name for name, holds in nothing.items() if holds)

    @property
    def touched(self) -> pd.DataFrame:
        """The verifiers, with as many experts as a usual pass of their runs touches."""
        logs = pd.Series(np.log(self.data["pass_tokens"])).groupby(self.data["verifier_i"]).mean()
        share = coverage(self.verifiers, np.exp(logs.to_numpy()), UNEVEN)[0]
        return self.verifiers.assign(expert=self.verifiers["expert"] * share)

    def told(self, priors: tuple[Prior, ...], rows: np.ndarray | None = None) -> tuple[Prior, ...]:
        """Priors of what the runs can tell; wide where no machine (of `rows`) has its numbers."""
        sites = self.of_sites if rows is None else [rows]
        known = {n: any(self.table[n][site].notna().all() for site in sites) for n in SHEET}
        told = []
        for prior in (p for p in priors if p.name not in self.untold):
            sheet = known["tflops" if prior.name == "prefill_token" else "gb_per_s"]
            wide = prior.b if sheet else float(np.hypot(prior.b, prior.unknown))
            told.append(replace(prior, b=wide))
        return tuple(told)

    def all_terms(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Coefficients of the law, those that multiply nothing here as none."""
        return dict.fromkeys(self.untold, 0.0) | dict(told)

    def fitted_law(self, law: Law) -> Law:
        """The law without captured graphs, where every pass had one."""
        if {"pace_dense", "pace_experts"} <= self.untold:
            return replace(law, parts=tuple(p for p in law.parts if p != "graphs"))
        return law


def _levels(table: pd.DataFrame, name: str, columns: list[str]) -> pd.DataFrame:
    """One row a model, whose sizes must be the same in all runs."""
    sizes = table.groupby(name, sort=True)[columns]
    most = sizes.nunique().max(axis=1)
    for bad in most.index[most > 1]:
        raise InputError(f"{name} {bad!r} has runs of different sizes; one name, one size.")
    return sizes.first()


def build_design(runs: Runs, censored: bool = True) -> Design:
    """Levels and arrays of the steady runs, and of those that only bound the latency from below."""
    table = runs.table
    taken = fitted_as(table).isin(["steady", "bound"] if censored else ["steady"])
    table = table[taken].reset_index(drop=True)
    steady = ~table["saturated"].to_numpy(bool)
    if not steady.any():
        raise EvidenceError("There is no steady run to fit; run check for the reasons.")
    verifiers = _levels(table, "verifier", list(SIZES))
    sizes = pd.DataFrame(features(*(_numbers(verifiers, n) for n in SIZES)), verifiers.index)
    drafters = _levels(table[table["drafter"] != NONE], "drafter", list(DRAFTER_SIZES))
    for name in drafters.index[drafters["drafter_params"].isna()]:
        raise EvidenceError(
            f"The size of drafter {name!r} is unknown: give drafter_params (0 for a drafter "
            "without weights, as n-gram)."
        )
    groups = table.groupby(SERVER, dropna=False, sort=True)
    servers = pd.DataFrame(list(groups.groups), columns=SERVER)
    environments = sorted(str(e) for e in table["environment"].unique())
    labels = [server_label(row, len(environments) > 1) for row in servers.to_dict("records")]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, start=1)]
    servers["server"] = labels
    servers = servers.join(groups[list(MACHINE)].first().reset_index(drop=True))
    table = table.assign(server=np.array(labels, object)[groups.ngroup()])
    sites = sites_of(table)
    where = table.assign(site=table["environment"].astype(str).map(sites))
    levels = {"verifier": verifiers.index, "drafter": drafters.index}
    levels |= {"server": pd.Index(labels), "site": pd.Index(sorted({*sites.values()}))}
    indices = {  # 0 where a run has none (a plain run's drafter)
        f"{name}_i": np.maximum(level.get_indexer(pd.Index(where[name])), 0)
        for name, level in levels.items()
    }
    data = indices | run_workload(table) | run_machine(table) | _observed(table, steady)
    drafters = drafters.assign(drafter_params=drafters["drafter_params"] / 1e9).fillna(1.0)
    return Design(table, sizes, drafters, servers, environments, data)


def _observed(table: pd.DataFrame, steady: np.ndarray) -> dict[str, np.ndarray]:
    """What the likelihoods take, and of which runs."""
    requests = _numbers(table, "requests")
    data = {
        "drafted": (table["drafter"] != NONE).to_numpy(float),
        "requests": requests,
        # Made large, it takes a run out of the likelihood without another compilation.
        "mask_sd": np.zeros(len(table)),
        "censored_rows": np.flatnonzero(~steady),
    }
    for metric in SPREADS:
        mean, log_var = _numbers(table, f"{metric}_mean_s"), _numbers(table, f"{metric}_log_var")
        n_eff = _numbers(table, f"{metric}_log_var_n_eff")
        n_eff = np.where(np.isnan(n_eff), requests, n_eff)
        # A run without a variance is left out of the spread; its error bar is borrowed.
        spread = steady & np.isfinite(log_var) & (log_var > 0) & (n_eff > 2)
        typical = np.median(log_var[spread]) if spread.any() else TYPICAL_LOG_VAR
        filled = np.where(spread, log_var, typical)
        data |= {
            f"log_{metric}": np.log(np.where(np.isfinite(mean), mean, 1.0)),
            f"se_{metric}": np.sqrt(filled / requests),
            f"log_var_{metric}": np.log(filled),
            f"n_eff_{metric}": np.maximum(n_eff, 3.0),
            f"{metric}_rows": np.flatnonzero(steady & np.isfinite(mean)),
            f"{metric}_spread_rows": np.flatnonzero(spread),
        }
    return data
