"""A stand-in for `vllm bench serve`: the same options, a result of made-up latencies.

The environment variable FAKE_BENCH makes it misbehave: all-fail, some-fail, garbage, crash, hang,
reset (the server's counters), or once:MODE (misbehave only if the file FAKE_ONCE is not there).
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

WORDS = sys.argv[1:]
MODE = os.environ.get("FAKE_BENCH", "")
if MODE.startswith("once:"):
    once = Path(os.environ["FAKE_ONCE"])
    MODE = "" if once.exists() else MODE[5:]
    once.touch()


def option(name: str) -> str:
    return WORDS[WORDS.index(name) + 1]


def post(path: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(option("--base-url") + path, data=b"{}"), timeout=10).read()


n, g, p = (int(option(f"--{x}")) for x in ("num-prompts", "random-output-len", "random-input-len"))
rate = float(option("--request-rate"))
out = Path(option("--result-dir")) / option("--result-filename")
if MODE == "crash":
    sys.exit("RuntimeError: the fake crashed")
if MODE == "hang":
    time.sleep(600)
if MODE == "garbage":
    out.write_text('{"duration": 1.0, "comp')
    sys.exit(0)
began = time.perf_counter()
for _ in range(min(n, 5)):
    post("/v1/completions")
if MODE == "reset":
    post("/reset")
if rate < float("inf"):
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
lost = n if MODE == "all-fail" else n // 4 if MODE == "some-fail" else 0
errors = ["Traceback\nConnectionError: gone" if i < lost else "" for i in range(n)]
# Two runs that agree in every number would be taken for one.
factor = 1 + int(option("--seed")) % 997 / 9970
latency, ttft = 0.012345678 * factor * g, 0.00123456789 * factor * p
duration = n / rate if rate < float("inf") else 1.0
done = n - lost
result = {
    "date": "20260101-000000",
    "backend": "vllm",
    "model_id": option("--model"),
    "tokenizer_id": option("--tokenizer"),
    "num_prompts": n,
    "request_rate": rate if rate < float("inf") else "inf",
    "burstiness": 1.0,
    "max_concurrency": int(option("--max-concurrency")) if "--max-concurrency" in WORDS else None,
    "duration": duration + latency + ttft,
    "completed": done,
    "failed": lost,
    "total_input_tokens": p * done,
    "total_output_tokens": g * done,
    "input_lens": [p] * n,
    "output_lens": [0 if e else g for e in errors],
    "ttfts": [0.0 if e else ttft for e in errors],
    "itls": [[] if e else [latency / max(g - 1, 1)] * (g - 1) for e in errors],
    "start_times": [began + i * duration / n for i in range(n)],
    "generated_texts": ["text"] * n,
    "errors": errors,
    "mean_e2el_ms": 1000 * (latency + ttft),
    "mean_ttft_ms": 1000 * ttft,
}
out.write_text(json.dumps(result))
