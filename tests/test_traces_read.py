"""Numbers of the run table against independent computations on the raw files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from traces_helpers import (
    COLUMN_MAP,
    CONSTANTS,
    CORPUS,
    LISTS,
    MOE,
    PLAIN,
    REMOVE,
    SD,
    TABLE,
    changed,
    raw,
    without_detail,
    write,
)

from bayes_sd.errors import InputError
from bayes_sd.traces import Traces, read_table, read_traces
from bayes_sd.traces.rows import FLAGS
from bayes_sd.traces.schema import COLUMNS


@pytest.fixture(scope="module")
def corpus() -> Traces:
    return read_traces(CORPUS)


def one(path: Path, **arguments: Any) -> pd.Series:
    traces = read_traces(path, **arguments)
    assert len(traces) == 1
    return traces.runs.iloc[0]


def test_the_whole_corpus_is_read(corpus: Traces) -> None:
    files = sorted(CORPUS.glob("*.json"))
    assert corpus.runs.source.tolist() == [str(f) for f in files]
    assert corpus.runs.requests.sum() == sum(raw(f)["completed"] for f in files)
    assert len(corpus.set_aside) == 0
    assert corpus.runs.run_id.is_unique
    assert corpus.runs.detail.all()


def test_columns_are_those_of_the_schema(corpus: Traces) -> None:
    positions = [f"accepted_{j}" for j in range(1, 8)]
    at = list(COLUMNS).index("accepted_j")
    names = list(COLUMNS)
    assert list(corpus.runs.columns) == [*names[:at], *positions, *names[at + 1 :]]


@pytest.mark.parametrize("path", [PLAIN, SD, MOE], ids=lambda p: p.stem)
def test_statistics_are_those_of_the_raw_requests(path: Path) -> None:
    data = raw(path)
    e2e, ttft = np.array(data["latencies"]), np.array(data["ttfts"])
    tpot = (e2e - ttft) / (np.array(data["output_lens"]) - 1)
    run = one(path)
    for name, x in (("e2e", e2e), ("ttft", ttft), ("tpot", tpot)):
        assert run[f"{name}_mean_s"] == pytest.approx(np.sum(x) / len(x))
        assert run[f"{name}_log_mean"] == pytest.approx(np.mean(np.log(x)))
        assert run[f"{name}_log_var"] == pytest.approx(np.var(np.log(x), ddof=1))
        assert run[f"{name}_p90_s"] == pytest.approx(np.quantile(x, 0.9))
    assert run.in_flight == pytest.approx(e2e.sum() / data["duration"])
    assert run.span_s == max(data["start_times"])
    assert run.achieved_rps == pytest.approx(data["request_throughput"], rel=1e-4)
    assert run.rate_rps == data["request_rate"]
    assert run.prompt_tokens == data["total_input_tokens"] / data["completed"]
    assert run.environment == f"{data['hardware']} / {data['engine']}"


def test_recorded_aggregates_agree_with_the_table(corpus: Traces) -> None:
    for run in corpus.runs.to_dict("records"):
        data = raw(Path(run["source"]))
        for ours, theirs in (("e2e", "e2el"), ("ttft", "ttft"), ("tpot", "tpot")):
            for q in ("p50", "p90", "p99"):
                assert run[f"{ours}_{q}_s"] == pytest.approx(
                    data[f"{q}_{theirs}_ms"] / 1000, rel=1e-3
                )


def test_draft_counts() -> None:
    data, run = raw(SD), one(SD)
    drafts = data["spec_decode_num_drafts"]
    rates = data["spec_decode_per_position_acceptance_rates"]
    counts = [run[f"accepted_{j}"] for j in range(1, 8)]
    assert run.drafts == drafts and run.drafted_tokens == 7 * drafts
    assert counts == pytest.approx([r * drafts for r in rates], abs=1e-3)
    assert sum(counts) == run.accepted_tokens == data["spec_decode_accepted_tokens"]
    assert run.tokens_per_cycle == pytest.approx(data["spec_decode_acceptance_length"], rel=1e-5)
    assert run.acceptance_imposed == 0.7 and run.arm == "sd"


def test_a_plain_run_has_no_counts_and_no_acceptance() -> None:
    run = one(PLAIN)
    assert run.arm == "plain" and run.drafter == "none" and run.draft_tokens == 0
    assert run.tokens_per_cycle == 1.0
    absent = ["acceptance_imposed", "drafter_params", "drafts", "drafted_tokens"]
    assert run[absent].isna().all()


def test_positions_beyond_k_are_missing(corpus: Traces) -> None:
    two = corpus.select(draft_tokens=2).runs
    assert two.accepted_2.notna().all() and two.accepted_3.isna().all()


def test_saturation_rule(corpus: Traces) -> None:
    expected = []
    for source in corpus.runs.source:
        data = raw(Path(source))
        expected.append(np.mean(data["latencies"]) > max(data["start_times"]) / 4)
    assert corpus.runs.saturated.tolist() == expected
    assert 0 < sum(expected) < len(expected) / 4
    assert len(corpus.steady) == len(expected) - sum(expected)
    assert (corpus.runs["flags"] == "saturated").tolist() == expected


@pytest.mark.parametrize("path", [PLAIN, SD], ids=lambda p: p.stem)
def test_without_detail_moments_are_lognormal(path: Path, tmp_path: Path) -> None:
    data = without_detail(path)
    run = one(write(tmp_path / "a.json", data))
    for ours, theirs in (("e2e", "e2el"), ("ttft", "ttft"), ("tpot", "tpot")):
        mean, std = data[f"mean_{theirs}_ms"] / 1000, data[f"std_{theirs}_ms"] / 1000
        var = np.log(1 + (std / mean) ** 2)
        assert run[f"{ours}_mean_s"] == pytest.approx(mean)
        assert run[f"{ours}_log_var"] == pytest.approx(var)
        assert run[f"{ours}_log_mean"] == pytest.approx(np.log(mean) - var / 2)
        assert np.exp(run[f"{ours}_log_mean"] + var / 2) == pytest.approx(mean)
    assert not run.detail
    assert run.span_s == pytest.approx(data["completed"] / data["request_rate"])
    assert run.in_flight == pytest.approx(
        data["completed"] / data["duration"] * data["mean_e2el_ms"] / 1000
    )


def test_upstream_detail_without_latencies(tmp_path: Path) -> None:
    data = raw(SD)
    gaps = [[(e - t) / 3] * 3 for e, t in zip(data["latencies"], data["ttfts"], strict=True)]
    # vLLM's own start times are a monotonic clock's, not relative.
    starts = [1234.5 + s for s in data["start_times"]]
    n = len(starts)
    upstream = changed(data, latencies=REMOVE, itls=gaps, start_times=starts, errors=[""] * n)
    run, plain = one(write(tmp_path / "a.json", upstream)), one(SD)
    numbers = [c for c in plain.index if c.startswith(("e2e", "ttft", "tpot", "span"))]
    assert run[numbers].tolist() == pytest.approx(plain[numbers].tolist(), nan_ok=True)


def test_failed_requests_are_dropped_and_counted(tmp_path: Path) -> None:
    data = raw(PLAIN)
    n = data["completed"]
    errors = ["", "timeout", "", *[""] * (n - 3)]
    outputs = [*data["output_lens"][:2], 0, *data["output_lens"][3:]]
    latencies, ttfts = list(data["latencies"]), list(data["ttfts"])
    latencies[1] = ttfts[1] = ttfts[2] = 0.0
    bad = changed(
        data,
        errors=errors,
        output_lens=outputs,
        latencies=latencies,
        ttfts=ttfts,
        failed=2,
        completed=n - 2,
    )
    run = one(write(tmp_path / "a.json", bad))
    kept = np.delete(data["latencies"], [1, 2])
    assert (run.requests, run.failed) == (n - 2, 2)
    assert run.e2e_log_mean == pytest.approx(np.log(kept).mean())
    assert run["flags"] == "failed>5%"


@pytest.mark.parametrize(
    ("failed", "flags"), [(1, ""), (2, "failed>5%")], ids=["under 5%", "over 5%"]
)
def test_failures_counted_outside_the_lists(failed: int, flags: str, tmp_path: Path) -> None:
    data = changed(raw(PLAIN), failed=failed, num_prompts=29 + failed)
    run = one(write(tmp_path / "a.json", data))
    assert (run.requests, run.failed, run["flags"]) == (29, failed, flags)


def test_output_of_one_token_has_no_tpot(tmp_path: Path) -> None:
    data = raw(PLAIN)
    n = data["completed"]
    run = one(
        write(
            tmp_path / "a.json",
            changed(data, output_lens=[1] * n, total_output_tokens=n, mean_tpot_ms=0.0),
        )
    )
    assert run[[c for c in run.index if c.startswith("tpot")]].isna().all()
    assert run["flags"] == "no-tpot" and run.e2e_mean_s > 0


def test_one_token_among_many_leaves_the_other_tpots(tmp_path: Path) -> None:
    data = raw(PLAIN)
    outputs = [1, *data["output_lens"][1:]]
    run = one(write(tmp_path / "a.json", changed(data, output_lens=outputs)))
    decode = (np.array(data["latencies"]) - np.array(data["ttfts"]))[1:] / 31
    assert run.tpot_log_mean == pytest.approx(np.log(decode).mean())


def test_one_request_has_no_variance(tmp_path: Path) -> None:
    data = raw(PLAIN)
    single = {k: v[:1] for k, v in data.items() if k in LISTS}
    aggregates = {k: REMOVE for k in data if k.endswith("_ms")}
    totals = {"total_input_tokens": data["input_lens"][0], "total_output_tokens": 32}
    made = changed(data, completed=1, **single, **totals, **aggregates)
    run = one(write(tmp_path / "a.json", made))
    assert run.e2e_log_mean == pytest.approx(np.log(data["latencies"][0]))
    assert np.isnan(run.e2e_log_var)
    assert run.span_s == pytest.approx(1 / data["request_rate"])
    assert "few-requests" in run["flags"]


@pytest.mark.parametrize(
    ("rate", "limit", "loop", "flags"),
    [
        ("inf", 4, "closed", ""),
        (float("inf"), 4, "closed", ""),
        ("inf", None, "burst", "saturated"),
        (1.45, 4, "open", "concurrency-cap"),
        ("1.45", None, "open", ""),
    ],
)
def test_loops(rate: Any, limit: int | None, loop: str, flags: str, tmp_path: Path) -> None:
    data = changed(raw(PLAIN), request_rate=rate, max_concurrency=limit)
    run = one(write(tmp_path / "a.json", data))
    assert (run.loop, run["flags"]) == (loop, flags)
    assert np.isnan(run.rate_rps) == (loop != "open")
    assert np.isnan(run.concurrency) == (limit is None)
    assert run.span_s == (19.07 if loop == "open" else data["duration"])


METADATA = frozenset(
    [
        "verifier",
        "family",
        "verifier_params",
        "verifier_active_params",
        "experts",
        "experts_per_token",
        "drafter",
        "drafter_params",
        "num_speculative_tokens",
        "target_acceptance",
        "engine",
        "hardware",
    ]
)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A speculative run without metadata, as most people have."""
    data = {k: v for k, v in raw(SD).items() if k not in METADATA}
    return write(tmp_path / "bare.json", data)


def test_configuration_from_arguments(bare: Path) -> None:
    run = one(bare, verifier_params="8e9", drafter="eagle", environment="H100")
    assert (run.verifier, run.verifier_params, run.draft_tokens) == (
        "dense-115m",
        8e9,
        7,
    )
    assert (run.environment, run.family, run.verifier_active_params) == (
        "H100",
        "dense",
        8e9,
    )
    assert np.isnan(run.acceptance_imposed) and np.isnan(run.drafter_params)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "side.yaml",
            (
                "'*.json': {hardware: H100}\nbare.json:\n  verifier: big\n  verifier_params: 8e9\n"
                "  drafter: eagle\n  num_speculative_tokens: 7\n"
            ),
        ),
        (
            "side.csv",
            (
                "file,verifier,verifier_params,drafter,draft_tokens,experts,hardware\n"
                "bare.json,big,8e9,eagle,7,,H100\n"
            ),
        ),
    ],
)
def test_configuration_from_a_sidecar(bare: Path, name: str, text: str) -> None:
    side = bare.parent / name
    side.write_text(text)
    run = one(bare, config=side)
    assert (run.verifier, run.verifier_params, run.drafter) == ("big", 8e9, "eagle")
    assert (run.draft_tokens, run.environment, run.experts) == (7, "H100", 0)


def test_draft_tokens_from_the_counts(bare: Path) -> None:
    data = changed(raw(bare), spec_decode_per_position_acceptance_rates=REMOVE)
    run = one(write(bare, data), verifier_params=8e9, drafter="eagle")
    assert run.draft_tokens == 7 and run.accepted_tokens == 443
    assert run[["accepted_1", "accepted_7"]].isna().all()


def test_a_loaded_drafter_that_drafts_nothing_is_another_arm(tmp_path: Path) -> None:
    data = changed(raw(PLAIN), drafter="draft-3m", drafter_params="1.3e6")
    run = one(write(tmp_path / "a.json", data))
    assert (run.arm, run.draft_tokens, run.tokens_per_cycle) == ("sd", 0, 1.0)
    assert run["flags"] == ""


def test_imposed_acceptance_stands_in_for_missing_counts(tmp_path: Path) -> None:
    counts = {k: REMOVE for k in raw(SD) if k.startswith("spec_decode")}
    run = one(write(tmp_path / "a.json", changed(raw(SD), **counts)))
    assert run.tokens_per_cycle == pytest.approx((1 - 0.7**8) / (1 - 0.7))
    assert run["flags"] == "no-counts"


def test_unknown_acceptance_stays_unknown(tmp_path: Path) -> None:
    counts = {k: REMOVE for k in raw(SD) if k.startswith("spec_decode")}
    data = changed(raw(SD), target_acceptance=REMOVE, **counts)
    run = one(write(tmp_path / "a.json", data))
    assert np.isnan(run.tokens_per_cycle) and np.isnan(run.acceptance_imposed)


@pytest.mark.parametrize("how", ["files", "glob", "folder", "twice"])
def test_ways_to_name_files(how: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    a = write(tmp_path / "a.json", raw(PLAIN))
    b = write(tmp_path / "sub" / "b.json", raw(SD))
    named: dict[str, Any] = {
        "files": [a, str(b)],
        "glob": f"{tmp_path}/**/*.json",
        "folder": tmp_path,
        "twice": [tmp_path, a],
    }
    assert read_traces(named[how]).runs.source.tolist() == [str(a), str(b)]


def test_select(corpus: Traces) -> None:
    some = corpus.select(verifier="moe-e8k2", draft_tokens=[0, 5])
    assert len(some) == 14 and set(some.runs.draft_tokens) == {0, 5}
    with pytest.raises(InputError, match="no run has verifier 'x'; the runs have dense-115m, "):
        corpus.select(verifier="x")
    with pytest.raises(InputError, match="no run has draft_tokens 4; .* 0, 1, 2, 3, 5, 7"):
        corpus.select(draft_tokens=[1, 4])
    with pytest.raises(InputError, match="no column 'model'; the columns are run_id"):
        corpus.select(model="x")


def test_parts_add_up_to_the_whole(corpus: Traces) -> None:
    sd, plain = corpus.select(arm="sd"), corpus.select(arm="plain")
    whole = plain + sd
    assert len(whole) == len(corpus)
    expected = corpus.runs.sort_values("run_id").reset_index(drop=True)
    pd.testing.assert_frame_equal(whole.runs.sort_values("run_id").reset_index(drop=True), expected)
    again = whole + sd
    assert len(again) == len(corpus) and len(again.set_aside) == len(sd)


def test_concat_widens_to_the_larger_k(corpus: Traces) -> None:
    both = read_traces(PLAIN) + read_traces(SD)
    assert np.isnan(both.runs.accepted_7[0]) and both.runs.accepted_7[1] == 22


def test_repr_counts(corpus: Traces) -> None:
    assert repr(corpus) == (
        "Traces: 144 runs, 8813 requests, 6 verifiers, 54 plain runs\n"
        "13 saturated, 0 set aside; see .check() for why"
    )


def test_table_units_and_moments() -> None:
    runs = read_table(TABLE, COLUMN_MAP, CONSTANTS, environment="A100").runs
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.9, 1.3])
    var = np.log(1 + (80 / 900) ** 2)
    assert runs.e2e_log_var[0] == pytest.approx(var)
    assert runs.e2e_log_mean[0] == pytest.approx(np.log(0.9) - var / 2)
    assert runs.acceptance_imposed.tolist() == pytest.approx([0.8, 0.5])
    assert runs.tokens_per_cycle[0] == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert runs.span_s.tolist() == [60, 60] and runs.loop.tolist() == ["open", "open"]
    assert runs["row"].tolist() == [0, 1] and set(runs.source) == {"table"}
    assert runs["flags"].tolist() == ["no-counts,no-tpot"] * 2
    assert runs.achieved_rps.isna().all() and set(runs.environment) == {"A100"}


@pytest.mark.parametrize(("unit", "second"), [("s", 1.0), ("ms", 1e-3), ("us", 1e-6)])
def test_table_time_units(unit: str, second: float) -> None:
    table = TABLE.assign(e2e=0.5 / second)
    runs = read_table(table, COLUMN_MAP | {"e2e_mean_s": ("e2e", unit)}, CONSTANTS).runs
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.5, 0.5])


def test_table_span_without_duration() -> None:
    mapping = {k: v for k, v in COLUMN_MAP.items() if k != "duration_s"}
    runs = read_table(TABLE.assign(n=[3, 120]), mapping, CONSTANTS).runs
    assert runs.span_s.tolist() == [3.0, 60.0]
    # Three arrivals a second apart cannot show a steady state of 0.9 s.
    assert runs.saturated.tolist() == [True, False]
    assert runs.duration_s.isna().all()


def test_table_of_a_csv_file(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    runs = read_table(tmp_path / "t.csv", COLUMN_MAP, CONSTANTS).runs
    assert set(runs.source) == {str(tmp_path / "t.csv")}
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.9, 1.3])


def test_table_with_our_names_needs_no_mapping(corpus: Traces) -> None:
    again = read_table(corpus.runs)
    same = [
        c for c in COLUMNS if c in corpus.runs and c not in ("run_id", "source", "row", "detail")
    ]
    same += ["accepted_1", "accepted_7"]
    pd.testing.assert_frame_equal(again.runs[same], corpus.runs[same])


def test_table_takes_the_achieved_rate_for_the_offered_one() -> None:
    mapping = {k: v for k, v in COLUMN_MAP.items() if k != "rate_rps"} | {"achieved_rps": "rps"}
    runs = read_table(TABLE, mapping, CONSTANTS).runs
    assert runs.rate_rps.tolist() == [1.0, 2.0]
    assert runs["flags"].str.contains("rate-from-achieved").all()
    assert runs.in_flight.tolist() == pytest.approx([0.9, 2.6])


def test_flags_are_documented(corpus: Traces) -> None:
    seen = {flag for flags in corpus.runs["flags"] for flag in flags.split(",") if flag}
    assert seen <= set(FLAGS)


A100 = Path(
    os.environ.get(
        "BAYES_SD_A100",
        Path(__file__).parents[2] / "shared" / "traces" / "qwen3-sd-a100" / "runs.csv",
    )
)


@pytest.mark.skipif(not A100.is_file(), reason="the public A100 sweeps are not here")
def test_public_a100_sweeps() -> None:
    table = pd.read_csv(A100)
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
        for a, b in (
            ("mean", "mean"),
            ("std", "std"),
            ("p50", "median"),
            ("p99", "p99"),
        ):
            columns[f"{ours}_{a}_s"] = (f"{theirs}_{b}", unit)
    traces = read_table(table, columns, {"duration_s": 90, "drafter": "head"}, environment="A100")
    runs = traces.runs
    assert len(runs) == len(table) and len(traces.set_aside) == 0
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
