"""Results of vllm bench serve against independent arithmetic on them, and bad ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_helpers import (
    CORPUS,
    LISTS,
    MOE,
    PLAIN,
    REMOVE,
    SD,
    changed,
    one,
    raw,
    without_detail,
    write,
)

from bayes_sd.errors import InputError
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

NAN, INF = float("nan"), float("inf")


def test_the_whole_corpus_is_read(corpus: Runs) -> None:
    files = sorted(CORPUS.glob("*.json"))
    assert corpus.table.source.tolist() == [str(f) for f in files]
    assert corpus.table.requests.sum() == sum(raw(f)["completed"] for f in files)
    assert len(corpus.set_aside) == 0
    assert corpus.table.run_id.is_unique
    assert corpus.table.detail.all()


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


def test_recorded_aggregates_agree_with_the_table(corpus: Runs) -> None:
    for run in corpus.table.to_dict("records"):
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


def test_positions_beyond_k_are_missing(corpus: Runs) -> None:
    two = corpus.select(draft_tokens=2).table
    assert two.accepted_2.notna().all() and two.accepted_3.isna().all()


def test_saturation_rule(corpus: Runs) -> None:
    expected = []
    for source in corpus.table.source:
        data = raw(Path(source))
        expected.append(np.mean(data["latencies"]) > max(data["start_times"]) / 4)
    assert corpus.table.saturated.tolist() == expected
    assert 0 < sum(expected) < len(expected) / 4
    assert len(corpus.steady) == len(expected) - sum(expected)
    assert (corpus.table["flags"] == "saturated").tolist() == expected


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
        ("inf", 4, "closed", "little"),  # of an open loop: fewer were in flight
        (float("inf"), 4, "closed", "little"),
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


def test_unknown_acceptance_is_that_of_its_kind(tmp_path: Path) -> None:
    counts = {k: REMOVE for k in raw(SD) if k.startswith("spec_decode")}
    data = changed(raw(SD), target_acceptance=REMOVE, mean_itl_ms=REMOVE, **counts)
    run = one(write(tmp_path / "a.json", data))
    assert run.acceptance_from == "prior" and np.isnan(run.acceptance_imposed)
    assert np.isnan(run.drafts) and 1 < run.tokens_per_cycle < 8


def first(name: str, value: Any, path: Path = PLAIN) -> dict[str, Any]:
    """The list with its first entry replaced."""
    return {name: [value, *raw(path)[name][1:]]}


BAD_FIELDS = [
    (
        "rate-zero",
        PLAIN,
        {"request_rate": 0},
        "request_rate must be a positive number or 'inf', got 0",
    ),
    (
        "rate-negative",
        PLAIN,
        {"request_rate": -1.5},
        "request_rate must be a positive number or 'inf'",
    ),
    ("rate-nan", PLAIN, {"request_rate": NAN}, "request_rate must be a positive .* got nan"),
    ("rate-none", PLAIN, {"request_rate": None}, "request_rate is missing"),
    ("rate-missing", PLAIN, {"request_rate": REMOVE}, "request_rate is missing"),
    ("rate-word", PLAIN, {"request_rate": "fast"}, "request_rate must be a number, got 'fast'"),
    (
        "ramp",
        PLAIN,
        {"ramp_up_strategy": "linear"},
        "ramp_up_strategy is set; only .* constant rate",
    ),
    ("duration-zero", PLAIN, {"duration": 0}, "duration must be a positive finite number, got 0"),
    (
        "duration-inf",
        PLAIN,
        {"duration": INF},
        "duration must be a positive finite number, got inf",
    ),
    ("count-half", PLAIN, {"completed": 2.5}, "completed must be a whole number of at least 0"),
    ("count-nan", PLAIN, {"completed": NAN}, "completed must be a whole number .* got nan"),
    (
        "count-negative",
        PLAIN,
        {"failed": -1},
        "failed must be a whole number of at least 0 .*, got -1",
    ),
    (
        "count-huge",
        PLAIN,
        {"failed": 1e300},
        "failed must be a whole number of at least 0 and at most 9e.18",
    ),
    (
        "rate-a-minute",
        PLAIN,
        {"request_rate": 60 * raw(PLAIN)["request_rate"]},
        "rate_rps 8.* for duration_s .* is not 29 requests of mean e2e .*; check the units",
    ),
    (
        "tokens-in-thousands",
        PLAIN,
        {"input_lens": [1000 * n for n in raw(PLAIN)["input_lens"]]},
        "input_lens sum to 928000 but total_input_tokens is 928",
    ),
    (
        "limit-zero",
        PLAIN,
        {"max_concurrency": 0},
        "max_concurrency must be a whole number of at least 1",
    ),
    ("latency-zero", PLAIN, first("latencies", 0.0), r"request 0 has e2e latency 0 s and ttft"),
    (
        "latency-negative",
        PLAIN,
        first("latencies", -0.2),
        r"request 0 has e2e latency -0.2 s and .*; needed are 0 < ttft <= e2e",
    ),
    ("latency-nan", PLAIN, first("latencies", NAN), "request 0 has e2e latency nan s"),
    ("latency-none", PLAIN, first("latencies", None), r"latencies\[0\] must be a number, got None"),
    ("ttft-nan", PLAIN, first("ttfts", NAN), r"ttfts\[0\] must be a finite number, got nan"),
    ("ttft-inf", PLAIN, first("ttfts", INF), r"ttfts\[0\] must be a finite number, got inf"),
    (
        "ttft>e2e",
        PLAIN,
        first("ttfts", 0.5),
        r"request 0 has e2e latency .* s and ttft 0.5 s; needed are 0 < ttft <= e2e",
    ),
    (
        "lengths",
        PLAIN,
        {"ttfts": raw(PLAIN)["ttfts"][1:]},
        "unequal lengths .ttfts 28, input_lens 29",
    ),
    ("errors", PLAIN, {"errors": [""] * 3}, "unequal lengths .*errors 3"),
    ("all-failed", PLAIN, {"errors": ["gone"] * 29}, "no request succeeded; at least one"),
    ("none-done", PLAIN, {"completed": 0}, "no request succeeded; at least one"),
    (
        "none-done-means",
        PLAIN,
        {"completed": 0, "mean_e2el_ms": 0, "mean_ttft_ms": 0},
        "no request succeeded; at least one",
    ),
    ("starts", PLAIN, first("start_times", NAN), r"start_times\[0\] must be a finite number"),
    ("starts-in-ms", PLAIN, first("start_times", 9e3), "start_times spread over .* of 20.4255 s"),
    (
        "lists-in-ms",
        PLAIN,
        {"latencies": [1000 * x for x in raw(PLAIN)["latencies"]]},
        "latencies reach 524.* in a run of 20.4255 s; check the units",
    ),
    (
        "aggregates-in-s",
        PLAIN,
        {"mean_e2el_ms": 0.429553},
        "mean e2e is reported as 0.000429553 s but the requests' mean is 0.42955. s",
    ),
    (
        "ttft-units",
        PLAIN,
        {"mean_ttft_ms": 49.5},
        "mean ttft is reported as 0.0495 s but the requests' mean is 0.0405",
    ),
    ("aggregate-nan", PLAIN, {"p99_ttft_ms": INF}, "ttft: p99_s must be a positive finite number"),
    ("aggregate-order", PLAIN, {"p90_e2el_ms": 900.0}, "percentiles decrease"),
    (
        "k-without-drafter",
        PLAIN,
        {"num_speculative_tokens": "3"},
        "draft_tokens is 3 but there is no drafter",
    ),
    ("arm", SD, {"arm": "plain"}, "arm is plain but drafter is 'draft-12m'"),
    ("sd-alone", PLAIN, {"arm": "sd"}, "arm is sd but there is no drafter"),
    (
        "drafter-size",
        PLAIN,
        {"drafter_params": "5"},
        "drafter_params is 5.0 but there is no drafter",
    ),
    (
        "plain-alpha",
        PLAIN,
        {"target_acceptance": "0.7"},
        "acceptance_imposed is 0.7 in a plain run",
    ),
    ("dense-experts", PLAIN, {"experts": "8"}, "family is dense but experts is 8"),
    (
        "dense-routed",
        PLAIN,
        {"experts_per_token": "2"},
        "family is dense but experts_per_token is 2",
    ),
    ("moe-none", MOE, {"experts": "0"}, "family is moe but experts is 0"),
    ("moe-routed", MOE, {"experts_per_token": REMOVE}, "experts_per_token is missing for a moe"),
    ("moe-many", MOE, {"experts_per_token": "9"}, "experts_per_token is 9 of 8 experts"),
    ("moe-active", MOE, {"verifier_active_params": REMOVE}, "verifier_active_params is missing"),
    (
        "active",
        PLAIN,
        {"verifier_active_params": "2e8"},
        r"verifier_active_params 2e\+08 is more than",
    ),
    (
        "family",
        PLAIN,
        {"family": "sparse"},
        "family: input should be 'dense' or 'moe', got 'sparse'",
    ),
    (
        "params",
        PLAIN,
        {"verifier_params": REMOVE},
        "verifier_params is missing; give it as an argument, .*--metadata verifier_params=...",
    ),
    (
        "params-zero",
        PLAIN,
        {"verifier_params": "0"},
        "verifier_params must be a positive finite number",
    ),
    ("k-text", SD, {"num_speculative_tokens": "many"}, "draft_tokens must be a number, got 'many'"),
    ("alpha", SD, {"target_acceptance": "1.7"}, "acceptance_imposed must lie between 0 and 1"),
    ("aliases", SD, {"acceptance": "0.8"}, "acceptance_imposed is '0.8' in .* but '0.7' in"),
    ("no-drafter", SD, {"drafter": REMOVE}, "draft_tokens is 7 but there is no drafter"),
    (
        "drafted-plain",
        PLAIN,
        {"spec_decode_num_drafts": 10},
        "tokens were drafted but draft_tokens is 0; give the drafter",
    ),
    (
        "positions",
        SD,
        {"num_speculative_tokens": "6"},
        "given for 7 positions but draft_tokens is 6",
    ),
    (
        "percent",
        SD,
        {"spec_decode_per_position_acceptance_rates": [72, 54, 45, 31, 22, 16, 13]},
        r"spec_decode_per_position_acceptance_rates\[0\] must lie between 0 and 1, got 72",
    ),
    (
        "rising",
        SD,
        {
            "spec_decode_per_position_acceptance_rates": raw(SD)[
                "spec_decode_per_position_acceptance_rates"
            ][::-1]
        },
        "increase with position",
    ),
    (
        "accepted",
        SD,
        {"spec_decode_accepted_tokens": 1226},
        "accepted_tokens 1226 is more than the 1225",
    ),
    (
        "accepted-sum",
        SD,
        {"spec_decode_accepted_tokens": 500},
        "500 but the positions add up to 443",
    ),
    (
        "drafted",
        SD,
        {"spec_decode_draft_tokens": 1226},
        "drafted_tokens 1226 is more than draft_tokens 7",
    ),
    (
        "no-drafts",
        SD,
        {"spec_decode_num_drafts": REMOVE, "spec_decode_acceptance_length": REMOVE}
        | {"spec_decode_draft_tokens": REMOVE},
        "accepted tokens are counted but drafts is missing",
    ),
]


@pytest.mark.parametrize(
    ("path", "change", "message"), [b[1:] for b in BAD_FIELDS], ids=[b[0] for b in BAD_FIELDS]
)
def test_bad_field(path: Path, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", changed(raw(path), **change))
    with pytest.raises(InputError, match=message) as error:
        read(bad)
    assert str(error.value).startswith(f"{bad}: ") and "\n" not in str(error.value)
    good = write(tmp_path / "good.json", raw(path))
    runs = read(tmp_path)
    assert runs.table.source.tolist() == [str(good)]
    assert runs.set_aside.source.tolist() == [str(bad)]
    assert runs.set_aside["row"].tolist() == [-1]
    assert f"{bad}: {runs.set_aside.reason[0]}" == str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean_e2el_ms": REMOVE, "mean_tpot_ms": REMOVE},
            "mean_e2el_ms is missing; run vllm bench serve with",
        ),
        ({"mean_e2el_ms": 0.0}, "mean_e2el_ms is 0; it must be a positive"),
        ({"std_e2el_ms": -1}, "e2el: std_s must be a finite number of at least 0"),
        ({"mean_ttft_ms": 500.0}, "mean ttft 0.5 s is longer than mean e2e latency 0.42.* s"),
        ({"mean_e2el_ms": 429553.0}, "mean e2e latency 429.553 s is longer than the run"),
        ({"mean_tpot_ms": 1254.89}, "mean ttft and tpot add up to 38.* check the units"),
    ],
)
def test_bad_aggregate(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", without_detail(PLAIN, **change))
    with pytest.raises(InputError, match=message):
        read(bad)
