"""Reports of GuideLLM 0.8 and 0.6 from real runs, against independent arithmetic on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

DATA = Path(__file__).parents[1] / "data" / "guidellm"
PLAIN: dict[str, Any] = {"verifier_params": 60e6}
SD: dict[str, Any] = {**PLAIN, "drafter": "draft-3m", "drafter_params": 3e6, "draft_tokens": 3}
REPORTS = sorted(DATA.glob("*.json"))


def report(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def read_report(path: Path) -> Runs:
    return read(path, **(SD if "-sd-" in path.name else PLAIN))


def read_changed(data: Any, tmp_path: Path, **arguments: Any) -> Runs:
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(data))
    return read(path, **{**PLAIN, **arguments})


@pytest.mark.parametrize("path", REPORTS, ids=lambda p: p.stem)
def test_each_benchmark_is_a_run_with_the_statistics_of_its_requests(path: Path) -> None:
    runs, benchmarks = read_report(path).table, json.loads(path.read_text())["benchmarks"]
    assert runs.row.tolist() == list(range(len(benchmarks)))
    assert runs.detail.all()
    assert runs.run_id.is_unique
    for run, benchmark in zip(runs.to_dict("records"), benchmarks, strict=True):
        done = pd.DataFrame(benchmark["requests"]["successful"])
        e2e, ttft = done.request_latency, done.time_to_first_token_ms / 1000
        tpot = (e2e - ttft) / (done.output_tokens - 1)
        for name, x in (("e2e", e2e), ("ttft", ttft), ("tpot", tpot)):
            assert run[f"{name}_mean_s"] == pytest.approx(x.sum() / len(x))
            assert run[f"{name}_log_mean"] == pytest.approx(np.log(x).mean())
            assert run[f"{name}_log_var"] == pytest.approx(np.log(x).var(ddof=1))
        assert run["requests"] == benchmark["metrics"]["request_totals"]["successful"]
        assert run["duration_s"] == benchmark["duration"]
        assert run["verifier"] == "dense-60m"
        assert run["prompt_tokens"] == 64
        assert run["output_tokens"] == 64


@pytest.mark.parametrize("version", ["v0.8", "v0.6"])
def test_strategies_are_loops(version: str) -> None:
    runs = read_report(DATA / f"{version}-sweep.json").table
    assert runs.loop.tolist() == ["closed", "burst", "open", "open"]
    assert runs.concurrency.dropna().tolist() == [1]
    assert runs.saturated.tolist() == [False, True, False, False]
    rates = [b["config"]["strategy"].get("rate") for b in report(f"{version}-sweep")["benchmarks"]]
    assert runs.rate_rps.iloc[2:].tolist() == rates[2:]
    # Synchronous: one in flight, always, up to the moments between two requests.
    assert 0.9 < runs.in_flight.iloc[0] <= 1.0001
    assert runs.burstiness.isna().all()


def test_concurrent_and_poisson() -> None:
    concurrent = read_report(DATA / "v0.6-concurrent.json").table.iloc[0]
    assert (concurrent.loop, concurrent.concurrency) == ("closed", 2)
    poisson = read_report(DATA / "v0.8-poisson.json").table
    assert poisson.rate_rps.tolist() == [0.5, 1.2]
    assert poisson.burstiness.tolist() == [1, 1]
    assert (poisson.span_s < poisson.duration_s).all()


def test_time_per_output_token_is_not_theirs() -> None:
    run = read_report(DATA / "v0.8-sd-poisson.json").table.iloc[0]
    metrics = report("v0.8-sd-poisson")["benchmarks"][0]["metrics"]
    theirs = metrics["time_per_output_token_ms"]["successful"]["mean"] / 1000
    itl = metrics["inter_token_latency_ms"]["successful"]["mean"] / 1000
    assert theirs == pytest.approx(run.e2e_mean_s / 64, rel=0.01)
    # Theirs ends with the last token, ours with the answer.
    assert run.tpot_mean_s == pytest.approx(itl, rel=0.01)
    assert run.tpot_mean_s < theirs


def test_labels_are_configuration() -> None:
    path = DATA / "v0.8-poisson.json"
    assert report("v0.8-poisson")["config"]["metadata"]["labels"]["verifier_params"] == "60e6"
    assert read(path).table.verifier_params.tolist() == [60e6, 60e6]
    with pytest.raises(InputError, match="verifier_params is '60e6' in the file but"):
        read(path, verifier_params=1e9)


@pytest.mark.parametrize("name", ["v0.8-poisson", "v0.6-sweep"])
def test_aggregates_where_requests_are_only_sampled(name: str, tmp_path: Path) -> None:
    data = report(name)
    exact = read_changed(data, tmp_path).table
    for benchmark in data["benchmarks"]:
        del benchmark["requests"]["successful"][3:]
    runs = read_changed(data, tmp_path).table
    assert not runs.detail.any()
    for column in ("e2e_mean_s", "ttft_mean_s", "tpot_mean_s", "prompt_tokens", "in_flight"):
        np.testing.assert_allclose(runs[column], exact[column], rtol=0.01)
    # From mean and standard deviation of a lognormal: near, not exact.
    np.testing.assert_allclose(runs.e2e_log_mean, exact.e2e_log_mean, atol=0.02)
    np.testing.assert_allclose(
        runs.e2e_p50_s, [b["metrics"]["request_latency"]["successful"]["percentiles"]["p50"]
                         for b in data["benchmarks"]]
    )  # fmt: skip


def test_a_limit_that_was_reached_is_a_cap(tmp_path: Path) -> None:
    data = report("v0.8-poisson")
    peak = data["benchmarks"][1]["metrics"]["request_concurrency"]["total"]["max"]
    data["benchmarks"][1]["config"]["strategy"]["max_concurrency"] = int(peak)
    runs = read_changed(data, tmp_path).table
    assert runs.concurrency.isna().tolist() == [True, False]
    assert runs["flags"].tolist()[1] == "concurrency-cap"


def test_statistics_of_nothing_are_missing(tmp_path: Path) -> None:
    data = report("v0.6-concurrent")
    benchmark = data["benchmarks"][0]
    for request in benchmark["requests"]["successful"]:
        request["time_to_first_token_ms"] = None
    for name in ("time_to_first_token_ms", "inter_token_latency_ms"):
        benchmark["metrics"][name]["successful"] |= {"count": 0, "mean": 0.0}
    run = read_changed(data, tmp_path).table.iloc[0]
    assert np.isnan(run.ttft_mean_s)
    assert np.isnan(run.tpot_mean_s)
    assert run["flags"] == "no-tpot"


def test_errors_are_failures(tmp_path: Path) -> None:
    data = report("v0.8-poisson")
    data["benchmarks"][0]["metrics"]["request_totals"]["errored"] = 7
    runs = read_changed(data, tmp_path).table
    assert runs.failed.tolist() == [7, 0]
    assert "failed>5%" in runs["flags"][0] and runs["flags"][1] == ""


def test_requests_cut_off_at_the_end(tmp_path: Path) -> None:
    data = report("v0.8-poisson")
    exact = read_changed(data, tmp_path).table
    # 12 answered and 2 cut off, as many as a steady run has in flight; then 24 and none.
    assert exact["flags"].tolist() == ["cut-off", ""]
    totals = data["benchmarks"][1]["metrics"]["request_totals"]
    totals["incomplete"] = totals["successful"]
    runs = read_changed(data, tmp_path)
    # Twice as many have arrived as the rate gives, which Little's law finds odd.
    assert runs.table["flags"].tolist()[1] == "cut-off,little,overloaded,saturated"
    assert runs.table.e2e_mean_s.tolist() == exact.e2e_mean_s.tolist()
    assert runs.check().findings.finding.str.contains("2 of 2 runs ended with over 5%").sum() == 1


def edit(data: Any, path: str, value: Any) -> None:
    *keys, last = (int(k) if k.isdigit() else k for k in path.split("."))
    for key in keys:
        data = data[key]
    data[last] = value


SUCCESSFUL = "requests.successful"
BAD = [
    ("config.strategy.type_", "trace", "strategy 'trace' has no constant load; read are sync"),
    ("config.strategy.rate", None, "rate_rps is missing; an open loop"),
    ("config.strategy.rate", -1, r"config.strategy.rate must be a positive finite number, got -1"),
    ("config.strategy.rampup_duration", 5, "rampup_duration is 5 s; only constant loads"),
    ("config", {}, "config.strategy.type_ is missing"),
    ("metrics", {}, "metrics.request_totals.successful is missing"),
    ("metrics.request_latency", 3, "metrics.request_latency must be a JSON object, got '3'"),
    ("duration", 0, "duration must be a positive finite number, got 0"),
    ("metrics.request_totals.successful", 0, "no request succeeded"),
    (f"{SUCCESSFUL}.2.request_latency", "x", r"requests.successful\[2\].request_latency must be"),
    (f"{SUCCESSFUL}.2.request_latency", -1.0, "request 2 has e2e latency -1 s"),
    (f"{SUCCESSFUL}.2.request_latency", 1500.0, "e2e latencies reach 1500 s in a run of 15 s"),
    (f"{SUCCESSFUL}.2.time_to_first_token_ms", 9e4, "request 2 has e2e latency .* and ttft 90 s"),
    ("metrics.request_latency.successful.mean", 1420.0, "mean e2e is reported as 1420 s but"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{p}={v}" for p, v, _ in BAD])
def test_a_bad_benchmark_is_set_aside(path: str, value: Any, message: str, tmp_path: Path) -> None:
    data = report("v0.8-poisson")
    edit(data["benchmarks"][1], path, value)
    runs = read_changed(data, tmp_path)
    assert runs.table.row.tolist() == [0]
    assert runs.set_aside.row.tolist() == [1]
    assert runs.set_aside.reason.str.contains(message).all(), runs.set_aside.reason[0]
    findings = runs.check().findings
    assert findings["where"].str.endswith("benchmarks.json row 1").any()
    data["benchmarks"] = data["benchmarks"][1:]
    with pytest.raises(InputError, match=message):
        read_changed(data, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": []}, "is a GuideLLM report without benchmarks"),
        ({"benchmarks": {"a": 1}}, "has benchmarks but neither args nor config"),
        ({"config": None, "args": None}, "has benchmarks but neither args nor config"),
    ],
)
def test_bad_report(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = {k: v for k, v in {**report("v0.8-poisson"), **change}.items() if v is not None}
    with pytest.raises(InputError, match=message):
        read_changed(data, tmp_path)


def test_a_drafter_needs_its_draft_tokens() -> None:
    with pytest.raises(InputError, match="draft_tokens is missing"):
        read(DATA / "v0.8-sd-poisson.json", **PLAIN, drafter="draft-3m", drafter_params=3e6)


def test_a_fit_needs_nothing_more(tmp_path: Path) -> None:
    runs = read_report(DATA / "v0.8-poisson.json") + read_report(DATA / "v0.8-sd-poisson.json")
    assert runs.check().passed
    assert sorted(runs.steady.table.arm) == ["plain", "plain", "sd"]
