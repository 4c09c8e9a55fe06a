"""Decisions over loads, as tables: one for each measured SD arm, or for one asked about."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.predict.answers import OUTCOMES, SAMPLE
from bayes_sd.predict.latency import arm_outcome
from bayes_sd.predict.load import grid
from bayes_sd.predict.system import (
    NONE,
    System,
    acceptance,
    environment_of,
    find_pair,
    system_of,
)

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit

RATES = 12
TOP = 0.95  # of the plain server's median capacity: the last rate at which plain has an answer


def measured_arms(fit: "Fit") -> list[tuple[System, int]]:
    """SD arms (k > 0) of verifiers that have plain runs too."""
    runs = fit.runs
    where = ["environment", "verifier"]
    plain = runs.loc[runs["arm"] == "plain", where].drop_duplicates()
    arms = runs[(runs["drafter"] != NONE) & (runs["draft_tokens"] > 0)].merge(plain, on=where)
    arms = arms.drop_duplicates("system").sort_values(["environment", "system"])
    return [(system_of(row), int(row["draft_tokens"])) for _, row in arms.iterrows()]


def finite(value: float) -> float | None:
    """JSON has no infinity: a rate without limit is null, and its probability stands beside it."""
    return round(float(value), 4) if np.isfinite(value) else None


def decide(
    fit: "Fit",
    system: System,
    k: int,
    prompt: float,
    output: float,
    rates: Any = None,
    of: str = "mean",
    seed: int = 0,
) -> dict[str, Any]:
    """P(SD beats plain) over rates and the break-even rate of one SD arm, JSON-able.

    Without `rates`, twelve up to 95% of the plain server's median capacity.
    """
    if rates is None:
        idle = arm_outcome(fit, system, 0, grid(rps=0.0, prompt=prompt, output=output), seed)[1]
        top = TOP / float(idle.c2_s.median(SAMPLE))
        rates = np.linspace(top / RATES, top, RATES)
    answer = fit.prob_faster(
        grid(rps=rates, prompt=prompt, output=output), k, system, of=of, seed=seed
    ).isel(k=0)
    even = fit.break_even(k, system, prompt=prompt, output=output, seed=seed)
    p05, p50, p95 = (finite(v) for v in even.quantile([0.05, 0.5, 0.95]).isel(k=0).values)
    accepted = acceptance(fit, system, find_pair(fit, system), k)
    return {
        "environment": environment_of(fit, system),
        "verifier": _name(system.verifier),
        "drafter": _name(system.drafter),
        "k": k,
        "acceptance": round(float(np.mean([float(np.mean(a)) for a in accepted])), 4),
        "prompt_tokens": float(prompt),
        "output_tokens": float(output),
        "compared": of,
        "rates_rps": [float(f"{r:.6g}") for r in np.atleast_1d(rates)],
        "prob_faster": [round(float(p), 4) for p in np.atleast_1d(answer["prob_faster"].values)],
        "prob_both_saturated": [
            round(float(p), 4) for p in np.atleast_1d(answer["prob_both_saturated"].values)
        ],
        "break_even_rps": {
            "p05": p05,
            "p50": p50,
            "p95": p95,
            **{f"prob_{o}": round(float(even.prob(o)[0]), 4) for o in OUTCOMES},
        },
        "support": str(even.draws["support"].values[0]),
        "support_by_rate": [str(v) for v in np.atleast_1d(answer["support"].values)],
    }


def _name(model: Any) -> str:
    return model if isinstance(model, str) else model.label if model is not None else NONE


def sentence(decision: dict[str, Any]) -> str:
    """A decision in one sentence, with its probabilities."""
    d, even = decision, decision["break_even_rps"]
    head = f"{d['verifier']} + {d['drafter']}, k = {d['k']}: "
    outcomes = {o: even[f"prob_{o}"] for o in OUTCOMES}
    likely = max(outcomes, key=lambda o: outcomes[o])
    text = {
        "never": "SD is slower at every rate",
        "always": "SD is faster at every rate that either sustains",
        "between": "SD is faster between two rates only",
        "above": "SD is slower at low rates and faster near capacity",
        "below": "SD is faster up to a break-even rate",
    }[likely]
    if likely == "below":
        ends = [f"{v:.3g}" if v is not None else "no limit" for v in (even["p05"], even["p95"])]
        middle = f"{even['p50']:.3g}" if even["p50"] is not None else "no limit"
        text += f" of {middle} requests/s (90%: {ends[0]} to {ends[1]})"
    return (
        f"{head}{text} with probability {outcomes[likely]:.2f} "
        f"({d['prompt_tokens']:.0f} + {d['output_tokens']:.0f} tokens, {d['support']})."
    )
