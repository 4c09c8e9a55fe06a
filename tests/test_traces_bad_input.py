"""Every kind of bad file: the sentence it earns, and that its neighbours survive."""

from pathlib import Path
from typing import Any

import pytest
from traces_helpers import (
    MOE,
    PLAIN,
    REMOVE,
    SD,
    changed,
    raw,
    without_detail,
    write,
)

from bayes_sd.errors import InputError
from bayes_sd.traces import read_traces

NAN, INF = float("nan"), float("inf")


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
    (
        "rate-nan",
        PLAIN,
        {"request_rate": NAN},
        "request_rate must be a positive .* got nan",
    ),
    (
        "rate-none",
        PLAIN,
        {"request_rate": None},
        "request_rate must be a number, got None",
    ),
    ("rate-missing", PLAIN, {"request_rate": REMOVE}, "request_rate is missing"),
    (
        "rate-word",
        PLAIN,
        {"request_rate": "fast"},
        "request_rate must be a number, got 'fast'",
    ),
    (
        "ramp",
        PLAIN,
        {"ramp_up_strategy": "linear"},
        "ramp_up_strategy is set; only .* constant rate",
    ),
    (
        "duration-zero",
        PLAIN,
        {"duration": 0},
        "duration must be a positive finite number, got 0",
    ),
    (
        "duration-inf",
        PLAIN,
        {"duration": INF},
        "duration must be a positive finite number, got inf",
    ),
    (
        "count-half",
        PLAIN,
        {"completed": 2.5},
        "completed must be a whole number of at least 0",
    ),
    (
        "count-nan",
        PLAIN,
        {"completed": NAN},
        "completed must be a whole number .* got nan",
    ),
    (
        "count-negative",
        PLAIN,
        {"failed": -1},
        "failed must be a whole number of at least 0, got -1",
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
        "request_rate is 8.* but 29 start_times spread over .* s, 1.* a second; check the units",
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
    (
        "latency-zero",
        PLAIN,
        first("latencies", 0.0),
        r"latencies\[0\] must be a positive finite",
    ),
    (
        "latency-negative",
        PLAIN,
        first("latencies", -0.2),
        r"latencies\[0\] must .* got -0.2",
    ),
    ("latency-nan", PLAIN, first("latencies", NAN), r"latencies\[0\] must .* got nan"),
    (
        "latency-none",
        PLAIN,
        first("latencies", None),
        r"latencies\[0\] must be a number, got None",
    ),
    (
        "ttft-inf",
        PLAIN,
        first("ttfts", INF),
        r"ttfts\[0\] must be a positive finite number, got inf",
    ),
    (
        "ttft>e2e",
        PLAIN,
        first("ttfts", 0.5),
        r"ttfts\[0\] is 0.5 s, longer than the whole request",
    ),
    (
        "lengths",
        PLAIN,
        {"ttfts": raw(PLAIN)["ttfts"][1:]},
        "unequal lengths .ttfts 28, input_lens 29",
    ),
    ("errors", PLAIN, {"errors": [""] * 3}, "unequal lengths .*errors 3"),
    (
        "all-failed",
        PLAIN,
        {"errors": ["gone"] * 29},
        "all requests failed; at least one",
    ),
    ("none-done", PLAIN, {"completed": 0}, "all requests failed; at least one"),
    ("starts", PLAIN, first("start_times", NAN), "start_times must be finite"),
    (
        "lists-in-ms",
        PLAIN,
        {"latencies": [1000 * x for x in raw(PLAIN)["latencies"]]},
        "latencies reach 524.* in a run of 20.4255 s; .* check the units",
    ),
    (
        "aggregates-in-s",
        PLAIN,
        {"mean_e2el_ms": 0.429553},
        "mean_e2el_ms is 0.429553 but the requests' mean is 429.55. ms; lists are in seconds",
    ),
    (
        "ttft-units",
        PLAIN,
        {"mean_ttft_ms": 49.5},
        "mean_ttft_ms is 49.5 but the requests' mean is 40.5",
    ),
    (
        "aggregate-nan",
        PLAIN,
        {"p99_ttft_ms": INF},
        "p99_ttft_ms must be a positive finite number",
    ),
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
        "drafter_params is 5 but there is no drafter",
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
    (
        "moe-routed",
        MOE,
        {"experts_per_token": REMOVE},
        "experts_per_token is missing for a moe",
    ),
    (
        "moe-many",
        MOE,
        {"experts_per_token": "9"},
        "experts_per_token 9 is more than experts 8",
    ),
    (
        "moe-active",
        MOE,
        {"verifier_active_params": REMOVE},
        "verifier_active_params is missing",
    ),
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
        "verifier_params is missing; give it through --metadata",
    ),
    (
        "params-zero",
        PLAIN,
        {"verifier_params": "0"},
        "verifier_params must be a positive finite number",
    ),
    (
        "k-text",
        SD,
        {"num_speculative_tokens": "many"},
        "draft_tokens must be a number, got 'many'",
    ),
    (
        "alpha",
        SD,
        {"target_acceptance": "1.7"},
        "acceptance_imposed must lie between 0 and 1",
    ),
    (
        "aliases",
        SD,
        {"acceptance": "0.8"},
        "acceptance_imposed is '0.8' in .* but '0.7' in",
    ),
    (
        "no-drafter",
        SD,
        {"drafter": REMOVE},
        "draft_tokens is 7 but there is no drafter",
    ),
    (
        "drafted-plain",
        PLAIN,
        {"spec_decode_num_drafts": 10},
        r"drafted or accepted tokens are counted but draft_tokens is 0 \(arm plain\)",
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
        {"spec_decode_num_drafts": REMOVE},
        "accepted tokens are counted but drafts is missing",
    ),
]


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [b[1:] for b in BAD_FIELDS],
    ids=[b[0] for b in BAD_FIELDS],
)
def test_bad_field(path: Path, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", changed(raw(path), **change))
    with pytest.raises(InputError, match=message) as error:
        read_traces(bad)
    assert str(error.value).startswith(f"{bad}: ") and "\n" not in str(error.value)
    good = write(tmp_path / "good.json", raw(path))
    traces = read_traces(tmp_path)
    assert traces.runs.source.tolist() == [str(good)]
    assert traces.set_aside.source.tolist() == [str(bad)]
    assert traces.set_aside["row"].tolist() == [-1]
    assert f"{bad}: {traces.set_aside.reason[0]}" == str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean_e2el_ms": REMOVE},
            "mean_e2el_ms is missing; run vllm bench serve with",
        ),
        (
            {"mean_e2el_ms": 0.0},
            "mean_e2el_ms must be a positive finite number, got 0.0",
        ),
        ({"std_e2el_ms": -1}, "std_e2el_ms must be a finite number of at least 0"),
        (
            {"mean_ttft_ms": 500.0},
            "mean ttft 0.5 s is longer than mean e2e latency 0.42.* s",
        ),
        (
            {"mean_e2el_ms": 429553.0},
            "mean e2e latency 429.553 s is longer than the run",
        ),
        (
            {"mean_tpot_ms": 1254.89},
            "mean ttft and tpot add up to 38.* check the units",
        ),
    ],
)
def test_bad_aggregate(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", without_detail(PLAIN, **change))
    with pytest.raises(InputError, match=message):
        read_traces(bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.read_bytes()[:1500], "is not complete JSON .* at line"),
        (b"", "is not complete JSON"),
        (b"time,latency\n1,2\n", "is not complete JSON"),
        (b"\xff\xfe\x00\x01", "is not text"),
        (b"[" * 100_000, "is JSON of an absurd size or depth"),
        (b'{"duration": ' + b"1" * 5000 + b"}", "is JSON of an absurd size or depth"),
        (b"[1, 2]", "is not a JSON object; a JSON result of vllm bench serve, GuideLLM"),
        (b'{"benchmarks": [], "args": {}}', "is a GuideLLM report"),
        (
            b'{"records": []}',
            "is not a result of vllm bench serve: it lacks duration, completed",
        ),
    ],
    ids=["truncated", "empty", "csv", "binary", "deep", "long", "list", "guidellm", "other"],
)
def test_bad_file(content: bytes, message: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_traces(bad)
    write(tmp_path / "good.json", raw(PLAIN))
    assert len(read_traces(tmp_path)) == 1


def test_nothing_readable_gives_the_first_reasons(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.json").write_text("[]")
    with pytest.raises(InputError, match="none of 5 files can be used: .*0.json: is not .*2.json"):
        read_traces(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.json", "missing.json: no such file or folder"),
        ("empty", "empty: the folder has no .json file"),
        ("*.jsonl", r"\*.jsonl: no file matches the pattern"),
    ],
)
def test_bad_path(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        read_traces(f"{tmp_path}/{path}")


def test_no_paths() -> None:
    with pytest.raises(InputError, match="no paths are given"):
        read_traces([])


@pytest.mark.parametrize("paths", [None, 3, [None], [PLAIN, 3]])
def test_what_is_no_path(paths: Any) -> None:
    with pytest.raises(InputError, match="(None|3): a path, folder or glob pattern is needed"):
        read_traces(paths)


def test_unknown_argument() -> None:
    with pytest.raises(InputError, match="unknown argument 'verifer'; known are verifier, "):
        read_traces(PLAIN, verifer="x")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"verifier": "other"},
            "verifier is 'dense-115m' in the file but 'other' in the arguments",
        ),
        ({"draft_tokens": 3}, "draft_tokens is '0' in the file but 3 in the arguments"),
        (
            {"hardware": "H100"},
            "hardware is '2-core .* in the file but 'H100' in the arguments",
        ),
    ],
)
def test_arguments_may_not_contradict_the_file(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_traces(PLAIN, **argument)


def test_equal_numbers_written_differently_do_not_contradict() -> None:
    assert len(read_traces(PLAIN, verifier_params=1.1698176e8, draft_tokens=0.0)) == 1


def test_a_sidecar_may_not_contradict_the_file(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    b = write(tmp_path / "b.json", raw(SD))
    (tmp_path / "side.yaml").write_text("'a*': {family: moe}\n")
    traces = read_traces([a, b], config=tmp_path / "side.yaml")
    assert traces.runs.source.tolist() == [str(b)]
    assert traces.set_aside.reason[0] == (
        "family is 'dense' in the file but 'moe' in the sidecar's 'a*'; give one value"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "s.yaml",
            "a.json: {verifer: x}",
            "unknown key 'verifer'; known are verifier, ",
        ),
        ("s.yaml", "z.json: {verifier: x}", "'z.json' matches none of the 1 files"),
        ("s.yaml", "a.json: x", "must map file names or patterns"),
        ("s.yaml", "a: [", "is not YAML"),
        (
            "s.csv",
            "name,verifier\na.json,x\n",
            "a column 'file' is needed, but the columns are name",
        ),
        ("s.csv", "", "is not a CSV table"),
        ("gone.csv", None, "no such sidecar file"),
    ],
)
def test_bad_sidecar(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_traces(a, config=tmp_path / name)


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    # Renamed and relabelled, the measurements are still the same.
    b = write(tmp_path / "b.json", changed(raw(PLAIN), verifier="other", date="x"))
    traces = read_traces([a, b])
    assert traces.runs.source.tolist() == [str(a)]
    assert traces.set_aside.reason[0] == (
        f"its measurements are those of {a} again; a run counts once"
    )


def test_the_minority_of_two_sizes_is_set_aside(tmp_path: Path) -> None:
    for i in (0, 1, 2):
        data = raw(PLAIN.with_name(f"dense-115m_{i}.json"))
        data |= {"verifier_params": "2e8"} if i == 0 else {}
        write(tmp_path / f"{i}.json", data)
    traces = read_traces(tmp_path)
    assert traces.runs.verifier_params.tolist() == [116981760] * 2
    assert traces.set_aside.reason.tolist() == [
        (
            "verifier_params of 'dense-115m' is 200000000 here but 116981760 in 2 other runs of "
            "this environment; correct it or give the models different names"
        )
    ]


def test_the_same_name_may_differ_between_environments(tmp_path: Path) -> None:
    a = raw(PLAIN)
    b = changed(
        raw(PLAIN.with_name("dense-115m_1.json")),
        hardware="H100",
        verifier_params="2e8",
    )
    traces = read_traces([write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)])
    assert len(traces) == 2 and len(traces.set_aside) == 0


def test_the_minority_of_two_drafter_sizes_is_set_aside(tmp_path: Path) -> None:
    for i in (0, 1, 2):
        data = raw(SD.with_name(f"dense-115m_draft-12m_k7_a70_{i}.json"))
        data |= {"drafter_params": "5e6"} if i == 1 else {}
        write(tmp_path / f"{i}.json", data)
    traces = read_traces(tmp_path)
    assert traces.set_aside.source.tolist() == [str(tmp_path / "1.json")]
    assert "drafter_params of 'draft-12m' is 5000000 here" in traces.set_aside.reason[0]
