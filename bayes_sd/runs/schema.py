"""The run table: what its columns mean, and `Runs`, which holds it."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from bayes_sd.errors import InputError, plural
from bayes_sd.physics.acceptance import constant_acceptance, tokens_per_cycle
from bayes_sd.runs.check import Check, check, place
from bayes_sd.runs.checkpoint import is_head
from bayes_sd.runs.config import Configuration, absent
from bayes_sd.runs.drafting import EVIDENCE
from bayes_sd.runs.rows import METRICS, Latency, Workload


def _fields(kind: type[BaseModel], prefix: str = "", what: str = "") -> dict[str, str]:
    meanings = {name: str(field.description) for name, field in kind.model_fields.items()}
    return {f"{prefix}{k}": text.format(what) for k, text in meanings.items() if k != "std_s"}


# What the columns of the run table mean; seconds, tokens, requests and requests per second.
COLUMNS = {
    "run_id": "hash of the measurements: the same run has the same one",
    "source": "file, or 'table'",
    "row": "row of a table, result of a file, window; -1: all of the file",
    **_fields(Configuration),
    **_fields(Workload),
    **_fields(Latency, "e2e_", METRICS["e2e"]),
    **_fields(Latency, "ttft_", METRICS["ttft"]),
    **_fields(Latency, "tpot_", METRICS["tpot"]),
    "drafts": "draft-verify cycles",
    "drafted_tokens": "draft tokens proposed",
    "accepted_tokens": "draft tokens accepted",
    "accepted_j": "accepted_1 .. accepted_K: draft tokens accepted at position j",
    "tokens_per_cycle": "committed per cycle, bonus token included",
    "acceptance_from": "positions, totals, length, itl, imposed, other runs, prior; '' if plain",
    "detail": "computed from single requests",
    "saturated": "no steady state was reached",
    "flags": "sorted names joined by commas",
}
FIELDS = Configuration.model_fields | Workload.model_fields
KINDS: dict[Any, str] = {float: "float64", int: "int64"}
DTYPES = {name: KINDS.get(field.annotation, "str") for name, field in FIELDS.items()}
DTYPES |= dict.fromkeys(("run_id", "source", "acceptance_from", "flags"), "str")
DTYPES |= {"row": "int64", "detail": "bool", "saturated": "bool"}
SIZES = {
    "environment": ("gb_per_s", "gpus", "machine"),  # of several reasons the last is told
    "verifier": (
        *("verifier_params", "verifier_active_params", "family", "experts", "experts_per_token"),
        *("verifier_layers", "verifier_kv_bytes", "verifier_queries_per_key"),
    ),
    "drafter": ("drafter_params", "drafter_layers"),
}
SAME_SIZE = 0.02  # counts are given rounded, or with and without norms and biases
SET_ASIDE = {"source": "str", "row": "int64", "reason": "str"}


@dataclass(frozen=True, repr=False, eq=False)
class Runs:
    """Benchmark runs, one row a run, and what was set aside on the way.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns and units as in ``bayes_sd.runs.schema.COLUMNS``.
    set_aside : pandas.DataFrame
        Columns source, row, reason.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> from bayes_sd.runs.read import corpus
    >>> runs = bsd.read(corpus("vllm-cpu"))
    >>> runs
    Runs: 144 runs, 8813 requests, 6 verifiers, 54 plain runs
    13 saturated, 0 set aside; see .check() for why
    >>> len(runs.select(verifier="dense-60m", draft_tokens=[0, 2]).steady)
    14
    """

    table: pd.DataFrame
    set_aside: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        t, aside = self.table, len(self.set_aside)
        return (
            f"Runs: {plural(len(t), 'run')}, {plural(int(t.requests.sum()), 'request')}, "
            f"{plural(t.verifier.nunique(), 'verifier')}, "
            f"{plural((t.arm == 'plain').sum(), 'plain run')}\n"
            f"{t.saturated.sum()} saturated, {aside} set aside; see .check() for why"
        )

    def __add__(self, other: "Runs") -> "Runs":
        """Join; duplicates and contradictions are set aside."""
        if not isinstance(other, Runs):
            return NotImplemented
        rows = pd.concat([self.table, other.table]).to_dict("records")
        return tidy(rows, pd.concat([self.set_aside, other.set_aside]).to_dict("records"))

    def select(self, **levels: Any) -> "Runs":
        """Runs whose columns equal a value, or one of a list; InputError if no run has it."""
        keep = np.ones(len(self.table), dtype=bool)
        for name, wanted in levels.items():
            if name not in self.table:
                raise InputError(f"no column {name!r}; the columns are {_names(self.table)}")
            column = self.table[name]
            values = list(wanted) if pd.api.types.is_list_like(wanted) else [wanted]
            for value in values:
                if not (column == value).any():
                    known = _names(column.dropna().drop_duplicates().sort_values())
                    raise InputError(f"no run has {name} {value!r}; the runs have {known}")
            keep &= column.isin(values).to_numpy()
        return self._where(keep)

    @property
    def steady(self) -> "Runs":
        """The runs that are not saturated, so usable as a steady state."""
        return self._where(~self.table.saturated.to_numpy())

    def _where(self, keep: np.ndarray) -> "Runs":
        return Runs(self.table[keep].reset_index(drop=True), self.set_aside)

    def check(self) -> Check:
        """What is there, what was set aside and why, what is missing for which question."""
        return check(self.table, self.set_aside)


def _names(values: Iterable[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def tidy(rows: Sequence[Mapping[Any, Any]], aside: Sequence[Mapping[Any, Any]] = ()) -> Runs:
    """Runs of rows (keys as in ``COLUMNS``); duplicates and contradictions are set aside."""
    last = max((int(row["draft_tokens"]) for row in rows), default=0)
    names = list(COLUMNS)
    names[(j := names.index("accepted_j")) : j + 1] = [f"accepted_{i}" for i in range(1, last + 1)]
    same, reasons, first = [dict(row) for row in rows], {}, dict[str, dict[Any, Any]]()
    for i, row in enumerate(same):
        if (there := first.setdefault(row["run_id"], row)) is not row:
            where = place(there["source"], there["row"])
            reasons[i] = f"its measurements are those of {where} again; a run counts once"
    kept = {i: row for i, row in enumerate(same) if i not in reasons}
    _tell_heads_apart(kept.values())
    for what in SIZES:
        _given_sizes_win(kept.values(), what)
        _respell(kept.values(), what)
        reasons |= dict(_of_other_sizes(kept, what))
    columns = pd.DataFrame(same, columns=names).astype({n: DTYPES.get(n, "float64") for n in names})
    dropped = [same[i] | {"reason": reasons[i]} for i in sorted(reasons)]
    set_aside = pd.DataFrame([*aside, *dropped], columns=list(SET_ASIDE)).astype(SET_ASIDE)
    table = columns.drop(index=list(reasons)).reset_index(drop=True)
    prior, k = table.acceptance_from == "prior", table.draft_tokens.to_numpy()
    if prior.any():  # the other runs of a pair may tell its acceptance
        told = table.acceptance_from.isin(EVIDENCE) & table.acceptance_imposed.isna()
        rates = pd.Series(constant_acceptance(table.tokens_per_cycle, k)).where(told)
        rates = rates.groupby([table.verifier, table.drafter]).transform("mean")
        lent = prior & rates.notna()
        table.loc[lent, "tokens_per_cycle"] = tokens_per_cycle([rates.to_numpy()] * last, k)[lent]
        table.loc[lent, "acceptance_from"] = "other runs"
    return Runs(table, set_aside)


def _key(name: str, what: str) -> str:
    """A name without what differs: capitals, blanks, hyphens, a last .0, owners of a model."""
    key = re.sub(r"(\.0)+(?![\d.])", "", re.sub(r"[\s_-]+", " ", name.casefold()))
    return key if what == "environment" else key.rpartition("/")[2]


def _tell_heads_apart(rows: Iterable[dict[str, Any]]) -> None:
    """Heads called by their method alone, as eagle3, are others for verifiers of other sizes."""
    heads = [r for r in rows if "drafter-by-name" in r["flags"] and is_head(r["drafter"])]
    sizes = defaultdict[str, set[float]](set)
    for row in heads:
        sizes[row["drafter"].lower()].add(row["drafter_params"])
    for row in heads:
        if len(sizes[row["drafter"].lower()]) > 1:
            row["drafter"] = f"{row['drafter']} of {row['verifier']}"


def _given_sizes_win(rows: Collection[dict[str, Any]], what: str) -> None:
    """Where a run gives a model's size, it is also that of runs that give its name alone."""
    flag, size = f"{what}-by-name", f"{what}_params"
    sized = [row for row in rows if not absent(row.get(size)) and flag not in row["flags"]]
    given = {_key(row[what], what): row for row in sized}
    for row in rows:
        if flag in row["flags"] and (first := given.get(_key(row[what], what))):
            flags = ",".join(sorted({*row["flags"].split(",")} - {flag}))
            row |= {name: first[name] for name in SIZES[what]} | {"flags": flags}


def _respell(rows: Iterable[dict[str, Any]], what: str) -> None:
    """Give an environment or a model the spelling of the first run that has it."""
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, size = row[what], row.get(f"{what}_params")
        alike = known.setdefault(_key(name, what), {})
        first = next((other for other in alike if _alike(alike[other], size)), name)
        alike.setdefault(first, size)
        if first != name:
            row |= {what: first, "flags": _respelled(row)}


def _respelled(row: Mapping[str, Any]) -> str:
    return ",".join(sorted({*row["flags"].split(","), "respelled"} - {""}))


def _alike(a: Any, b: Any) -> bool:
    """Whether two sizes are of one model; a missing one may be any."""
    if absent(a) or absent(b) or a == b:
        return True
    return not isinstance(a, str) and math.isclose(a, b, rel_tol=SAME_SIZE)


def _of_other_sizes(rows: Mapping[int, dict[str, Any]], what: str) -> Iterator[tuple[int, str]]:
    """Runs whose model has another size than most runs of its name, and why they are no use."""
    names = dict.fromkeys(row[what] for row in rows.values())
    for name, field in product(names, SIZES.get(what, ())):
        known = {i: row[field] for i, row in rows.items() if row[what] == name}
        sizes = {i: size for i, size in known.items() if not absent(size)}
        # max returns the first of equals, so a tie goes to the run that was read first.
        usual = max(dict.fromkeys(sizes.values()), key=list(sizes.values()).count, default=None)
        for i in (i for i, size in sizes.items() if size != usual):
            if _alike(sizes[i], usual):
                rows[i].update({field: usual, "flags": _respelled(rows[i])})
                continue
            first = next(rows[j] for j in sizes if sizes[j] == usual)
            there = f"{_exact(usual)} in {place(first['source'], first['row'])}"
            problem = f"{field} of {name!r} is {_exact(sizes[i])} here but {there}"
            yield i, f"{problem}; correct it or give them different names"


def _exact(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
