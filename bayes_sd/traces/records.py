"""What both readers hand over: workload, latencies, draft counts."""

import math
from itertools import pairwise
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from bayes_sd.traces.numbers import (
    Count,
    Finite,
    NonNegative,
    Positive,
    PositiveCount,
)


class Workload(BaseModel):
    """Offered load and its extent; seconds, tokens, requests per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: Positive
    output_tokens: Positive
    prompt_tokens_sd: NonNegative = math.nan
    output_tokens_sd: NonNegative = math.nan
    loop: Literal["open", "closed", "burst"]
    rate_rps: Positive = math.nan
    concurrency: Positive = math.nan
    achieved_rps: Positive = math.nan
    in_flight: Positive = math.nan
    burstiness: Positive = math.nan
    span_s: Positive = math.nan
    duration_s: Positive = math.nan
    requests: PositiveCount
    failed: Count = 0

    @model_validator(mode="after")
    def _load_is_given(self) -> Self:
        if self.loop == "open" and math.isnan(self.rate_rps):
            raise ValueError("rate_rps is missing; an open loop needs a positive finite rate")
        if self.loop == "closed" and math.isnan(self.concurrency):
            raise ValueError("concurrency is missing; a closed loop needs a positive one")
        if self.loop != "open" and not math.isnan(self.rate_rps):
            raise ValueError(
                f"rate_rps is {self.rate_rps:g} in a {self.loop} loop, which offers no rate; "
                "give it as achieved_rps"
            )
        if self.loop == "burst" and not math.isnan(self.concurrency):
            raise ValueError("concurrency is given in a burst loop; call the loop closed")
        return self


class Latency(BaseModel):
    """One metric of one run in seconds; NaN where it was not recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Positive = math.nan
    std: NonNegative = math.nan
    log_mean: Finite = math.nan
    log_var: NonNegative = math.nan
    p50: Positive = math.nan
    p90: Positive = math.nan
    p95: Positive = math.nan
    p99: Positive = math.nan
    log_var_requests: Positive = math.nan

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        # Rounding in a file may swap equal percentiles.
        known = [p for p in (self.p50, self.p90, self.p95, self.p99) if not math.isnan(p)]
        if any(low > high * (1 + 1e-4) for low, high in pairwise(known)):
            raise ValueError("percentiles decrease; p50 <= p90 <= p95 <= p99 is required")
        return self


class Drafting(BaseModel):
    """Draft-verify cycles and what they accepted, as counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drafts: Count | None = None
    drafted_tokens: Count | None = None
    accepted_tokens: Count | None = None
    positions: tuple[Count, ...] = ()
