"""A stand-in for `vllm serve`: health, models, completions and metrics, on loopback only.

The environment variable FAKE_SERVER makes it misbehave: die (at start), unhealthy, wrong-name,
or die-after=N (completions).
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("FAKE_SERVER", "")
WORDS = sys.argv[1:]
PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
COUNTS = {"requests": 100}


def option(name: str) -> str:
    return WORDS[WORDS.index(name) + 1]


NAME = "somebody-else" if MODE == "wrong-name" else option("--served-model-name")
DRAFT = json.loads(option("--speculative-config")) if "--speculative-config" in WORDS else {}


def metrics() -> str:
    n, label = COUNTS["requests"], f'{{engine="0",model_name="{NAME}"}}'
    k = DRAFT.get("num_speculative_tokens", 0)
    lines = [
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{label} 2.0",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{label} 1.0",
        "# TYPE vllm:request_queue_time_seconds histogram",
        f'vllm:request_queue_time_seconds_bucket{{engine="0",le="+Inf"}} {n}',
        f"vllm:request_queue_time_seconds_sum{label} {0.5 * n}",
        f"vllm:request_queue_time_seconds_count{label} {n}",
        "# TYPE vllm:generation_tokens counter",
        f"vllm:generation_tokens_total{label} {10 * n}",
        "# TYPE python_info gauge",
        'python_info{version="3"} 1.0',
    ]
    if DRAFT:
        lines += [
            f"vllm:spec_decode_num_drafts_total{label} {5 * n}",
            f"vllm:spec_decode_num_draft_tokens_total{label} {5 * k * n}",
            f"vllm:spec_decode_num_accepted_tokens_total{label} {4 * n}",
            f'{PER_POSITION}{{engine="0",position="0"}} {4 * n}',
        ]
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    def answer(self, text: str, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer("", 503 if MODE == "unhealthy" else 200)
        elif self.path == "/v1/models":
            self.answer(json.dumps({"data": [{"id": NAME}]}))
        elif self.path == "/version":
            self.answer(json.dumps({"version": "0.0.fake"}))
        elif self.path == "/metrics":
            self.answer(metrics())
        else:
            self.answer("", 404)

    def do_POST(self) -> None:
        if self.path == "/reset":
            COUNTS["requests"] -= 50
        else:
            COUNTS["requests"] += 1
            if MODE.startswith("die-after=") and COUNTS["requests"] > 100 + int(MODE[10:]):
                os._exit(9)
        self.answer("{}")

    def log_message(self, *_: object) -> None:
        pass


if MODE == "die":
    sys.exit("ValueError: num_speculative_tokens=9 is more than this fake allows")
server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
threading.Thread(target=server.serve_forever).start()
