"""From what a run measured, checked, to one row of the run table."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.config import Configuration

METRICS = ("e2e", "ttft", "tpot")

# Arrivals must go on for several mean latencies before the number in flight has levelled off;
# below four, most of what is measured is the filling and the draining of the queue.
STEADY_LATENCIES = 4
FEW_REQUESTS = 10
FAILED_SHARE = 0.05
# Means in milliseconds and lists in seconds round differently and may drop different requests;
# a wrong unit is off by far more.
UNIT_SLACK = 1.2
ROUNDING = 1 + 1e-4

# Upper percentiles of which one gives the spread together with the median: its normal quantile,
# and the effective number of requests as a share of all: var(log s^2 of n) over the variance
# from the two order statistics.
UPPER = {"p95": (1.6449, 0.28), "p90": (1.2816, 0.27), "p99": (2.3263, 0.19)}
ALL_FAILED = "no request succeeded; at least one successful request is needed"


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Measured):
    """Offered load and its extent; seconds, tokens, requests per second."""

    prompt_tokens: c.Positive
    output_tokens: c.Positive
    prompt_tokens_sd: c.NonNegative = math.nan
    output_tokens_sd: c.NonNegative = math.nan
    loop: Literal["open", "closed", "burst"]
    rate_rps: c.Positive = math.nan
    concurrency: c.Positive = math.nan
    achieved_rps: c.Positive = math.nan
    in_flight: c.Positive = math.nan
    burstiness: c.Positive = math.nan
    span_s: c.Positive = math.nan
    duration_s: c.Positive = math.nan
    requests: c.PositiveCount
    failed: c.Count = 0

    @model_validator(mode="after")
    def _load_is_given(self) -> Self:
        if self.loop == "open" and math.isnan(self.rate_rps):
            raise ValueError("rate_rps is missing; an open loop needs a positive finite rate")
        if self.loop == "closed" and math.isnan(self.concurrency):
            raise ValueError("concurrency is missing; a closed loop needs a positive one")
        if self.loop != "open" and not math.isnan(self.rate_rps):
            problem = f"rate_rps is {self.rate_rps:g} in a {self.loop} loop, which offers no rate"
            raise ValueError(f"{problem}; give it as achieved_rps")
        if self.loop == "burst" and not math.isnan(self.concurrency):
            raise ValueError("concurrency is given in a burst loop; call the loop closed")
        return self


class Latency(_Measured):
    """One metric of one run in seconds; NaN where it was not recorded."""

    mean: c.Positive = math.nan
    std: c.NonNegative = math.nan
    log_mean: c.Finite = math.nan
    log_var: c.NonNegative = math.nan
    p50: c.Positive = math.nan
    p90: c.Positive = math.nan
    p95: c.Positive = math.nan
    p99: c.Positive = math.nan
    log_var_n_eff: c.Positive = math.nan

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        known = [p for p in (self.p50, self.p90, self.p95, self.p99) if not math.isnan(p)]
        if any(low > high * ROUNDING for low, high in pairwise(known)):
            raise ValueError("percentiles decrease; p50 <= p90 <= p95 <= p99 is required")
        return self


class Drafting(_Measured):
    """Draft-verify cycles and what they accepted, as counts; None and () where not counted."""

    drafts: c.Count | None = None
    drafted_tokens: c.Count | None = None
    accepted_tokens: c.Count | None = None
    positions: tuple[c.Count, ...] = ()


@dataclass(frozen=True)
class Requests:
    """Successful requests of a run: when they were sent and how long they took (s); tokens.

    ``ttft`` is NaN where the answer did not come in pieces; a reader whose tool always writes it
    refuses NaN itself. ``index`` is the place in the file, for messages.
    """

    start: np.ndarray
    e2e: np.ndarray
    ttft: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    index: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.e2e)


def latencies_of(requests: Requests, duration_s: float) -> dict[str, Latency]:
    """Exact statistics of e2e, ttft and tpot; InputError if a request is impossible."""
    e2e, ttft, output = requests.e2e, requests.ttft, requests.output
    index = np.arange(len(requests)) if requests.index is None else requests.index
    for name, x in (("e2e latency", e2e), ("ttft", ttft)):
        allowed = (x > 0) & np.isfinite(x) | (np.isnan(x) & (name == "ttft"))
        if not allowed.all():
            i = int(np.argmin(allowed))
            rule = f"must be a positive finite number, got {x[i]:g} s"
            raise InputError(f"{name} of request {index[i]} {rule}")
    late = ttft > e2e * ROUNDING
    if late.any():
        i = int(np.argmax(late))
        whole = f"longer than the whole request, {e2e[i]:g} s"
        raise InputError(f"ttft of request {index[i]} is {ttft[i]:g} s, {whole}")
    if e2e.max() > duration_s * UNIT_SLACK:
        run = f"in a run of {duration_s:g} s; check the units"
        raise InputError(f"e2e latencies reach {e2e.max():g} s {run}")
    # Tokens that arrive in one chunk leave no measurable decode time.
    decode = np.where((output > 1) & (e2e > ttft), e2e - ttft, np.nan)
    seconds = {"e2e": e2e, "ttft": ttft, "tpot": decode / np.maximum(output - 1, 1)}
    return {metric: _statistics(x) for metric, x in seconds.items()}


def _statistics(seconds: np.ndarray) -> Latency:
    """Exact statistics of latencies of single requests (NaN: not measured)."""
    x = seconds[np.isfinite(seconds)]
    if x.size == 0:
        return Latency()
    logs = np.log(x)
    quantiles = zip(("p50", "p90", "p95", "p99"), np.percentile(x, (50, 90, 95, 99)), strict=True)
    several = {"std": float(x.std()), "log_var": float(logs.var(ddof=1))} if x.size > 1 else {}
    return Latency(mean=float(x.mean()), log_mean=float(logs.mean()), **dict(quantiles), **several)


def compare_means(latencies: Mapping[str, Latency], reported: Mapping[str, Latency]) -> None:
    """Refuse a file whose own means are not those of its requests."""
    for metric, report in reported.items():
        ratio = report.mean / latencies[metric].mean
        if ratio > UNIT_SLACK or ratio < 1 / UNIT_SLACK:
            requests = f"the requests' mean is {latencies[metric].mean:g} s"
            raise InputError(
                f"mean {metric} is reported as {report.mean:g} s but {requests}; check the units"
            )


def tool_row(
    configuration: Mapping[str, Any],
    verifier: str | None,
    load: Mapping[str, Any],
    reported: Mapping[str, Latency],
    requests: Requests | None,
) -> dict[str, Any]:
    """Row of a run of a load generator that knows nothing of drafting.

    `load` has the fields of Workload, `reported` the tool's own statistics, `requests` all
    successful requests where the tool lists them.
    """
    values = dict(configuration)
    if verifier:
        values.setdefault("verifier", verifier)
    if c.absent(values.get("drafter")) or values["drafter"] == "none":
        values.setdefault("draft_tokens", 0)
    config = c.configure(values)
    latencies, known = reported, dict(load)
    if requests is not None:
        latencies = latencies_of(requests, known["duration_s"])
        compare_means(latencies, reported)
        for name, tokens in (
            ("prompt_tokens", requests.prompt),
            ("output_tokens", requests.output),
        ):
            known |= {name: float(tokens.mean()), f"{name}_sd": float(tokens.std())}
    workload = c.record(Workload, known)
    return run_row(config, workload, latencies, Drafting(), detail=requests is not None)


def run_row(
    config: Configuration,
    workload: Workload,
    latencies: Mapping[str, Latency],
    drafting: Drafting,
    *,
    detail: bool,
    saturated: bool = False,
    flags: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """One row of the run table without its identity; InputError if the parts contradict."""
    w = workload
    metrics = {m: _with_log_moments(latencies[m], w.requests) for m in METRICS}
    _check_units(w, metrics)
    row = {**config.model_dump(), **w.model_dump(), **_counts(config, drafting)}
    if math.isnan(w.span_s):
        row["span_s"] = w.requests / w.rate_rps if w.loop == "open" else w.duration_s
    if math.isnan(w.in_flight):
        by_little = w.achieved_rps * metrics["e2e"].mean
        row["in_flight"] = w.concurrency if math.isnan(by_little) else by_little
    for m, x in metrics.items():
        row |= {f"{m}_{name}_s": getattr(x, name) for name in ("mean", "p50", "p90", "p95", "p99")}
        row |= {f"{m}_{name}": getattr(x, name) for name in ("log_mean", "log_var")}
        row[f"{m}_log_var_n_eff"] = x.log_var_n_eff
    too_short = w.loop == "open" and row["e2e_mean_s"] > row["span_s"] / STEADY_LATENCIES
    row["detail"] = detail
    row["saturated"] = bool(saturated or too_short or w.loop == "burst")
    row["flags"] = ",".join(sorted(flags | _flags(row)))
    return row


def _with_log_moments(latency: Latency, requests: int) -> Latency:
    """Fill the moments of the log from what a file without single requests gives.

    A log-normal's variance of the log follows from mean and standard deviation, or from two
    percentiles. Either tells less than the requests' logs would: ``log_var_n_eff`` is the number
    of requests whose logs would tell as much (ratio of the asymptotic variances).
    """
    if math.isnan(latency.mean) or not math.isnan(latency.log_mean):
        return latency
    if requests == 1:
        return latency.model_copy(update={"log_mean": math.log(latency.mean)})
    if not math.isnan(latency.std):
        log_var = math.log1p((latency.std / latency.mean) ** 2)
        n_eff = requests / (1 + 8 * log_var)
    else:
        upper = next((q for q in UPPER if not math.isnan(getattr(latency, q))), None)
        if upper is None or math.isnan(latency.p50):
            return latency
        z, share = UPPER[upper]
        log_var = (math.log(getattr(latency, upper) / latency.p50) / z) ** 2
        n_eff = share * requests
    moments = {"log_mean": math.log(latency.mean) - log_var / 2}
    if log_var > 0:
        moments |= {"log_var": log_var, "log_var_n_eff": n_eff}
    return latency.model_copy(update=moments)


def _flags(row: Mapping[str, Any]) -> frozenset[str]:
    """Names that `check` explains."""
    speculates = row["arm"] == "sd" and row["draft_tokens"] > 0
    raised = {
        "saturated": row["saturated"],
        "failed>5%": row["failed"] > FAILED_SHARE * (row["requests"] + row["failed"]),
        "no-tpot": math.isnan(row["tpot_mean_s"]),
        "concurrency-cap": row["loop"] == "open" and not math.isnan(row["concurrency"]),
        "few-requests": row["requests"] < FEW_REQUESTS,
        "no-counts": speculates and not (row["drafts"] > 0 and row["accepted_tokens"] >= 0),
    }
    return frozenset(name for name, up in raised.items() if up)


def _check_units(w: Workload, metrics: Mapping[str, Latency]) -> None:
    """Refuse means that no run can have together."""
    e2e, ttft, tpot = (metrics[m].mean for m in METRICS)
    if math.isnan(e2e):
        raise InputError("mean e2e latency is missing; a run is of no use without it")
    if ttft > e2e * ROUNDING:
        problem = f"mean ttft {ttft:g} s is longer than mean e2e latency {e2e:g} s"
        raise InputError(f"{problem}; check the units")
    if e2e > w.duration_s * UNIT_SLACK:
        problem = f"mean e2e latency {e2e:g} s is longer than the run of {w.duration_s:g} s"
        raise InputError(f"{problem}; check the units")
    parts = ttft + (w.output_tokens - 1) * tpot
    # Means of ratios over requests of unequal length differ, but not by such a factor.
    if w.output_tokens > 1 and not math.isnan(parts) and not e2e / 10 < parts < e2e * 10:
        problem = f"mean ttft and tpot add up to {parts:g} s but mean e2e latency is {e2e:g} s"
        raise InputError(f"{problem}; check the units")


def _counts(config: Configuration, d: Drafting) -> dict[str, float]:
    """Columns of drafting; what was not counted stays NaN, above all single positions."""
    k, alpha = config.draft_tokens, config.acceptance_imposed
    if k == 0:
        if any((d.drafts, d.drafted_tokens, d.accepted_tokens, *d.positions)):
            problem = "drafted or accepted tokens are counted but draft_tokens is 0"
            raise InputError(f"{problem} (arm {config.arm}); give the drafter and its draft_tokens")
        unknown = dict.fromkeys(("drafts", "drafted_tokens", "accepted_tokens"), math.nan)
        return unknown | {"tokens_per_cycle": 1.0}
    _check_counts(k, d)
    accepted = d.accepted_tokens
    if accepted is None and len(d.positions) == k:
        accepted = sum(d.positions)
    if d.drafts and accepted is not None:
        per_cycle = 1 + accepted / d.drafts
    else:
        per_cycle = math.nan if math.isnan(alpha) else sum(alpha**j for j in range(k + 1))
    counts = {"drafts": d.drafts, "drafted_tokens": d.drafted_tokens, "accepted_tokens": accepted}
    counts |= {f"accepted_{j}": n for j, n in enumerate(d.positions, start=1)}
    row = {name: math.nan if n is None else float(n) for name, n in counts.items()}
    return row | {"tokens_per_cycle": per_cycle}


def _check_counts(k: int, d: Drafting) -> None:
    """Refuse counts that no drafter can have."""
    given, total = len(d.positions), sum(d.positions)
    if given not in (0, k):
        raise InputError(f"acceptance is given for {given} positions but draft_tokens is {k}")
    if d.drafts is None:
        if d.accepted_tokens is not None or d.positions:
            raise InputError("accepted tokens are counted but drafts is missing; give both")
        return
    most = k * d.drafts
    drafted = most if d.drafted_tokens is None else d.drafted_tokens
    if drafted > most:
        limit = f"draft_tokens {k} times drafts {d.drafts}"
        raise InputError(f"drafted_tokens {drafted} is more than {limit}")
    if d.accepted_tokens is not None and d.accepted_tokens > drafted:
        raise InputError(f"accepted_tokens {d.accepted_tokens} is more than the {drafted} drafted")
    if any(b > a for a, b in pairwise((d.drafts, *d.positions))):
        raise InputError(
            f"accepted counts {list(d.positions)} of {d.drafts} drafts increase with position; "
            "a token is accepted only after the one before it"
        )
    if d.positions and d.accepted_tokens is not None and abs(total - d.accepted_tokens) > k:
        problem = f"accepted_tokens is {d.accepted_tokens} but the positions add up to {total}"
        raise InputError(f"{problem}; give counts of one run")


def fingerprint(values: Mapping[str, Any]) -> str:
    """Short hash of values, so that a run given twice is recognised."""
    content = sorted((k, repr(v)) for k, v in values.items())
    return hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()[:12]


def run_id(row: Mapping[str, Any]) -> str:
    """Hash of what was measured: what a file says about the server may be wrong."""
    measured = (*(f"{m}_" for m in METRICS), "accepted_", "prompt_tokens", "output_tokens")
    exact = ("duration_s", "requests", "failed")
    return fingerprint({k: v for k, v in row.items() if k.startswith(measured) or k in exact})
