"""Exports of AIPerf 0.13 and 0.6 from real runs, against independent arithmetic on them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

DATA = Path(__file__).parents[1] / "data" / "aiperf"
PLAIN: dict[str, Any] = {"verifier_params": 60e6}
SD: dict[str, Any] = {**PLAIN, "drafter": "draft-3m", "drafter_params": 3e6, "draft_tokens": 3}
FOLDERS = sorted(p for p in DATA.iterdir() if p.is_dir())
EXPORT, RECORDS = "profile_export_aiperf.json", "profile_export.jsonl"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(DATA / name, to / name))


def change(folder: Path, path: str, value: Any) -> None:
    file = folder / EXPORT
    data = at = json.loads(file.read_text())
    *keys, last = (int(k) if k.isdigit() else k for k in path.split("."))
    for key in keys:
        at = at[key]
    at[last] = value
    file.write_text(json.dumps(data))


def read_folder(folder: Path) -> Runs:
    return read(folder, **(SD if "-sd-" in folder.name else PLAIN))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_folder_is_a_run_with_the_statistics_of_its_requests(folder: Path) -> None:
    runs = read_folder(folder)
    assert len(runs) == 1
    assert len(runs.set_aside) == 0  # inputs.json is not a bad run
    run = runs.table.iloc[0]
    metrics = [r["metrics"] for r in records(folder)]
    e2e, ttft, n = (
        np.array([m[name]["value"] for m in metrics])
        for name in ("request_latency", "time_to_first_token", "output_sequence_length")
    )
    tpot = (e2e - ttft) / (n - 1)
    for name, x in (("e2e", e2e / 1000), ("ttft", ttft / 1000), ("tpot", tpot / 1000)):
        assert run[f"{name}_mean_s"] == pytest.approx(x.mean())
        assert run[f"{name}_log_var"] == pytest.approx(np.log(x).var(ddof=1))
        assert run[f"{name}_p90_s"] == pytest.approx(np.quantile(x, 0.9))
    export = json.loads((folder / EXPORT).read_text())
    assert run.tpot_mean_s * 1000 == pytest.approx(export["inter_token_latency"]["avg"], rel=1e-4)
    assert run.requests == len(metrics) == export["request_count"]["avg"]
    assert run.duration_s == export["benchmark_duration"]["avg"]
    assert run.verifier == "dense-60m"
    assert (run.prompt_tokens, run.output_tokens) == (64, 64)
    assert run.detail


def test_loads() -> None:
    loads = {f.name: read_folder(f).table.iloc[0] for f in FOLDERS}
    for name in ("v0.13-poisson", "v0.13-sd-poisson", "v0.6-poisson"):
        run = loads[name]
        assert (run.loop, run.rate_rps, run.burstiness) == ("open", 1.5, 1)
        starts = [r["metadata"]["request_start_ns"] / 1e9 for r in records(DATA / name)]
        assert run.span_s == pytest.approx(max(starts) - min(starts), abs=1e-3)
    closed = loads["v0.13-concurrency"]
    assert (closed.loop, closed.concurrency) == ("closed", 2)
    assert closed.in_flight == pytest.approx(2, rel=0.05)
    assert np.isnan(closed.rate_rps)


@pytest.mark.parametrize("name", ["v0.13-poisson", "v0.6-poisson"])
def test_the_export_alone(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path)
    exact = read_folder(folder).table.iloc[0]
    (folder / RECORDS).unlink()
    run = read_folder(folder).table.iloc[0]
    assert not run.detail
    for column in ("e2e_mean_s", "ttft_mean_s", "tpot_mean_s", "e2e_p50_s", "prompt_tokens"):
        assert run[column] == pytest.approx(exact[column], rel=1e-4)
    assert run.e2e_log_mean == pytest.approx(exact.e2e_log_mean, abs=0.01)
    assert run.span_s == pytest.approx(run.requests / 1.5)


def test_warmup_cancelled_and_failed_requests_are_left_out(tmp_path: Path) -> None:
    folder = copy("v0.13-poisson", tmp_path)
    rows = records(folder)
    warmup, cancelled, failed = (json.loads(json.dumps(rows[0])) for _ in range(3))
    warmup["metadata"]["benchmark_phase"] = "warmup"
    cancelled["metadata"]["was_cancelled"] = True
    failed |= {"error": {"code": 500}, "metrics": {}}
    (folder / RECORDS).write_text(
        "\n".join(json.dumps(r) for r in [warmup, cancelled, failed, *rows]) + "\n\n"
    )
    change(folder, "error_request_count", {"unit": "requests", "avg": 2.0})
    run = read_folder(folder).table.iloc[0]
    assert (run.requests, run.failed) == (len(rows), 2)
    assert run.e2e_mean_s == read_folder(DATA / "v0.13-poisson").table.e2e_mean_s.iloc[0]


WARMUP = {"type": "concurrency", "concurrency": 8, "requests": 50, "concurrency_ramp": 5}


@pytest.mark.parametrize(
    "said",
    [
        {"name": "warmup", "exclude_from_results": True},  # 0.9 to 0.12
        {"name": "warmup"},
        {"name": "heat", "kind": "warmup"},  # 0.13
    ],
    ids=str,
)
def test_a_warmup_phase_is_not_the_measured_one(said: dict[str, Any], tmp_path: Path) -> None:
    folder = copy("v0.13-poisson", tmp_path)
    measured = {"name": "profiling", "type": "poisson", "rate": 1.5, "requests": 24}
    change(folder, "input_config.phases", [{**WARMUP, **said}, measured])
    change(folder, "warmup_metrics", {"request_latency": {"unit": "ms", "avg": 9e3}})
    part = folder / "phases" / "warmup"
    part.mkdir(parents=True)
    shutil.copy(folder / EXPORT, part)
    shutil.copy(folder / EXPORT, folder / "profile_export_aiperf_aggregate.json")
    run, plain = (read_folder(f).table for f in (folder, DATA / "v0.13-poisson"))
    assert len(run) == 1
    assert run.drop(columns="source").equals(plain.drop(columns="source"))


def test_units_are_read_not_assumed(tmp_path: Path) -> None:
    folder = copy("v0.13-poisson", tmp_path)
    (folder / RECORDS).unlink()
    ms = json.loads((folder / EXPORT).read_text())["time_to_first_token"]
    in_us = {k: v * 1000 if isinstance(v, float) else v for k, v in ms.items()} | {"unit": "us"}
    change(folder, "time_to_first_token", in_us)
    assert read_folder(folder).table.ttft_mean_s.iloc[0] == pytest.approx(ms["avg"] / 1000)


PHASE = "input_config.phases.0"
NAMED = {"models": {"items": [{"name": "dense-60m"}]}}
BAD = [
    ("v0.13-poisson", "request_latency", None, "request_latency is missing"),
    (
        "v0.13-poisson",
        "request_latency.unit",
        "h",
        "request_latency.unit: input should be 's', 'sec'",
    ),
    ("v0.13-poisson", "benchmark_duration", 5, "benchmark_duration must be a JSON object, got '5'"),
    ("v0.13-poisson", "output_sequence_length.avg", -1, "output_sequence_length.avg must be .* 0"),
    ("v0.13-poisson", "request_latency.avg", 1.2, "mean e2e is reported as 0.0012 s but"),
    ("v0.13-poisson", "request_count.avg", 30.0, "lists 24 successful requests but .* counts 30"),
    ("v0.13-poisson", "request_count.avg", 0.0, "no request succeeded"),
    ("v0.13-poisson", "input_config", None, "input_config is missing; it says what load"),
    ("v0.13-poisson", "input_config", NAMED, "input_config has neither phases nor loadgen"),
    ("v0.13-poisson", "input_config.models", {"items": 2.5}, "verifier is missing; give it"),
    ("v0.13-poisson", "input_config.phases", [], "has 0 profiling phases; a run has one"),
    ("v0.13-poisson", f"{PHASE}.type", "user_centric", "load 'user_centric' has no constant rate"),
    ("v0.13-poisson", f"{PHASE}.rate", None, "rate_rps is missing; an open loop"),
    ("v0.13-poisson", f"{PHASE}.rate_ramp", 10, "rate_ramp is set; only runs at a constant load"),
    ("v0.6-poisson", "input_config.loadgen.request_rate", -1, "rate must be a positive"),
    ("v0.6-poisson", "input_config.loadgen.concurrency_ramp_duration", 5, "concurrency_ramp_dur"),
    ("v0.6-poisson", "benchmark_duration.avg", -1.0, "the duration must be a positive number"),
]


@pytest.mark.parametrize(("name", "path", "value", "message"), BAD, ids=[f"{b[1]}" for b in BAD])
def test_bad_export(name: str, path: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path)
    change(folder, path, value)
    with pytest.raises(InputError, match=message):
        read_folder(folder)


def test_gamma_arrivals_keep_their_shape(tmp_path: Path) -> None:
    folder = copy("v0.13-poisson", tmp_path)
    change(folder, PHASE, {"type": "gamma", "rate": 1.5, "smoothness": 2.0, "concurrency": 9})
    run = read_folder(folder).table.iloc[0]
    assert (run.burstiness, run.concurrency) == (2.0, 9)
    assert run["flags"] == "concurrency-cap"


@pytest.mark.parametrize(
    ("keep", "message"), [(0.5, "line 1[0-9] is not complete JSON"), (0.0, "lists 0 successful")]
)
def test_truncated_records(keep: float, message: str, tmp_path: Path) -> None:
    folder = copy("v0.13-poisson", tmp_path)
    text = (folder / RECORDS).read_text()
    (folder / RECORDS).write_text(text[: int(keep * len(text))])
    with pytest.raises(InputError, match=f"{EXPORT}: {RECORDS} {message}"):
        read_folder(folder)


def test_all_of_them_beside_each_other() -> None:
    plain = [f for f in FOLDERS if "-sd-" not in f.name]
    runs = read(plain, **PLAIN)
    assert len(runs) == 3
    assert runs.check().passed
