"""The JSON that ``vllm bench serve`` writes, as a record."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from bayes_sd.errors import InputError
from bayes_sd.traces.numbers import (
    Count,
    Fraction,
    NonNegative,
    Number,
    Positive,
    PositiveCount,
    PositiveOrInfinite,
    absent,
)

REQUIRED = (
    "duration",
    "completed",
    "total_input_tokens",
    "total_output_tokens",
    "request_rate",
)


class BenchResult(BaseModel):
    """The fields used of one result; lists hold one entry a request, seconds and tokens."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    duration: Positive
    completed: Count
    failed: Count | None = None
    num_prompts: Count | None = None
    total_input_tokens: Count
    total_output_tokens: Count
    request_rate: PositiveOrInfinite
    max_concurrency: PositiveCount | None = None
    burstiness: Positive | None = None
    input_lens: list[Count] | None = None
    output_lens: list[Count] | None = None
    ttfts: list[Number] | None = None
    latencies: list[Number] | None = None
    itls: list[list[NonNegative]] | None = None
    start_times: list[Number] | None = None
    errors: list[str | None] | None = None
    spec_decode_num_drafts: Count | None = None
    spec_decode_draft_tokens: Count | None = None
    spec_decode_accepted_tokens: Count | None = None
    spec_decode_per_position_acceptance_rates: list[Fraction] | None = None


def check_result(data: Mapping[str, Any]) -> None:
    """Refuse a JSON object that is not a result of ``vllm bench serve`` at a constant rate.

    Raises
    ------
    InputError
        If fields that vLLM always writes are missing, or the rate was ramped up.
    """
    missing = [key for key in REQUIRED if key not in data]
    if len(missing) > 2:
        raise InputError(f"is not a result of vllm bench serve: it lacks {', '.join(missing)}")
    if missing:
        raise InputError(f"{missing[0]} is missing; vllm bench serve always writes it")
    if not absent(data.get("ramp_up_strategy")):
        raise InputError("ramp_up_strategy is set; only runs at a constant rate are read")
