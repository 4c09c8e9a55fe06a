"""From runs or questions to the inputs of the law: one builder for the model and for answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.model.priors import DRAFTER_COSTS, HARDWARE, VERIFIER_COSTS
from bayes_sd.physics.acceptance import constant_acceptance, cycles, cycles_variance
from bayes_sd.physics.costs import draft_passes
from bayes_sd.physics.queue import tokens_in_pass
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import features

GIGA = 1e9
NONE = "none"  # the drafter of a plain server, in the run table
SPREADS = ("e2e", "ttft")  # metrics whose spread is fitted; TPOT's follows from that of e2e
SIZES = (
    "verifier_params",
    "verifier_active_params",
    "experts",
    "experts_per_token",
    "verifier_layers",
    "verifier_kv_bytes",
)
PAIR = ["verifier", "drafter", "acceptance_imposed"]
SERVER = [*PAIR, "draft_tokens", "environment"]
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
) -> dict[str, Any]:
    """Inputs of the law for measured runs or for loads asked about.

    Parameters
    ----------
    k, drafter_loaded : array_like
        Draft tokens per cycle, and whether (0 or 1) a drafter is loaded.
    acceptance : sequence of array_like
        Acceptance rate by position, at least `k` of them.
    prompt_tokens, output_tokens, prompt_cv, output_cv : array_like
        Mean lengths, and coefficients of variation of a run's lengths.
    rate_rps, concurrency : array_like
        Offered rate, or requests kept in flight: NaN where the other one is given.

    Returns
    -------
    dict
        ``k``, ``draft_passes``, ``cycles``, ``cycles_var``, ``prompt_tokens``, ``output_tokens``,
        ``prompt_cv2``, ``output_cv2``; ``closed`` (1.0 for a concurrency, 0.0 for a rate),
        ``rate_rps`` and ``others`` (requests beside one's own), 0.0 where they do not apply.
    """
    closed = ~np.isnan(concurrency)
    return {
        "k": k,
        "draft_passes": draft_passes(k, drafter_loaded),
        "cycles": cycles(output_tokens, acceptance, k),
        "cycles_var": cycles_variance(output_tokens, acceptance, k),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "prompt_cv2": prompt_cv**2,
        "output_cv2": output_cv**2,
        "closed": np.asarray(closed, float),
        "rate_rps": np.where(closed, 0.0, rate_rps),
        "others": np.where(closed, np.asarray(concurrency, float) - 1, 0.0),
    }


def coefficients(
    law_terms: Mapping[str, Any],
    *,
    verifier: Sequence[Any],
    drafter: Sequence[Any],
    server: Sequence[Any],
    environment: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Coefficients of the law with the factors of a verifier, drafter, server and environment.

    Each sequence holds one factor for each of `VERIFIER_COSTS`, `DRAFTER_COSTS`, `SERVER_EFFECTS`
    (crowding may be left out) and `HARDWARE`; arrays over runs, draws or both.
    """
    combined = dict(law_terms)
    for factor, members in zip(environment or (), HARDWARE.values(), strict=False):
        combined |= {name: combined[name] * factor for name in members if name in combined}
    names = [*(f"factor_{c}" for c in VERIFIER_COSTS), *(f"factor_{c}" for c in DRAFTER_COSTS)]
    combined |= dict(zip(names, [*verifier, *drafter], strict=True))
    return combined | {
        "factor_slowness": server[0],
        "factor_crowding": server[1] if len(server) > 1 else 1.0,
    }


def observed_acceptance(table: pd.DataFrame) -> list[np.ndarray]:
    """Acceptance rate of every run by position; equal at all where positions were not counted."""
    k = table["draft_tokens"].to_numpy()
    constant = constant_acceptance(table["tokens_per_cycle"].to_numpy(float), k)
    before, rates = table["drafts"].to_numpy(float), []
    for j in range(1, int(k.max()) + 1):
        accepted = table[f"accepted_{j}"].to_numpy(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(before > 0, accepted / before, 0.0)
        rates.append(np.where(np.isfinite(before) & np.isfinite(accepted), rate, constant))
        before = accepted
    return rates


def run_workload(table: pd.DataFrame) -> dict[str, Any]:
    """:func:`workload` of measured runs, with the acceptance that they had."""
    closed = (table["loop"] == "closed").to_numpy()

    def cv(name: str) -> np.ndarray:
        return (table[f"{name}_sd"].fillna(0.0) / table[name]).to_numpy(float)

    return workload(
        k=table["draft_tokens"].to_numpy(float),
        drafter_loaded=(table["drafter"] != NONE).to_numpy(float),
        acceptance=observed_acceptance(table),
        prompt_tokens=table["prompt_tokens"].to_numpy(float),
        output_tokens=table["output_tokens"].to_numpy(float),
        prompt_cv=cv("prompt_tokens"),
        output_cv=cv("output_tokens"),
        rate_rps=table["rate_rps"].to_numpy(float),
        concurrency=np.where(closed, table["concurrency"].to_numpy(float), np.nan),
    )


def server_label(server: Mapping[Any, Any], several_environments: bool) -> str:
    """Name of a server for people: never read back."""
    plain = server["drafter"] == NONE
    name = f"{server['verifier']} plain" if plain else f"{server['verifier']} + {server['drafter']}"
    if not pd.isna(server["acceptance_imposed"]):
        name += f" @ {server['acceptance_imposed']:g}"
    name += "" if plain else f" k={int(server['draft_tokens'])}"
    return f"{name} [{server['environment']}]" if several_environments else name


def same_key(table: pd.DataFrame, columns: Sequence[str], key: Mapping[str, Any]) -> np.ndarray:
    """Rows whose columns equal a key; a missing value equals a missing one."""
    equal = np.full(len(table), True)
    for name in columns:
        value = key[name]
        equal &= (table[name].isna() if pd.isna(value) else table[name] == value).to_numpy(bool)
    return equal


@dataclass(frozen=True, eq=False)
class Design:
    """Levels and arrays of one data set.

    `table` holds the runs that the arrays come from: steady ones, and those past saturation that
    bound the latency from below. `verifiers`, `drafters`, `servers` are tables of the levels (a row
    each), `environments` names. `data` are the arrays over runs; ``*_rows`` say which runs a
    likelihood takes. `left_out` lists runs whose acceptance is unknown.
    """

    table: pd.DataFrame
    verifiers: pd.DataFrame
    drafters: pd.DataFrame
    servers: pd.DataFrame
    environments: list[str]
    data: dict[str, np.ndarray]
    left_out: pd.DataFrame

    @property
    def moe(self) -> bool:
        """Whether there is a mixture of experts among the verifiers."""
        return bool(self.verifiers["moe"].any())


def _levels(table: pd.DataFrame, name: str, columns: list[str]) -> pd.DataFrame:
    """One row a model, whose sizes must be the same in all runs."""
    sizes = table.groupby(name, sort=True)[columns]
    bad = sizes.nunique().max(axis=1)
    if (bad > 1).any():
        raise InputError(
            f"{name} {bad.index[bad > 1][0]!r} has runs of different sizes; one name, one size."
        )
    return sizes.first()


def build_design(runs: Runs, censored: bool = True) -> Design:
    """Levels and arrays of the steady runs, and of those that only bound the latency from below.

    An open-loop run that did not settle was cut before its latency had grown to what it would have
    been, so what it showed is a lower bound.

    Raises
    ------
    EvidenceError
        If no steady run is left, or a drafter's size is missing.
    """
    table = runs.table
    usable = table["e2e_mean_s"].notna() & table["tokens_per_cycle"].notna()
    bounds = table["saturated"] & (table["loop"] == "open") & censored
    left_out = table[~usable & ~table["saturated"]]
    table = table[usable & (~table["saturated"] | bounds)].reset_index(drop=True)
    steady = ~table["saturated"].to_numpy(bool)
    if not steady.any():
        why = "their acceptance is unknown" if len(left_out) else "all are past saturation"
        raise EvidenceError(f"There is no steady run to fit ({why}); run check for the reasons.")
    verifiers = _levels(table, "verifier", list(SIZES))
    sizes = features(*(verifiers[name].to_numpy(float) for name in SIZES))
    drafters = _levels(table[table["drafter"] != NONE], "drafter", ["drafter_params"])
    if drafters["drafter_params"].isna().any():
        name = drafters.index[drafters["drafter_params"].isna()][0]
        raise EvidenceError(
            f"The size of drafter {name!r} is unknown: give drafter_params (0 for a drafter "
            "without weights, as n-gram)."
        )
    groups = table.groupby(SERVER, dropna=False, sort=True)
    servers = pd.DataFrame(list(groups.groups), columns=SERVER)
    environments = sorted(str(e) for e in table["environment"].unique())
    several = len(environments) > 1
    labels = [server_label(row, several) for row in servers.to_dict("records")]
    servers["server"] = (
        labels
        if len(set(labels)) == len(labels)
        else [f"{label} ({i + 1})" for i, label in enumerate(labels)]
    )
    server_i = groups.ngroup().to_numpy("int64")
    table = table.assign(server=servers["server"].to_numpy()[server_i])
    return Design(
        table=table,
        verifiers=pd.DataFrame(sizes, index=verifiers.index),
        drafters=drafters / GIGA,
        servers=servers,
        environments=environments,
        data={
            "verifier_i": _index(table["verifier"], verifiers.index),
            "drafter_i": _index(table["drafter"], drafters.index),
            "server_i": server_i,
            "environment_i": _index(table["environment"], pd.Index(environments)),
            **run_workload(table),
            **_observed(table, steady),
        },
        left_out=left_out,
    )


def _index(values: pd.Series, level: pd.Index) -> np.ndarray:
    """Positions in a level; 0 where a run has none (a plain run's drafter)."""
    return np.maximum(level.get_indexer(pd.Index(values)), 0).astype("int64")


def _observed(table: pd.DataFrame, steady: np.ndarray) -> dict[str, np.ndarray]:
    """What the likelihoods take, and of which runs."""
    requests = table["requests"].to_numpy(float)
    closed = (table["loop"] == "closed").to_numpy()
    # With as many others in flight as Little's law says there were.
    by_little = table["rate_rps"].to_numpy(float) * table["e2e_mean_s"].to_numpy(float)
    others = np.where(closed, table["concurrency"].to_numpy(float) - 1, by_little)
    data = {
        "pass_tokens": tokens_in_pass(others, table["draft_tokens"].to_numpy(float)),
        "drafted": (table["drafter"] != NONE).to_numpy(float),
        "requests": requests,
        # Made large, it takes a run out of the likelihood without another compilation.
        "mask_sd": np.zeros(len(table)),
        "censored_rows": np.flatnonzero(~steady),
    }
    for metric in SPREADS:
        mean = table[f"{metric}_mean_s"].to_numpy(float)
        known = steady & np.isfinite(mean)
        log_var = table[f"{metric}_log_var"].to_numpy(float)
        n_eff = table[f"{metric}_log_var_n_eff"].to_numpy(float)
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
            f"{metric}_rows": np.flatnonzero(known),
            f"{metric}_spread_rows": np.flatnonzero(spread),
        }
    return data
