"""Bad tables: the sentence each earns, and that its neighbours survive."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from traces_helpers import COLUMN_MAP, CONSTANTS, TABLE

from bayes_sd.errors import InputError
from bayes_sd.traces import read_table

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rps", 0.0, "rate_rps must be a positive finite number, got 0.0"),
        ("rps", -1.0, "rate_rps must be a positive finite number"),
        ("rps", INF, "rate_rps must be a positive finite number, got inf"),
        ("rps", NAN, "rate_rps is missing; an open loop needs"),
        ("n", 0, "requests must be a whole number of at least 1, got 0"),
        ("n", 2.5, "requests must be a whole number of at least 1, got 2.5"),
        ("n", NAN, "requests is missing"),
        ("seconds", -60, "duration_s must be a positive finite number|span_s must be"),
        ("lat_ms", NAN, "e2e_mean_s is missing"),
        ("lat_ms", -5.0, "e2e_mean_s must be a positive finite number"),
        ("lat_ms", "slow", "e2e_mean_s must be a number, got 'slow'"),
        (
            "lat_ms",
            90e3,
            "mean e2e latency 90 s is longer than the run of 60 s; check the units",
        ),
        ("lat_sd_ms", NAN, "e2e_std_s is missing; more than one request needs it"),
        ("lat_sd_ms", -1.0, "e2e_std_s must be a finite number of at least 0"),
        ("alpha_pct", 101.0, "acceptance_imposed must lie between 0 and 1"),
        ("model", None, "verifier is missing"),
    ],
)
def test_bad_cell_sets_the_row_aside(column: str, value: Any, message: str) -> None:
    table = TABLE.astype({column: object})
    table.loc[1, column] = value
    traces = read_table(table, COLUMN_MAP, CONSTANTS)
    assert traces.runs["row"].tolist() == [0]
    assert traces.set_aside["row"].tolist() == [1]
    assert pd.Series(traces.set_aside.reason).str.contains(message).all(), traces.set_aside.reason[
        0
    ]


@pytest.mark.parametrize(
    ("columns", "constants", "message"),
    [
        (
            {"e2e_mean": "lat_ms"},
            {},
            "columns has the unknown name 'e2e_mean'; known are verifier",
        ),
        (
            {},
            {"verifer": "x"},
            "constants has the unknown name 'verifer'; known are verifier",
        ),
        (
            {"e2e_p50_s": "p50"},
            {},
            "e2e_p50_s names 'p50', but the table has model, rps",
        ),
        (
            {"e2e_mean_s": ("lat_ms", "h")},
            {},
            "e2e_mean_s has unit 'h'; allowed are s, ms, us",
        ),
        ({"requests": ("n", "ms")}, {}, "requests has unit 'ms'; allowed are 1"),
        (
            {"prompt_tokens": "n"},
            {},
            "prompt_tokens is given in columns and in constants",
        ),
        (
            {},
            {"loop": "half"},
            "none of 2 rows can be used: row 0: loop: input should be",
        ),
        ({}, {"loop": "closed"}, "concurrency is missing; a closed loop needs"),
        ({}, {"loop": "closed", "concurrency": 4}, "rate_rps is 1 in a closed loop"),
        (
            {},
            {"saturated": "perhaps"},
            "saturated must be true or false, got 'perhaps'",
        ),
        ({}, {"drafter": "none"}, "draft_tokens is 3 but there is no drafter"),
        (
            {"accepted_4": "n", "drafts": "n"},
            {},
            "accepted_1 .. accepted_k are incomplete",
        ),
    ],
)
def test_bad_table_call(columns: dict[str, Any], constants: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(TABLE, COLUMN_MAP | columns, CONSTANTS | constants)


def test_missing_columns_are_listed() -> None:
    with pytest.raises(
        InputError,
        match="table: no column is given for verifier, .*e2e_mean_s, rate_rps .*has model, rps, n",
    ):
        read_table(TABLE)


def test_nullable_cells_are_missing() -> None:
    table = TABLE.convert_dtypes()
    table.loc[1, "rps"] = pd.NA
    traces = read_table(table, COLUMN_MAP, CONSTANTS)
    assert traces.set_aside.reason.str.startswith("rate_rps is missing").tolist() == [True]


def test_columns_of_one_name() -> None:
    table = pd.concat([TABLE, TABLE[["n"]]], axis=1)
    with pytest.raises(InputError, match="table: two columns are called n; names must differ"):
        read_table(table, COLUMN_MAP, CONSTANTS)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="t.csv: no such file"):
        read_table(tmp_path / "t.csv")


def test_empty_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(InputError, match="t.csv: is not a CSV table"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="none of 0 rows can be used: no rows"):
        read_table(TABLE.head(0), COLUMN_MAP, CONSTANTS)


def test_a_row_given_twice_counts_once() -> None:
    table = pd.concat([TABLE, TABLE.tail(1)])
    traces = read_table(table, COLUMN_MAP, CONSTANTS)
    assert len(traces) == 2
    assert traces.set_aside.reason.tolist() == [
        "its measurements are those of table row 1 again; a run counts once"
    ]
