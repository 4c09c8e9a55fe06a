"""From checked records to one row of the run table."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.traces.config import Configuration
from bayes_sd.traces.records import Drafting, Latency, Workload

METRICS = ("e2e", "ttft", "tpot")

# Arrivals must go on for several mean latencies before the number in flight has levelled off;
# below four, most of what is measured is the filling and the draining of the queue.
STEADY_LATENCIES = 4
FEW_REQUESTS = 10
FAILED_SHARE = 0.05
# Means in milliseconds and lists in seconds round differently and may drop different requests;
# a wrong unit is off by far more.
UNIT_SLACK = 1.2

# Upper percentiles of which one tells the spread with the median: its normal quantile, and the
# share of the requests' logs it is worth, var(log s^2 of n) / var from the two order statistics.
UPPER = {"p95": (1.6449, 0.28), "p90": (1.2816, 0.27), "p99": (2.3263, 0.19)}

FLAGS = {
    "saturated": "burst, or arrivals lasted under four mean latencies, or said so by the caller",
    "failed>5%": "more than one request in twenty failed",
    "no-tpot": "time per output token unknown",
    "concurrency-cap": "open loop with a limit on requests in flight",
    "few-requests": "under ten successful requests",
    "no-counts": "speculative run without acceptance counts",
    "rate-from-achieved": "offered rate unknown, the achieved one stands in",
}


def latency_of_requests(seconds: np.ndarray) -> Latency:
    """Exact statistics of per-request latencies in seconds (NaN: not measured)."""
    x = seconds[np.isfinite(seconds)]
    if x.size == 0:
        return Latency()
    logs = np.log(x)
    p50, p90, p95, p99 = (float(q) for q in np.percentile(x, (50, 90, 95, 99)))
    several = {"std": float(x.std()), "log_var": float(logs.var(ddof=1))} if x.size > 1 else {}
    return Latency(
        mean=float(x.mean()),
        log_mean=float(logs.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        **several,
    )


def with_log_moments(latency: Latency, requests: int) -> Latency:
    """Fill the moments of the log from what a file without single requests gives.

    A log-normal's variance of the log follows from mean and standard deviation, or from two
    percentiles. Either knows less than the requests' logs would: `log_var_requests` is the number
    of requests whose logs would have told as much (ratio of the asymptotic variances).
    """
    if math.isnan(latency.mean) or not math.isnan(latency.log_mean):
        return latency
    if requests == 1:
        return latency.model_copy(update={"log_mean": math.log(latency.mean)})
    if not math.isnan(latency.std):
        log_var = math.log1p((latency.std / latency.mean) ** 2)
        worth = requests / (1 + 8 * log_var)
    else:
        upper = next((q for q in UPPER if not math.isnan(getattr(latency, q))), None)
        if upper is None or math.isnan(latency.p50):
            return latency
        z, share = UPPER[upper]
        log_var = (math.log(getattr(latency, upper) / latency.p50) / z) ** 2
        worth = share * requests
    moments = {"log_mean": math.log(latency.mean) - log_var / 2}
    if log_var > 0:
        moments |= {"log_var": log_var, "log_var_requests": worth}
    return latency.model_copy(update=moments)


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
    """One row of the run table without its identity (run_id, source, row).

    Raises
    ------
    InputError
        If the records contradict each other.
    """
    w = workload
    metrics = {m: with_log_moments(latencies[m], w.requests) for m in METRICS}
    _check_units(w, metrics)
    row = {**config.model_dump(), **w.model_dump(), **_drafting(config, drafting)}
    if math.isnan(w.span_s):
        row["span_s"] = w.requests / w.rate_rps if w.loop == "open" else w.duration_s
    if math.isnan(w.in_flight):
        by_little = w.achieved_rps * metrics["e2e"].mean
        row["in_flight"] = w.concurrency if math.isnan(by_little) else by_little
    for m, x in metrics.items():
        row |= {
            f"{m}_mean_s": x.mean,
            f"{m}_log_mean": x.log_mean,
            f"{m}_log_var": x.log_var,
            f"{m}_log_var_requests": x.log_var_requests,
            f"{m}_p50_s": x.p50,
            f"{m}_p90_s": x.p90,
            f"{m}_p95_s": x.p95,
            f"{m}_p99_s": x.p99,
        }
    row["detail"] = detail
    row["saturated"] = saturated or _unsteady(row)
    row["flags"] = ",".join(sorted(flags | _flags(row)))
    return row


def _unsteady(row: Mapping[str, Any]) -> bool:
    if row["loop"] == "open":
        return bool(row["e2e_mean_s"] > row["span_s"] / STEADY_LATENCIES)
    return bool(row["loop"] == "burst")


def _flags(row: Mapping[str, Any]) -> frozenset[str]:
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
    e2e, ttft, tpot = (metrics[m].mean for m in METRICS)
    if ttft > e2e * (1 + 1e-4):
        raise InputError(
            f"mean ttft {ttft:g} s is longer than mean e2e latency {e2e:g} s; check the units"
        )
    if e2e > w.duration_s * UNIT_SLACK:
        raise InputError(
            f"mean e2e latency {e2e:g} s is longer than the run of {w.duration_s:g} s; "
            "check the units"
        )
    parts = ttft + (w.output_tokens - 1) * tpot
    # Means of ratios over requests of unequal length differ, but not by such a factor.
    if w.output_tokens > 1 and not math.isnan(parts) and not e2e / 10 < parts < e2e * 10:
        raise InputError(
            f"mean ttft and tpot add up to {parts:g} s but mean e2e latency is {e2e:g} s; "
            "check the units"
        )


def _drafting(config: Configuration, d: Drafting) -> dict[str, float]:
    k, alpha = config.draft_tokens, config.acceptance_imposed
    given = (d.drafts, d.drafted_tokens, d.accepted_tokens, *d.positions)
    if k == 0 and any(given):
        raise InputError(
            f"drafted or accepted tokens are counted but draft_tokens is 0 (arm {config.arm}); "
            "give the drafter and its draft_tokens"
        )
    if k == 0:
        unknown = dict.fromkeys(("drafts", "drafted_tokens", "accepted_tokens"), math.nan)
        return unknown | {"tokens_per_cycle": 1.0}
    _check_counts(k, d)
    accepted = d.accepted_tokens
    if accepted is None and len(d.positions) == k:
        accepted = sum(d.positions)
    if d.drafts and accepted is not None:
        per_cycle = 1 + accepted / d.drafts
    else:
        per_cycle = sum(alpha**j for j in range(k + 1)) if not math.isnan(alpha) else math.nan
    counts = {
        "drafts": d.drafts,
        "drafted_tokens": d.drafted_tokens,
        "accepted_tokens": accepted,
    }
    counts |= {f"accepted_{j}": n for j, n in enumerate(d.positions, start=1)}
    row = {name: math.nan if n is None else float(n) for name, n in counts.items()}
    return row | {"tokens_per_cycle": per_cycle}


def _check_counts(k: int, d: Drafting) -> None:
    if d.positions and len(d.positions) != k:
        raise InputError(
            f"acceptance is given for {len(d.positions)} positions but draft_tokens is {k}"
        )
    if d.drafts is None:
        if d.accepted_tokens is not None or d.positions:
            raise InputError("accepted tokens are counted but drafts is missing; give both")
        return
    drafted = k * d.drafts if d.drafted_tokens is None else d.drafted_tokens
    if drafted > k * d.drafts:
        raise InputError(
            f"drafted_tokens {drafted} is more than draft_tokens {k} times drafts {d.drafts}"
        )
    if d.accepted_tokens is not None and d.accepted_tokens > drafted:
        raise InputError(f"accepted_tokens {d.accepted_tokens} is more than the {drafted} drafted")
    if any(b > a for a, b in zip((d.drafts, *d.positions), d.positions, strict=False)):
        raise InputError(
            f"accepted counts {list(d.positions)} of {d.drafts} drafts increase with position; "
            "a token is accepted only after the one before it"
        )
    total = sum(d.positions)
    if d.positions and d.accepted_tokens is not None and abs(total - d.accepted_tokens) > k:
        raise InputError(
            f"accepted_tokens is {d.accepted_tokens} but the positions add up to {total}"
        )


def fingerprint(row: Mapping[str, Any], *, ignore: frozenset[str]) -> str:
    """Short hash of a row's content, so that a run given twice is recognised."""
    content = sorted((k, repr(v)) for k, v in row.items() if k not in ignore)
    return hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()[:12]
