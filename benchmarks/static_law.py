"""Laws for static batches, as pure functions, and their least squares; see static_batches.py.

The functions up to `batch_latency` are written with operators only, so they take floats, NumPy and
labelled arrays alike. Units: seconds, tokens, requests.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from bayes_sd.physics.queue import coverage, tokens_in_pass

NAMES = ("start", "joining", "pass", "token", "context", "experts", "kernel")
# Tokens. No batch of the table lies between 1 and 16; larger knees only answer to steps of kernels
# (tiles) and then miss a single request that is held out.
KNEES = (2, 4, 8, 12, 16)
PARTITION_TOKENS, KERNEL_BLOCKS = 512, 512  # vLLM's rule for its first paged-attention kernel


def larger(x: Any, y: Any) -> Any:
    """The larger of two, by operators."""
    return (x + y + abs(x - y)) / 2


def turns(sequences: Any, tokens_each: Any, room_tokens: Any) -> Any:
    """How often the batch must be served: 1, or tokens at the end over tokens that fit."""
    return larger(1.0, sequences * tokens_each / room_tokens)


def beyond_knee(tokens: Any, knee: Any) -> Any:
    """Tokens beyond the first `knee`, which hide behind reading weights or launching kernels."""
    return larger(tokens - knee, 0.0)


def first_kernel(sequences: Any, heads: Any, context_tokens: Any) -> Any:
    """1 where vLLM takes paged attention V1, which walks a context in one block of threads, else 0.

    It does for contexts of one partition, and where sequences times heads fill the device.
    """
    short = (context_tokens <= PARTITION_TOKENS) * 1.0
    return larger(short, (sequences * heads > KERNEL_BLOCKS) * 1.0)


def batch_latency(theta: dict[str, Any], batch: Any, knee: Any, memory: float) -> Any:
    r"""Latency of a static batch, s; linear in the coefficients.

    .. math::
        L &= m\,(C_1 + (n/m - 1)\, C_2), \qquad m = \max(1, 2 g n / room) \\
        C_1 &= start + g\,(pass + \phi\, experts + token\,[n/m - knee]_+) \\
        C_2 &= joining + 1.5\, g^2\,(context + kernel)

    With m = 1 and a knee of 1 this is the line with coverage; `memory` 0 takes memory as endless.
    """
    n, g = batch["batch"], batch["tokens"]
    m = turns(n * memory, 2 * g, batch["room_tokens"])
    others = n / m - 1
    tokens = tokens_in_pass(others, 0)
    phi = batch["moe"] * coverage(batch["idle"], tokens)
    first = first_kernel(n, batch["heads"], 2 * g)
    context = 1.5 * g * (theta["context"] + first * theta["kernel"])
    c1 = theta["start"] + g * (
        theta["pass"] + phi * theta["experts"] + theta["token"] * beyond_knee(tokens, knee)
    )
    return m * (c1 + others * (theta["joining"] + g * context))


@dataclass(frozen=True)
class Form:
    """Which parts of the law are on; `lines` is two coefficients a length instead."""

    coverage: bool = False
    memory: bool = False
    kernel: bool = False
    knee: int = 1
    lines: bool = False

    @property
    def extra(self) -> int:
        """Coefficients beyond those that every candidate of a law has."""
        return self.kernel + (self.knee > 1)


ALL = Form(coverage=True, memory=True)
KERNEL = (ALL, replace(ALL, kernel=True))
LAWS = {
    "lines": (Form(lines=True),),
    "line": (Form(),),
    "coverage": (Form(coverage=True),),
    "memory": (ALL,),
    "kernel": KERNEL,
    "knee": (*KERNEL, *(replace(form, knee=knee) for form in KERNEL for knee in KNEES)),
}


@dataclass(frozen=True)
class Fitted:
    """A form and its coefficients (s), of a length each in the case of lines."""

    form: Form
    theta: dict[Any, np.ndarray]
    bic: float

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Latency of each row, s; not a number at a length without a line."""
        if not self.form.lines:
            return columns(self.form, rows) @ self.theta["all"]
        unknown = np.full(2, np.nan)
        theta = np.array([self.theta.get(tokens, unknown) for tokens in rows["tokens"]])
        return theta[:, 0] + theta[:, 1] * (rows["batch"].to_numpy(float) - 1)


def columns(form: Form, rows: pd.DataFrame) -> np.ndarray:
    """Latency per unit of each coefficient, (rows, coefficients)."""
    batch = {name: rows[name].to_numpy(float) for name in
             ("batch", "tokens", "room_tokens", "moe", "idle", "heads")}  # fmt: skip
    on = {"experts": form.coverage, "kernel": form.kernel}
    return np.stack(
        [
            batch_latency(
                {other: float(other == name and on.get(name, True)) for other in NAMES},
                batch,
                form.knee,
                float(form.memory),
            )
            for name in NAMES
        ],
        axis=1,
    )


def solve(units: np.ndarray, latency_s: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of least squared relative error, none below 0, and the sum of squares."""
    relative = units / latency_s[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1.0
    theta, norm = nnls(relative / scale, np.ones(len(latency_s)))
    return theta / scale, norm**2


def fit_form(form: Form, rows: pd.DataFrame) -> Fitted:
    """One form, with its information criterion up to what all forms of a law share."""
    if form.lines:
        # A line needs two batch sizes.
        theta = {
            tokens: solve(np.stack([np.ones(len(line)), line["batch"] - 1.0], axis=1),
                          line["latency_s"].to_numpy())[0]
            for tokens, line in rows.groupby("tokens") if line["batch"].nunique() > 1
        }  # fmt: skip
        return Fitted(form, theta, 0.0)
    theta, squares = solve(columns(form, rows), rows["latency_s"].to_numpy(float))
    # Errors below 0.1% are not worth a coefficient.
    size = len(rows) * np.log(squares / len(rows) + 1e-6)
    return Fitted(form, {"all": theta}, float(size + form.extra * np.log(len(rows))))


def fit(law: str, rows: pd.DataFrame) -> Fitted:
    """The candidate of a law with the smallest information criterion; the simplest if equal."""
    return min((fit_form(form, rows) for form in LAWS[law]), key=lambda candidate: candidate.bic)


def errors(fitted: Fitted, rows: pd.DataFrame) -> np.ndarray:
    """Absolute relative errors."""
    return np.abs(fitted.predict(rows) / rows["latency_s"].to_numpy(float) - 1)


def held_out(law: str, rows: pd.DataFrame, column: str) -> pd.Series:
    """Errors of each row, predicted from the rows with another value in `column`."""
    error = pd.Series(np.nan, index=rows.index)
    for value in rows[column].unique():
        held = rows[column] == value
        error[held] = errors(fit(law, rows[~held]), rows[held])
    return error
