"""Logs of single requests to runs: in any format, with all that is wrong in real ones."""

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

import bayes_sd as bsd
from bayes_sd.checks import jobs
from bayes_sd.errors import EvidenceWarning, InputError
from bayes_sd.runs import logs
from bayes_sd.runs.rows import Requests, _latencies
from bayes_sd.runs.schema import Runs

SERVER: dict[str, Any] = {"verifier": "m", "verifier_params": 8e9, "draft_tokens": 0}
WINDOW_S = 100.0


def made(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """A log of a steady load of 5 requests/s."""
    rng = np.random.default_rng(seed)
    output, ttft_s = rng.integers(1, 200, n), rng.lognormal(-2, 0.4, n)
    return pd.DataFrame(
        {
            "timestamp": 1.79e9 + np.sort(rng.uniform(0, n / 5, n)),
            "prompt_tokens": rng.integers(1, 900, n),
            "output_tokens": output,
            "e2e_s": ttft_s + (output - 1) * rng.lognormal(-4, 0.1, n),
            "ttft_s": ttft_s,
        }
    )


def read(source: Any, **given: Any) -> Runs:
    """Runs of a log, windows of 100 s."""
    return bsd.read(source, **{"window_s": WINDOW_S, **SERVER, **given})


def same(runs: Runs, other: Runs) -> None:
    """Equal, but for the name of the source and the last digits of sums."""
    names = ["source", "run_id"]
    ours, theirs = runs.table.drop(columns=names), other.table.drop(columns=names)
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9)


def written(log: pd.DataFrame, path: Path) -> Path:
    """The log in the format of the file's name."""
    if path.suffix == ".parquet":
        log.to_parquet(path, index=False)
        return path
    lines = log.to_json(orient="records", lines=True, double_precision=15)
    content = (log.to_csv(index=False) if ".csv" in path.suffixes else lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_window_has_the_exact_statistics_of_its_requests() -> None:
    log = made()
    runs = read(log)
    assert len(runs) == 4 and not len(runs.set_aside) and runs.table["detail"].all()
    assert runs.table["requests"].sum() == len(log)
    span_s = np.ptp(log["timestamp"]) * len(log) / (len(log) - 1)
    inside = log[(log["timestamp"] - log["timestamp"][0]) // (span_s / 4) == 1]
    run, arrays = runs.table.iloc[1], {k: x.to_numpy(float) for k, x in inside.items()}
    exact = _latencies(
        Requests(*(arrays[k] for k in ("e2e_s", "ttft_s", "prompt_tokens", "output_tokens"))), 1e9
    )
    for metric, latency in exact.items():
        for name, value in latency.model_dump(exclude={"std_s", "log_var_n_eff"}).items():
            assert run[f"{metric}_{name}"] == pytest.approx(value, rel=1e-9), (metric, name)
    assert run["prompt_tokens"] == pytest.approx(inside["prompt_tokens"].mean())
    assert run["output_tokens_sd"] == pytest.approx(inside["output_tokens"].std(ddof=0))
    assert run["rate_rps"] == pytest.approx(len(inside) / span_s * 4)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_files_of_every_format_and_parts_of_one_log_are_the_same(
    tmp_path: Path, suffix: str
) -> None:
    log = made()
    expected = read(log)
    same(read(written(log, tmp_path / f"all{suffix}")), expected)
    folder = tmp_path / "parts"
    folder.mkdir()
    for i, rows in enumerate(np.array_split(np.arange(len(log)), 3)):
        written(log.iloc[rows], folder / f"part-{i}{suffix}")
    found = read(folder)
    same(found, expected)
    assert set(found.table["source"]) == {str(folder)}


@pytest.mark.filterwarnings("ignore:fetch_arrow_table")
def test_a_table_of_an_engine_stays_there(tmp_path: Path) -> None:
    log, engine = made(), ibis.duckdb.connect()
    table = engine.read_parquet(written(log, tmp_path / "log.parquet"))
    table = table.mutate(ms=table.e2e_s * 1000).drop("e2e_s")
    same(read(table, columns={"e2e_s": ("ms", "ms")}), read(log))
    assert bsd.Load.read(table).requests == pytest.approx(len(log))
    with pytest.raises(InputError, match="no column timestamp, prompt_tokens"):
        read(table.select("ms"))


def test_a_large_log_is_cut_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log = made()
    expected = read(log, window_s=20)
    monkeypatch.setattr(logs, "AT_A_TIME", 150)
    same(read(log, window_s=20), expected)


def test_a_log_read_again_has_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(made())
    row_of = logs.run_row

    def other_order(*args: Any, **given: Any) -> dict[str, Any]:
        row = row_of(*args, **given)
        return {k: v * (1 + 2e-14) if isinstance(v, float) else v for k, v in row.items()}

    monkeypatch.setattr(logs, "run_row", other_order)  # an engine that adds in another one
    again = read(made())
    assert not first.table["e2e_mean_s"].equals(again.table["e2e_mean_s"])
    assert len(first + again) == len(first)
    assert jobs._model_key(bsd.LatencyModel(), first) == jobs._model_key(bsd.LatencyModel(), again)


@pytest.mark.parametrize("reader", [read, bsd.Load.read])
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"e2e_s": ("e2e_s", "min")}, "e2e_s has unit 'min'; allowed are s, ms, us, ns"),
        ({"e2e_s": ("e2e_s", "%")}, "e2e_s has unit '%'; allowed are s, ms, us, ns"),
        ({"timestamp": ("timestamp", "1")}, "timestamp has unit '1'; allowed are s, ms, us, ns"),
        ({"output_tokens": ("output_tokens", "ms")}, "output_tokens has unit 'ms'; allowed are 1"),
        ({"ttft_s": "ttft"}, "ttft_s names 'ttft', but the table has timestamp, prompt"),
        ({"e2e": "e2e_s"}, "columns has the unknown name 'e2e'; known are timestamp, prompt"),
        ({"ttft_s": ("ttft_s", "s", "ms")}, "ttft_s is .*; allowed are a name or .name, unit."),
        ({"ttft_s": 5}, "columns: ttft_s is 5; allowed are a name or .name, unit."),
    ],
)
def test_what_is_said_of_columns_is_checked(reader: Any, columns: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        reader(made(), columns=columns)


def test_counts_of_drafts_are_summed() -> None:
    log = made().assign(drafts=10, drafted_tokens=30, accepted_tokens=15)
    run = read(log, drafter="d", drafter_params=1e9, draft_tokens=3).table.iloc[0]
    assert run["drafted_tokens"] == 30 * run["requests"] and run["acceptance_from"] == "totals"


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
def test_times_may_have_nanoseconds_and_a_zone(tmp_path: Path, zone: str | None) -> None:
    log = made().round({"timestamp": 6})
    times = pd.to_datetime(log["timestamp"], unit="s", utc=True).astype("datetime64[ns, UTC]")
    dated = log.assign(timestamp=(times + pd.Timedelta(1, "ns")).dt.tz_convert(zone))
    for source in (dated, written(dated, tmp_path / "a.parquet")):
        found = read(source).table
        assert found["requests"].tolist() == read(log).table["requests"].tolist()


# --- what is wrong in real logs ------------------------------------------------------------------


def test_faults_are_counted_with_where_the_first_is(tmp_path: Path) -> None:
    log = made().astype({"prompt_tokens": object, "timestamp": object})
    log.loc[[7, 9, 30], "prompt_tokens"] = ["many", None, -3]
    log.loc[12, "timestamp"] = "noon"
    log.loc[14, "ttft_s"] = log.loc[14, "e2e_s"] * 2
    for path in (written(log, tmp_path / "a.csv"), written(log, tmp_path / "a.jsonl")):
        runs = read(path)
        aside = {bad["row"]: bad["reason"] for bad in runs.set_aside.to_dict("records")}
        rule = "it must be a finite number of at least 1; 3 rows are like this"
        assert aside[7] == f"prompt_tokens in row 7 is many; {rule}"
        assert aside[12].startswith("timestamp in row 12 is noon; it must be seconds, or a date")
        assert "at most e2e_s" in aside[14] and len(aside) == 3
        assert set(runs.set_aside["source"]) == {str(path)}
        assert runs.table["requests"].sum() == len(log) - 5


def test_malformed_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = written(made(), tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    lines[5] += ",7"
    lines[800] = '"' + lines[800]
    path.write_text("\n".join(lines))
    aside = read(path).set_aside
    assert aside["row"].tolist() == [-1, 799]
    assert "line 6 is malformed: Expected Number of Columns: 5 Found: 6" in aside["reason"][0]
    assert 'timestamp in row 799 is "1' in aside["reason"][1]
    quoted = tmp_path / "quoted.csv"
    made().astype({"timestamp": str}).to_csv(quoted, index=False, quoting=csv.QUOTE_NONNUMERIC)
    lines = quoted.read_text().splitlines()
    lines[800] = '"' + lines[800]
    quoted.write_text("\n".join(lines))
    found = read(quoted)
    assert found.set_aside["reason"].str.startswith("line 801 is malformed").tolist() == [True]
    assert found.table["requests"].sum() == 1999
    path = written(made(), tmp_path / "a.jsonl")
    lines = path.read_text().splitlines()
    lines[5] = lines[5][:30]
    path.write_text("\n".join(lines))
    assert read(path).set_aside["reason"].tolist() == [
        "malformed line in row 5 is missing; it has none of the columns"
    ]


def test_requests_in_flight_or_without_answer_are_counted_in_their_window() -> None:
    log = made()
    log.loc[1990:, ["e2e_s", "ttft_s", "output_tokens"]] = np.nan
    log.loc[3, "output_tokens"] = 0
    runs = read(log)
    assert runs.table["incomplete"].tolist() == [0, 0, 0, 10]
    assert runs.table["failed"].tolist() == [1, 0, 0, 0]
    assert runs.table["requests"].sum() == 1989
    with pytest.warns(EvidenceWarning) as said:
        load = bsd.Load.read(log)
    assert load.requests == pytest.approx(1999)
    assert "10 of 2000 requests have no answer yet" in str([str(each.message) for each in said])


def test_copies_count_once() -> None:
    log = made()
    twice = pd.concat([log, log.iloc[40:43]], ignore_index=True).sort_values("timestamp")
    found = read(twice.reset_index(drop=True))
    columns = ["requests", "prompt_tokens", "e2e_log_var", "ttft_p99_s"]
    np.testing.assert_allclose(found.table[columns], read(log).table[columns], rtol=1e-9)
    (reason,) = found.set_aside["reason"]
    assert "row 41 was there before" in reason and "3 rows are like this" in reason
    assert found.set_aside["row"].tolist() == [41]


def test_order_does_not_matter_and_is_said() -> None:
    log = made()
    log.loc[100:200, "timestamp"] += 50.0
    with pytest.warns(EvidenceWarning, match=r"1 requests .* \(by up to .* s, first in row 201\)"):
        found = read(log)
    same(found, read(log.sort_values("timestamp", ignore_index=True)))


def test_a_clock_that_jumps_leaves_windows_without_requests() -> None:
    log = made()
    log.loc[1000:, "timestamp"] += 3600.0
    found = read(log)
    assert "35 windows, the first from 1790000300, have no" in found.set_aside["reason"].iloc[0]
    assert found.table["requests"].sum() == pytest.approx(2000, abs=500)


def test_windows_of_changing_load_are_set_aside() -> None:
    log = made()
    log = log[(log["timestamp"] < 1.79e9 + 250) | (np.arange(len(log)) % 4 == 0)]
    found = read(log)
    assert len(found) == 3 and "the load is not steady" in found.set_aside["reason"].iloc[0]


def test_an_empty_part_and_a_broken_one_are_named(tmp_path: Path) -> None:
    log = made()
    written(log, tmp_path / "a.parquet")
    written(log[:0], tmp_path / "b.parquet")
    found = read(tmp_path)
    assert found.set_aside.to_dict("records") == [
        {"source": str(tmp_path / "b.parquet"), "row": -1, "reason": "has no requests"}
    ]
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:5000])
    with pytest.raises(InputError, match="c.parquet"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_part_unlike_the_first_is_refused(tmp_path: Path, suffix: str) -> None:
    log = made()
    written(log, tmp_path / f"a{suffix}")
    part = written(log.drop(columns="e2e_s"), tmp_path / f"b{suffix}")
    for reader in (read, bsd.Load.read):
        with pytest.raises(InputError, match=f"b{suffix}: no column e2e_s, which .*a{suffix} has"):
            reader(tmp_path)
    part.write_text("")
    with pytest.raises(InputError, match=f"b{suffix}: is empty but .*a{suffix} is .*; read them"):
        bsd.Load.read(tmp_path)


def test_a_log_with_much_that_is_no_request_has_no_runs(tmp_path: Path) -> None:
    path = written(made(), tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line + ",7" * (i % 3 == 1) for i, line in enumerate(lines)))
    with pytest.raises(InputError, match="667 of 2000 rows are no requests; its rates are not"):
        read(path)


def test_a_cell_may_have_quotes_where_the_first_have_none(tmp_path: Path) -> None:
    log = made().assign(model=["m"] * 5 + ["a, b"] * 1995)
    same(read(written(log, tmp_path / "a.csv")), read(made()))


def test_windows_without_an_answer_say_so_and_have_the_usual_lengths() -> None:
    log = made()
    log.loc[1400:, ["e2e_s", "ttft_s", "output_tokens"]] = np.nan
    aside = read(log).set_aside
    assert aside["reason"].tolist() == [
        "no request succeeded; at least one successful request is needed"
    ]
    with pytest.warns(EvidenceWarning, match="600 of 2000 requests have no answer yet"):
        load = bsd.Load.read(log, WINDOW_S)
    assert load.requests == pytest.approx(2000)
    usual = log["output_tokens"].mean()
    assert load.windows["output_tokens"].iloc[-1] == pytest.approx(usual)


def test_a_latency_that_python_wrote_as_nan_is_missing(tmp_path: Path) -> None:
    log = made()
    log.loc[1990:, ["e2e_s", "ttft_s"]] = np.nan
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in log.to_dict("records")))
    assert read(path).table["incomplete"].tolist() == [0, 0, 0, 10]


def test_a_json_line_may_lack_what_another_has(tmp_path: Path) -> None:
    log = made()
    log.loc[[0, 7], ["e2e_s", "ttft_s", "output_tokens"]] = np.nan
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row.dropna().to_dict()) for _, row in log.iterrows()))
    same(read(path), read(log))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = written(made().drop(columns="output_tokens"), tmp_path / "a.csv")
    with pytest.raises(InputError, match="a.csv: no column output_tokens; a log of requests has"):
        read(path)
    path.write_text(path.read_text().replace("ttft_s", "e2e_s", 1))
    with pytest.raises(InputError, match="a.csv: two columns are called e2e_s; names must differ"):
        read(path)


def test_without_ibis_the_rest_works_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ibis", None)
    assert bsd.Load.read(pd.DataFrame({"rate_rps": [1], "prompt_tokens": 9, "output_tokens": 9}))
    with pytest.raises(InputError, match=r"pip install 'bayes-sd\[logs\]'"):
        read(made())


def test_a_log_with_a_malformed_first_line_is_no_silent_success(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" + json.dumps({"timestamp": 1}))
    with pytest.raises(InputError, match="a.jsonl"):
        bsd.Load.read(path)
