"""GuideLLM as the load generator: its command line, and its report as a result like vLLM's."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bayes_sd.collector.server import Failure

if TYPE_CHECKING:
    from bayes_sd.collector.bench import Job

COMMAND = ("guidellm", "run")
# Its worker processes all draw the same gaps between arrivals, so ten of them (its default) send
# bursts of ten evenly spaced requests; the arrivals of one are Poisson.
ENV = {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
# Greedy, as with vllm bench serve: acceptance depends on the temperature.
REQUEST = "request_format=/v1/completions,extras.body.temperature=0"
LISTED = ("request_start_time", "request_latency", "prompt_tokens", "output_tokens")


def arguments(job: "Job", path: str) -> list[str]:
    """Options of ``guidellm run`` (0.8) for one run whose report goes to `path`."""
    profile = f"kind=throughput,max_concurrency={job.requests}"
    if job.concurrency is not None:
        profile = f"kind=concurrent,streams={job.concurrency}"
    elif math.isfinite(job.rate_rps):
        profile = f"kind=poisson,rate={job.rate_rps:g}"
    backend = f"kind=openai_http,target={job.base_url},model={job.model}"
    words = ["--backend", f"{backend},{REQUEST}", "--profile", profile]
    words += ["--constraint", f"kind=max_requests,count={job.requests}"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={job.tokenizer}", "--data"]
    words += [f"kind=synthetic_text,prompt_tokens={job.prompt},output_tokens={job.output}"]
    words += ["--seed", f"kind=static,value={job.seed}", "--output", f"kind=json,path={path}"]
    return [*words, "--disable-console-interactive"]


def result(report: Mapping[str, Any], job: "Job") -> dict[str, Any]:
    """The one benchmark of a report under the names ``vllm bench serve`` uses.

    Raises
    ------
    Failure
        If the report has no benchmark, or lists no single requests.
    """
    try:
        (benchmark,) = report["benchmarks"]
        requests = benchmark["requests"]["successful"]
        rows = [[float(one[name]) for name in LISTED] for one in requests]
        ttfts = [one["time_to_first_token_ms"] for one in requests]
        duration = float(benchmark["duration"])
    except (KeyError, TypeError, ValueError) as error:
        raise Failure(f"GuideLLM's report cannot be used: {error!r}") from None
    starts, latencies, prompts, outputs = ([row[i] for row in rows] for i in range(len(LISTED)))
    return {
        "load_generator": "guidellm",
        "num_prompts": job.requests,
        "request_rate": job.rate_rps if math.isfinite(job.rate_rps) else "inf",
        "burstiness": 1.0,
        "max_concurrency": job.concurrency,
        "duration": duration,
        "completed": len(rows),
        # Errors, and requests that were answered but are not in the report: seen on a busy machine.
        "failed": max(job.requests - len(rows), 0),
        "total_input_tokens": int(sum(prompts)),
        "total_output_tokens": int(sum(outputs)),
        "input_lens": [int(n) for n in prompts],
        "output_lens": [int(n) for n in outputs],
        "start_times": starts,
        "latencies": latencies,
        "ttfts": [math.nan if t is None else t / 1000 for t in ttfts],
        "mean_e2el_ms": 1000 * sum(latencies) / len(latencies) if latencies else 0.0,
    }
