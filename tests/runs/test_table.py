"""Tables of runs: units, moments, and the sentence that each bad cell earns."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs_helpers import TABLE, read_table

from bayes_sd.errors import InputError
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import COLUMNS, Runs

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rps", 0.0, "rate_rps must be a positive finite number, got 0.0"),
        ("rps", -1.0, "rate_rps must be a positive finite number"),
        ("rps", INF, "rate_rps must be a positive finite number, got inf"),
        ("rps", NAN, "rate_rps is missing; an open loop needs"),
        ("n", 0, "requests must be a whole number of at least 1 .*, got 0"),
        ("n", 2.5, "requests must be a whole number of at least 1 .*, got 2.5"),
        ("n", NAN, "requests is missing"),
        ("seconds", -60, "duration_s must be a positive finite number|span_s must be"),
        ("lat_ms", NAN, "mean e2e latency .e2e_mean_s. is missing"),
        ("lat_ms", -5.0, "e2e_mean_s must be a positive finite number"),
        ("lat_ms", "slow", "e2e_mean_s must be a number, got 'slow'"),
        ("lat_ms", 90e3, "mean e2e latency 90 s is longer than the run of 60 s; check the units"),
        ("lat_sd_ms", -1.0, "e2e_std_s must be a finite number of at least 0"),
        ("alpha_pct", 101.0, "acceptance_imposed must lie between 0 and 1"),
        ("model", None, "verifier is missing"),
    ],
)
def test_bad_cell_sets_the_row_aside(column: str, value: Any, message: str) -> None:
    table = TABLE.astype({column: object})
    table.loc[1, column] = value
    runs = read_table(table)
    assert runs.table["row"].tolist() == [0]
    assert runs.set_aside["row"].tolist() == [1]
    assert pd.Series(runs.set_aside.reason).str.contains(message).all(), runs.set_aside.reason[0]


def test_the_first_bad_cell_of_a_row_is_named() -> None:
    columns = {f"{m}_p{q}_s": (f"{m}{q}", "ms") for m in ("e2e", "ttft") for q in (50, 90, 95, 99)}
    table = TABLE.assign(**{header: "slow" for header, _ in columns.values()})
    for order in (list(columns), [*columns][::-1]):
        with pytest.raises(InputError, match=f"row 0: {order[0]} must be a number, got 'slow'"):
            read_table(table, {name: columns[name] for name in order}, without=("e2e_std_s",))


@pytest.mark.parametrize(
    ("columns", "constants", "message"),
    [
        (
            {"e2e_mean": "lat_ms"},
            {},
            "columns has the unknown name 'e2e_mean'; known are environment, verifier",
        ),
        ({"e2e_p50_s": "p50"}, {}, "e2e_p50_s names 'p50', but the table has model, rps"),
        ({"e2e_mean_s": ("lat_ms", "h")}, {}, "e2e_mean_s has unit 'h'; allowed are s, ms, us"),
        ({"requests": ("n", "ms")}, {}, "requests has unit 'ms'; allowed are 1"),
        ({"output_tokens_per_s": ("n", "ms")}, {}, "output_tokens_per_s has unit 'ms'; .* 1$"),
        ({"prompt_tokens": "n"}, {}, "prompt_tokens is given in columns and as an argument"),
        ({}, {"loop": "half"}, "none of 2 runs can be used: table row 0: loop: input should be"),
        ({}, {"loop": "closed"}, "concurrency is missing; a closed loop needs"),
        ({}, {"loop": "closed", "concurrency": 4}, "rate_rps is given in a closed loop"),
        ({}, {"saturated": "perhaps"}, "saturated must be true or false, got 'perhaps'"),
        ({}, {"drafter": "none"}, "draft_tokens is 3 but there is no drafter"),
        ({"accepted_4": "n", "drafts": "n"}, {}, "accepted_1 .. accepted_k are incomplete"),
        (
            {},
            {"loop": "burst", "concurrency": 4, "without": ("rate_rps",)},
            "concurrency is given in a burst loop; call the loop closed",
        ),
    ],
)
def test_bad_table_call(columns: dict[str, Any], constants: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(TABLE, columns, **constants)


def test_missing_columns_are_listed() -> None:
    message = (
        "table: no column is given for verifier, .*e2e_mean_s .*, rate_rps .*has model, rps, n"
    )
    with pytest.raises(InputError, match=message):
        read(TABLE)


def test_nullable_cells_are_missing() -> None:
    table = TABLE.convert_dtypes()
    table.loc[1, "rps"] = pd.NA
    runs = read_table(table)
    assert runs.set_aside.reason.str.startswith("rate_rps is missing").tolist() == [True]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.concat([TABLE, TABLE[["n"]]], axis=1), "table: two columns are called n; names must"),
        (TABLE.head(0), "table: has no rows"),
    ],
)
def test_tables_without_runs(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(table)


def test_a_row_given_twice_counts_once() -> None:
    runs = read_table(pd.concat([TABLE, TABLE.tail(1)]))
    assert len(runs) == 2
    assert runs.set_aside.reason.tolist() == [
        "its measurements are those of table row 1 again; a run counts once"
    ]


def test_totals_without_positions_stay_totals() -> None:
    table = TABLE.assign(drafts=1000, accepted=2100)
    runs = read_table(table, {"drafts": "drafts", "accepted_tokens": "accepted"}).table
    assert runs.drafts.tolist() == [1000, 1000] and runs.accepted_tokens.tolist() == [2100, 2100]
    assert runs[["accepted_1", "accepted_2", "accepted_3"]].isna().all(axis=None)
    assert runs.tokens_per_cycle.tolist() == pytest.approx([3.1, 3.1])
    many = read_table(TABLE.assign(drafts=93_800, accepted_tokens=178_220)).table
    assert many.tokens_per_cycle[0] == pytest.approx(2.90, abs=1e-3)
    assert not runs["flags"].str.contains("no-counts").any()


def test_positions_alone_add_up_to_the_accepted_tokens() -> None:
    positions = {f"accepted_{j}": f"a{j}" for j in (1, 2, 3)}
    table = TABLE.assign(drafts=1000, a1=900, a2=700, a3=500)
    runs = read_table(table, {"drafts": "drafts", **positions}).table
    assert runs.accepted_tokens.tolist() == [2100, 2100]
    assert runs.tokens_per_cycle.tolist() == pytest.approx([3.1, 3.1])
    assert set(runs.acceptance_from) == {"positions"}


def test_a_drafter_says_how_it_drafts_and_where_it_is() -> None:
    runs = read_table(drafter_method="eagle3", drafter_path="org/eagle-8b").table
    assert set(runs.drafter_method) == {"eagle3"} and set(runs.drafter_path) == {"org/eagle-8b"}
    ngram = read_table(drafter_method="ngram", without=("drafter",)).table
    assert set(ngram.drafter) == {"ngram"} and set(ngram.arm) == {"sd"}


def test_table_units_and_moments() -> None:
    runs = read_table(TABLE, environment="A100").table
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.9, 1.3])
    var = np.log(1 + (80 / 900) ** 2)
    assert runs.e2e_log_var[0] == pytest.approx(var)
    assert runs.e2e_log_mean[0] == pytest.approx(np.log(0.9) - var / 2)
    assert runs.acceptance_imposed.tolist() == pytest.approx([0.8, 0.5])
    assert runs.tokens_per_cycle[0] == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert runs.span_s.tolist() == [60, 60] and runs.loop.tolist() == ["open", "open"]
    assert runs["row"].tolist() == [0, 1] and set(runs.source) == {"table"}
    assert runs["flags"].tolist() == ["no-counts,no-tpot"] * 2
    assert runs.achieved_rps.tolist() == [1, 2] and set(runs.environment) == {"A100"}


def test_percentiles_give_the_spread_where_no_deviation_is_known() -> None:
    table = pd.DataFrame(
        {
            "verifier": "v8b",
            "verifier_params": 8e9,
            "draft_tokens": 0,
            "loop": "closed",
            "concurrency": [8, 32],
            "requests": [160, 320],
            "duration_s": [65.0, 51.5],
            "prompt_tokens": 900,
            "output_tokens": 256,
            "e2e_mean_s": [3.27, 5.14],
            "e2e_p50_s": [3.25, 5.13],
            "e2e_p95_s": [3.60, 6.00],
            "e2e_p99_s": [3.70, 6.40],
        }
    )
    runs = read(table).table
    assert runs.e2e_log_var.tolist() == pytest.approx([0.00387, 0.00907], abs=5e-6)
    assert runs.e2e_log_var_n_eff.tolist() == pytest.approx([45, 90], rel=0.01)
    again = read(runs).table
    assert again.e2e_log_var_n_eff.tolist() == runs.e2e_log_var_n_eff.tolist()


@pytest.mark.parametrize(("unit", "second"), [("s", 1.0), ("ms", 1e-3), ("us", 1e-6)])
def test_table_time_units(unit: str, second: float) -> None:
    table = TABLE.assign(e2e=0.5 / second)
    runs = read_table(table, {"e2e_mean_s": ("e2e", unit)}).table
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.5, 0.5])


def test_table_span_without_duration() -> None:
    runs = read_table(TABLE.assign(n=[3, 120]), without=("duration_s",)).table
    assert runs.span_s.tolist() == [3.0, 60.0]
    # Three arrivals a second apart cannot show a steady state of 0.9 s.
    assert runs.saturated.tolist() == [True, False]
    assert runs.duration_s.isna().all()


def test_table_of_a_csv_file(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    runs = read_table(tmp_path / "t.csv").table
    assert set(runs.source) == {str(tmp_path / "t.csv")}
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.9, 1.3])


def test_table_with_our_names_needs_no_mapping(corpus: Runs) -> None:
    again = read(corpus.table)
    same = [
        c for c in COLUMNS if c in corpus.table and c not in ("run_id", "source", "row", "detail")
    ]
    same += ["accepted_1", "accepted_7"]
    pd.testing.assert_frame_equal(again.table[same], corpus.table[same])


def test_table_takes_the_achieved_rate_for_the_offered_one() -> None:
    runs = read_table(columns={"achieved_rps": "rps"}, without=("rate_rps",)).table
    assert runs.rate_rps.tolist() == [1.0, 2.0]
    assert runs["flags"].str.contains("rate-from-achieved").all()
    assert runs.in_flight.tolist() == pytest.approx([0.9, 2.6])


A100 = Path(
    os.environ.get(
        "BAYES_SD_A100",
        Path(__file__).parents[3] / "shared" / "traces" / "qwen3-sd-a100" / "runs.csv",
    )
)


@pytest.mark.skipif(not A100.is_file(), reason="the public A100 sweeps are not here")
def test_public_a100_sweeps() -> None:
    table = pd.read_csv(A100).iloc[::5].reset_index(drop=True)
    size = {"0.6B": 0.44e9, "1.7B": 1.4e9, "4B": 3.6e9, "8B": 6.95e9, "32B": 31.2e9}
    table["verifier_params"] = table.verifier.str.removeprefix("Qwen3-").map(size)
    table["loop"] = table.kind.map({"constant": "open"}).fillna("closed")
    table["concurrency"] = table.kind.map({"synchronous": 1, "throughput": 128})
    table["saturated"] = table.kind == "throughput"
    columns: dict[str, Any] = {
        "draft_tokens": "k",
        "acceptance_imposed": "alpha",
        "prompt_tokens": "prompt_token_count_mean",
        "output_tokens": "output_token_count_mean",
        "requests": "n_successful",
        "failed": "n_errored",
        "achieved_rps": "requests_per_second_mean",
        "in_flight": "request_concurrency_mean",
    }
    for ours, theirs, unit in (
        ("e2e", "request_latency", "s"),
        ("ttft", "time_to_first_token_ms", "ms"),
        ("tpot", "inter_token_latency_ms", "ms"),
    ):
        for a, b in (("mean", "mean"), ("std", "std"), ("p50", "median"), ("p99", "p99")):
            columns[f"{ours}_{a}_s"] = (f"{theirs}_{b}", unit)
    found = read(table, columns=columns, duration_s=90, drafter="head", environment="A100")
    assert len(found) == len(table) and len(found.set_aside) == 0
    runs = found.table
    assert runs.requests.sum() == table.n_successful.sum()
    assert runs.ttft_mean_s.to_numpy() == pytest.approx(
        table.time_to_first_token_ms_mean.to_numpy() / 1000
    )
    opened = runs[runs.loop == "open"]
    assert len(opened) == (table.kind == "constant").sum()
    assert (opened.rate_rps == opened.achieved_rps).all()
    assert runs[table.kind == "synchronous"].concurrency.eq(1).all()
    assert (runs.saturated == (table.kind == "throughput")).all()
    assert opened.burstiness.isna().all()
    positions = np.arange(11)
    powers = table.alpha.to_numpy()[:, None] ** positions
    expected = (powers * (positions <= table.k.to_numpy()[:, None])).sum(axis=1)
    assert runs.tokens_per_cycle.to_numpy() == pytest.approx(expected)
    # e2e = ttft + (g - 1) tpot holds for GuideLLM's inter-token latency, not for its own TPOT.
    parts = runs.ttft_mean_s + (runs.output_tokens - 1) * runs.tpot_mean_s
    assert parts.to_numpy() == pytest.approx(runs.e2e_mean_s.to_numpy(), rel=0.01)


def test_a_rate_that_contradicts_the_counts_is_set_aside() -> None:
    table = TABLE.assign(rps_served=[1.0, 20.0])
    runs = read_table(table, columns={"achieved_rps": "rps_served"})
    assert runs.table.row.tolist() == [0]
    assert (
        "achieved_rps 20 for duration_s 60 is not 120 requests; check" in runs.set_aside.reason[0]
    )
