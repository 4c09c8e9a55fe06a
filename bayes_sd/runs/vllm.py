"""Runs from results of ``vllm bench serve`` (sweeps too) and of SGLang's ``bench_serving``."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs import rows
from bayes_sd.runs.checkpoint import bits_of
from bayes_sd.runs.drafting import Drafting
from bayes_sd.runs.machine import GRAPH_TOKENS, captured
from bayes_sd.runs.sizes import Size

REQUIRED = ("duration", "completed", "total_input_tokens", "total_output_tokens", "request_rate")
SWEEP_FILES = ("serve_params.json", "bench_params.json", "warmup.json")
SUMMARIES = {"summary.json": "run=*.json", "summary.csv": "*/run=*.json"}  # of the runs beside it
SWEEP_SUFFIXES = ("failure.json", ".pytorch.json")
METRICS = {"e2e": ("e2el", "e2e_latency"), "ttft": ("ttft",), "tpot": ("tpot",)}
LITTLE_AGREES = 0.05  # two ways to a mean latency
TWICE = 2.0  # tokens listed and counted may differ by failed requests, not by more
PLACEHOLDER = "PUT-PATH-HERE"
VLLM_WEIGHTLESS = ("ngram", "ngram_gpu", "suffix")  # methods, of all the names these have
FOLDERS_UP = 6  # a relative model path is looked for in so many folders above the result


class BenchResult(c.Record):
    """The fields used of one result; lists hold one entry a request, seconds and tokens.

    Those on graphs are parameters of ``vllm serve``, which a sweep adds.
    """

    duration: c.Positive
    completed: c.Count
    failed: c.Count | None = None
    num_prompts: c.Count | None = None
    total_input_tokens: c.Count
    total_output_tokens: c.Count
    request_rate: c.PositiveOrInfinite
    max_concurrency: c.PositiveCount | None = None
    burstiness: c.Positive | None = None
    input_lens: list[c.Count] | None = None
    output_lens: list[c.Count] | None = None
    ttfts: list[c.Finite] | None = None
    latencies: list[c.Number] | None = None
    itls: list[list[c.NonNegative]] | None = None
    start_times: list[c.Finite] | None = None
    errors: list[str | None] | None = None
    accept_length: c.Positive | None = rows.called("accept_length", "spec_decode_acceptance_length")
    mean_itl_ms: c.NonNegative | None = None
    mean_tpot_ms: c.NonNegative | None = None
    spec_decode_num_drafts: c.Count | None = None
    spec_decode_draft_tokens: c.Count | None = None
    spec_decode_accepted_tokens: c.Count | None = None
    spec_decode_per_position_acceptance_rates: list[c.Fraction] | None = None
    enforce_eager: Any = False
    cudagraph_mode: Any = ""
    cudagraph_capture_sizes: list[c.PositiveCount] | None = None
    max_cudagraph_capture_size: c.Count | None = None


def is_result(data: c.Values) -> bool:
    """Whether a JSON object is, perhaps damaged, a result of ``vllm bench serve``."""
    return sum(key not in data for key in REQUIRED) <= 2


def companion(path: Path) -> bool:
    """Whether a file of this name lies beside the runs of a sweep without being a run."""
    named = path.name in SWEEP_FILES or path.name.endswith(SWEEP_SUFFIXES)
    return named or any(path.parent.glob(SUMMARIES[path.name]) if path.name in SUMMARIES else ())


def stated(data: c.Values) -> dict[str, Any]:
    """Configuration that a result states in its metadata and in the parameters of its server."""
    given = _parameters(data)
    bits = bits_of(str(given.get("quantization", "")))
    if bits is None and given.get("dtype") in ("float32", "float"):
        bits = 32.0  # other types may be of a checkpoint that is quantized
    server = {"gpus": given.get("tensor_parallel_size", given.get("tp")), "weight_bits": bits}
    sources = {
        "the metadata": c.canonical(data),
        "the parameters of vllm serve": {key: x for key, x in server.items() if x is not None},
        "speculative_config": _drafter(data),
    }
    return c.merge(sources.items())


def runs_of(data: c.Values, configuration: c.Values, path: Path) -> rows.Rows:
    """The run of a result, under `configuration` from the file, sidecar and arguments together."""
    if not c.absent(data.get("ramp_up_strategy")):
        raise InputError("ramp_up_strategy is set; only runs at a constant rate are read")
    if data.get("run_number") == -1:
        raise InputError("is the warm-up of a sweep; the measured runs lie beside it")
    compilation = _nested(data, "compilation_config", "cc")
    r = c.record(BenchResult, {**compilation, **_parameters(data), **data})
    requests, n, sent = _requests(r), r.completed, r.num_prompts or 0
    flags: frozenset[str] = frozenset()
    failed = max(sent - n, 0) if r.failed is None else r.failed
    load = _load(r) | rows.counted(n, failed, r.duration)
    latencies = {ours: _reported(data, theirs) for ours, theirs in METRICS.items()}
    load["incomplete"] = max(sent - n - failed, 0)
    load |= {"prompt_tokens": r.total_input_tokens / n, "output_tokens": r.total_output_tokens / n}
    if requests is not None:
        listed, ok = len(r.output_lens or ()), len(requests.e2e)
        # Some files list only the successful requests and count the failed ones apart.
        load |= rows.counted(ok, listed - ok + max(n + failed - listed, 0), r.duration)
    elif math.isnan(latencies["e2e"].mean_s):
        latencies["e2e"] = _from_parts(latencies, r)
        flags |= {"e2e-from-ttft-and-tpot"}
    server = {**_models(data, configuration, path), **_graphs(r, configuration), **configuration}
    drafting = _drafting(r, server)
    if drafting.acceptance_length != r.accept_length:
        flags |= {"acceptance-from-itl"}
    known: dict[str, Any] = {"requests": requests, "drafting": drafting, "flags": flags}
    yield -1, rows.run_row(server, load, latencies, **known)


def _from_parts(latencies: Mapping[str, rows.Latency], r: BenchResult) -> rows.Latency:
    """Mean e2e latency of mean TTFT and TPOT: exact where all answers are equally long."""
    tokens, few = r.total_output_tokens / r.completed, r.total_output_tokens % r.completed
    mean_s = latencies["ttft"].mean_s + (tokens - 1) * latencies["tpot"].mean_s
    by_little_s = (r.max_concurrency or math.nan) / (r.completed / r.duration)  # Little's law
    agree = abs(mean_s / by_little_s - 1) < LITTLE_AGREES and not math.isfinite(r.request_rate)
    if math.isnan(mean_s) or (few and not agree):
        how = "--save-detailed or with --percentile-metrics ttft,tpot,e2el"
        raise InputError(f"mean_e2el_ms is missing; run vllm bench serve with {how}")
    return rows.Latency(mean_s=mean_s)


def _nested(data: c.Values, *names: str) -> dict[str, Any]:
    """A config that a sweep gave the server, whole or in dotted keys; {} without one."""
    config: dict[str, Any] = {}
    for key, value in data.items():
        name, _, inner = str(key).replace("-", "_").partition(".")
        if name not in names:
            continue
        if isinstance(value, str) and not inner:
            with suppress(ValueError):
                value = json.loads(value)
        if inner:
            config[inner] = value
        elif isinstance(value, Mapping):
            config |= value
        elif not c.absent(value):
            raise InputError(f"{key} must be a JSON object, got {str(data[key])[:40]!r}")
    return config


def _parameters(data: c.Values) -> dict[str, Any]:
    """Parameters of ``vllm serve`` by their names in Python."""
    return {str(key).replace("-", "_"): x for key, x in data.items() if not c.absent(x)}


def _graphs(r: BenchResult, server: c.Values) -> dict[str, Any]:
    """Tokens of the largest graph that was captured, where parameters of ``vllm serve`` tell."""
    sizes, most = r.cudagraph_capture_sizes, r.max_cudagraph_capture_size
    if str(r.enforce_eager).lower() in ("true", "1") or str(r.cudagraph_mode).upper() == "NONE":
        return {"captured_tokens": 0}
    if sizes is None and most is None:
        return {}
    most = max(sizes or [GRAPH_TOKENS]) if most is None else most
    return {"captured_tokens": captured(_draft_tokens(server), most, sizes or ())}


def _draft_tokens(server: c.Values) -> int:
    """Draft tokens of a configuration that is not checked yet."""
    try:
        k = c.number(server.get("draft_tokens", 0))
        return int(k) if 0 <= k <= c.DRAFT_TOKENS_MAX else 0
    except ValueError:
        return 0  # refused with the configuration


def _drafter(data: c.Values) -> dict[str, Any]:
    """What a speculative config says for certain: method, path and draft tokens."""
    config = _nested(data, "speculative_config", "sc")
    if not config:
        return {}
    model = str(config.get("model") or "")
    # As vLLM does where no method is given.
    heads = (head for head in ("eagle3", "eagle-") if head in model.lower())
    inferred = model if model in c.WEIGHTLESS else next(heads, "draft_model").rstrip("-")
    method = str(config.get("method") or inferred)
    known: dict[str, Any] = {"drafter_method": method.strip("[]")}
    known["drafter_path"] = "" if method in c.WEIGHTLESS else model
    known["draft_tokens"] = config.get("num_speculative_tokens")
    schedule = config.get("num_speculative_tokens_per_batch_size")
    if schedule:
        entries = schedule if isinstance(schedule, list) else []
        levels = {str(entry[-1]) if isinstance(entry, list) and entry else "" for entry in entries}
        if len(levels) != 1 or "" in levels:
            rule = "must give one number of draft tokens for all batch sizes"
            got = str(schedule)[:60]
            raise InputError(f"num_speculative_tokens_per_batch_size {rule}, got {got}")
        known["draft_tokens"] = levels.pop()
    rates = config.get("synthetic_acceptance_rates") or []
    shares = isinstance(rates, list) and all(isinstance(r, float) and 0 <= r <= 1 for r in rates)
    # vLLM wants the share of drafts that reach each position, ours is per token.
    if shares and all(abs(r - rates[0] ** j) < 1e-3 for j, r in enumerate(rates, 1)):
        known["acceptance_imposed"] = next(iter(rates), None)
    return {key: value for key, value in known.items() if not c.absent(value)}


def speculative_config(drafter: str, method: str, path: str, k: int) -> dict[str, Any]:
    """What ``vllm serve`` is told of a drafter: an obvious placeholder for a path nobody gave, and
    no method where it is unknown, since vLLM then finds it in the model's files."""
    name = method or (drafter if drafter in c.WEIGHTLESS else "")
    if name in c.WEIGHTLESS and name not in VLLM_WEIGHTLESS:
        name = "ngram"
    config: dict[str, Any] = {"method": name} if name else {}
    if path or not (name in c.WEIGHTLESS or name.endswith("mtp")):
        config["model"] = path or f"{PLACEHOLDER}-{drafter or 'drafter'}"
    return config | {"num_speculative_tokens": k}


def _models(data: c.Values, configuration: c.Values, path: Path) -> dict[str, Any]:
    """Names of the models, and sizes from those of their folders that are still there."""
    values: dict[str, Any] = {}
    model = data.get("model_id") if c.absent(data.get("model")) else data["model"]
    if not c.absent(model):
        values["verifier"] = short_name(str(data.get("served_model_name") or model))
        size = None if "verifier_params" in configuration else _size(str(model), path)
        if size is not None:
            values |= c.verifier_sizes(vars(size))
    method, drafter = (str(configuration.get(f"drafter_{x}", "")) for x in ("method", "path"))
    if method:
        values["drafter"] = short_name(drafter) or method
        size = _size(drafter, path) if drafter else None
        if method in c.WEIGHTLESS:
            values["drafter_params"] = 0
        elif size is not None:
            values |= c.drafter_sizes(vars(size) | {"active_params": size.active})
    return values


def short_name(model: str) -> str:
    """Last part of a folder or of a name on a hub."""
    return model.rstrip("/").rpartition("/")[2]


def _size(model: str, result: Path) -> Size | None:
    """Size of a checkpoint whose folder is still there; a relative one lies above the result."""
    above = list(result.absolute().parents)[:FOLDERS_UP]
    folders = (os.path.expanduser(model), *(os.path.join(folder, model) for folder in above))
    files = (os.path.join(folder, "config.json") for folder in folders)
    return next((Size.read(file) for file in files if os.path.isfile(file)), None)


def _requests(r: BenchResult) -> rows.Requests | None:
    """Successful requests, or None if the result has no complete lists."""
    if not (r.ttfts and r.input_lens and r.output_lens and (r.latencies or r.itls)):
        return None
    names = ("ttfts", "input_lens", "output_lens", "latencies", "itls", "start_times", "errors")
    lengths = {name: len(x) for name in names if (x := getattr(r, name))}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise InputError(f"lists have unequal lengths ({listed}); one entry a request is needed")
    prompt, output, ttft = (np.asarray(x) for x in (r.input_lens, r.output_lens, r.ttfts))
    for key, summed in (("input", prompt.sum()), ("output", output.sum())):
        total = getattr(r, f"total_{key}_tokens")
        if not total / TWICE <= summed <= total * TWICE and r.completed == len(output):
            counted = f"total_{key}_tokens is {total}; they must be of the same requests"
            raise InputError(f"{key}_lens sum to {summed} but {counted}")
    ok = output > 0
    if r.errors:
        ok &= np.array([not error for error in r.errors])
    e2e = np.asarray(r.latencies) if r.latencies else ttft + [sum(x) for x in r.itls or ()]
    return rows.Requests(e2e[ok], ttft[ok], prompt[ok], output[ok], np.flatnonzero(ok))


def _load(r: BenchResult) -> dict[str, Any]:
    load: dict[str, Any] = {"duration_s": r.duration, "concurrency": r.max_concurrency}
    if not math.isfinite(r.request_rate):
        return load | {"loop": "burst" if r.max_concurrency is None else "closed"}
    load |= {"loop": "open", "rate_rps": r.request_rate, "burstiness": r.burstiness}
    span = float(np.ptp(r.start_times or [0.0]))
    if span > r.duration * rows.UNIT_SLACK:
        raise InputError(f"start_times spread over {span:g} s in a run of {r.duration:g} s")
    return load | {"span_s": span or None}


def _reported(data: c.Values, names: tuple[str, ...]) -> rows.Latency:
    """Statistics of one metric that the file gives in ms, under one of its names."""
    metric = next((name for name in names if f"mean_{name}_ms" in data), names[0])
    end = f"_{metric}_ms"
    known = {k.removesuffix(end): v for k, v in data.items() if k.endswith(end) and not c.absent(v)}
    if metric != "tpot" and known.get("mean") == 0:
        raise InputError(f"mean{end} is 0; it must be a positive number")
    return c.record(rows.Statistics, known, f"{metric}_ms: ").latency(1e-3, metric)


def _drafting(r: BenchResult, server: c.Values) -> Drafting:
    """Drafts and accepted tokens as counts, or else tokens a cycle, from ITL if need be."""
    drafts, rates = r.spec_decode_num_drafts, r.spec_decode_per_position_acceptance_rates
    k = _draft_tokens(server)
    known = drafts is not None or r.accept_length is not None or "acceptance_imposed" in server
    if not known and k > 0 and r.mean_itl_ms and r.mean_tpot_ms:
        # Tokens of a cycle arrive in one chunk, between which ITL is taken.
        return Drafting(acceptance_length=min(max(r.mean_itl_ms / r.mean_tpot_ms, 1.0), k + 1))
    return Drafting(
        drafts=drafts,
        drafted_tokens=r.spec_decode_draft_tokens,
        accepted_tokens=r.spec_decode_accepted_tokens,
        positions=tuple(round(rate * drafts) for rate in rates) if rates and drafts else (),
        acceptance_length=r.accept_length,
    )
