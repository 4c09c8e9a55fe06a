"""Loads: grids, tables of windows, logs of requests, and what is refused."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sd.errors import EvidenceWarning, InputError
from bayes_sd.runs.load import Load

AZURE = Path(__file__).parents[3] / "shared" / "traces" / "azure-llm-2023"
LOG = pd.DataFrame(
    {
        "timestamp": [0.0, 5.0, 30.0, 170.0],
        "prompt_tokens": [100, 200, 300, 50],
        "output_tokens": [10, 20, 30, 40],
    }
)
WINDOWS = pd.DataFrame(
    {
        "rate_rps": [2.0, 0.0, 6.0],
        "prompt_tokens": [100.0, np.nan, 200.0],
        "output_tokens": [50.0, np.nan, 30.0],
        "seconds": [60.0, 30.0, 10.0],
    }
)


def many(windows: int, seed: int = 0) -> Load:
    """Windows of uneven load and lengths."""
    rng = np.random.default_rng(seed)
    return Load.read(
        pd.DataFrame(
            {
                "rate_rps": rng.gamma(2.0, 1.0, windows) * (rng.random(windows) > 0.1),
                "prompt_tokens": rng.uniform(50, 300, windows),
                "output_tokens": rng.uniform(20, 100, windows),
                "prompt_tokens_sd": rng.uniform(5, 40, windows),
                "output_tokens_sd": rng.uniform(5, 40, windows),
                "seconds": rng.uniform(30, 60, windows),
            }
        )
    )


# --- grids ------------------------------------------------------------------------------------


def test_every_list_is_a_dimension() -> None:
    load = Load(rps=[1, 2, 4], prompt=512, output=[64, 256])
    assert dict(load.cells.sizes) == {"rate_rps": 3, "output_tokens": 2}
    assert load.axis == "rate_rps" and not load.is_traffic
    assert load.table.to_dict("list") == {
        "rate_rps": [1, 1, 2, 2, 4, 4],
        "prompt_tokens": [512] * 6,
        "output_tokens": [64, 256] * 3,
    }
    assert str(load) == "1, 2, 4 requests/s of 512 + 64, 256 tokens"
    closed = Load(concurrency=np.arange(1, 9), prompt=9, output=9)
    assert closed.axis == "concurrency" and str(closed).startswith("1 to 8 requests in flight")


def test_equal_loads_are_equal_and_do_not_change() -> None:
    load, again = (Load(rps=[1, 2], prompt=5, output=6) for _ in range(2))
    assert load == again and hash(load) == hash(again)
    assert (
        load != Load(rps=[1, 3], prompt=5, output=6) != Load(concurrency=[1, 3], prompt=5, output=6)
    )
    assert Load.read(WINDOWS) == Load.read(WINDOWS) != Load.read(WINDOWS.assign(seconds=1.0))
    assert load != str(load) and load not in (None, Load.read(WINDOWS))
    load.cells["prompt_tokens"].values[()] = 9
    traffic = Load.read(WINDOWS)
    windows = traffic.windows
    windows.loc[0, "seconds"] = 9
    assert traffic == Load.read(WINDOWS)
    assert load == again
    with pytest.raises(AttributeError):
        load.name = "x"  # type: ignore[misc]


def test_another_axis_keeps_the_lengths() -> None:
    assert Load(rps=1, prompt=5, output=6).with_axis([3, 4]) == Load(rps=[3, 4], prompt=5, output=6)
    closed = Load(concurrency=1, prompt=5, output=6).with_axis(7)
    assert closed == Load(concurrency=7, prompt=5, output=6) and closed.lengths == (5, 6)
    with pytest.raises(InputError, match="one prompt and one output length are needed here"):
        Load(rps=1, prompt=[5, 6], output=6).with_axis(3)


def test_a_single_rate_is_a_second_of_traffic() -> None:
    load = Load(rps=2, prompt=500, output=200)
    assert (load.requests, load.seconds, load.output_tokens_total) == (2, 1, 400)
    assert load.shares.tolist() == [1]
    for other in (Load(rps=[1, 2], prompt=5, output=6), Load(concurrency=2, prompt=5, output=6)):
        with pytest.raises(InputError, match="traffic over time, or one rate"):
            _ = other.requests


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "exactly one of rps .* and concurrency"),
        ({"rps": 1, "concurrency": 1}, "exactly one of rps"),
        ({"rps": -1}, r"rps = .*: must be finite numbers of at least 0"),
        ({"rps": [1, math.nan]}, "rps = .*: must be finite numbers"),
        ({"rps": [[1, 2]]}, "rps = .*: must be finite numbers"),
        ({"rps": []}, "rps = .*: must be finite numbers"),
        ({"rps": "many"}, "rps = .*: must be finite numbers of at least 0"),
        ({"rps": True}, "rps = .*: must be finite numbers"),
        ({"concurrency": 0.5}, "concurrency = .*: must be finite numbers of at least 1"),
        ({"rps": 1, "prompt": 0}, "prompt = .*: must be finite numbers of at least 1"),
        ({"rps": 1, "output": math.inf}, "output = .*: must be finite numbers"),
        ({"rps": [[1], [1, 2]]}, "rps = .*: must be finite numbers"),
        ({"rps": 10**400}, "rps = .*: must be finite numbers"),
        ({"rps": 1e308}, r"rps = .*: must be 0 or from 1e-60 to 1e\+19"),
        ({"rps": [1, 1e-308]}, "rps = .*: must be 0 or from 1e-60 to"),
        ({"concurrency": 1e300}, r"concurrency = .*: must be from 1 to 1e\+19"),
    ],
)
def test_impossible_grids(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Load(**{"prompt": 512, "output": 128, **arguments})


# --- logs of other shapes ----------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "per_s"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_times_since_1970_show_their_unit(unit: str, per_s: float) -> None:
    at = (LOG.timestamp + 1.79e9) * per_s
    found, same = Load.read(LOG.assign(timestamp=at), 50), Load.read(LOG, 50)
    assert found.seconds == pytest.approx(same.seconds)
    np.testing.assert_allclose(found.windows, same.windows, rtol=1e-6)


def test_a_unit_in_the_header_is_taken() -> None:
    theirs = LOG.assign(arrival_ms=LOG.timestamp * 1000).drop(columns="timestamp")
    assert Load.read(theirs, 50, {"timestamp": "arrival_ms"}) == Load.read(LOG, 50)


def test_public_logs_are_read_as_they_are(tmp_path: Path) -> None:
    names = {"prompt_tokens": "input_length", "output_tokens": "output_length"}
    mooncake = LOG.rename(columns=names).assign(timestamp=LOG.timestamp * 1000, hash_ids=1)
    path = tmp_path / "mooncake.jsonl"
    path.write_text(mooncake.to_json(orient="records", lines=True))
    assert Load.read(path, 50).windows.equals(Load.read(LOG, 50).windows)
    names = {"timestamp": "Timestamp", "prompt_tokens": "Request tokens"}
    burst = LOG.rename(columns=names | {"output_tokens": "Response tokens"})
    assert Load.read(burst, 50).windows.equals(Load.read(LOG, 50).windows)


def test_requests_without_output_are_left_out_and_said() -> None:
    empty = pd.DataFrame({"timestamp": [40.0], "prompt_tokens": [9], "output_tokens": [0]})
    log = pd.concat([LOG[:3], empty, LOG[3:]], ignore_index=True)
    with pytest.warns(EvidenceWarning, match="table: 1 of 5 requests have no output tokens and"):
        assert Load.read(log, 50) == Load.read(LOG, 50)
    with pytest.raises(InputError, match="output_tokens is 0 in every row"):
        Load.read(LOG.assign(output_tokens=0))


def test_a_twentieth_of_no_requests_is_left_out_and_said() -> None:
    log = pd.DataFrame({"timestamp": np.arange(100.0), "prompt_tokens": 9.0, "output_tokens": 9})
    log.loc[[7, 9], "prompt_tokens"] = [-3.0, np.nan]
    reason = "prompt_tokens in row 7 is -3.0; .*; 2 rows are like this"
    with pytest.warns(EvidenceWarning, match=f"^table: 2 of 100 rows are left out: {reason}$"):
        assert Load.read(log, 100).requests == pytest.approx(98)
    log.loc[:3, "prompt_tokens"] = 0.0
    with pytest.raises(InputError, match="^table: prompt_tokens in row 0 is 0.0; .*; 6 rows are"):
        Load.read(log, 100)


def test_requests_in_another_order_are_counted_at_their_own_time_and_said() -> None:
    with pytest.warns(EvidenceWarning, match="table: 1 requests are earlier .* 25 s, .* row 2.;"):
        assert Load.read(LOG.iloc[[0, 2, 1, 3]], 50) == Load.read(LOG, 50)


@pytest.mark.parametrize("window_s", [1e-5, 1e-300])
def test_windows_without_number_are_refused(window_s: float) -> None:
    with pytest.raises(InputError, match="are more than 1000000 windows of 1e-.* in seconds?"):
        Load.read(LOG, window_s)


# --- tables -----------------------------------------------------------------------------------


def test_a_table_is_what_it_says() -> None:
    found = Load.read(WINDOWS)
    assert found.seconds == 100 and found.requests == 180 and found.mean_rps == 1.8
    assert found.output_tokens_total == pytest.approx(120 * 50 + 60 * 30)
    np.testing.assert_allclose(found.shares, [2 / 3, 1 / 3])
    assert "180 requests in 100 s" in str(found) and "1 of them without requests" in str(found)


def test_a_csv_reads_as_the_table_does(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    WINDOWS.to_csv(path, index=False)
    for source in (path, tmp_path, tmp_path / "*.csv"):
        pd.testing.assert_frame_equal(Load.read(source).windows, Load.read(WINDOWS).windows)
    (tmp_path / "z.csv").write_text(path.read_text())
    with pytest.raises(InputError, match="has 2 files; a table of windows is one"):
        Load.read(tmp_path)
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match="a.csv: is no table in CSV or JSON lines"):
        Load.read(tmp_path)


def test_other_names_are_mapped() -> None:
    theirs = WINDOWS.rename(columns={"rate_rps": "qps", "prompt_tokens": "in"})
    found = Load.read(
        theirs.assign(ms=theirs["seconds"] * 1000).drop(columns="seconds"),
        columns={"rate_rps": "qps", "prompt_tokens": "in", "seconds": ("ms", "ms")},
    )
    pd.testing.assert_frame_equal(found.windows, Load.read(WINDOWS).windows)


def test_without_seconds_all_windows_count_alike() -> None:
    found = Load.read(WINDOWS.drop(columns="seconds"))
    assert found.mean_rps == pytest.approx(8 / 3)


def test_a_load_has_the_windows_with_requests_and_what_is_known_of_spread() -> None:
    plain = Load.read(WINDOWS).cells
    assert plain.sizes == {"window": 2} and "prompt_cv" not in plain and "output_cv" not in plain
    spread = Load.read(WINDOWS.assign(output_tokens_sd=[25.0, np.nan, np.nan])).cells
    # A window that has none of its own is as spread as the others.
    np.testing.assert_allclose(spread["output_cv"], [0.5, 0.5])
    assert "prompt_cv" not in spread


# --- logs -------------------------------------------------------------------------------------


def test_a_log_is_cut_into_windows_that_cover_it() -> None:
    found = Load.read(LOG, window_s=60.0)
    windows = found.windows
    assert len(windows) == 4 and found.requests == pytest.approx(4)
    assert (windows["rate_rps"] * windows["seconds"]).round(6).tolist() == [3, 0, 0, 1]
    assert windows["prompt_tokens"].tolist()[0] == 200.0
    assert math.isnan(windows["prompt_tokens"][1])  # no request, no length
    assert windows["prompt_tokens_sd"][0] == pytest.approx(100.0)
    assert math.isnan(windows["prompt_tokens_sd"][3])  # one request, no spread
    assert found.output_tokens_total == pytest.approx(100.0)


@pytest.mark.parametrize("kind", ["text", "zone", "datetime", "numbers as text"])
def test_times_come_in_several_kinds(kind: str) -> None:
    dates = pd.Timestamp("2026-01-31 23:59:30") + pd.to_timedelta(LOG["timestamp"], unit="s")
    given = {
        "text": dates.astype(str),
        "zone": dates.dt.tz_localize("UTC").map(lambda t: t.isoformat()),
        "datetime": dates,
        "numbers as text": LOG["timestamp"].astype(str),
    }[kind]
    found = Load.read(LOG.assign(timestamp=given))
    pd.testing.assert_frame_equal(found.windows, Load.read(LOG).windows)


def test_a_steady_log_has_its_rate_whatever_the_window() -> None:
    log = pd.DataFrame({"timestamp": np.arange(1000) / 4, "prompt_tokens": 9, "output_tokens": 9})
    for window_s in (7.0, 60.0, 1e6):
        found = Load.read(log, window_s)
        assert found.mean_rps == pytest.approx(4.0) and found.requests == pytest.approx(1000)


def test_a_large_log_is_read_fast() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "timestamp": np.cumsum(rng.exponential(0.1, n)),
            "prompt_tokens": rng.integers(1, 4000, n),
            "output_tokens": rng.integers(1, 500, n),
        }
    )
    start = time.process_time()
    found = Load.read(log)
    assert time.process_time() - start < 5
    assert found.requests == pytest.approx(n)
    assert found.output_tokens_total == pytest.approx(log["output_tokens"].sum())


# --- fewer windows ----------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [2, 7, 30])
def test_thinning_keeps_time_requests_tokens_and_the_peak(windows: int) -> None:
    full = many(200)
    thin = full.thin(windows)
    busy = thin.windows[thin.windows["rate_rps"] > 0]
    assert len(busy) <= windows and len(thin.windows) <= windows + 1
    for name in ("seconds", "requests", "output_tokens_total"):
        assert getattr(thin, name) == pytest.approx(getattr(full, name))
    assert thin.shares.sum() == pytest.approx(1)
    tokens = [
        (w.rate_rps * (w.prompt_tokens + w.output_tokens)).max() for w in (busy, full.windows)
    ]
    assert tokens[0] == pytest.approx(tokens[1])


def test_thinning_keeps_the_spread_of_lengths() -> None:
    """Of all requests, whichever windows they are in."""
    full = many(300)

    def variance(traffic: Load) -> float:
        load, shares = traffic.cells, traffic.shares
        g = load["output_tokens"].values
        square = g**2 * (1 + load["output_cv"].values ** 2)
        return float((shares * square).sum() - (shares * g).sum() ** 2)

    assert variance(full.thin(5)) == pytest.approx(variance(full))


@pytest.mark.parametrize("distinct", [3, 20, 24, 25, 90])
def test_traffic_repeated_cut_or_in_another_order_has_the_same_windows(distinct: int) -> None:
    windows = many(distinct, seed=3).windows
    once = Load.read(windows).thin(24)
    for same in (
        pd.concat([windows, windows]),
        pd.concat([windows] * 7),
        pd.concat([windows, windows]).assign(seconds=lambda w: w["seconds"] / 2),
        windows.iloc[::-1],
        windows.sample(frac=1.0, random_state=1),
    ):
        again = Load.read(same.reset_index(drop=True)).thin(24)
        names = [n for n in once.windows if n != "seconds"]
        ours, theirs = (
            load.windows.query("rate_rps > 0").sort_values(names, ignore_index=True)
            for load in (once, again)
        )
        pd.testing.assert_frame_equal(ours[names], theirs[names], rtol=1e-9)
        shares = [w["seconds"] / a.seconds for w, a in ((ours, once), (theirs, again))]
        np.testing.assert_allclose(*shares, rtol=1e-9)


def test_a_log_of_a_day_twice_has_the_windows_of_the_day() -> None:
    rng = np.random.default_rng(5)
    day = pd.DataFrame(
        {
            "timestamp": np.r_[0.0, np.sort(rng.uniform(0, 5994.0, 998)), 5994.0],
            "prompt_tokens": rng.integers(1, 900, 1000),
            "output_tokens": rng.integers(1, 300, 1000),
        }
    ).sort_values("timestamp")
    twice = pd.concat([day, day.assign(timestamp=day["timestamp"] + 6000.0)])
    one, two = (Load.read(log, 60.0).thin(24).windows for log in (day, twice))
    assert one["seconds"].sum() == pytest.approx(6000.0)
    np.testing.assert_allclose(one["rate_rps"], two["rate_rps"])
    np.testing.assert_allclose(2 * one["seconds"], two["seconds"])


def test_few_windows_are_left_alone() -> None:
    traffic = many(10)
    assert traffic.thin(10) is traffic


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (WINDOWS.drop(columns="output_tokens"), "no column output_tokens; .* rate_rps, prompt"),
        (WINDOWS.assign(rate_rps=[1, -1, 2]), "rate_rps in row 1 is -1; .* at least 0"),
        (WINDOWS.assign(rate_rps=[1, 2, np.nan]), "rate_rps in row 2 is missing"),
        (WINDOWS.assign(rate_rps=[1, np.inf, 2]), "rate_rps in row 1 is inf"),
        (WINDOWS.assign(rate_rps=[1, "many", 2]), "rate_rps in row 1 is many"),
        (WINDOWS.assign(rate_rps=[1, 1, 1]), "prompt_tokens in row 1 is missing; .* at least 1"),
        (WINDOWS.assign(output_tokens=0.0), "output_tokens in row 0 is 0.0; .* at least 1"),
        (WINDOWS.assign(output_tokens_sd=-1.0), "output_tokens_sd in row 0 is -1.0; .* least 0"),
        (WINDOWS.assign(rate_rps=[1, 1e308, 2]), "rate_rps in row 1 is 1e.308; .* finite number"),
        (WINDOWS.assign(rate_rps=[1, 2, 1e-308]), "rate_rps in row 2 is 1e-308; .* finite"),
        (WINDOWS.assign(output_tokens_sd=1e300), "output_tokens_sd in row 0 is 1e"),
        (WINDOWS.assign(seconds=math.inf), "seconds in row 0 is inf; .* finite number"),
        (WINDOWS.assign(seconds=[1, 0, 1]), "seconds in row 1 is 0; .* at least 1e-09"),
        (WINDOWS.assign(rate_rps=0.0), "rate_rps is 0 in every row"),
        (WINDOWS.iloc[:0], "has no rows"),
        (LOG.drop(columns="timestamp"), "no column timestamp; .* the table has prompt_tokens"),
        (LOG.drop(columns="prompt_tokens"), "no column prompt_tokens"),
        (LOG.assign(timestamp=[0, 1, np.nan, 5]), "timestamp in row 2 is missing"),
        (LOG.assign(timestamp=["2026-01-01", "noon", "", ""]), "timestamp in row 1 is noon"),
        (LOG.assign(timestamp=[-1e308, 0, 1, 1e308]), "timestamp in row 0 is -1e"),
        (LOG.assign(timestamp=7.0), "all timestamps are equal"),
        (LOG.assign(timestamp=LOG["timestamp"] * 1e9), "are they all in seconds"),
        (LOG.assign(output_tokens=[1, 2, -3, 4]), "output_tokens in row 2 is -3; .* at least 1"),
        (LOG.assign(prompt_tokens=[1, None, 3, 4]), "prompt_tokens in row 1 is missing"),
        (LOG.iloc[:0], "it has no requests"),
        (LOG.iloc[:1], "it has one request; a rate needs at least two times"),
        (LOG.assign(e2e_s=np.nan), "e2e_s is missing in every row"),
        (pd.concat([WINDOWS, WINDOWS], axis=1), "two columns are called rate_rps"),
    ],
)
def test_bad_tables_are_one_sentence(table: pd.DataFrame, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^table: .*{says}") as caught:
        Load.read(table)
    assert "\n" not in str(caught.value)
    if table.columns.is_unique:
        path = tmp_path / "bad.csv"
        table.to_csv(path, index=False)
        with pytest.raises(InputError, match="bad.csv: "):
            Load.read(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"window_s": 0.0}, "window_s"),
        ({"window_s": math.nan}, "window_s"),
        ({"window_s": "60"}, "window_s must be a positive number of seconds, got '60'"),
        ({"columns": {"rate": "x"}}, "unknown name 'rate'"),
        ({"columns": {"rate_rps": "x"}}, "rate_rps names 'x', but the table has"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Load.read(WINDOWS, **arguments)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Load.read(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="empty.csv: is no table in CSV"):
        Load.read(tmp_path / "empty.csv")


def test_the_number_of_windows_is_checked() -> None:
    with pytest.raises(InputError, match="windows"):
        many(5).thin(1)


# --- a public log -----------------------------------------------------------------------------


@pytest.mark.skipif(not AZURE.is_dir(), reason="the public log is not here")
@pytest.mark.parametrize(("name", "requests"), [("code", 8819), ("conv", 19366)])
def test_azures_logs_are_read_as_they_are(name: str, requests: int) -> None:
    path = AZURE / f"AzureLLMInferenceTrace_{name}.csv"
    found, raw = Load.read(path), pd.read_csv(path)
    assert found.requests == pytest.approx(requests)
    assert found.output_tokens_total == pytest.approx(raw["GeneratedTokens"].sum())
    assert 3400 < found.seconds < 3520
