"""Wrong units: what Little's law, counts, parts and percentiles contradict is refused or named."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

SERVER = {"verifier": "m", "verifier_params": 8e9, "draft_tokens": 0}
LENGTHS = {"prompt_tokens": 512, "output_tokens": 128}
MEANS = {"e2e_mean_s": 1.35, "ttft_mean_s": 0.08, "tpot_mean_s": 0.01}
SD = {"e2e_std_s": 0.2, "ttft_std_s": 0.02, "tpot_std_s": 0.001}
PERCENTILES = {"e2e_p50_s": 1.3, "e2e_p90_s": 1.6, "e2e_p99_s": 2.1, "ttft_p50_s": 0.07,
               "ttft_p99_s": 0.2, "tpot_p50_s": 0.0098, "tpot_p99_s": 0.014}  # fmt: skip
OPEN = {"rate_rps": 2.0, "requests": 240, "duration_s": 121.0}
CLOSED = {"loop": "closed", "concurrency": 8, "requests": 240, "duration_s": 41.0}
TABLES = {
    "open": OPEN | MEANS | SD | PERCENTILES,
    "closed": CLOSED | MEANS | SD | PERCENTILES,
    "open, percentiles": OPEN | MEANS | PERCENTILES,
    "closed, percentiles": CLOSED | MEANS | PERCENTILES,
    "closed, deviations": CLOSED | MEANS | SD,
    "stated rate": CLOSED | MEANS | PERCENTILES | {"achieved_rps": 5.85},
    "open, latency": OPEN | {"e2e_mean_s": 1.35, "e2e_std_s": 0.2},
    "closed, latency": CLOSED | {"e2e_mean_s": 1.35, "e2e_std_s": 0.2},
}
FACTORS = (1000.0, 0.001, 10.0, 0.1)


def one_run(**row: Any) -> Runs:
    return read(pd.DataFrame([SERVER | LENGTHS | row]))


def slipped(row: dict[str, Any]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """The row with one figure in a wrong unit."""
    for column, factor in product([name for name in row if name != "loop"], FACTORS):
        value = row[column] * factor
        whole = column in ("requests", "concurrency")
        yield column, factor, row | {column: max(round(value), 1) if whole else value}


def silent(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Slips that pass without a finding that the right row has not."""
    rows = [row, *(wrong for _, _, wrong in slipped(row))]
    table = read(pd.DataFrame([SERVER | LENGTHS | each for each in rows])).table
    flags = table.set_index("row")["flags"]
    slips = ((column, factor) for column, factor, _ in slipped(row))
    return [slip for i, slip in enumerate(slips, start=1) if flags.get(i) == flags[0]]


def test_most_slips_of_a_unit_are_caught() -> None:
    number = sum(len([*slipped(row)]) for row in TABLES.values())
    passed = [(name, *slip) for name, row in TABLES.items() for slip in silent(row)]
    assert number > 252 and len(passed) <= 0.1 * number, passed
    assert not [slip for slip in passed if slip[2] in (1e3, 1e-3)], passed


@pytest.mark.parametrize("name", TABLES)
def test_right_units_raise_no_doubt(name: str) -> None:
    flags = one_run(**TABLES[name]).table["flags"][0].split(",")
    assert not {"little", "parts", "spread"} & {*flags}


@pytest.mark.parametrize(
    ("name", "column", "factor", "said"),
    [
        ("open", "rate_rps", 0.001, "rate_rps 0.002 for duration_s 121 is not 240 requests of mea"),
        ("open", "duration_s", 10, "rate_rps 2 for duration_s 1210 is not 240 requests of mean e"),
        ("open", "ttft_p99_s", 1000, "ttft_p99_s 200 is too far from the mean of 0.08 s; check"),
        ("closed", "requests", 10, "e2e latency 1.35 s while 58.5366 finish a second is more t"),
        (
            "stated rate",
            "achieved_rps",
            0.1,
            "achieved_rps 0.585 for duration_s 41 is not 240 requ",
        ),
        ("closed", "tpot_mean_s", 1000, "ttft and tpot add up to 1270.08 s, unlike mean e2e late"),
    ],
)
def test_a_contradiction_is_refused(name: str, column: str, factor: float, said: str) -> None:
    row = TABLES[name]
    with pytest.raises(InputError) as refused:
        one_run(**row | {column: row[column] * factor})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "column", "factor", "finding"),
    [
        ("closed", "duration_s", 10, "Little's law"),
        ("closed, deviations", "tpot_mean_s", 0.2, "do not add up to the end-to-end latency"),
        ("closed, percentiles", "e2e_p99_s", 10, "a percentile unlike any of such a mean"),
        ("open, latency", "e2e_std_s", 0.001, "have a standard deviation"),
    ],
)
def test_a_doubt_is_a_warning(name: str, column: str, factor: float, finding: str) -> None:
    row = TABLES[name]
    findings = one_run(**row | {column: row[column] * factor}).check().findings
    (hit,) = findings[findings["finding"].str.contains(finding)].itertuples()
    assert hit.level == "warning" and "check units and counts" in hit.consequence
