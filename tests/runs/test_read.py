"""What is read: files, folders and patterns, whose configuration comes from elsewhere too."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_helpers import PLAIN, SD, TABLE, one, raw, read_table, write

from bayes_sd.errors import InputError
from bayes_sd.runs.read import corpus as shipped
from bayes_sd.runs.read import load_yaml, read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.read_bytes()[:1500], "is not complete JSON .* at line"),
        (b"", "is empty; needed is a JSON result"),
        (b"time,latency\n1,2\n", "no column is given for verifier"),
        (b"a note\n", "is of no known kind; needed is"),
        (b"verifier;requests;e2e_mean_s\n", "kind; a table has commas between its cells, not ';'"),
        (b"a," + b"x" * 200_000 + b"\n", "is no table in CSV or JSON lines .field larger than"),
        (b"verifier,e2e_mean_s,e2e_mean_s\n", "two columns are called e2e_mean_s; names must"),
        (b"\xff\xfe\x00\x01", "is not text"),
        (
            gzip.compress(PLAIN.read_bytes())[:300],
            "bad.json: cannot be read .Compressed file ended",
        ),
        (gzip.compress(b"{}")[:10] + b"noise", "bad.json: cannot be read .Error -3 while decompr"),
        (b"[" * 100_000, "is JSON of an absurd size or depth"),
        (b'{"duration": ' + b"1" * 5000 + b"}", "is JSON of an absurd size or depth"),
        (b"[1, 2]", "is not a JSON object or several"),
        (b'{"benchmarks": [], "args": {}}', "is a GuideLLM report"),
        (
            b'{"records": []}',
            r"is JSON of no known kind \(it has records\); needed is a JSON result",
        ),
    ],
    ids=[
        "truncated",
        "empty",
        "csv",
        "note",
        "semicolons",
        "long-header",
        "twice",
        "binary",
        "half-packed",
        "packed-noise",
        "deep",
        "long",
        "list",
        "guidellm",
        "other",
    ],
)
def test_bad_file(content: bytes, message: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(bad)
    write(tmp_path / "good.json", raw(PLAIN))
    assert len(read(tmp_path)) == 1


BENCH = {"run_name": "a", "batch_size": 4, "input_len": 8, "output_len": 8, "overall_throughput": 9}
UNREAD = {
    "TensorRT-LLM's trtllm-bench": {"engine": {}, "world_info": {}, "request_info": {}},
    "GenAI-Perf": {"request_latency": {"avg": 1}, "input_config": {"model": ["m"]}},
    "GenAI-Perf's perf_analyzer": {"version": "2", "service_kind": "openai", "experiments": []},
    "LLMPerf": {"results_end_to_end_latency_s_mean": 2.0, "results_ttft_s_mean": 0.1},
    "LLMPerf.*": [{"ttft_s": 0.1, "end_to_end_latency_s": 2.0}],
    "vllm bench latency": {"avg_latency": 1.0, "latencies": [1.0], "percentiles": {"50": 1.0}},
    "vllm bench throughput": {"elapsed_time": 1, "requests_per_second": 2, "tokens_per_second": 9},
    "SGLang's bench_offline_throughput": {"successful_requests": 4, "total_latency": 2.0},
    "SGLang's bench_one_batch": BENCH,
    "llama.cpp's llama-bench": [{"build_commit": "a", "n_prompt": 512, "n_gen": 0}],
    "MLPerf's loadgen": "====\nMLPerf Results Summary\n====\nScenario : Server\n",
}


@pytest.mark.parametrize(("tool", "content"), UNREAD.items(), ids=UNREAD)
def test_a_tool_that_is_not_read_is_named(tool: str, content: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=f"is a result of {tool}.*, which is not read; needed is"):
        read(path)


def test_a_table_in_json_lines_is_that_of_csv(tmp_path: Path) -> None:
    lines = tmp_path / "runs.jsonl"
    lines.write_text(TABLE.to_json(orient="records", lines=True))
    same = read_table(lines).table.drop(columns="source")
    assert same.equals(read_table().table.drop(columns="source"))


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_names_are_shown_escaped(tmp_path: Path) -> None:
    data = raw(SD) | {"verifier": "a\x1b[2J\ud800b\nc"}
    path = tmp_path / os.fsdecode(b"x\xff\n.json")
    path.write_text(json.dumps(data))
    (tmp_path / os.fsdecode(b"\xfe.json")).write_text("[")
    runs = read(tmp_path)
    assert runs.table.verifier.tolist() == [r"a\x1b[2J\ud800b\nc"]
    assert runs.table.source[0].endswith(r"x\udcff\n.json")
    assert runs.set_aside.source[0].endswith(r"\udcfe.json")
    assert str(runs.check()).replace("\n", "").isprintable()


def test_megabytes_are_not_repeated(tmp_path: Path) -> None:
    for field in ("verifier", "duration", "verifier_params", "environment"):
        path = write(tmp_path / "a.json", raw(SD) | {field: "x" * 2_000_000})
        with pytest.raises(InputError, match=f"{field} must .* got ") as caught:
            read(path)
        assert len(str(caught.value)) < 2_100


@pytest.mark.parametrize("number", ["1" * 5000, "0x" + "f" * 5000])
def test_yaml_of_endless_numbers_is_refused(number: str, tmp_path: Path) -> None:
    path = tmp_path / "side.yaml"
    path.write_text(f"'*.json': {{verifier_params: {number}}}")
    with pytest.raises(InputError, match=r"is not YAML \(a number has hundreds of digits\)"):
        load_yaml(path)


def test_runs_far_below_a_folder_are_found(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    write(deep / "run.json", raw(PLAIN))
    (deep / "packed.json.gz").write_bytes(gzip.compress(SD.read_bytes()))
    assert len(read(tmp_path)) == 2


def test_nothing_readable_gives_the_first_reasons(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.json").write_text("[]")
    with pytest.raises(InputError, match="none of 5 files can be used: .*0.json: is not .*2.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.json", "missing.json: no such file or folder"),
        ("empty", "empty: the folder has no .*csv.* with runs"),
        ("*.jsonl", r"\*.jsonl: no file matches the pattern"),
    ],
)
def test_bad_path(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        read(f"{tmp_path}/{path}")


def test_no_paths() -> None:
    with pytest.raises(InputError, match="no paths are given"):
        read([])


@pytest.mark.parametrize("paths", [None, 3, [None], [PLAIN, 3]])
def test_what_is_no_path(paths: Any) -> None:
    with pytest.raises(InputError, match="(None|3): a path, folder or glob pattern is needed"):
        read(paths)


def test_unknown_argument() -> None:
    with pytest.raises(
        InputError, match="unknown argument 'verifer'; known are environment, verifier, "
    ):
        read(PLAIN, verifer="x")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"verifier": "other"},
            "verifier is 'dense-115m' in the file but 'other' in the arguments",
        ),
        ({"draft_tokens": 3}, "draft_tokens is '0' in the file but 3 in the arguments"),
        ({"hardware": "H100"}, "hardware is '2-core .* in the file but 'H100' in the arguments"),
    ],
)
def test_arguments_may_not_contradict_the_file(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(PLAIN, **argument)


def test_equal_numbers_written_differently_do_not_contradict() -> None:
    assert len(read(PLAIN, verifier_params=1.1698176e8, draft_tokens=0.0)) == 1


def test_a_sidecar_may_not_contradict_the_file(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    b = write(tmp_path / "b.json", raw(SD))
    (tmp_path / "side.yaml").write_text("'a*': {family: moe}\n")
    runs = read([a, b], config=tmp_path / "side.yaml")
    assert runs.table.source.tolist() == [str(b)]
    assert runs.set_aside.reason[0] == (
        "family is 'dense' in the file but 'moe' in the sidecar's 'a*'; give one value"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "s.yaml",
            "a.json: {verifer: x}",
            "unknown key 'verifer'; known are environment, verifier, ",
        ),
        ("s.yaml", "z.json: {verifier: x}", "'z.json' matches none of the 1 files"),
        ("s.yaml", "a.json: x", "must map file names or patterns"),
        ("s.yaml", "a: [", "is not YAML"),
        ("s.yaml", r'a: {b: "\ud800"}', "is not YAML"),
        ("s.yaml", "[1]", "must map names to values"),
        ("s.yaml", "a.json: {family: moe, family: dense}", "key .family. is given twice"),
        (
            "s.csv",
            "name,verifier\na.json,x\n",
            "a column 'file' is needed, but the columns are name",
        ),
        ("s.csv", "", "is no table in CSV"),
        ("gone.csv", None, "no such file"),
    ],
)
def test_bad_sidecar(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read(a, config=tmp_path / name)


def test_configuration_from_arguments(bare: Path) -> None:
    run = one(bare, verifier_params="8e9", drafter="eagle", environment="H100")
    assert (run.verifier, run.verifier_params, run.draft_tokens) == ("dense-115m", 8e9, 7)
    assert (run.environment, run.family, run.verifier_active_params) == ("H100", "dense", 8e9)
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
    assert read(named[how]).table.source.tolist() == [str(a), str(b)]


RESULTS = [
    {
        "model_id": "verifier-8b", "request_rate": rate, "max_concurrency": None, "duration": 61.0,
        "completed": int(60 * rate), "failed": 0, "total_input_tokens": int(60_000 * rate),
        "total_output_tokens": int(6000 * rate), "mean_e2el_ms": mean, "std_e2el_ms": 45.0,
    }
    for rate, mean in ((1.0, 900.0), (5.0, 1100.0), (10.0, 1500.0))
]  # fmt: skip
SEVERAL = {
    "appended.json": "\n".join(map(json.dumps, RESULTS)),
    "lines.jsonl": "\n".join(map(json.dumps, RESULTS)) + "\n\n",
    "summary.json": json.dumps(RESULTS, indent=1),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_file_of_several_results(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SEVERAL[name])
    runs = read(tmp_path, verifier_params=8e9).table
    assert runs.rate_rps.tolist() == [1, 5, 10] and runs["row"].tolist() == [0, 1, 2]
    assert runs.e2e_mean_s.tolist() == pytest.approx([0.9, 1.1, 1.5])


def test_one_bad_result_among_several_is_set_aside(tmp_path: Path) -> None:
    results = [RESULTS[0], RESULTS[1] | {"duration": 0}, {"benchmarks": 3}]
    path = write(tmp_path / "a.json", [*results, *RESULTS])
    runs = read(path, verifier_params=8e9)
    assert len(runs) == 3 and runs.set_aside["row"].tolist() == [1, 2, 3]
    assert runs.set_aside.reason[0] == "duration must be a positive finite number, got 0"
    assert "a run counts once" in runs.set_aside.reason[2]
    path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match="is not complete JSON"):
        read(path, verifier_params=8e9)


DATA = Path(__file__).parents[1] / "data"
METRICS = gzip.decompress((DATA / "prometheus" / "sd-server.txt.gz").read_bytes()).decode()


def test_a_folder_of_everything_is_joined(tmp_path: Path) -> None:
    write(tmp_path / "a.json", raw(PLAIN))
    shutil.copy(DATA / "guidellm" / "v0.8-poisson.json", tmp_path / "benchmarks.json")
    shutil.copytree(DATA / "aiperf" / "v0.13-poisson", tmp_path / "aiperf")
    (tmp_path / "metrics.txt").write_text(METRICS)
    TABLE.assign(verifier="m", drafter="eagle", verifier_params=8e9, draft_tokens=3).rename(
        columns={"rps": "rate_rps", "n": "requests", "lat_ms": "e2e_mean_s"}
    ).assign(e2e_mean_s=[0.9, 1.3], e2e_std_s=0.1, prompt_tokens=9, output_tokens=9).to_csv(
        tmp_path / "table.csv", index=False
    )
    side = tmp_path / "side.yaml"
    side.write_text(
        "'*profile_export_aiperf.json': {verifier_params: 60e6}\n"
        "metrics.txt: {verifier_params: 60e6, drafter: draft-3m, drafter_params: 3e6}\n"
    )
    runs = read(tmp_path, config=side, window_s=120)
    sources = runs.table.source.str.removeprefix(f"{tmp_path}/")
    assert sources.value_counts().to_dict() == {
        "a.json": 1,
        "benchmarks.json": 2,
        "aiperf/profile_export_aiperf.json": 1,
        "table.csv": 2,
        "metrics.txt": 1,
    }
    assert set(runs.set_aside.source) == {str(tmp_path / "metrics.txt")}


def test_what_is_known_to_hold_no_runs_is_not_looked_into(tmp_path: Path) -> None:
    shutil.copy(DATA / "guidellm" / "v0.8-poisson.json", tmp_path / "benchmarks.json")
    (tmp_path / "benchmarks.csv").write_text("Run Info,Run Info\nModel,Type\n")
    for name in ("bench_params.json", "warmup.json", "run=0.failure.json", ".aiperf.json"):
        (tmp_path / name).write_text("{}")
    side = tmp_path / "who.csv"
    side.write_text("file,verifier_params\nbenchmarks.json,60e6\n")
    runs = read(tmp_path, config=side)
    assert len(runs) == 2 and len(runs.set_aside) == 0
    (tmp_path / "notes.txt").write_text("what I did\n")
    assert read(tmp_path, config=side).set_aside.reason.str.contains("no known kind").all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"rate_rps": "rps"}}, "columns is for tables only, and no table was read"),
        ({"output_tokens": 3}, "output_tokens is for tables only"),
        ({"window_s": 0}, "window_s must be a positive number of seconds, got 0"),
        ({"drafter_method": "eagle3"}, "arm is plain but drafter is 'eagle3'|but there is no dra"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(PLAIN, **arguments)


def test_constants_hold_for_tables_and_files_alike(bare: Path, tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    both = read(
        [tmp_path / "t.csv", bare],
        columns={"rate_rps": "rps", "requests": "n", "e2e_mean_s": ("lat_ms", "ms"),
                 "e2e_std_s": ("lat_sd_ms", "ms")},
        verifier="v", verifier_params=8e9, drafter="d", num_speculative_tokens=7,
        prompt_tokens=512, output_tokens=128, acceptance=0.7,
    )  # fmt: skip
    assert both.table.verifier.tolist() == ["v"] * 3
    assert both.table.draft_tokens.tolist() == [7] * 3
    assert both.table.prompt_tokens[:2].tolist() == [512, 512]
    assert both.table.prompt_tokens[2] == np.mean(raw(bare)["input_lens"])


def test_a_sidecar_configures_tables(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "side.yaml").write_text("t.csv: {environment: H100}\n")
    runs = read_table(tmp_path / "t.csv", config=tmp_path / "side.yaml")
    assert set(runs.table.environment) == {"H100"}


def test_keys_of_yaml_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {k: 1, m: 2}\nother: {<<: *b, k: 3}\n4: x\n")
    assert load_yaml(path) == {"base": {"k": 1, "m": 2}, "other": {"k": 3, "m": 2}, "4": "x"}
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(InputError, match="a.yaml: is not YAML .key 'a' is given twice"):
        load_yaml(path)


def test_shipped_measurements() -> None:
    assert (shipped("vllm-cpu") / PLAIN.name).is_file()
    with pytest.raises(InputError, match="the shipped runs 'none' were not found"):
        shipped("none")


@pytest.mark.parametrize(
    ("campaign", "machine", "rows", "requests", "layers"),
    [
        ("vllm-h200", "H200", 40, 2996, {"Qwen3-0.6B": 28, "eagle3": 1}),
        (
            "vllm-h100",
            "H100",
            26,
            2216,
            {"eagle3 of Llama-3.1-8B": 1, "eagle3 of Qwen3-30B-A3B": 1},
        ),
        (
            "vllm-h200-experts",
            "H200",
            39,
            3140,
            {"eagle3 of Mixtral-8x7B": 1, "eagle3 of Qwen3-30B-A3B": 1},
        ),
        (
            "vllm-h200-rates",
            "H200",
            31,
            4652,
            {"eagle3 of Llama-3.2-3B": 1, "eagle3 of Qwen3-8B": 1},
        ),
    ],
)
def test_the_shipped_runs_of_a_gpu_are_read_as_they_are(
    campaign: str, machine: str, rows: int, requests: int, layers: dict[str, int]
) -> None:
    runs = read(shipped(campaign))
    assert len(runs.table) == rows and runs.set_aside.empty
    past = runs.table[runs.table.saturated]  # its keys and values hold 74 requests, 78 were there
    assert past.rate_rps.tolist() == [40.0] * (campaign == "vllm-h200-rates")
    assert set(runs.table.machine) == {machine} and runs.table.requests.sum() == requests
    assert runs.table.groupby("drafter").drafter_layers.first().dropna().to_dict() == layers
