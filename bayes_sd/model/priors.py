"""Every prior of the latency model, in natural units, with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_sd.errors import InputError

Z95 = 1.6448536269514722  # 95% quantile of the standard normal


@dataclass(frozen=True)
class Prior:
    """One prior: `kind` is "lognormal" (`a` median, `b` log-sd), "normal" or "halfnormal"."""

    name: str
    kind: str
    a: float
    b: float
    unit: str
    dims: tuple[str, ...]
    meaning: str
    reason: str

    def __post_init__(self) -> None:
        for field, low in (("a", 0.0 if self.kind == "lognormal" else -np.inf), ("b", 0.0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"Prior {self.name}: {field} = {value!r} is not a number.")
            if not (np.isfinite(value) and value > low):
                above = f" above {low:g}" if np.isfinite(low) else ""
                raise InputError(f"Prior {self.name}: {field} = {value} must be finite{above}.")

    def interval(self) -> tuple[float, float]:
        """Central 90% interval in natural units."""
        if self.kind == "lognormal":
            return self.a * np.exp(-Z95 * self.b), self.a * np.exp(Z95 * self.b)
        if self.kind == "normal":
            return self.a - Z95 * self.b, self.a + Z95 * self.b
        return 0.0627 * self.b, 1.96 * self.b


def _positive(name: str, median: float, sd: float, unit: str, meaning: str, reason: str) -> Prior:
    return Prior(name, "lognormal", median, sd, unit, (), meaning, reason)


def _scale(name: str, median: float, meaning: str, reason: str) -> Prior:
    # Lognormal, not half-normal: bounded away from zero, where a hierarchical scale has its funnel.
    return Prior(name, "lognormal", median, 0.5, "log", (), meaning, reason)


B = "s per 1e9 params"
T = "s per token per 1e9 params"

POPULATION = (
    _positive(
        "s_pass",
        0.01,
        1.8,
        B,
        "reading the weights once, per pass",
        "16-bit weights at 10 GB/s (a laptop core) to 4 TB/s (an H200)",
    ),
    _positive(
        "s_1p",
        2e-4,
        2.0,
        T,
        "arithmetic of one prompt token, own prefill",
        "2 FLOP a parameter at 0.4 TFLOP/s (two cores) to 300 TFLOP/s",
    ),
    _positive(
        "s_2p",
        2e-4,
        2.0,
        T,
        "arithmetic of one prompt token, others' prefills",
        "2 FLOP a parameter at 0.4 TFLOP/s (two cores) to 300 TFLOP/s",
    ),
    _positive(
        "r_tok",
        0.7,
        0.7,
        "ratio to s_2p",
        "arithmetic of one decoded or verified token",
        "that of a prompt token; less where reading weights hides it, more in small batches",
    ),
    _positive(
        "r_draft",
        2.0,
        1.2,
        "ratio to s_2p",
        "a drafter's arithmetic of a token, where it has a price of its own",
        "small kernels are less efficient, and a head of logits may be outside its size: 0.3 to 14",
    ),
    _positive(
        "h_1p",
        5e-3,
        1.2,
        "s",
        "host's work for a request, whatever the model",
        "receive, tokenize, schedule, reply: 0.7 to 36 ms",
    ),
    _positive(
        "h_2p",
        1e-3,
        1.2,
        "s",
        "host's work for each other request, while one waits",
        "less than its own: other processes do most of it",
    ),
    _positive(
        "h_1v",
        2e-3,
        1.0,
        "s",
        "host's work for a pass, whatever the model",
        "scheduling and sampling between passes: 0.4 to 10 ms",
    ),
    _positive(
        "h_2v",
        5e-5,
        1.2,
        "s",
        "host's work for a sequence in a pass",
        "bookkeeping, sampling, streaming out: 7 to 360 us",
    ),
    _positive(
        "o_1p",
        5e-4,
        1.2,
        "s per layer",
        "overhead of a prefill, own",
        "tokenize, schedule, launch, reply: 1 to 100 ms at 28 layers",
    ),
    _positive(
        "o_2p",
        2.5e-4,
        1.2,
        "s per layer",
        "overhead of each other prefill",
        "a prefill joins a pass that runs anyway: less than its own",
    ),
    _positive(
        "o_1v",
        1.5e-4,
        1.0,
        "s per layer",
        "overhead of a verify pass",
        "launches and scheduling: 0.8 to 20 ms a pass at 28 layers",
    ),
    _positive(
        "o_2v",
        1e-5,
        1.2,
        "s per layer",
        "what a sequence of 1000 tokens adds to a verify pass",
        "bookkeeping, sampling, keys and values: 1.4 to 70 us a layer",
    ),
    _positive(
        "context_tokens",
        1000.0,
        1.2,
        "tokens",
        "context at which reading keys and values costs as much as o_2v's fixed share",
        "2 to 400 ns a token and layer, against 2 to 20 us",
    ),
    _positive(
        "o_1d",
        0.001,
        1.0,
        "s",
        "overhead of a draft pass",
        "as a verify pass, with less scheduling",
    ),
    _positive(
        "o_2d",
        3e-5,
        1.2,
        "s",
        "overhead per sequence of a draft pass",
        "as a verify pass, with less bookkeeping",
    ),
    _positive(
        "attention_tokens",
        3000.0,
        1.0,
        "tokens",
        "prompt length at which attention costs as much as the rest",
        "about 6 hidden widths by FLOPs; CPU attention is less efficient",
    ),
    _positive(
        "wait",
        1.0,
        0.5,
        "cycles",
        "cycles between arrival and the first own pass, and the reply",
        "half a running cycle, then scheduling and the reply",
    ),
)

COEFFICIENTS = ("1p", "2p", "1v", "2v")  # with an effect of each verifier
DRAFT_COEFFICIENTS = ("1d", "2d")  # with an effect of each drafter
HARDWARE = {  # with an effect of each environment
    "overhead": (
        *("h_1p", "h_2p", "h_1v", "h_2v"),
        *("o_1p", "o_2p", "o_1v", "o_2v", "o_1d", "o_2d"),
    ),
    "memory": ("s_pass",),
    "compute": ("s_1p", "s_2p"),
}


def environment_factors(names: Any, factor: Sequence[Any]) -> dict[str, Any]:
    """Factor of every population coefficient: ``factor[i]`` for the i-th hardware group."""
    return {
        name: factor[i]
        for i, members in enumerate(HARDWARE.values())
        for name in members
        if name in names
    }


EFFECTS = (
    Prior(
        "moe",
        "normal",
        0.0,
        0.3,
        "log factor",
        ("coefficient",),
        "mixture of experts against dense of the same sizes",
        "small expert matrices are less efficient: factors 0.6 to 1.6",
    ),
    Prior(
        "tau_verifier",
        "lognormal",
        0.1,
        0.5,
        "log",
        ("coefficient",),
        "scatter of verifiers around the size laws",
        "shapes of equal size and depth differ by 4 to 23%",
    ),
    Prior(
        "tau_drafter",
        "lognormal",
        0.15,
        0.5,
        "log",
        ("draft_coefficient",),
        "scatter of drafters around the size laws",
        "as verifiers",
    ),
    Prior(
        "tau_system",
        "lognormal",
        0.06,
        0.5,
        "log",
        ("speed",),
        "scatter of servers: time of a request alone, capacity",
        "a restart, another graph, a busy neighbour: 3 to 14%",
    ),
    Prior(
        "tau_environment",
        "lognormal",
        0.3,
        1.0,
        "log",
        ("hardware",),
        "scatter of environments (only where there are several)",
        "from another day on one machine (6%) to another machine (a factor of 5)",
    ),
)

NOISE = (
    _scale(
        "run_sd",
        0.05,
        "run-to-run scatter of the mean latency, far from the pole",
        "repeated benchmarks differ by 2 to 11%",
    ),
    _scale(
        "capacity_sd",
        0.04,
        "run-to-run scatter of the capacity; grows as x / (1 - x)",
        "repeated capacity probes differ by 2 to 9%",
    ),
    _scale(
        "arrival_sd",
        0.3,
        "scatter of the load offered by n arrivals, times 1/sqrt(n)",
        "Poisson arrivals give up to 1, constant ones 0",
    ),
    _scale(
        "ttft_sd",
        0.08,
        "run-to-run scatter of the mean TTFT, far from the pole",
        "as run_sd, with scheduling detail the law leaves out",
    ),
    _scale(
        "ttft_capacity_sd",
        0.04,
        "growth of that scatter near the pole",
        "as capacity_sd",
    ),
    _scale(
        "spread_alone",
        0.06,
        "spread of a request's log latency on an idle server, acceptance and lengths apart",
        "jitter of single requests: 3 to 14%",
    ),
    _scale(
        "spread_load",
        0.9,
        "spread per square root of x C2 / C1",
        "Poisson arrivals, each adding C2, give about 1",
    ),
    _scale(
        "spread_sd",
        0.3,
        "run-to-run scatter of the spread",
        "burst or no burst in a short run: 13 to 68%",
    ),
    _scale(
        "ttft_spread_alone",
        0.1,
        "spread of a request's log TTFT on an idle server",
        "where in a cycle a request arrives",
    ),
    _scale(
        "ttft_spread_load",
        0.6,
        "spread of log TTFT per unit of x",
        "other prefills ahead of one's own",
    ),
)

ALL = POPULATION + EFFECTS + NOISE
