"""Any table of per-run aggregates."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from bayes_sd.errors import InputError
from bayes_sd.traces.config import NAMES, configure
from bayes_sd.traces.numbers import absent, number, sentence
from bayes_sd.traces.records import Drafting, Latency, Workload
from bayes_sd.traces.rows import METRICS, fingerprint, run_row
from bayes_sd.traces.schema import Traces, tidy

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "%": 1e-2, "1": 1.0}
TIME_UNITS = ("s", "ms", "us")
STATISTICS = {
    "mean_s": "mean",
    "std_s": "std",
    "log_mean": "log_mean",
    "log_var": "log_var",
    "p50_s": "p50",
    "p90_s": "p90",
    "p95_s": "p95",
    "p99_s": "p99",
}
LATENCIES = {f"{m}_{theirs}": (m, ours) for m in METRICS for theirs, ours in STATISTICS.items()}
WORKLOAD = tuple(Workload.model_fields)
COUNTS = ("drafts", "drafted_tokens", "accepted_tokens")
REQUIRED = (
    "verifier",
    "verifier_params",
    "draft_tokens",
    "prompt_tokens",
    "output_tokens",
    "requests",
    "e2e_mean_s",
)
POSITIONS = tuple(f"accepted_{j}" for j in range(1, 65))
INPUTS = (*NAMES, *WORKLOAD, *LATENCIES, *COUNTS, "saturated")

Source = str | Path | pd.DataFrame
Mapped = str | tuple[str, str]


def read_table(
    source: Source,
    columns: Mapping[str, Mapped] | None = None,
    constants: Mapping[str, Any] | None = None,
    environment: str | None = None,
) -> Traces:
    """Read one run a row from a CSV file or a DataFrame of per-run aggregates.

    Parameters
    ----------
    source : path or pandas.DataFrame
    columns : mapping, optional
        Our column name to theirs, or to (theirs, unit) with unit "s", "ms", "us", "%" or "1".
        Columns that have our names already need no entry. Latencies are ``e2e_mean_s``,
        ``e2e_std_s``, ``e2e_p50_s`` ... ``tpot_p99_s``, or ``e2e_log_mean`` and ``e2e_log_var``.
    constants : mapping, optional
        Our column name to one value for all rows, in our unit.
    environment : str, optional
        Hardware and engine of all rows.

    Returns
    -------
    Traces
        Bad rows are in ``set_aside``. The loop is open unless said otherwise, and an open loop
        without ``rate_rps`` takes ``achieved_rps``, flagged "rate-from-achieved".

    Raises
    ------
    InputError
        If a name or unit is unknown, a required column is missing, or no row can be used.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "model": ["m", "m"], "rps": [1.0, 2.0], "n": [60, 120], "seconds": [60, 60],
    ...     "lat_ms": [900.0, 1300.0], "lat_sd_ms": [80.0, 150.0],
    ... })
    >>> traces = read_table(
    ...     table,
    ...     columns={"verifier": "model", "rate_rps": "rps", "requests": "n",
    ...              "duration_s": "seconds", "e2e_mean_s": ("lat_ms", "ms"),
    ...              "e2e_std_s": ("lat_sd_ms", "ms")},
    ...     constants={"verifier_params": 8e9, "draft_tokens": 0,
    ...                "prompt_tokens": 512, "output_tokens": 128},
    ... )
    >>> traces.runs.e2e_mean_s.tolist()
    [0.9, 1.3]
    """
    table, name = load_table(source)
    if not table.columns.is_unique:
        twice = ", ".join(map(str, table.columns[table.columns.duplicated()]))
        raise InputError(f"{name}: two columns are called {twice}; names must differ")
    fixed = dict(constants or {})
    if environment is not None:
        fixed["environment"] = environment
    mapping = _mapping(table, columns or {}, fixed)
    missing = [c for c in REQUIRED if c not in mapping and c not in fixed]
    if not {"rate_rps", "achieved_rps", "concurrency"} & {*mapping, *fixed}:
        missing.append("rate_rps (or achieved_rps, or concurrency)")
    if missing:
        raise InputError(
            f"{name}: no column is given for {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )
    rows: list[dict[str, Any]] = []
    aside: list[dict[str, Any]] = []
    # Not a selection of columns: two of our names may share one of theirs.
    blank = table.astype(object).where(table.notna(), None)
    cells_of = [blank[theirs].tolist() for theirs, _ in mapping.values()]
    for i, cells in enumerate(zip(*cells_of, strict=True)):
        try:
            row = _row(_converted(mapping, cells) | fixed)
        except InputError as error:
            aside.append({"source": name, "row": i, "reason": str(error)})
        else:
            rows.append(row | {"run_id": fingerprint(row, ignore=_DERIVED)} | _place(name, i))
    if not rows:
        reasons = "; ".join(f"row {bad['row']}: {bad['reason']}" for bad in aside[:3])
        raise InputError(f"{name}: none of {len(aside)} rows can be used: {reasons or 'no rows'}")
    return tidy(rows, aside)


_DERIVED = frozenset({"flags", "saturated"})


def _place(source: str, row: int) -> dict[str, Any]:
    return {"source": source, "row": row}


def load_table(source: Source) -> tuple[pd.DataFrame, str]:
    """A table as it is given, and the name by which errors call it."""
    if isinstance(source, pd.DataFrame):
        return source, "table"
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a CSV file or a DataFrame is needed")
    try:
        return pd.read_csv(path), str(path)
    except (ValueError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: is not a CSV table ({reason})") from None


def _mapping(
    table: pd.DataFrame, columns: Mapping[str, Mapped], constants: Mapping[str, Any]
) -> dict[str, tuple[Hashable, float | None]]:
    for what, names in (("columns", columns), ("constants", constants)):
        for ours in names:
            if ours not in INPUTS and ours not in POSITIONS:
                known = f"{', '.join(INPUTS)}, accepted_1 .. accepted_k"
                raise InputError(f"{what} has the unknown name {ours!r}; known are {known}")
    own = [c for c in table.columns if (c in INPUTS or c in POSITIONS) and c not in constants]
    mapping: dict[str, tuple[Hashable, float | None]] = {c: (c, None) for c in own}
    for ours, given in columns.items():
        if ours in constants:
            raise InputError(f"{ours} is given in columns and in constants; give it once")
        theirs, unit = (given, None) if isinstance(given, str) else given
        if theirs not in table.columns:
            have = ", ".join(map(str, table.columns))
            raise InputError(f"columns: {ours} names {theirs!r}, but the table has {have}")
        mapping[ours] = (theirs, None if unit is None else _factor(ours, unit))
    return mapping


def _factor(ours: str, unit: str) -> float:
    if ours.endswith("_s"):
        allowed: tuple[str, ...] = TIME_UNITS
    else:
        allowed = ("%", "1") if ours == "acceptance_imposed" else ("1",)
    if unit not in allowed:
        raise InputError(f"columns: {ours} has unit {unit!r}; allowed are {', '.join(allowed)}")
    return UNITS[unit]


def _converted(
    mapping: Mapping[str, tuple[Hashable, float | None]], cells: Sequence[Any]
) -> dict[str, Any]:
    row = {}
    for (ours, (_, factor)), cell in zip(mapping.items(), cells, strict=True):
        if absent(cell):
            continue
        try:
            row[ours] = cell if factor is None else number(cell) * factor
        except ValueError as error:
            raise InputError(f"{ours} {error}") from None
    return row


def _row(values: dict[str, Any]) -> dict[str, Any]:
    flags: frozenset[str] = frozenset()
    load = {"loop": "open"} | {c: values[c] for c in WORKLOAD if c in values}
    if load["loop"] == "open" and "rate_rps" not in load and "achieved_rps" in load:
        load["rate_rps"] = load["achieved_rps"]
        flags = frozenset({"rate-from-achieved"})
    if "span_s" not in load and "duration_s" in load:
        load["span_s"] = load["duration_s"]
    config = configure({c: values[c] for c in NAMES if c in values})
    try:
        workload = Workload.model_validate(load)
        drafting = Drafting(
            **{c: values[c] for c in COUNTS if c in values},
            positions=tuple(values[c] for c in POSITIONS if c in values),
        )
    except ValidationError as error:
        raise InputError(sentence(error)) from None
    if drafting.positions and POSITIONS[len(drafting.positions) - 1] not in values:
        raise InputError("accepted_1 .. accepted_k are incomplete; give all or none")
    latencies = {m: _latency(values, m) for m in METRICS}
    e2e = latencies["e2e"]
    if math.isnan(e2e.mean):
        raise InputError("e2e_mean_s is missing; a positive finite number is needed")
    if workload.requests > 1 and math.isnan(e2e.std) and math.isnan(e2e.log_mean):
        raise InputError("e2e_std_s is missing; more than one request needs it, or e2e_log_mean")
    return run_row(
        config,
        workload,
        latencies,
        drafting,
        detail=False,
        saturated=_truth(values.get("saturated", False)),
        flags=flags,
    )


def _latency(values: Mapping[str, Any], metric: str) -> Latency:
    given = {ours: name for name, (m, ours) in LATENCIES.items() if m == metric}
    present = {ours: values[name] for ours, name in given.items() if name in values}
    try:
        return Latency(**present)
    except ValidationError as error:
        text = sentence(error)
        field = text.split(" ", 1)[0]
        raise InputError(text.replace(field, given.get(field, f"{metric} {field}"), 1)) from None


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise InputError(f"saturated must be true or false, got {value!r}")
