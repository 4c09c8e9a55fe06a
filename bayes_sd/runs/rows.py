"""From what a run measured, checked, to one row of the run table."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from pydantic import AliasChoices, AliasPath, Field, model_validator

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.config import ROUNDING, column
from bayes_sd.runs.consistency import QUANTILES, UNIT_SLACK, doubts
from bayes_sd.runs.drafting import EVIDENCE, Drafting, counts, usual_acceptance

METRICS = {
    "e2e": "end-to-end latency",
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
}
Loop = Literal["open", "closed", "burst"]

# Arrivals must go on for several mean latencies before the number in flight has levelled off;
# below four, most of what is measured is the filling and the draining of the queue.
STEADY_LATENCIES = 4
FEW_REQUESTS = 10
FAILED_SHARE = 0.05
ITL_TOKENS = 300.0  # what a ratio of latencies is worth: it was 7% off where both were measured
CAP_REACHED = 0.95  # of a concurrency cap in flight in the mean: it was nearly always full
SERVED_SHARE, QUEUE_SHARE = 0.9, 0.02  # of the offered rate; of the run, spent on the queue
FAR_BELOW = 0.8  # of the imposed acceptance: sampling loses more, chance less
CUT_SHARE, CUT_MOST = 0.05, 0.5  # of the requests, cut off at the end: named; nothing is steady

# Upper percentiles of which one gives the spread together with the median: its normal quantile,
# and the effective number of requests as a share of all: var(log s^2 of n) over the variance
# from the two order statistics.
UPPER = {"p95_s": (1.6449, 0.28), "p90_s": (1.2816, 0.27), "p99_s": (2.3263, 0.19)}
Rows = Iterator[tuple[int, dict[str, Any] | InputError]]  # place in a source, and its run


class Workload(c.Record, extra="forbid"):
    """Offered load and its extent; seconds, tokens, requests per second."""

    prompt_tokens: c.Positive = column("mean prompt length", ...)
    output_tokens: c.Positive = column("mean output length", ...)
    prompt_tokens_sd: c.NonNegative = column("sd of prompt lengths in the run, or missing")
    output_tokens_sd: c.NonNegative = column("sd of output lengths in the run, or missing")
    loop: Loop = column("open (a rate), closed (a concurrency) or burst (neither)", ...)
    rate_rps: c.Positive = column("offered rate, open loop only")
    concurrency: c.Positive = column("limit on requests in flight")
    achieved_rps: c.Positive = column("requests over duration, drain included")
    burstiness: c.Positive = column("shape of the gamma arrivals, 1 is Poisson")
    span_s: c.Positive = column("from the first arrival to the last")
    duration_s: c.Positive = column("from the first arrival to the last answer")
    requests: c.PositiveCount = column("successful requests", ...)
    failed: c.Count = column("failed requests, in no statistic", 0)
    incomplete: c.Count = column("requests cut off at the end, in no statistic", 0)
    in_flight: c.Positive = column("mean number of requests in flight")

    @model_validator(mode="after")
    def _load_is_given(self) -> Self:
        if self.loop == "open" and math.isnan(self.rate_rps):
            raise ValueError("rate_rps is missing; an open loop needs a positive finite rate")
        if self.loop == "closed" and math.isnan(self.concurrency):
            raise ValueError("concurrency is missing; a closed loop needs a positive one")
        if self.loop != "open" and not math.isnan(self.rate_rps):
            raise ValueError(f"rate_rps is given in a {self.loop} loop; call it achieved_rps")
        if self.loop == "burst" and not math.isnan(self.concurrency):
            raise ValueError("concurrency is given in a burst loop; call the loop closed")
        return self


class Latency(c.Record, extra="forbid"):
    """One metric of one run in seconds; NaN where it was not recorded."""

    mean_s: c.Positive = column("mean {}")
    std_s: c.NonNegative = column("standard deviation of {}")
    p50_s: c.Positive = column("50th percentile of {}")
    p90_s: c.Positive = column("90th percentile of {}")
    p95_s: c.Positive = column("95th percentile of {}")
    p99_s: c.Positive = column("99th percentile of {}")
    log_mean: c.Finite = column("mean of the log of {} in s")
    log_var: c.NonNegative = column("variance of the log of {}")
    log_var_n_eff: c.Positive = column("requests whose logs tell as much; missing: all of the run")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        known = [p for name in QUANTILES if not math.isnan(p := getattr(self, name))]
        if any(low > high * ROUNDING for low, high in pairwise(known)):
            raise ValueError("percentiles decrease; p50 <= p90 <= p95 <= p99 is required")
        return self


def called(*names: str, default: Any = None) -> Any:
    """A field that a tool calls one of these; dots lead into objects."""
    paths = [AliasPath(*name.split(".")) for name in names]
    return Field(default, validation_alias=AliasChoices(*paths) if names[1:] else paths[0])


class Statistics(c.Record):
    """One metric of one run as a tool reports it, in the tool's unit."""

    mean: c.Number | None = called("mean", "avg", "value")
    std: c.Number | None = called("std", "std_dev")
    p50: c.Number | None = called("p50", "median", "percentiles.p50")
    p90: c.Number | None = called("p90", "percentiles.p90")
    p95: c.Number | None = called("p95", "percentiles.p95")
    p99: c.Number | None = called("p99", "percentiles.p99")

    def latency(self, unit_s: float, where: str) -> Latency:
        """The same in seconds; nothing where there is no mean, for which tools write 0."""
        known = {name: getattr(self, name) for name in Statistics.model_fields if self.mean}
        values = {f"{name}_s": x * unit_s for name, x in known.items() if x is not None}
        return c.record(Latency, values, f"{where}: ")


@dataclass(frozen=True)
class Requests:
    """Successful requests: seconds (``ttft`` may be NaN), tokens, and their places in the file."""

    e2e: np.ndarray
    ttft: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    index: np.ndarray | None = None


def _latencies(requests: Requests, duration_s: float) -> dict[str, Latency]:
    """Exact statistics of e2e, ttft and tpot; InputError if a request is impossible."""
    e2e, ttft, output = requests.e2e, requests.ttft, requests.output
    index = np.arange(len(e2e)) if requests.index is None else requests.index
    fits = (ttft > 0) & (ttft <= e2e * ROUNDING) | np.isnan(ttft)
    bad = ~((e2e > 0) & np.isfinite(e2e) & fits)
    if bad.any():
        i = int(np.argmax(bad))
        times = f"e2e latency {e2e[i]:g} s and ttft {ttft[i]:g} s"
        raise InputError(f"request {index[i]} has {times}; needed are 0 < ttft <= e2e, finite")
    if e2e.max() > duration_s * UNIT_SLACK:
        reach = f"e2e latencies reach {e2e.max():g} s in a run of {duration_s:g} s"
        raise InputError(f"{reach}; check the units")
    # Tokens that arrive in one chunk leave no measurable decode time.
    decode = np.where((output > 1) & (e2e > ttft), e2e - ttft, np.nan)
    seconds = {"e2e": e2e, "ttft": ttft, "tpot": decode / np.maximum(output - 1, 1)}
    return {metric: _statistics(x) for metric, x in seconds.items()}


def _statistics(seconds: np.ndarray) -> Latency:
    x = seconds[np.isfinite(seconds)]
    if x.size == 0:
        return Latency()
    logs = np.log(x)
    quantiles = zip(QUANTILES, np.percentile(x, (50, 90, 95, 99)), strict=True)
    several = {"std_s": float(x.std()), "log_var": float(logs.var(ddof=1))} if x.size > 1 else {}
    means = {"mean_s": float(x.mean()), "log_mean": float(logs.mean())}
    return Latency(**means, **dict(quantiles), **several)


def counted(requests: float, failed: float | None, duration_s: float) -> dict[str, Any]:
    """Part of a load: how many requests a tool counted in which time."""
    if requests == 0:
        raise InputError("no request succeeded; at least one successful request is needed")
    if not duration_s > 0:
        raise InputError(f"the duration must be a positive number of seconds, got {duration_s:g}")
    rate = {"duration_s": duration_s, "achieved_rps": requests / duration_s}
    return {"requests": requests, "failed": failed, **rate}


def run_row(
    configuration: c.Values,
    load: c.Values,
    latencies: Mapping[str, Latency],
    *,
    requests: Requests | None = None,
    drafting: Drafting | None = None,
    saturated: bool = False,
    flags: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Row of the run table of a Workload's fields, what a tool reports, and all its requests."""
    drafting = drafting or Drafting()
    config = c.configure({"draft_tokens": drafting.draft_tokens, **configuration})
    for name in ("verifier", "drafter"):
        given = configuration.get(f"{name}_params")
        if c.absent(given) and getattr(config, f"{name}_params") > 0:
            flags |= {f"{name}-by-name"}
    load = dict(load)
    if requests is not None:
        exact = _latencies(requests, load["duration_s"])
        _compare_means(exact, latencies)
        latencies = exact
        load.setdefault("in_flight", float(requests.e2e.sum() / load["duration_s"]))
        for name in ("prompt", "output"):
            n = getattr(requests, name)
            load |= {f"{name}_tokens": float(n.mean()), f"{name}_tokens_sd": float(n.std())}
    w = c.record(Workload, load)
    row, std_s = {**config.model_dump(), **w.model_dump()}, {}
    for m in METRICS:
        values = _with_log_moments(latencies[m], w.requests).model_dump()
        std_s[m] = values.pop("std_s")
        row |= {f"{m}_{name}": value for name, value in values.items()}
    if math.isnan(row["e2e_mean_s"]):
        raise InputError("mean e2e latency (e2e_mean_s) is missing; a run is of no use without it")
    if math.isnan(w.achieved_rps):
        row["achieved_rps"] = w.requests / w.duration_s
    sent = w.requests + w.failed + w.incomplete
    if w.loop == "closed" and sent < w.concurrency:
        row["concurrency"], flags = float(sent), flags | {"cap-not-filled"}
    flags |= doubts(row, std_s if requests is None else {})
    overloaded = _overloaded(row)
    if math.isnan(row["in_flight"]):
        by_little = row["achieved_rps"] * row["e2e_mean_s"]
        row["in_flight"] = row["concurrency"] if math.isnan(by_little) else by_little
    if w.loop == "open" and row["in_flight"] >= CAP_REACHED * w.concurrency:
        # The cap, not the offered rate, decides how many are served at once.
        row |= {"loop": "closed", "rate_rps": math.nan}
        flags, overloaded = flags | {"cap-reached"}, False
    tokens, by_itl = w.requests * w.output_tokens, "acceptance-from-itl" in flags
    known = drafting.of_tokens(min(tokens, ITL_TOKENS) if by_itl else tokens, config.draft_tokens)
    row |= counts(config, known)
    if known is not drafting and drafting.accepted_tokens is None:
        row["acceptance_from"] = "itl" if by_itl else "length"
    if math.isnan(w.span_s):
        row["span_s"] = w.requests / w.rate_rps if row["loop"] == "open" else w.duration_s
    too_short = row["loop"] == "open" and row["e2e_mean_s"] > row["span_s"] / STEADY_LATENCIES
    unsteady = too_short or overloaded or w.incomplete > CUT_MOST * sent or w.loop == "burst"
    row |= {"detail": requests is not None, "saturated": bool(saturated or unsteady)}
    flags = flags | {"overloaded"} if overloaded else flags
    row["flags"] = ",".join(sorted(flags | _flags(row)))
    return row


def _overloaded(row: c.Values) -> bool:
    """Whether much less was served than was offered, so that the queue grew all the time.

    A steady run ends about one latency after its last arrival; an overloaded one has to work off
    its queue first.
    """
    span_s, duration_s, n = row["span_s"], row["duration_s"], row["requests"]
    if row["loop"] != "open" or not row["achieved_rps"] < SERVED_SHARE * row["rate_rps"]:
        return False
    if not span_s < duration_s:
        span_s = n / row["rate_rps"]
    # By chance so few arrivals take longer or shorter, and so does the last request.
    slack = QUEUE_SHARE + 2 / n**0.5
    return bool(span_s < (1 - slack) * (duration_s - row["e2e_mean_s"]))


def _compare_means(exact: Mapping[str, Latency], reported: Mapping[str, Latency]) -> None:
    """Refuse a file whose own means are not those of its requests."""
    for metric, report in reported.items():
        ratio = report.mean_s / exact[metric].mean_s
        if ratio > UNIT_SLACK or ratio < 1 / UNIT_SLACK:
            means = f"{report.mean_s:g} s but the requests' mean is {exact[metric].mean_s:g} s"
            raise InputError(f"mean {metric} is reported as {means}; check the units")


def _with_log_moments(latency: Latency, requests: int) -> Latency:
    """Fill a log-normal's moments from mean and standard deviation, or from two percentiles.

    ``log_var_n_eff`` requests' logs would tell as much (ratio of the asymptotic variances).
    """
    if math.isnan(latency.mean_s) or not math.isnan(latency.log_mean):
        return latency
    if requests == 1:
        return latency.model_copy(update={"log_mean": math.log(latency.mean_s)})
    if not math.isnan(latency.std_s):
        cv = latency.std_s / latency.mean_s
        log_var = math.log1p(cv * cv)  # infinite, and refused later, where cv**2 would raise
        n_eff = requests / (1 + 8 * log_var)
    else:
        upper = next((q for q in UPPER if not math.isnan(getattr(latency, q))), None)
        if upper is None or math.isnan(latency.p50_s):
            return latency
        z, share = UPPER[upper]
        log_var = (math.log(getattr(latency, upper) / latency.p50_s) / z) ** 2
        n_eff = share * requests
    moments = {"log_mean": math.log(latency.mean_s) - log_var / 2}
    if log_var > 0:
        moments |= {"log_var": log_var, "log_var_n_eff": n_eff}
    return latency.model_copy(update=moments)


def _flags(row: c.Values) -> frozenset[str]:
    """Names that `check` explains."""
    from scipy.special import betaincinv

    requests, known, k = row["requests"], row["acceptance_from"], row["draft_tokens"]
    least = FAR_BELOW * row["acceptance_imposed"]
    if math.isnan(least):
        a, b = usual_acceptance(row["drafter"], row["drafter_method"], row["drafter_params"])
        least = betaincinv(a, b, 0.05)
    low = row["tokens_per_cycle"] < sum(least**j for j in range(k + 1))
    raised = {
        "saturated": row["saturated"],
        "failed>5%": row["failed"] > FAILED_SHARE * (requests + row["failed"]),
        "cut-off": row["incomplete"] > CUT_SHARE * (requests + row["incomplete"]),
        "no-spread": requests > 1 and math.isnan(row["e2e_log_mean"]),
        "no-tpot": math.isnan(row["tpot_mean_s"]),
        "concurrency-cap": row["loop"] == "open" and not math.isnan(row["concurrency"]),
        "few-requests": requests < FEW_REQUESTS,
        "low-acceptance": known in EVIDENCE and low,
        "no-counts": known == "imposed",
        f"acceptance-from-{known}": known in ("length", "itl"),
    }
    return frozenset(name for name, up in raised.items() if up)


def fingerprint(values: Mapping[Any, Any]) -> str:
    """Short hash of values, so that a run given twice is recognised.

    Of numbers, in 8 digits: an engine adds in any order, and the last ones differ each time.
    """
    content = sorted(
        (k, f"{v:.8g}" if isinstance(v, float) else repr(v)) for k, v in values.items()
    )
    return hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()[:12]


def run_id(row: c.Values, start_s: float | None = None) -> str:
    """Hash of what was measured: what a file says about the server may be wrong.

    Two windows may have the same numbers: when they were tells them apart.
    """
    measured = (*(f"{m}_" for m in METRICS), "accepted_", "prompt_tokens", "output_tokens")
    exact = ("duration_s", "requests", "failed")
    run = fingerprint({k: v for k, v in row.items() if k.startswith(measured) or k in exact})
    return run if start_s is None else fingerprint({"run": run, "start_s": f"{start_s:.3f}"})


def rows_of[T](items: Iterable[tuple[int, T]], row_of: Callable[[T], dict[str, Any]]) -> Rows:
    """Row of each item of a source, or why it has none."""
    for i, item in items:
        try:
            yield i, row_of(item)
        except InputError as error:
            yield i, error
