"""Draft-verify cycles and accepted tokens of a run, as counts; and what stands in for them."""

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import numpy as np

from bayes_sd.errors import InputError
from bayes_sd.runs import config as c

EVIDENCE = ("positions", "totals", "length", "itl")  # what a run itself tells acceptance by
# Where nothing tells it, an acceptance is Beta(a, b), worth a + b drafted tokens. The first kind
# whose words are in the drafter's method or name is taken.
USUAL = {
    # 0.2 in free text, 0.8 where an answer repeats its prompt (summaries, edits of code).
    "n-gram": ("ngram|suffix|lookup", 1.6, 2.4),
    # DeepSeek-V3 reports 0.85 to 0.90 for the first token; the same head run again has less.
    "MTP": ("mtp|nextn", 6.0, 2.0),
    # 0.65 to 0.82 with EAGLE-3 on GB200; texts unlike those it was trained on have less.
    "EAGLE-like": ("eagle|medusa|hydra|speculator|dflash", 5.2, 2.8),
    # Leviathan et al. 2023, table 3: 0.5 to 0.8 for models 10 to 100 times smaller.
    "small model": ("", 5.6, 2.4),
}


def usual_acceptance(drafter: str, method: str, params: float) -> tuple[float, float]:
    """Of a drafter's kind: a and b of its acceptance."""
    name = f"{method} {drafter}".lower() if params else "ngram"  # the one kind without weights
    return next((a, b) for words, a, b in USUAL.values() if re.search(words, name))


def usual_rate(drafter: str, params: float) -> float:
    """Of a drafter's kind: the mean acceptance of a token, in two digits."""
    a, b = usual_acceptance(drafter, drafter, params)
    return round(a / (a + b), 2)


class Drafting(c.Record, extra="forbid"):
    """Draft-verify cycles and what they accepted, as counts; None and () where not counted."""

    drafts: c.Count | None = None
    drafted_tokens: c.Count | None = None
    accepted_tokens: c.Count | None = None
    positions: tuple[c.Count, ...] = ()
    acceptance_length: c.Positive | None = None  # tokens a cycle, for want of counts

    @property
    def draft_tokens(self) -> int | None:
        """Draft tokens of a cycle, where the counts tell."""
        if self.positions or not (self.drafts and self.drafted_tokens):
            return len(self.positions) or None
        k = self.drafted_tokens / self.drafts
        return int(k) if k == int(k) else None

    def of_tokens(self, tokens: float, k: int) -> Self:
        """With the cycles, where they are not counted, of the drafted tokens or of a length."""
        length = self.acceptance_length
        if self.drafts is not None or k == 0:
            return self
        if self.drafted_tokens and self.accepted_tokens is not None:
            return self.model_copy(update={"drafts": round(self.drafted_tokens / k)})
        if length is None:
            return self
        if not 1 / c.ROUNDING <= length <= (k + 1) * c.ROUNDING:
            bounds = f"1 and draft_tokens + 1 = {k + 1} (the bonus token is counted)"
            raise InputError(f"acceptance_length is {length:g}; it must lie between {bounds}")
        drafts = round(tokens / length)
        accepted = round(drafts * (length - 1))
        return self.model_copy(update={"drafts": drafts, "accepted_tokens": accepted})


def counts(config: c.Configuration, d: Drafting) -> dict[str, float | str]:
    """Columns of drafting; what was not counted stays NaN, above all single positions."""
    k, alpha = config.draft_tokens, config.acceptance_imposed
    for problem in _problems(k, d):
        raise InputError(problem)
    accepted, known = d.accepted_tokens, "positions" if d.positions else "totals"
    if accepted is None and d.positions:
        accepted = sum(d.positions)
    if k == 0:
        per_cycle, known = 1.0, ""
    elif d.drafts and accepted is not None:
        per_cycle = 1 + accepted / d.drafts
    elif not math.isnan(alpha):
        per_cycle, known = sum(alpha**j for j in range(k + 1)), "imposed"
    else:
        a, b = usual_acceptance(config.drafter, config.drafter_method, config.drafter_params)
        i, known = np.arange(k), "prior"
        per_cycle = 1 + np.cumprod((a + i) / (a + b + i)).sum()  # the mean over the prior
    found = {"drafts": d.drafts, "drafted_tokens": d.drafted_tokens, "accepted_tokens": accepted}
    found |= {f"accepted_{j}": n for j, n in enumerate(d.positions[:k], start=1)}
    row = {name: math.nan if n is None or k == 0 else float(n) for name, n in found.items()}
    return {**row, "tokens_per_cycle": per_cycle, "acceptance_from": known}


def _problems(k: int, d: Drafting) -> Iterator[str]:
    given, total, accepted = len(d.positions), sum(d.positions), d.accepted_tokens
    if k == 0:
        if any((d.drafts, d.drafted_tokens, accepted, total)):
            yield "tokens were drafted but draft_tokens is 0; give the drafter and its draft_tokens"
        return
    if given not in (0, k):
        yield f"acceptance is given for {given} positions but draft_tokens is {k}"
    if d.drafts is None:
        if accepted is not None or given:
            yield "accepted tokens are counted but drafts is missing; give both"
        return
    drafted = k * d.drafts if d.drafted_tokens is None else d.drafted_tokens
    if drafted > k * d.drafts:
        yield f"drafted_tokens {drafted} is more than draft_tokens {k} times drafts {d.drafts}"
    if accepted is not None and accepted > drafted:
        yield f"accepted_tokens {accepted} is more than the {drafted} drafted"
    if any(b > a for a, b in pairwise((d.drafts, *d.positions))):
        yield f"accepted counts {list(d.positions)} of {d.drafts} drafts increase with position"
    if given and accepted is not None and abs(total - accepted) > k:
        yield f"accepted_tokens is {accepted} but the positions add up to {total}"
