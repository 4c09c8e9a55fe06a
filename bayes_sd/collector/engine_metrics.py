"""What the server says about itself: counters before and after a run, gauges during it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bayes_sd.collector.ask import get

GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
}
COUNTERS = {
    "vllm:request_success_total": "requests",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:request_queue_time_seconds_sum": "queue_time_s_sum",
    "vllm:request_queue_time_seconds_count": "queue_time_count",
    "vllm:request_prefill_time_seconds_sum": "prefill_time_s_sum",
    "vllm:request_decode_time_seconds_sum": "decode_time_s_sum",
    "vllm:time_to_first_token_seconds_sum": "ttft_s_sum",
    "vllm:e2e_request_latency_seconds_sum": "e2e_s_sum",
    "vllm:e2e_request_latency_seconds_count": "e2e_count",
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "draft_tokens_proposed",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
}
PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"


@dataclass(frozen=True)
class Scrape:
    """One reading of ``/metrics``, summed over engines; times are ``time.perf_counter`` seconds."""

    at_s: float
    values: Mapping[str, float]
    positions: Mapping[int, float] = field(default_factory=dict)


def parse(text: str, at_s: float) -> Scrape:
    """The metrics used here, out of a text exposition."""
    from prometheus_client.parser import text_string_to_metric_families

    names = {**GAUGES, **COUNTERS}
    # Parsing all of it would cost the shared processor fifty times as much.
    lines = [x for x in text.splitlines() if x.partition("{")[0].partition(" ")[0] in names]
    lines += [x for x in text.splitlines() if x.startswith(PER_POSITION + "{")]
    values: dict[str, float] = {}
    positions: dict[int, float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name == PER_POSITION:
                j = int(sample.labels["position"])
                positions[j] = positions.get(j, 0.0) + sample.value
            else:
                key = names[sample.name]
                values[key] = values.get(key, 0.0) + sample.value
    return Scrape(at_s, values, positions)


def scrape(base_url: str, timeout_s: float = 10.0) -> Scrape | None:
    """Read a server's metrics; None if it has none or does not answer."""
    try:
        text = get(f"{base_url}/metrics", timeout_s)
    except OSError:
        return None
    found = parse(text, time.perf_counter())
    return found if found.values else None


def went_backwards(before: Scrape, after: Scrape) -> str | None:
    """Name of a counter that fell, as it does when the server restarted."""
    for key in COUNTERS.values():
        if after.values.get(key, 0.0) < before.values.get(key, 0.0):
            return key
    return None


def deltas(before: Scrape, after: Scrape) -> dict[str, float]:
    """What each counter grew by; counters the server does not have are left out."""
    grown = {
        key: after.values[key] - before.values.get(key, 0.0)
        for key in COUNTERS.values()
        if key in after.values
    }
    for j, value in sorted(after.positions.items()):
        grown[f"accepted_tokens_{j + 1}"] = value - before.positions.get(j, 0.0)
    return grown


def drafting(grown: Mapping[str, float]) -> dict[str, Any]:
    """Drafts and acceptance out of `deltas`, under the names of ``vllm bench serve``.

    It asks the server itself; for load generators that do not.
    """
    drafts = grown.get("drafts")
    if not drafts:
        return {}
    k = sum(key.startswith("accepted_tokens_") for key in grown)
    return {
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(grown["draft_tokens_proposed"]),
        "spec_decode_accepted_tokens": int(grown["accepted_tokens"]),
        "spec_decode_per_position_acceptance_rates": [
            grown[f"accepted_tokens_{j + 1}"] / drafts for j in range(k)
        ],
    }


class Poll:
    """Reads a server's metrics about once a second, in a thread, while a run goes on."""

    def __init__(self, read: Callable[[], Scrape | None], every_s: float = 1.0) -> None:
        self._read, self._every_s = read, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.scrapes: list[Scrape] = []

    def __enter__(self) -> "Poll":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(Exception):
                found = self._read()
                if found is not None:
                    self.scrapes.append(found)


def occupancy(scrapes: Iterable[Scrape], start_s: float, end_s: float) -> dict[str, float]:
    """Mean numbers of running and waiting requests between two times, and how often looked."""
    inside = [s for s in scrapes if start_s <= s.at_s <= end_s]
    found: dict[str, float] = {"samples": len(inside)}
    if inside:
        for key in GAUGES.values():
            found[f"{key}_mean"] = sum(s.values.get(key, 0.0) for s in inside) / len(inside)
        found["in_flight_mean"] = found["running_mean"] + found["waiting_mean"]
    return found
