"""The run table: what its columns mean, and `Runs`, which holds it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.runs.check import Check, check


@dataclass(frozen=True)
class Column:
    """A column of the run table: kind ("text", "int", "float", "bool"), unit, meaning."""

    kind: str
    unit: str
    meaning: str


def _metric(name: str, label: str) -> dict[str, Column]:
    """Columns of one latency metric."""
    percentiles = {f"p{q}": f"{q}th percentile of {label}" for q in (50, 90, 95, 99)}
    texts = {"mean": f"mean {label}", **percentiles}
    seconds = {f"{name}_{q}_s": Column("float", "s", text) for q, text in texts.items()}
    n_eff = "requests whose logs would tell the variance as well; missing: all of the run"
    return seconds | {
        f"{name}_log_mean": Column("float", "log(s)", f"mean of the log of {label}"),
        f"{name}_log_var": Column("float", "1", f"variance of the log of {label}"),
        f"{name}_log_var_n_eff": Column("float", "requests", n_eff),
    }


COLUMNS: dict[str, Column] = {
    "run_id": Column("text", "", "hash of the measurements: the same run has the same one"),
    "source": Column("text", "", "file, or 'table'"),
    "row": Column("int", "", "row of a table, benchmark of a report, window; -1: all of the file"),
    "environment": Column("text", "", "hardware / engine"),
    "verifier": Column("text", "", "model that answers"),
    "family": Column("text", "", "dense or moe"),
    "verifier_params": Column("float", "count", "parameters of the verifier"),
    "verifier_active_params": Column("float", "count", "parameters used for one token"),
    "verifier_layers": Column("float", "count", "layers; missing: assumed from the size"),
    "verifier_kv_bytes": Column("float", "bytes", "keys and values of one token, or missing"),
    "experts": Column("int", "count", "experts in a layer, 0 if dense"),
    "experts_per_token": Column("int", "count", "experts routed to, 0 if dense"),
    "drafter": Column("text", "", "model that drafts, 'none' if plain"),
    "drafter_params": Column("float", "count", "parameters of the drafter"),
    "drafter_method": Column("text", "", "draft_model, eagle3, mtp, ngram, ...; '' if unknown"),
    "drafter_path": Column("text", "", "what vLLM calls the drafter's model; '' if unknown"),
    "draft_tokens": Column("int", "tokens", "draft tokens a cycle, k"),
    "arm": Column("text", "", "plain, or sd: a drafter is loaded, even if k is 0"),
    "acceptance_imposed": Column("float", "1", "acceptance per token known by construction"),
    "prompt_tokens": Column("float", "tokens", "mean prompt length"),
    "output_tokens": Column("float", "tokens", "mean output length"),
    "prompt_tokens_sd": Column("float", "tokens", "sd of prompt lengths in the run, or missing"),
    "output_tokens_sd": Column("float", "tokens", "sd of output lengths in the run, or missing"),
    "loop": Column("text", "", "open (a rate), closed (a concurrency) or burst (neither)"),
    "rate_rps": Column("float", "1/s", "offered rate, open loop only"),
    "concurrency": Column("float", "requests", "limit on requests in flight"),
    "achieved_rps": Column("float", "1/s", "requests over duration, drain included"),
    "burstiness": Column("float", "1", "shape of the gamma arrivals, 1 is Poisson"),
    "span_s": Column("float", "s", "from the first arrival to the last"),
    "duration_s": Column("float", "s", "from the first arrival to the last answer"),
    "requests": Column("int", "requests", "successful requests"),
    "failed": Column("int", "requests", "failed requests, in no statistic"),
    **_metric("e2e", "end-to-end latency"),
    **_metric("ttft", "time to first token"),
    **_metric("tpot", "time per output token after the first"),
    "in_flight": Column("float", "requests", "mean number of requests in flight"),
    "drafts": Column("float", "count", "draft-verify cycles"),
    "drafted_tokens": Column("float", "tokens", "draft tokens proposed"),
    "accepted_tokens": Column("float", "tokens", "draft tokens accepted"),
    "accepted_j": Column("float", "tokens", "accepted_1 .. accepted_K: accepted at position j"),
    "tokens_per_cycle": Column("float", "tokens", "committed per cycle, bonus token included"),
    "detail": Column("bool", "", "computed from single requests"),
    "saturated": Column("bool", "", "no steady state was reached"),
    "flags": Column("text", "", "sorted names joined by commas"),
}
_DTYPES = {"text": "str", "int": "int64", "float": "float64", "bool": "bool"}
_SIZES = ("verifier_params", "verifier_active_params", "family", "experts", "experts_per_token")
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
            f"Runs: {len(t)} runs, {t.requests.sum()} requests, "
            f"{t.verifier.nunique()} verifiers, {(t.arm == 'plain').sum()} plain runs\n"
            f"{t.saturated.sum()} saturated, {aside} set aside; see .check() for why"
        )

    def __add__(self, other: "Runs") -> "Runs":
        """Join; duplicates and contradictions are set aside."""
        if not isinstance(other, Runs):
            return NotImplemented
        rows, aside = (
            [row for part in (self, other) for row in getattr(part, name).to_dict("records")]
            for name in ("table", "set_aside")
        )
        return tidy(rows, aside)

    def select(self, **levels: Any) -> "Runs":
        """Runs whose columns equal a value, or one of a list; InputError if no run has it."""
        keep = np.ones(len(self.table), dtype=bool)
        for name, wanted in levels.items():
            if name not in self.table:
                raise InputError(f"no column {name!r}; the columns are {_names(self.table)}")
            scalar = isinstance(wanted, str) or not isinstance(wanted, Iterable)
            values, column = [wanted] if scalar else list(wanted), self.table[name]
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


def _names(values: Iterable[Any], most: int = 40) -> str:
    """Values as a list for a message."""
    names = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def tidy(rows: Sequence[Mapping[Any, Any]], aside: Sequence[Mapping[Any, Any]] = ()) -> Runs:
    """Runs of rows (keys as in ``COLUMNS``); duplicates and contradictions are set aside."""
    last = max((int(row["draft_tokens"]) for row in rows), default=0)
    positions = [f"accepted_{j}" for j in range(1, last + 1)]
    kinds = {
        name: COLUMNS[column].kind
        for column in COLUMNS
        for name in (positions if column == "accepted_j" else [column])
    }
    table = pd.DataFrame.from_records([dict(row) for row in rows]).reindex(columns=list(kinds))
    table = table.astype({name: _DTYPES[kind] for name, kind in kinds.items()})
    reasons = dict(_duplicates(table))
    for what, fields in (("verifier", _SIZES), ("drafter", ("drafter_params",))):
        left = table.drop(index=list(reasons))
        reasons |= _minorities(left[left[fields[0]].notna()], what, fields)
    dropped = [
        {"source": table.at[i, "source"], "row": table.at[i, "row"], "reason": reason}
        for i, reason in sorted(reasons.items())
    ]
    set_aside = pd.DataFrame([*aside, *dropped], columns=list(SET_ASIDE)).astype(SET_ASIDE)
    return Runs(table.drop(index=list(reasons)).reset_index(drop=True), set_aside)


def _duplicates(table: pd.DataFrame) -> Iterator[tuple[Any, str]]:
    """Runs whose measurements were there before."""
    first: dict[str, str] = {}
    columns = (table.index, table.run_id, table.source, table.row)
    for i, run_id, source, row in zip(*columns, strict=True):
        if run_id in first:
            yield i, f"its measurements are those of {first[run_id]} again; a run counts once"
        else:
            first[run_id] = source if row < 0 else f"{source} row {row}"


def _minorities(table: pd.DataFrame, what: str, fields: tuple[str, ...]) -> dict[Any, str]:
    """Runs whose model has another size than in most runs of that name and environment."""
    reasons: dict[Any, str] = {}
    for (_, name), group in table.groupby(["environment", what], sort=False):
        sizes = [tuple(values) for values in group[list(fields)].itertuples(index=False)]
        # max returns the first of equals, so a tie goes to the run that was read first.
        majority = max(dict.fromkeys(sizes), key=sizes.count)
        for i, size in zip(group.index, sizes, strict=True):
            if size == majority:
                continue
            pairs = zip(fields, size, majority, strict=True)
            field, here, there = next((f, a, b) for f, a, b in pairs if a != b)
            reasons[i] = (
                f"{field} of {name!r} is {_exact(here)} here but {_exact(there)} in "
                f"{sizes.count(majority)} other runs of this environment; "
                "correct it or give the models different names"
            )
    return reasons


def _exact(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
