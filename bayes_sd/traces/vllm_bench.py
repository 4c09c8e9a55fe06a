"""One run of the table from a result of ``vllm bench serve``, detailed or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from bayes_sd.errors import InputError
from bayes_sd.traces.config import configure
from bayes_sd.traces.numbers import absent, nonnegative, positive, sentence
from bayes_sd.traces.records import Drafting, Latency, Workload
from bayes_sd.traces.rows import UNIT_SLACK, latency_of_requests, run_row
from bayes_sd.traces.vllm_record import BenchResult

AGGREGATES = {
    "mean": "mean",
    "std": "std",
    "median": "p50",
    "p50": "p50",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
}
TWICE = 2.0  # tokens listed and counted may differ by failed requests, not by more
MANY, FAR = 20, 10.0  # from so many arrivals on, their rate is within this factor of the asked one
ALL_FAILED = "all requests failed; at least one successful request is needed"


@dataclass(frozen=True)
class _Requests:
    """The successful requests of a detailed result; tokens and seconds."""

    prompt: np.ndarray
    output: np.ndarray
    seconds: Mapping[str, np.ndarray]
    failed: int


def run_of(data: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Row of one result.

    Parameters
    ----------
    data : mapping
        The file's JSON object.
    configuration : mapping
        Canonical configuration keys from metadata, sidecar and arguments together.

    Raises
    ------
    InputError
        If a value is missing, not allowed, or contradicts another.
    """
    try:
        r = BenchResult.model_validate(data)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    values = dict(configuration)
    if not absent(data.get("model_id")):
        values.setdefault("verifier", data["model_id"])
    values.setdefault("draft_tokens", _draft_tokens(r, values))
    config = configure({k: v for k, v in values.items() if v is not None})
    if r.completed == 0:
        raise InputError(ALL_FAILED)
    requests = _requests(r)
    aggregates = {m: _aggregate(data, m) for m in ("e2el", "ttft", "tpot")}
    load = _load(r)
    if requests is not None:
        latencies = {m: latency_of_requests(x) for m, x in requests.seconds.items()}
        _compare(latencies, aggregates)
        load |= {
            "requests": len(requests.output),
            "failed": requests.failed,
            "prompt_tokens": float(requests.prompt.mean()),
            "output_tokens": float(requests.output.mean()),
            "prompt_tokens_sd": float(requests.prompt.std()),
            "output_tokens_sd": float(requests.output.std()),
            "in_flight": float(requests.seconds["e2e"].sum() / r.duration),
        }
    else:
        latencies = {m.replace("e2el", "e2e"): x for m, x in aggregates.items()}
        if math.isnan(latencies["e2e"].mean):
            raise InputError(
                "mean_e2el_ms is missing; run vllm bench serve with --save-detailed or with "
                "--percentile-metrics ttft,tpot,e2el"
            )
        load |= {
            "requests": r.completed,
            "failed": _reported_failures(r),
            "prompt_tokens": r.total_input_tokens / r.completed,
            "output_tokens": r.total_output_tokens / r.completed,
        }
    load["achieved_rps"] = load["requests"] / r.duration
    try:
        workload = Workload(**load)
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    return run_row(config, workload, latencies, _counts(r), detail=requests is not None)


def _draft_tokens(r: BenchResult, values: Mapping[str, Any]) -> int | None:
    rates, drafts = (
        r.spec_decode_per_position_acceptance_rates,
        r.spec_decode_num_drafts,
    )
    if rates:
        return len(rates)
    if drafts and r.spec_decode_draft_tokens is not None:
        k = r.spec_decode_draft_tokens / drafts
        return int(k) if k == int(k) else None
    return 0 if str(values.get("drafter", "none")).strip().lower() == "none" else None


def _reported_failures(r: BenchResult) -> int:
    if r.failed is not None:
        return r.failed
    return max((r.num_prompts or 0) - r.completed, 0)


def _requests(r: BenchResult) -> _Requests | None:
    """Successful requests, or None if the result has no complete lists."""
    e2e_is_known = bool(r.latencies or r.itls)
    if not (r.ttfts and r.input_lens and r.output_lens and e2e_is_known):
        return None
    names = (
        "ttfts",
        "input_lens",
        "output_lens",
        "latencies",
        "itls",
        "start_times",
        "errors",
    )
    lengths = {name: len(x) for name in names if (x := getattr(r, name)) is not None and x}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise InputError(f"lists have unequal lengths ({listed}); one entry a request is needed")
    output = np.asarray(r.output_lens)
    for key, summed, total in (
        ("input_lens", sum(r.input_lens), r.total_input_tokens),
        ("output_lens", int(output.sum()), r.total_output_tokens),
    ):
        if not total / TWICE <= summed <= total * TWICE and r.completed == len(output):
            raise InputError(
                f"{key} sum to {summed} but total_{key[:-5]}_tokens is {total}; "
                "they must be of the same requests"
            )
    ok = output > 0
    if r.errors:
        ok &= np.array([not e for e in r.errors])
    if not ok.any():
        raise InputError(ALL_FAILED)
    # Some files list only the successful requests and count the failed ones apart.
    unlisted = max(r.completed + _reported_failures(r) - ok.size, 0)
    ttft = np.asarray(r.ttfts)
    e2e = np.asarray(r.latencies) if r.latencies else ttft + [sum(x) for x in r.itls or ()]
    field = "latencies" if r.latencies else "ttfts plus itls"
    for name, x in (("ttfts", ttft), (field, e2e)):
        bad = np.flatnonzero(ok & ~(np.isfinite(x) & (x > 0)))
        if bad.size:
            raise InputError(f"{name}[{bad[0]}] must be a positive finite number, got {x[bad[0]]}")
    late = np.flatnonzero(ok & (ttft > e2e * (1 + 1e-4)))
    if late.size:
        i = late[0]
        raise InputError(
            f"ttfts[{i}] is {ttft[i]:g} s, longer than the whole request, {e2e[i]:g} s"
        )
    if e2e[ok].max() > r.duration * UNIT_SLACK:
        raise InputError(
            f"{field} reach {e2e[ok].max():g} s in a run of {r.duration:g} s; "
            "seconds are needed, so check the units"
        )
    ttft, e2e, output = ttft[ok], e2e[ok], output[ok]
    # Tokens that arrive in one chunk leave no measurable decode time.
    decode = np.where((output > 1) & (e2e > ttft), e2e - ttft, np.nan)
    return _Requests(
        prompt=np.asarray(r.input_lens)[ok],
        output=output,
        seconds={"e2e": e2e, "ttft": ttft, "tpot": decode / np.maximum(output - 1, 1)},
        failed=int((~ok).sum()) + unlisted,
    )


def _load(r: BenchResult) -> dict[str, Any]:
    load: dict[str, Any] = {"duration_s": r.duration}
    if math.isfinite(r.request_rate):
        load |= {"loop": "open", "rate_rps": r.request_rate}
        load["span_s"] = r.completed / r.request_rate if r.completed else r.duration
    else:
        load |= {
            "loop": "burst" if r.max_concurrency is None else "closed",
            "span_s": r.duration,
        }
    if r.max_concurrency is not None:
        load["concurrency"] = r.max_concurrency
    if r.burstiness is not None and load["loop"] == "open":
        load["burstiness"] = r.burstiness
    if r.start_times and load["loop"] == "open":
        span = max(r.start_times) - min(r.start_times)
        if not math.isfinite(span):
            raise InputError("start_times must be finite numbers")
        if span > r.duration * UNIT_SLACK:
            raise InputError(f"start_times spread over {span:g} s in a run of {r.duration:g} s")
        if span > 0:
            load["span_s"] = span
        n = len(r.start_times)
        if n >= MANY and span > 0 and r.max_concurrency is None:
            shown = (n - 1) / span
            if not shown / FAR <= r.request_rate <= shown * FAR:
                raise InputError(
                    f"request_rate is {r.request_rate:g} but {n} start_times spread over "
                    f"{span:g} s, {shown:.3g} a second; check the units"
                )
    return load


def _aggregate(data: Mapping[str, Any], metric: str) -> Latency:
    values: dict[str, float] = {}
    one_token = data["total_output_tokens"] == data["completed"]
    for theirs, ours in AGGREGATES.items():
        key = f"{theirs}_{metric}_ms"
        # vLLM writes 0.0 for the statistics of nothing, here of tokens after the first.
        if absent(data.get(key)) or (metric == "tpot" and one_token):
            continue
        try:
            check = nonnegative if ours == "std" else positive
            values[ours] = check(data[key]) / 1000
        except ValueError as error:
            raise InputError(f"{key} {error}") from None
    try:
        return Latency(**values)
    except ValidationError as error:
        raise InputError(f"{metric}: {sentence(error)}") from None


def _compare(latencies: Mapping[str, Latency], aggregates: Mapping[str, Latency]) -> None:
    for ours, theirs in (("e2e", "e2el"), ("ttft", "ttft"), ("tpot", "tpot")):
        ratio = aggregates[theirs].mean / latencies[ours].mean
        if ratio > UNIT_SLACK or ratio < 1 / UNIT_SLACK:
            raise InputError(
                f"mean_{theirs}_ms is {aggregates[theirs].mean * 1000:g} but the requests' mean is "
                f"{latencies[ours].mean * 1000:g} ms; lists are in seconds, aggregates in ms"
            )


def _counts(r: BenchResult) -> Drafting:
    drafts, rates = (
        r.spec_decode_num_drafts,
        r.spec_decode_per_position_acceptance_rates,
    )
    return Drafting(
        drafts=drafts,
        drafted_tokens=r.spec_decode_draft_tokens,
        accepted_tokens=r.spec_decode_accepted_tokens,
        positions=tuple(round(rate * drafts) for rate in rates) if rates and drafts else (),
    )
