"""Numbers as they arrive in files: strict about values, lax about strings."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

LARGEST = 9e18  # what 64 bits hold


def _huge(x: float) -> str:
    return f" and at most {LARGEST:g}" if LARGEST < x < math.inf else ""


def number(value: Any) -> float:
    """Any float, also written as a string, also NaN or infinite."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a number, got {value!r}") from None


def positive(value: Any) -> float:
    """A finite number above zero."""
    x = number(value)
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"must be a positive finite number, got {value!r}")
    return x


def nonnegative(value: Any) -> float:
    """A finite number, zero allowed."""
    x = number(value)
    if not (math.isfinite(x) and x >= 0):
        raise ValueError(f"must be a finite number of at least 0, got {value!r}")
    return x


def finite(value: Any) -> float:
    """A finite number of either sign."""
    x = number(value)
    if not math.isfinite(x):
        raise ValueError(f"must be a finite number, got {value!r}")
    return x


def positive_or_infinite(value: Any) -> float:
    """A number above zero; infinity says "as fast as possible"."""
    x = number(value)
    if not x > 0:
        raise ValueError(f"must be a positive number or 'inf', got {value!r}")
    return x


def count(value: Any) -> int:
    """A whole number, zero allowed."""
    x = number(value)
    if not (0 <= x <= LARGEST and x == int(x)):
        raise ValueError(f"must be a whole number of at least 0{_huge(x)}, got {value!r}")
    return int(x)


def positive_count(value: Any) -> int:
    """A whole number above zero."""
    x = number(value)
    if not (1 <= x <= LARGEST and x == int(x)):
        raise ValueError(f"must be a whole number of at least 1{_huge(x)}, got {value!r}")
    return int(x)


def fraction(value: Any) -> float:
    """A number from 0 to 1."""
    x = number(value)
    if not 0 <= x <= 1:
        raise ValueError(f"must lie between 0 and 1, got {value!r}")
    return x


Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[float, BeforeValidator(positive)]
NonNegative = Annotated[float, BeforeValidator(nonnegative)]
Finite = Annotated[float, BeforeValidator(finite)]
PositiveOrInfinite = Annotated[float, BeforeValidator(positive_or_infinite)]
Count = Annotated[int, BeforeValidator(count)]
PositiveCount = Annotated[int, BeforeValidator(positive_count)]
Fraction = Annotated[float, BeforeValidator(fraction)]


def absent(value: Any) -> bool:
    """Whether a cell or metadata value says nothing: None, NaN or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float) and math.isnan(value)


def sentence(error: ValidationError) -> str:
    """First complaint of pydantic as one sentence that names the field."""
    first = error.errors()[0]
    field = ""
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif field:
            field += f".{part}"
        else:
            field = part
    if first["type"] == "missing":
        return f"{field} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field} {message}".strip()
    return f"{field}: {message[:1].lower()}{message[1:]}, got {str(first['input'])[:40]!r}"
