"""The errors and warnings a user of bayes_sd is meant to read: each is one sentence."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

LONGEST = 2_000  # characters of a message
SMALLEST, LARGEST = 1e-60, 1e19  # in size: the square of a ratio of two is still a number
_DIGITS = re.compile(r"\d{41,}")
_ARGUMENT = re.compile(r"<<(\w+)>>")


def in_words(message: str, shell: bool = False) -> str:
    """A message with its ``<<argument>>`` marks as ``argument=``, or as a shell's flags."""

    def word(match: re.Match[str]) -> str:
        flag = match[1].replace("_", "-")
        return f"{match[1]}=" if not shell else f"-{flag}" if len(flag) == 1 else f"--{flag}"

    return _ARGUMENT.sub(word, message)


def shown(text: str) -> str:
    """Text of a file as it may be printed, its control characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def plural(count: int, name: str) -> str:
    """A count with its noun, "1 run" or "2 runs"."""
    return f"{count} {name}" + ("" if count == 1 else "s")


class _UserError(Exception):
    """An error whose message speaks Python, and a shell's language through :func:`in_words`."""

    def __init__(self, message: str = "") -> None:
        message = _DIGITS.sub(lambda digits: f"{digits[0][:20]} ... {digits[0][-20:]}", message)
        if len(message) > LONGEST:  # a value of megabytes: what is wrong stands before and after it
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__("\n".join(map(shown, message.split("\n"))))

    def __str__(self) -> str:
        return in_words(self.message)

    @property
    def message(self) -> str:
        """The message with its marks, to be said again elsewhere."""
        return str(self.args[0])


class InputError(_UserError, ValueError):
    """Input that cannot be used: what is wrong, where (file, field, row), what is allowed."""


def require(name: str, value: Any, holds: bool, says: str) -> None:
    """Refuse an argument that is not what it must be."""
    if not holds:
        raise InputError(f"{name} = {value!r}: must be {says}.")


def whole(name: str, value: Any, least: int, most: float = LARGEST) -> None:
    """Refuse an argument that is no whole number in a range."""
    within = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    says = f"a whole number of at least {least}" + f", at most {most}" * (most < LARGEST)
    require(name, value, within, says)


def shares(name: str, value: Any, says: str) -> np.ndarray:
    """One or more numbers from 0 to 1, checked."""
    array = np.asarray(value)
    number = array.dtype.kind in "iuf" and array.ndim <= 1 and array.size > 0
    require(name, value, number and bool(((array >= 0) & (array <= 1)).all()), says)
    return array.astype(float)


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Refuse an argument that is none of the names it may be."""
    require(name, value, value in allowed, f"one of {', '.join(allowed)}")


class EvidenceError(_UserError):
    """A question that the runs or the fit cannot answer: what is missing, what would answer it."""


class ConvergenceError(EvidenceError):
    """A fit that did not pass the gate; `fit`, and `table` with a row a parameter, come with it."""

    def __init__(self, message: str, fit: Any, table: Any) -> None:
        super().__init__(message)
        self.fit = fit
        self.table = table

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.fit, self.table)


class EvidenceWarning(UserWarning):
    """A fit goes on with less than was given, or rests on a prior where runs say nothing."""
