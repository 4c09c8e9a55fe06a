"""The best draft length for every batch size, as the table vLLM takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.predict.answers import SAMPLE
from bayes_sd.predict.latency import arm_outcome, arms, scatter
from bayes_sd.predict.load import grid
from bayes_sd.predict.support import farthest, support
from bayes_sd.predict.system import System, default_system, resolve

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

DRAWS = 2000  # posterior draws used: the Monte Carlo error of a probability is then about 1%
BATCH_MAX = 1024
HOPELESS = 0.999  # chance of missing an SLO even alone from which no schedule is given
SERVER = "scheduled server"  # its own effect is one draw, whatever it drafts


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """Draft tokens by batch size.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``lo, hi`` (batch sizes, both included), ``k``, ``prob_best`` (chance that no other
        candidate is better, mean over the row), ``expected_regret_ms`` (expected latency lost to
        the best candidate had it been known; for an SLO the probability lost, in
        ``expected_regret``), ``support``.
    drafter : str
        Name of the drafter.
    candidates : tuple of int
        Draft lengths that were compared.
    """

    rows: pd.DataFrame
    drafter: str
    candidates: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Schedule for {self.drafter}\n{self.rows.to_string(index=False)}"

    def to_vllm(self) -> list[list[int]]:
        """``num_speculative_tokens_per_batch_size``: ``[[lo, hi, k], ...]``."""
        columns = (self.rows[name].tolist() for name in ("lo", "hi", "k"))
        return [list(row) for row in zip(*columns, strict=True)]

    def speculative_config(self, **keys: Any) -> dict[str, Any]:
        """The object of ``--speculative-config``; `keys` (method, model, ...) replace defaults.

        Raises
        ------
        EvidenceError
            If no batch size drafts: then a plain server is the answer.
        """
        top = int(self.rows["k"].max())
        if top == 0:
            raise EvidenceError(
                "No batch size is worth drafting for: serve without a speculative config."
            )
        return {
            "method": "draft_model",
            "model": self.drafter,
            "num_speculative_tokens": top,
            "num_speculative_tokens_per_batch_size": self.to_vllm(),
        } | keys

    def command_line(self, **keys: Any) -> str:
        """The option to paste behind ``vllm serve``."""
        return f"--speculative-config '{json.dumps(self.speculative_config(**keys))}'"


def schedule(
    fit: "Fit",
    k: Sequence[int],
    system: System | None,
    prompt: float,
    output: float,
    max_batch: int,
    loss: str,
    slo_s: float | None,
    confidence: float,
    extrapolate: bool,
    seed: int,
) -> Schedule:
    """See :meth:`bayes_sd.Fit.schedule`."""
    ks = sorted(arms(k))
    _check(ks, max_batch, loss, slo_s, confidence)
    system = system or default_system(fit, True)
    if system.drafter is None:
        raise InputError("A schedule is for a server with a drafter: System(..., drafter=...).")
    if not extrapolate:
        require_measured(fit, system, ks)
    load = grid(concurrency=list(range(1, max_batch + 1)), prompt=prompt, output=output)
    thin = fit.thin(DRAWS)
    parts, labels, alone_s = [], [], []
    for one in ks:
        # One server, whatever it drafts: the measured ones' own effects are not its own. At k = 0
        # the drafter stays loaded: that is the arm a schedule falls back to.
        law, asked = arm_outcome(thin, system, one, load, seed, True, SERVER)[1:]
        variance = scatter(thin, law, asked, "e2e")[1]
        parts.append(by_batch(_loss(law.e2e_s, variance, loss, slo_s)))
        alone_s.append(float(by_batch(law.e2e_s).sel(concurrency=1).median()))
        measured = resolve(thin, system, one, seed, True)
        labels.append(by_batch(support(thin, measured, one, load, law)).values)
    losses = np.stack([p.transpose(*SAMPLE, "concurrency").values for p in parts])
    losses = losses.reshape(len(ks), -1, max_batch)
    if slo_s is not None and losses[:, :, 0].mean(axis=1).min() > HOPELESS:
        raise EvidenceError(
            f"slo_s = {slo_s:g}: no request can be expected to be served within it at any load; "
            f"alone and at the best draft length one takes about {min(alone_s):.3g} s."
        )
    chosen = _choose(losses, confidence)
    pick = np.take_along_axis(losses, chosen[None, None, :], axis=0)[0]
    best = losses.min(axis=0)
    unit = 1.0 if slo_s is not None else 1e3
    cells = pd.DataFrame(
        {
            "k": np.array(ks)[chosen],
            "prob_best": (pick <= best).mean(axis=0),
            "regret": unit * (pick - best).mean(axis=0),
            "support": np.stack(labels)[chosen, np.arange(max_batch)],
        },
        index=np.arange(1, max_batch + 1),
    )
    if slo_s is not None:
        cells["prob_within"] = 1 - pick.mean(axis=0)
    name = "expected_regret" if slo_s is not None else "expected_regret_ms"
    label = system.drafter if isinstance(system.drafter, str) else system.drafter.label
    return Schedule(_rows(cells, name), label, tuple(ks))


def by_batch(values: Any) -> Any:
    """Without the dims of the one prompt and output length."""
    single = [d for d in values.dims if d not in (*SAMPLE, "concurrency")]
    return values.squeeze(single, drop=True)


def _check(
    ks: list[int], max_batch: int, loss: str, slo_s: float | None, confidence: float
) -> None:
    if len(ks) < 2:
        raise InputError(f"k = {ks}: give at least two draft lengths to choose from.")
    if not (isinstance(max_batch, int) and 1 <= max_batch <= BATCH_MAX):
        raise InputError(f"max_batch = {max_batch!r}: must be a whole number, 1 to {BATCH_MAX}.")
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence = {confidence!r}: must lie in [0.5, 1).")
    percentile = isinstance(loss, str) and loss[:1] == "p" and loss[1:].isdigit()
    if loss != "mean" and not (percentile and 0 < int(loss[1:]) < 100):
        raise InputError(f"loss = {loss!r}: must be 'mean', or a percentile as 'p95'.")
    if slo_s is not None and loss != "mean":
        raise InputError(f"loss = {loss!r} and slo_s = {slo_s!r}: give one of the two.")
    if slo_s is not None and not (np.isreal(slo_s) and np.isfinite(slo_s) and slo_s > 0):
        raise InputError(f"slo_s = {slo_s!r}: must be a positive number of seconds.")


def require_measured(fit: "Fit", system: System, ks: list[int]) -> None:
    """Refuse draft lengths that no run of this verifier and drafter had."""
    own = runs = fit.runs
    if isinstance(system.verifier, str):
        own = runs = runs[runs["verifier"] == system.verifier]
    if runs.empty:  # who is unknown to the fit is said, with the known ones, by `resolve`
        return
    if isinstance(system.drafter, str):
        own = runs[runs["drafter"] == system.drafter]
    known = sorted(int(n) for n in own["draft_tokens"].unique() if n > 0)
    if 0 in ks and not (runs["draft_tokens"] == 0).any():
        raise EvidenceError(
            f"No run of {system.verifier} without drafting was fitted, so nothing is known of "
            "k = 0: measure the plain server, leave 0 out, or ask for it: extrapolate=True "
            "(--extrapolate)."
        )
    for one in ks:
        if one > 0 and one not in known:
            raise InputError(
                f"k = {one} was never measured here (measured: {', '.join(map(str, known))}); "
                "leave it out or ask for it by name: extrapolate=True (--extrapolate)."
            )


def _loss(mean_s: Any, variance: Any, loss: str, slo_s: float | None) -> Any:
    """Loss of every draw: mean latency, a percentile of single requests, or P(over the SLO)."""
    if slo_s is not None:
        middle = np.log(mean_s) - variance / 2
        return 1 - (middle * 0 + ndtr((np.log(slo_s) - middle) / variance**0.5))
    if loss == "mean":
        return mean_s
    z = float(ndtri(int(loss[1:]) / 100))
    return mean_s * np.exp(z * variance**0.5 - variance / 2)


def _choose(losses: np.ndarray, confidence: float) -> np.ndarray:
    """Index of the smallest k that the best one does not beat with `confidence`, by batch size."""
    best = losses.mean(axis=1).argmin(axis=0)
    of_best = np.take_along_axis(losses, best[None, None, :], axis=0)
    beaten = (of_best < losses).mean(axis=1) >= confidence
    return np.asarray((~beaten).argmax(axis=0))


def _rows(cells: pd.DataFrame, regret: str) -> pd.DataFrame:
    """Neighbouring batch sizes of one k joined; the label of a row is its farthest."""
    group = (cells["k"] != cells["k"].shift()).cumsum()
    rows = []
    for _, own in cells.groupby(group):
        rows.append(
            {
                "lo": int(own.index[0]),
                "hi": int(own.index[-1]),
                "k": int(own["k"].iloc[0]),
                "prob_best": float(own["prob_best"].mean()),
                regret: float(own["regret"].mean()),
                "support": farthest(own["support"]),
            }
            | ({"prob_within_slo": float(own["prob_within"].min())} if "prob_within" in own else {})
        )
    return pd.DataFrame(rows)
