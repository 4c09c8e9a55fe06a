"""The run table: what its columns mean, and `Traces`, which holds it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import InputError
from bayes_sd.traces.check import Check, check
from bayes_sd.traces.consistency import consistent


@dataclass(frozen=True)
class Column:
    """A column of the run table: kind ("text", "int", "float", "bool"), unit, meaning."""

    kind: str
    unit: str
    meaning: str


def _metric(name: str, label: str, unit: str) -> dict[str, Column]:
    return {
        f"{name}_mean_s": Column("float", unit, f"mean {label}"),
        f"{name}_log_mean": Column("float", f"log({unit})", f"mean of the log of {label}"),
        f"{name}_log_var": Column("float", "1", f"variance of the log of {label}"),
        f"{name}_p50_s": Column("float", unit, f"median {label}"),
        f"{name}_p90_s": Column("float", unit, f"90th percentile of {label}"),
        f"{name}_p95_s": Column("float", unit, f"95th percentile of {label}"),
        f"{name}_p99_s": Column("float", unit, f"99th percentile (maximum if n < 100) of {label}"),
    }


COLUMNS: dict[str, Column] = {
    "run_id": Column("text", "", "hash of the content: the same run has the same one"),
    "source": Column("text", "", "file, or 'table'"),
    "row": Column("int", "", "row inside a table, -1 for a file"),
    "environment": Column("text", "", "hardware / engine"),
    "verifier": Column("text", "", "model that answers"),
    "family": Column("text", "", "dense or moe"),
    "verifier_params": Column("float", "count", "parameters of the verifier"),
    "verifier_active_params": Column("float", "count", "parameters used for one token"),
    "verifier_layers": Column("float", "count", "layers, missing: assumed from the size"),
    "verifier_kv_bytes": Column("float", "bytes", "keys and values of one token, or missing"),
    "experts": Column("int", "count", "experts in a layer, 0 if dense"),
    "experts_per_token": Column("int", "count", "experts routed to, 0 if dense"),
    "drafter": Column("text", "", "model that drafts, 'none' if plain"),
    "drafter_params": Column("float", "count", "parameters of the drafter"),
    "draft_tokens": Column("int", "tokens", "draft tokens a cycle, k"),
    "arm": Column("text", "", "plain, or sd: a drafter is loaded, even if k is 0"),
    "acceptance_imposed": Column("float", "1", "per-token acceptance known by construction"),
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
    **_metric("e2e", "end-to-end latency", "s"),
    **_metric("ttft", "time to first token", "s"),
    **_metric("tpot", "time per output token after the first", "s"),
    "e2e_log_var_requests": Column(
        "float", "requests", "single requests that e2e_log_var is worth, missing: all of them"
    ),
    "ttft_log_var_requests": Column("float", "requests", "likewise for ttft_log_var"),
    "tpot_log_var_requests": Column("float", "requests", "likewise for tpot_log_var"),
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
SET_ASIDE = ("source", "row", "reason")


@dataclass(frozen=True, repr=False, eq=False)
class Traces:
    """Benchmark runs, one row a run, and what was set aside on the way.

    Parameters
    ----------
    runs : pandas.DataFrame
        Columns and units as in ``COLUMNS``.
    set_aside : pandas.DataFrame
        Columns source, row, reason.

    Examples
    --------
    >>> traces = read_traces("traces/vllm-cpu")
    >>> traces.select(verifier="dense-60m", draft_tokens=[0, 2]).steady.runs.e2e_mean_s
    """

    runs: pd.DataFrame
    set_aside: pd.DataFrame

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        r = self.runs
        return (
            f"Traces: {len(r)} runs, {r.requests.sum()} requests, "
            f"{r.verifier.nunique()} verifiers, {(r.arm == 'plain').sum()} plain runs\n"
            f"{r.saturated.sum()} saturated, {len(self.set_aside)} set aside; "
            "see .check() for why"
        )

    def __add__(self, other: "Traces") -> "Traces":
        return self.concat(other)

    def concat(self, *others: "Traces") -> "Traces":
        """Join with other traces; duplicates and contradictions are set aside.

        Parameters
        ----------
        *others : Traces

        Returns
        -------
        Traces

        Examples
        --------
        >>> both = read_traces("monday").concat(read_traces("tuesday"))
        """
        every = (self, *others)
        rows = [row for t in every for row in _records(t.runs)]
        aside = [row for t in every for row in _records(t.set_aside)]
        return tidy(rows, aside)

    def select(self, **levels: Any) -> "Traces":
        """Runs whose columns equal a value or one of several values.

        Parameters
        ----------
        **levels
            Column name and value, or list of values, in the column's unit.

        Returns
        -------
        Traces

        Raises
        ------
        InputError
            If a column or a value does not occur.

        Examples
        --------
        >>> traces.select(arm="sd", draft_tokens=[3, 5])
        """
        keep = np.ones(len(self.runs), dtype=bool)
        for name, wanted in levels.items():
            if name not in self.runs.columns:
                raise InputError(f"no column {name!r}; the columns are {_names(self.runs.columns)}")
            scalar = isinstance(wanted, str) or not isinstance(wanted, Iterable)
            values = [wanted] if scalar else list(wanted)
            column = self.runs[name]
            for value in values:
                if not (column == value).any():
                    known = _names(column.dropna().drop_duplicates().sort_values())
                    raise InputError(f"no run has {name} {value!r}; the runs have {known}")
            keep &= column.isin(values).to_numpy()
        return Traces(self.runs[keep].reset_index(drop=True), self.set_aside)

    @property
    def steady(self) -> "Traces":
        """The runs that are not saturated, so usable as a steady state.

        Examples
        --------
        >>> len(traces.steady) <= len(traces)
        True
        """
        return Traces(self.runs[~self.runs.saturated].reset_index(drop=True), self.set_aside)

    def check(self) -> Check:
        """What is there, what was set aside and why, what is missing for which question.

        Returns
        -------
        Check

        Examples
        --------
        >>> print(traces.check())
        """
        return check(self.runs, self.set_aside)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _names(values: Iterable[Any], most: int = 40) -> str:
    names = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def tidy(rows: Sequence[Mapping[str, Any]], aside: Sequence[Mapping[str, Any]] = ()) -> Traces:
    """Traces of rows, duplicates and contradictions between rows set aside.

    Parameters
    ----------
    rows : sequence of mappings
        Keys as in ``COLUMNS``; missing counts become NaN.
    aside : sequence of mappings
        Keys source, row, reason.

    Returns
    -------
    Traces
    """
    last = max((int(row["draft_tokens"]) for row in rows), default=0)
    positions = [f"accepted_{j}" for j in range(1, last + 1)]
    columns = {
        name: COLUMNS[column].kind
        for column in COLUMNS
        for name in (positions if column == "accepted_j" else [column])
    }
    table = pd.DataFrame.from_records([dict(r) for r in rows]).reindex(columns=list(columns))
    table = table.astype({name: _DTYPES[kind] for name, kind in columns.items()})
    kept, dropped = consistent(table)
    reasons = pd.DataFrame([*aside, *dropped], columns=list(SET_ASIDE)).astype(
        {"source": "str", "row": "int64", "reason": "str"}
    )
    return Traces(kept, reasons)
