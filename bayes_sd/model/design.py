"""From a run table to arrays: levels, sizes and workload, for model and predictions alike."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.physics.acceptance import constant_acceptance, cycles_variance
from bayes_sd.physics.acceptance import cycles as cycles_of
from bayes_sd.physics.experts import tokens_in_pass
from bayes_sd.physics.shapes import typical_kv_gb, typical_layers
from bayes_sd.physics.stages import draft_passes
from bayes_sd.physics.tails import counted

if TYPE_CHECKING:
    from bayes_sd.traces import Traces

GIGA = 1e9
NONE = "none"
SPREAD = ("e2e", "ttft")  # metrics whose spread is fitted; TPOT's follows from that of e2e
SIZES = (
    "verifier_params",
    "verifier_active_params",
    "experts",
    "experts_per_token",
    "verifier_layers",
    "verifier_kv_bytes",
)
TYPICAL_LOG_VAR = 0.04  # where no run of a table gives a variance: requests differ by 20%


def sizes(
    params: Any,
    active: Any,
    experts: Any,
    per_token: Any,
    layers: Any = np.nan,
    kv_bytes: Any = np.nan,
) -> dict[str, Any]:
    """Split parameters (counts) into active, shared and expert parts (1e9) and the idle share.

    All but the experts are used by every token, so ``active = shared + (m / M) expert`` and
    ``total = shared + expert`` give both parts. Where `layers` or `kv_bytes` (of one token) are
    NaN, what is usual at this size is assumed.

    Returns
    -------
    dict
        ``active``, ``shared``, ``expert`` in 1e9 parameters; ``idle`` = ``1 - m/M`` and its log
        (0.5 for a dense model, where it does not matter); ``moe`` 0 or 1; ``layers``; ``kv_gb``.
    """
    params, active = np.asarray(params, float) / GIGA, np.asarray(active, float) / GIGA
    experts, per_token = np.asarray(experts, float), np.asarray(per_token, float)
    moe = (experts > per_token) & (experts > 0)
    idle = np.where(moe, 1 - per_token / np.where(moe, experts, 1), 0.5)
    expert = np.where(moe, (params - active) / idle, 0.0)
    layers, kv_gb = np.asarray(layers, float), np.asarray(kv_bytes, float) / GIGA
    layers = np.where(np.isnan(layers), typical_layers(active, params), layers)
    return {
        "layers": layers,
        "kv_gb": np.where(np.isnan(kv_gb), typical_kv_gb(active, layers), kv_gb),
        "active": active,
        "shared": params - expert,
        "expert": expert,
        "idle": idle,
        "log_idle": np.log(idle),
        "moe": moe.astype(float),
    }


def run_cycles(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Cycles of a request of each run and their variance, from its acceptance by position.

    Where positions were not counted, acceptance is taken to be alike at all.
    """
    k = runs["draft_tokens"].to_numpy()
    alike = constant_acceptance(runs["tokens_per_cycle"].to_numpy(float), k)
    before, acceptance = runs["drafts"].to_numpy(float), []
    for j in range(1, int(k.max()) + 1):
        accepted = runs[f"accepted_{j}"].to_numpy(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(before > 0, accepted / before, 0.0)
        acceptance.append(np.where(np.isfinite(before) & np.isfinite(accepted), rate, alike))
        before = accepted
    output = runs["output_tokens"].to_numpy(float)
    return cycles_of(output, acceptance, k), cycles_variance(output, acceptance, k)


def pair_label(verifier: str, drafter: str, acceptance: float) -> str:
    """Name of a verifier-drafter pair; imposed acceptance makes pairs differ."""
    return f"{verifier} + {drafter}" + ("" if np.isnan(acceptance) else f" @ {acceptance:g}")


def server_label(verifier: str, pair: str | None, k: int, environment: str = "") -> str:
    """Name of a server: its verifier, or pair and draft length, and where it ran if that varies."""
    where = f" [{environment}]" if environment else ""
    return (f"{verifier} plain" if pair is None else f"{pair} k={k}") + where


@dataclass(frozen=True)
class Design:
    """Levels and arrays of one data set.

    `runs` is the table the arrays come from: steady runs, and those past saturation that bound
    the latency from below; `levels` the names of the dimensions; `verifiers` and `drafters` the
    size tables; `data` the arrays over runs, ``*_rows`` the runs that a likelihood takes.
    """

    runs: pd.DataFrame
    levels: dict[str, list[str]]
    verifiers: dict[str, np.ndarray]
    drafters: np.ndarray
    data: dict[str, np.ndarray]

    @property
    def environment(self) -> str:
        """The hardware-and-engine environments of these runs."""
        return "; ".join(self.levels["environment"])


@dataclass(frozen=True)
class _Observed:
    """Observed means of runs, s, as far as the explained part of the spread needs them."""

    e2e_s: np.ndarray
    ttft_s: np.ndarray
    decode_s: np.ndarray
    prefill_s: np.ndarray


def _explained(runs: pd.DataFrame, data: dict, ttft_known: np.ndarray) -> dict[str, np.ndarray]:
    """Spread that lengths explain, at the observed means: spreads are not to move the means."""
    e2e = runs["e2e_mean_s"].to_numpy(float)
    ttft = np.where(ttft_known, runs["ttft_mean_s"].fillna(1.0).to_numpy(float), 0.0)
    first = np.where(ttft_known, ttft, 1.0)
    observed = _Observed(e2e, first, e2e - ttft, ttft)
    return {f"counted_{m}": counted(m, observed, data) for m in SPREAD}


def _squared_cv(runs: pd.DataFrame, lengths: str) -> np.ndarray:
    """Squared coefficient of variation of a run's lengths; unknown ones count as all alike."""
    return (runs[f"{lengths}_sd"].fillna(0.0) / runs[lengths]).to_numpy(float) ** 2


def _consistent(runs: pd.DataFrame, key: str, columns: list[str]) -> pd.DataFrame:
    table = runs.groupby(key, sort=True)[columns].first()
    bad = runs.groupby(key)[columns].nunique().max(axis=1)
    if (bad > 1).any():
        name = bad.index[bad > 1][0]
        raise InputError(f"{key} {name!r} has runs of different sizes; one name, one size.")
    return table


def _pass_tokens(runs: pd.DataFrame, closed: np.ndarray) -> np.ndarray:
    """Tokens in a pass, with as many others in flight as Little's law says there were."""
    by_little = runs["rate_rps"].to_numpy(float) * runs["e2e_mean_s"].to_numpy(float)
    others = np.where(closed > 0, runs["concurrency"].to_numpy(float) - 1, by_little)
    return tokens_in_pass(others, runs["draft_tokens"].to_numpy(float))


def build_design(traces: "Traces", censored: bool = True) -> Design:
    """Levels and arrays of the steady runs of `traces`, and of those that are censored.

    An open-loop run that did not settle was cut before its latency had grown to what it would have
    been, so what it showed is a lower bound.

    Raises
    ------
    EvidenceError
        If no steady run is left.
    """
    runs = traces.runs
    usable = runs["e2e_mean_s"].notna() & runs["tokens_per_cycle"].notna()
    bounds = runs["saturated"] & (runs["loop"] == "open")
    if not censored:
        bounds &= False
    runs = runs[usable & (~runs["saturated"] | bounds)].reset_index(drop=True)
    steady = ~runs["saturated"].to_numpy()
    if not steady.any():
        raise EvidenceError("There is no steady run with a mean latency to fit; see check().")
    environments = sorted(str(e) for e in runs["environment"].unique())
    verifier_table = _consistent(runs, "verifier", list(SIZES))
    drafted = runs[runs["drafter"] != NONE]
    drafter_table = _consistent(drafted, "drafter", ["drafter_params"])
    if drafter_table["drafter_params"].isna().any():
        name = drafter_table.index[drafter_table["drafter_params"].isna()][0]
        raise EvidenceError(f"Drafter {name!r} has no drafter_params; the size law needs it.")
    pair = np.array(
        [
            pair_label(v, d, a)
            for v, d, a in zip(
                runs["verifier"], runs["drafter"], runs["acceptance_imposed"], strict=True
            )
        ],
        dtype=object,
    )
    where = runs["environment"] if len(environments) > 1 else [""] * len(runs)
    columns = (runs["verifier"], runs["drafter"], pair, runs["draft_tokens"], where)
    system = np.array(
        [
            server_label(str(v), None if d == NONE else p, int(k), str(e))
            for v, d, p, k, e in zip(*columns, strict=True)
        ],
        dtype=object,
    )
    levels = {
        "verifier": [str(v) for v in verifier_table.index],
        "drafter": [str(d) for d in drafter_table.index] or ["(no drafter)"],
        "system": sorted({str(s) for s in system}),
        "environment": environments,
    }

    def index(values: Any, level: str) -> np.ndarray:
        where = {name: i for i, name in enumerate(levels[level])}
        return np.array([where.get(str(v), 0) for v in values], dtype="int64")

    cycles, cycles_var = run_cycles(runs)
    closed = (runs["loop"] == "closed").to_numpy(float)
    requests = runs["requests"].to_numpy(float)
    log_var = {m: runs[f"{m}_log_var"].to_numpy(float) for m in SPREAD}
    # A variance read off a histogram knows less than its requests would, each measured.
    worth = {
        m: runs[f"{m}_log_var_requests"].fillna(runs["requests"]).to_numpy(float) for m in log_var
    }
    # A run without a variance of its own is left out of the spread; its error bar is borrowed.
    known = {m: steady & np.isfinite(v) & (v > 0) & (worth[m] > 2) for m, v in log_var.items()}
    ttft_known = steady & runs["ttft_mean_s"].notna().to_numpy()
    filled = {
        m: np.where(known[m], v, np.median(v[known[m]]) if known[m].any() else TYPICAL_LOG_VAR)
        for m, v in log_var.items()
    }
    data = {
        "verifier_i": index(runs["verifier"], "verifier"),
        "drafter_i": index(runs["drafter"], "drafter"),
        "system_i": index(system, "system"),
        "environment_i": index(runs["environment"], "environment"),
        "drafted": (runs["drafter"] != NONE).to_numpy(float),
        "k": runs["draft_tokens"].to_numpy(float),
        "draft_passes": draft_passes(
            runs["draft_tokens"].to_numpy(float), (runs["drafter"] != NONE).to_numpy(float)
        ),
        "prompt_tokens": runs["prompt_tokens"].to_numpy(float),
        "output_tokens": runs["output_tokens"].to_numpy(float),
        "cycles": cycles,
        "cycles_var": cycles_var,
        "prompt_cv2": _squared_cv(runs, "prompt_tokens"),
        "output_cv2": _squared_cv(runs, "output_tokens"),
        "closed": closed,
        "rate_rps": np.where(closed > 0, 0.0, runs["rate_rps"].to_numpy(float)),
        "others": np.where(closed > 0, runs["concurrency"].to_numpy(float) - 1, 0.0),
        "pass_tokens": _pass_tokens(runs, closed),
        "requests": requests,
        "log_e2e": np.log(runs["e2e_mean_s"].to_numpy(float)),
        "log_ttft": np.where(
            ttft_known, np.log(runs["ttft_mean_s"].fillna(1.0).to_numpy(float)), 0.0
        ),
        "se_e2e": np.sqrt(filled["e2e"] / requests),
        "se_ttft": np.sqrt(filled["ttft"] / requests),
        **{f"log_var_{m}": np.log(v) for m, v in filled.items()},
        **{f"worth_{m}": np.maximum(w, 3.0) for m, w in worth.items()},
        # Made large, it takes a run out of the likelihood without another compilation.
        "away": np.zeros(len(runs)),
    }
    data |= _explained(runs, data, ttft_known)
    data |= {
        "e2e_rows": np.flatnonzero(steady),
        "ttft_rows": np.flatnonzero(ttft_known),
        "censored_rows": np.flatnonzero(~steady),
        **{f"{m}_spread_rows": np.flatnonzero(v) for m, v in known.items()},
    }
    runs = runs.assign(system=system, pair=pair, cycles=cycles, cycles_var=cycles_var)
    return Design(
        runs=runs,
        levels=levels,
        verifiers=sizes(*(verifier_table[name] for name in SIZES)),
        drafters=drafter_table["drafter_params"].to_numpy(float) / GIGA
        if len(drafter_table)
        else np.zeros(1),
        data=data,
    )
