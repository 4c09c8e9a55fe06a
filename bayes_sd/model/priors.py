"""Every prior of the latency model, in natural units, with its reason."""

from dataclasses import dataclass

import numpy as np

from bayes_sd.errors import InputError

Z95 = 1.6448536269514722  # 95% quantile of the standard normal
PER_PARAMS = "s per 1e9 params"
PER_TOKEN = "s per token per 1e9 params"

VERIFIER_COSTS = ("prefill_alone", "prefill_others", "verify_alone", "verify_others")
DRAFTER_COSTS = ("draft_alone", "draft_others")
SERVER_EFFECTS = ("slowness", "crowding")
HARDWARE = {  # coefficients that share a factor of each environment
    "overhead": (
        *(f"host_{cost}" for cost in VERIFIER_COSTS),
        *(f"overhead_{cost}" for cost in (*VERIFIER_COSTS, *DRAFTER_COSTS)),
    ),
    "memory": ("weights_per_pass",),
    "compute": ("prefill_token_alone", "prefill_token_others"),
}
EFFECT_MEANINGS = {
    "prefill_alone": "own prefill",
    "prefill_others": "others' prefills",
    "verify_alone": "verify pass",
    "verify_others": "verify, per sequence and token",
    "draft_alone": "draft pass",
    "draft_others": "draft, per sequence",
    "slowness": "all times of a server",
    "crowding": "time that others add",
    "overhead": "overheads",
    "memory": "reading weights",
    "compute": "arithmetic",
}


@dataclass(frozen=True)
class Prior:
    """One prior: `kind` is "lognormal" (`a` median, `b` log-sd) or "normal" (`a` mean, `b` sd)."""

    name: str
    kind: str
    a: float
    b: float
    unit: str
    dims: tuple[str, ...]
    meaning: str
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in ("lognormal", "normal"):
            raise InputError(f"Prior {self.name}: kind {self.kind!r} must be lognormal or normal.")
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
        return self.a - Z95 * self.b, self.a + Z95 * self.b


def _cost(name: str, median: float, sd: float, unit: str, meaning: str, reason: str) -> Prior:
    return Prior(name, "lognormal", median, sd, unit, (), meaning, reason)


def _scatter(name: str, median: float, sd: float, dim: str, meaning: str, reason: str) -> Prior:
    # Log-normal, not half-normal: bounded away from zero, where a hierarchical scale has a funnel.
    return Prior(name, "lognormal", median, sd, "log", (dim,) if dim else (), meaning, reason)


def _noise(name: str, median: float, meaning: str, reason: str) -> Prior:
    return _scatter(name, median, 0.5, "", meaning, reason)


# fmt: off
POPULATION = (
    _cost("weights_per_pass", 0.01, 1.8, PER_PARAMS, "reading the weights once, per pass",
          "16-bit weights at 10 GB/s (a laptop core) to 4 TB/s (an H200)"),
    _cost("prefill_token_alone", 2e-4, 2.0, PER_TOKEN, "arithmetic of a prompt token, own prefill",
          "2 FLOP a parameter at 0.4 TFLOP/s (two cores) to 300 TFLOP/s"),
    _cost("prefill_token_others", 2e-4, 2.0, PER_TOKEN,
          "arithmetic of a prompt token, others' prefills",
          "2 FLOP a parameter at 0.4 TFLOP/s (two cores) to 300 TFLOP/s"),
    _cost("decode_token_ratio", 0.7, 0.7, "ratio to prefill_token_others",
          "arithmetic of one decoded or verified token",
          "that of a prompt token; less where reading weights hides it, more in small batches"),
    _cost("draft_token_ratio", 2.0, 1.2, "ratio to prefill_token_others",
          "a drafter's arithmetic of a token, where it has a price of its own",
          "small kernels are less efficient, its head may be outside its size: 0.3 to 14"),
    _cost("host_prefill_alone", 5e-3, 1.2, "s", "host's work for a request, whatever the model",
          "receive, tokenize, schedule, reply: 0.7 to 36 ms"),
    _cost("host_prefill_others", 1e-3, 1.2, "s",
          "host's work for each other request, while one waits",
          "less than its own: other processes do most of it"),
    _cost("host_verify_alone", 2e-3, 1.0, "s", "host's work for a pass, whatever the model",
          "scheduling and sampling between passes: 0.4 to 10 ms"),
    _cost("host_verify_others", 5e-5, 1.2, "s", "host's work for a sequence in a pass",
          "bookkeeping, sampling, streaming out: 7 to 360 us"),
    _cost("overhead_prefill_alone", 5e-4, 1.2, "s per layer", "overhead of a prefill, own",
          "tokenize, schedule, launch, reply: 1 to 100 ms at 28 layers"),
    _cost("overhead_prefill_others", 2.5e-4, 1.2, "s per layer", "overhead of each other prefill",
          "a prefill joins a pass that runs anyway: less than its own"),
    _cost("overhead_verify_alone", 1.5e-4, 1.0, "s per layer", "overhead of a verify pass",
          "launches and scheduling: 0.8 to 20 ms a pass at 28 layers"),
    _cost("overhead_verify_others", 1e-5, 1.2, "s per layer",
          "what a sequence of 1000 tokens adds to a verify pass",
          "bookkeeping, sampling, keys and values: 1.4 to 70 us a layer"),
    _cost("context_tokens", 1000.0, 1.2, "tokens",
          "context at which reading keys and values costs as much as the rest of a sequence",
          "2 to 400 ns a token and layer, against 2 to 20 us"),
    _cost("overhead_draft_alone", 0.001, 1.0, "s", "overhead of a draft pass",
          "as a verify pass, with less scheduling"),
    _cost("overhead_draft_others", 3e-5, 1.2, "s", "overhead per sequence of a draft pass",
          "as a verify pass, with less bookkeeping"),
    _cost("attention_tokens", 3000.0, 1.0, "tokens",
          "prompt length at which attention costs as much as the rest",
          "about 6 hidden widths by FLOPs; CPU attention is less efficient"),
    _cost("queue_cycles", 1.0, 0.5, "cycles",
          "cycles between arrival and the first own pass, and the reply",
          "half a running cycle, then scheduling and the reply"),
)
EFFECTS = (
    Prior("moe_effect", "normal", 0.0, 0.3, "log factor", ("verifier_cost",),
          "mixture of experts against dense of the same sizes",
          "small expert matrices are less efficient: factors 0.6 to 1.6"),
    _scatter("scatter_verifier", 0.1, 0.5, "verifier_cost",
             "scatter of verifiers around the size laws",
             "shapes of equal size and depth differ by 4 to 23%"),
    _scatter("scatter_drafter", 0.15, 0.5, "drafter_cost",
             "scatter of drafters around the size laws", "as verifiers"),
    _scatter("scatter_server", 0.06, 0.5, "server_effect", "scatter of servers",
             "a restart, another graph, a busy neighbour: 3 to 14%"),
    _scatter("scatter_environment", 0.3, 1.0, "hardware",
             "scatter of environments (only where there are several)",
             "from another day on one machine (6%) to another machine (a factor of 5)"),
)
NOISE = (
    _noise("run_sd", 0.05, "run-to-run scatter of the mean latency, far from the pole",
           "repeated benchmarks differ by 2 to 11%"),
    _noise("capacity_sd", 0.04, "run-to-run scatter of the capacity; grows as x / (1 - x)",
           "repeated capacity probes differ by 2 to 9%"),
    _noise("arrival_sd", 0.3, "scatter of the load offered by n arrivals, times 1/sqrt(n)",
           "Poisson arrivals give up to 1, constant ones 0"),
    _noise("ttft_sd", 0.08, "run-to-run scatter of the mean TTFT, far from the pole",
           "as run_sd, with scheduling detail the law leaves out"),
    _noise("ttft_capacity_sd", 0.04, "growth of that scatter near the pole", "as capacity_sd"),
    _noise("spread_alone", 0.06,
           "spread of a request's log latency on an idle server, acceptance and lengths apart",
           "jitter of single requests: 3 to 14%"),
    _noise("spread_load", 0.9, "spread per square root of x C2 / C1",
           "Poisson arrivals, each adding C2, give about 1"),
    _noise("spread_sd", 0.3, "run-to-run scatter of the spread",
           "burst or no burst in a short run: 13 to 68%"),
    _noise("ttft_spread_alone", 0.1, "spread of a request's log TTFT on an idle server",
           "where in a cycle a request arrives"),
    _noise("ttft_spread_load", 0.6, "spread of log TTFT per unit of x",
           "other prefills ahead of one's own"),
)
# fmt: on
ALL = POPULATION + EFFECTS + NOISE
