"""Numbers and configurations as files write them."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c
from bayes_sd.runs.config import absent, configure, finite_or_none, merge

SERVER = {"verifier": "v", "verifier_params": 8e9, "draft_tokens": 0}
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


class Numbers(BaseModel):
    """A number of every kind."""

    number: c.Number
    positive: c.Positive
    nonnegative: c.NonNegative
    finite: c.Finite
    positive_or_infinite: c.PositiveOrInfinite
    fraction: c.Fraction
    count: c.Count


ALLOWED = {
    "number": lambda x: True,
    "positive": lambda x: 0 < x < math.inf,
    "nonnegative": lambda x: 0 <= x < math.inf,
    "finite": math.isfinite,
    "positive_or_infinite": lambda x: x > 0,
    "fraction": lambda x: 0 <= x <= 1,
    "count": lambda x: 0 <= x <= 9e18 and x == int(x),
}


def is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | None) and math.isfinite(float(value)) is not None
    except (ValueError, OverflowError):
        return False


@settings(max_examples=60)
@given(ANYTHING)
def test_a_number_is_taken_or_refused_in_words(value: Any) -> None:
    refused = set()
    try:
        Numbers.model_validate(dict.fromkeys(ALLOWED, value))
    except ValidationError as error:
        refused = {str(e["loc"][0]) for e in error.errors()}
        for e in error.errors():
            assert e["msg"].startswith("Value error, must ") and e["msg"].endswith(f"{value!r}")
    known = is_number(value)
    if known and (size := abs(float(value))) and math.isfinite(size):
        known = 1e-60 <= size <= 1e19  # of others the square is no number
    assert refused == {k for k, allowed in ALLOWED.items() if not (known and allowed(float(value)))}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.array([1.0, math.nan]), [1.0, None]),
        ({"a": (math.inf, {"b": -math.inf})}, {"a": [None, {"b": None}]}),
        ([np.float64(2.5), np.int64(3), np.bool_(True), "nan"], [2.5, 3, True, "nan"]),
    ],
)
def test_json_has_no_nan(value: Any, plain: Any) -> None:
    assert finite_or_none(value) == plain


@pytest.mark.parametrize("value", [None, "", "  ", math.nan])
def test_nothing_said(value: Any) -> None:
    assert absent(value) and not absent(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": ["a"]}, "verifier must be one name"),
        ({"drafter_path": "x"}, "drafter_path is x but there is no drafter"),
        ({"drafter_method": "ngram", "drafter": "none"}, "drafter_method is ngram but there"),
        ({"draft_tokens": 5000, "drafter": "d"}, "draft_tokens: input should be less than or eq"),
        ({"verifier_params": math.nan}, "verifier_params is missing; give it"),
        ({"verifier_params": math.inf}, "verifier_params must be a positive finite number"),
        ({"verifier_layers": 0}, "verifier_layers must be a positive finite number"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(SERVER | changes)


def test_what_follows_is_filled() -> None:
    config = configure(SERVER | {"hardware": "H100", "engine": "vllm 1", "drafter_params": 0})
    assert (config.environment, config.arm, config.family) == ("H100 / vllm 1", "plain", "dense")
    assert config.verifier_active_params == 8e9 and math.isnan(config.drafter_params)
    ngram = {**SERVER, "drafter_method": "ngram", "draft_tokens": 3, "drafter_params": "0"}
    assert (configure(ngram).drafter, configure(ngram).drafter_params) == ("ngram", 0.0)
    assert configure({k: v for k, v in SERVER.items() if k != "draft_tokens"}).draft_tokens == 0


def test_two_values_are_named_with_their_places() -> None:
    assert merge([("a", {"k": "3"}), ("b", {"k": 3.0})]) == {"k": "3"}
    with pytest.raises(InputError, match="k is 3 in the file but 4 in the sidecar; give one"):
        merge([("the file", {"k": 3}), ("the sidecar", {"k": 4})])
