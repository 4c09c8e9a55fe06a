"""The JSON that ``vllm bench serve`` writes, as a record."""

import json
from pathlib import Path
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


def load(path: Path) -> dict[str, Any]:
    """JSON object of a result file.

    Raises
    ------
    InputError
        If the file is not JSON or not a result of ``vllm bench serve``.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError("is not text; a JSON result of vllm bench serve is needed") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not complete JSON ({error.msg} at line {error.lineno}); "
            "a JSON result of vllm bench serve is needed"
        ) from None
    if not isinstance(data, dict):
        raise InputError("is not a JSON object; a result of vllm bench serve is needed")
    if "benchmarks" in data:
        raise InputError("is a GuideLLM report; only results of vllm bench serve are read")
    missing = [key for key in REQUIRED if key not in data]
    if len(missing) > 2:
        raise InputError(f"is not a result of vllm bench serve: it lacks {', '.join(missing)}")
    if missing:
        raise InputError(f"{missing[0]} is missing; vllm bench serve always writes it")
    if not absent(data.get("ramp_up_strategy")):
        raise InputError("ramp_up_strategy is set; only runs at a constant rate are read")
    return data
