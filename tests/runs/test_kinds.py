"""Kinds of input that public projects and default settings produce, each with its right value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs_helpers import write

import bayes_sd as bsd
from bayes_sd.model.acceptance import acceptance_draws, at_positions
from bayes_sd.model.design import build_design
from bayes_sd.physics.acceptance import tokens_per_cycle
from bayes_sd.runs.schema import Runs

MODEL = {"verifier_params": 8e9, "verifier": "v8b"}


def bench(e2e_s: float, n: int = 40, **changes: Any) -> dict[str, Any]:
    """An aggregate result of ``vllm bench serve``: 512 + 256 tokens, one request at a time."""
    tpot_ms = (e2e_s - 0.3) / 255 * 1e3
    data = {
        "backend": "vllm", "model_id": "v8b", "num_prompts": n, "request_rate": "inf",
        "burstiness": 1.0, "max_concurrency": 1, "duration": n * e2e_s, "completed": n,
        "failed": 0, "total_input_tokens": 512 * n, "total_output_tokens": 256 * n,
        "mean_ttft_ms": 300.0, "std_ttft_ms": 30.0, "mean_tpot_ms": tpot_ms,
        "std_tpot_ms": tpot_ms / 20, "mean_e2el_ms": e2e_s * 1e3, "std_e2el_ms": e2e_s * 60,
    } | changes  # fmt: skip
    return {key: value for key, value in data.items() if value is not None}


def run(path: Path, data: dict[str, Any], **constants: Any) -> Any:
    """The one run of a result."""
    runs = bsd.read(write(path / "run.json", data), **MODEL | constants)
    assert len(runs) == 1
    return runs.table.iloc[0]


def open_loop(rate: float, e2e_s: float, served_rps: float, **changes: Any) -> dict[str, Any]:
    """Two minutes of arrivals."""
    n = round(120 * rate)
    changes = {"request_rate": rate, "max_concurrency": None, "duration": n / served_rps} | changes
    return bench(e2e_s, n, **changes)


EAGLE = "{drafter: eagle, drafter_params: 1e9, draft_tokens: 3}"


def test_sd_runs_of_unknown_acceptance_are_fitted_and_named(tmp_path: Path) -> None:
    for name, e2e_s in (("plain_1", 4.0), ("sd_1", 2.6)):
        write(tmp_path / f"{name}.json", bench(e2e_s))
    side = tmp_path / "side.yaml"
    side.write_text(f"'plain*': {{drafter: none}}\n'sd*': {EAGLE}\n")
    runs = bsd.read(tmp_path, config=side, **MODEL)
    design = build_design(runs)
    assert len(design.table) == 2 and runs.table["acceptance_from"].tolist() == ["", "prior"]
    with pytest.warns(bsd.errors.EvidenceWarning) as caught:
        bsd.LatencyModel()._warn(design)
    said = str(caught[0].message)
    assert said.startswith("1 runs (") and "sd_1.json" in said


@pytest.mark.parametrize(
    ("server", "mean", "cycle"),
    [
        ({"drafter": "ngram"}, 0.4, 1.73),
        ({"drafter_method": "deepseek_mtp", "drafter": "head"}, 0.75, 2.83),
        ({"drafter": "yuhuili/EAGLE3-LLaMA3.1"}, 0.65, 2.44),
        ({"drafter": "qwen3-0.6b", "drafter_method": "draft_model"}, 0.7, 2.62),
    ],
)
def test_a_prior_of_its_kind_stands_in_for_an_acceptance(
    tmp_path: Path, server: dict[str, str], mean: float, cycle: float
) -> None:
    write(tmp_path / "a.json", bench(2.6))
    given = {"drafter_params": 1e8} if server["drafter"] != "ngram" else {}
    runs = bsd.read(tmp_path / "a.json", **MODEL, **server, **given, draft_tokens=3)
    group = acceptance_draws(build_design(runs).table, (4, 5000), 1)
    pair = {"verifier": "v8b", "drafter": runs.table["drafter"][0], "acceptance_imposed": np.nan}
    pair["workload"] = ""
    draws, _ = at_positions(group, pair, 3, seed=0)
    assert draws is not None and draws[0].mean() == pytest.approx(mean, abs=0.01)
    assert draws[0].std() > 0.12
    # What the fit takes for the cycles of these runs is the mean of what answers draw from.
    assert runs.table["tokens_per_cycle"][0] == pytest.approx(cycle, abs=0.03)
    assert tokens_per_cycle(draws, 3).mean() == pytest.approx(
        runs.table["tokens_per_cycle"][0], rel=0.01
    )


def test_a_pair_that_tells_its_acceptance_elsewhere_lends_it(tmp_path: Path) -> None:
    counts = {"spec_decode_num_drafts": 3000, "spec_decode_accepted_tokens": 4500}
    write(tmp_path / "a.json", bench(2.6, **counts))
    write(tmp_path / "b.json", bench(2.7))
    server = {"drafter": "eagle", "drafter_params": 1e9, "draft_tokens": 3}
    runs = bsd.read(tmp_path, **MODEL, **server)
    assert runs.table["acceptance_from"].tolist() == ["totals", "other runs"]
    assert runs.table["tokens_per_cycle"].tolist() == pytest.approx([2.5, 2.5])
    assert np.isnan(runs.table["drafts"][1])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    """Runs of every kind: steady, bounds, of no use, and mixtures."""
    drafting = {"drafter": "eagle", "draft_tokens": 3}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "steady": (open_loop(1, 0.9, 1.0), {}),
        "closed": (bench(4.0), {}),
        "overloaded": (open_loop(35, 20.4, 28.45), {}),
        "capped": (open_loop(10, 12.8, 5.0, max_concurrency=64), {}),
        "burst": (bench(30.0, 64, max_concurrency=None, duration=40.0), {}),
        "not filled": (bench(8.0, 16, max_concurrency=64, duration=8.5), {}),
        "cut off": (bench(8.0, 20, max_concurrency=16, duration=12.0, num_prompts=24), {}),
        "mostly cut off": (bench(8.0, 20, max_concurrency=64, duration=8.5, num_prompts=64), {}),
        "prior": (bench(2.6), drafting | {"drafter_params": 1e9}),
        "no size": (bench(2.6), drafting),
    }
    folder, runs = tmp_path_factory.mktemp("kinds"), {}
    for name, (data, server) in cases.items():
        path = write(folder / f"{name}.json", data)
        runs[name] = bsd.read(path, **MODEL, **server)
    whole = runs["steady"]
    for name in cases:
        whole = whole + runs[name]
        if name not in ("steady", "no size"):
            runs[f"steady and {name}"] = runs["steady"] + runs[name]
    return runs | {"all": whole}


def test_what_check_promises_is_what_is_fitted(kinds: dict[str, Runs]) -> None:
    seen = set()
    for name, runs in kinds.items():
        result = runs.check()
        promised = (result.summary["steady"].sum(), result.summary["bounds"].sum())
        try:
            data = build_design(runs).data
        except bsd.errors.EvidenceError:
            assert not result.passed, name
            continue
        assert result.passed, name
        assert promised == (len(data["e2e_rows"]), len(data["censored_rows"])), name
        seen.add(promised)
    assert {(1, 0), (1, 1), (2, 0)} <= seen


@pytest.mark.parametrize(
    ("kind", "finding", "consequence"),
    [
        ("not filled", "have fewer requests than their cap", "loops of as many requests as they"),
        ("cut off", "over 5% of their requests unfinished", "mean latency may be too low"),
        ("mostly cut off", "have no steady state", "not fitted: needed is a long run at a rate"),
        ("burst", "have no steady state", "not fitted: needed is a long run at a rate"),
        ("overloaded", "were offered more than was served", "they bound the capacity"),
    ],
)
def test_what_a_run_is_is_said(
    kinds: dict[str, Runs], kind: str, finding: str, consequence: str
) -> None:
    found = kinds[kind].check().findings
    (hit,) = found[found["finding"].str.contains(finding)].itertuples()
    assert consequence in hit.consequence


def test_a_closed_loop_that_never_fills_has_as_many_in_flight_as_it_has_requests(
    kinds: dict[str, Runs],
) -> None:
    row = kinds["not filled"].table.iloc[0]
    assert row["concurrency"] == 16 and row["loop"] == "closed" and not row["saturated"]


def test_time_between_chunks_over_time_per_token_is_tokens_a_cycle(tmp_path: Path) -> None:
    data = bench(2.6)
    data["mean_itl_ms"] = 2.4 * data["mean_tpot_ms"]
    server = {"drafter": "eagle", "drafter_params": 1e9, "draft_tokens": 3}
    drafting = run(tmp_path, data, **server)
    assert drafting["tokens_per_cycle"] == pytest.approx(2.4, rel=1e-3)
    assert "acceptance-from-itl" in drafting["flags"]
    imposed = run(tmp_path, data, **server, acceptance_imposed=0.5)  # stronger evidence
    assert imposed["tokens_per_cycle"] == pytest.approx(1.875)
    data["mean_itl_ms"] *= 9  # more than a cycle can hold
    assert run(tmp_path, data, **server)["tokens_per_cycle"] == pytest.approx(4)


def table(**columns: Any) -> pd.DataFrame:
    """Four runs at concurrencies 1, 8, 32 and 64."""
    constant = {"verifier": "v", "drafter": "eagle", "draft_tokens": 4, "loop": "closed",
                "requests": 200, "prompt_tokens": 512.0, "output_tokens": 256.0}  # fmt: skip
    return pd.DataFrame({"concurrency": [1, 8, 32, 64], **constant, **columns})


def test_totals_without_positions_tell_the_acceptance() -> None:
    counts = {"drafts": 20_000, "accepted_tokens": 38_000, "drafted_tokens": 100_000}
    runs = bsd.read(
        table(e2e_mean_s=[1.3, 1.8, 4.1, 7.4], e2e_std_s=0.1, **counts).assign(draft_tokens=5),
        verifier_params=8e9, drafter_params=1e9,
    )  # fmt: skip
    assert runs.table["tokens_per_cycle"].tolist() == pytest.approx([2.9] * 4)
    draws = acceptance_draws(build_design(runs).table, (2, 500), 1)["by_position"].values
    rate = draws[..., 0, 0]
    assert rate.mean() == pytest.approx(0.6935, abs=0.003) and rate.std() < 0.005


def test_an_acceptance_length_and_throughput_of_a_batch_make_a_run() -> None:
    rows = table(output_tokens_per_s=[200.0, 1200.0, 2400.0, 3000.0], acceptance_length=2.9)
    runs = bsd.read(rows, verifier_params=8e9, drafter_params=1e9)
    expected = rows["concurrency"] * 256 / rows["output_tokens_per_s"]
    assert runs.table["e2e_mean_s"].tolist() == pytest.approx(expected.tolist())
    assert runs.table["tokens_per_cycle"].tolist() == pytest.approx([2.9] * 4, rel=1e-3)
    assert runs.table["flags"].str.contains("acceptance-from-length").all()
    with pytest.raises(bsd.errors.InputError, match=r"acceptance_length is 5.5; .* = 5"):
        bsd.read(rows.assign(acceptance_length=5.5), verifier_params=8e9, drafter_params=1e9)
    with pytest.raises(bsd.errors.InputError, match="tells it only if concurrency is missing"):
        bsd.read(rows.drop(columns="concurrency").assign(loop="open", rate_rps=1.0),
                 verifier_params=8e9, drafter_params=1e9)  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "e2e_s", "served_rps", "overloaded"),
    [(1, 0.89, 0.99, False), (20, 2.2, 19.7, False), (35, 20.4, 28.45, True), (50, 40, 28, True)],
)
def test_a_run_served_far_below_what_was_offered_bounds_the_capacity(
    tmp_path: Path, rate: float, e2e_s: float, served_rps: float, overloaded: bool
) -> None:
    row = run(tmp_path, open_loop(rate, e2e_s, served_rps))
    assert row["saturated"] == overloaded and ("overloaded" in row["flags"]) == overloaded


def test_a_cap_that_is_reached_makes_a_closed_loop(tmp_path: Path) -> None:
    full = run(tmp_path, open_loop(10, 12.8, 5.0, max_concurrency=64))
    assert full["loop"] == "closed" and full["concurrency"] == 64 and np.isnan(full["rate_rps"])
    assert not full["saturated"] and "cap-reached" in full["flags"]
    free = run(tmp_path, open_loop(4, 6.36, 3.9, max_concurrency=64))
    assert free["loop"] == "open" and free["rate_rps"] == 4 and not free["saturated"]


@pytest.mark.parametrize("form", ["lines", "list", "sweep"])
def test_several_results_in_a_file_are_runs_and_copies_count_once(
    tmp_path: Path, form: str
) -> None:
    results = [open_loop(r, e, r) for r, e in ((1, 0.9), (5, 1.1), (10, 1.5))]
    lines = "\n".join(map(json.dumps, results))
    path = tmp_path / {"lines": "a.jsonl", "list": "a.json", "sweep": "summary.json"}[form]
    path.write_text(lines if form == "lines" else json.dumps(results))
    source = path
    if form == "sweep":
        for i, data in enumerate(results):
            write(tmp_path / f"run={i}.json", data)
        source = tmp_path
    runs = bsd.read(source, **MODEL)
    assert sorted(runs.table["e2e_mean_s"]) == pytest.approx([0.9, 1.1, 1.5])
    assert runs.table["rate_rps"].tolist() == [1, 5, 10] and not len(runs.set_aside)


@pytest.mark.parametrize("given", [{}, {"drafter_params": 0}])
@pytest.mark.parametrize("drafter", ["ngram", "suffix"])
def test_a_drafter_without_weights_is_fitted(
    tmp_path: Path, drafter: str, given: dict[str, Any]
) -> None:
    counts = {"spec_decode_num_drafts": 6000, "spec_decode_draft_tokens": 15600,
              "spec_decode_accepted_tokens": 4200}  # fmt: skip
    write(tmp_path / "a.json", bench(3.1, **counts))
    runs = bsd.read(tmp_path / "a.json", drafter=drafter, draft_tokens=3, **MODEL, **given)
    design = build_design(runs)
    assert design.drafters["drafter_params"].tolist() == [0] and len(design.table) == 1
    assert runs.check().summary["acceptance"].tolist() == pytest.approx([4200 / 15600])


def test_a_default_result_has_its_latency_from_ttft_and_tpot(tmp_path: Path) -> None:
    data = bench(11.0, 128, mean_ttft_ms=2404.0, mean_tpot_ms=34.08, mean_e2el_ms=None,
                 std_e2el_ms=None, max_concurrency=16, duration=89.25)  # fmt: skip
    row = run(tmp_path, data)
    assert row["e2e_mean_s"] == pytest.approx(2.404 + 255 * 0.03408)
    assert {"e2e-from-ttft-and-tpot", "no-spread"} <= set(row["flags"].split(","))
    unequal = data | {"total_output_tokens": 256 * 128 + 1}  # Little's law agrees within 1%
    assert run(tmp_path, unequal)["e2e_mean_s"] == pytest.approx(11.094, rel=1e-3)
    for wrong in ({"duration": 60.0}, {"request_rate": 1.5}):
        with pytest.raises(bsd.errors.InputError, match="mean_e2el_ms is missing"):
            run(tmp_path, unequal | wrong)


def test_percentiles_alone_tell_the_spread() -> None:
    quantiles = {"e2e_mean_s": [3.0, 3.1, 3.2, 5.1], "e2e_p50_s": [3.0, 3.1, 3.2, 5.0]}
    rows = table(**quantiles, e2e_p95_s=[3.3, 3.5, 3.6, 5.9], drafts=9e3, accepted_tokens=1e4)
    runs: Runs = bsd.read(rows, verifier_params=8e9, drafter_params=1e9)
    expected = (np.log(np.array([3.3, 3.5, 3.6, 5.9]) / quantiles["e2e_p50_s"]) / 1.6449) ** 2
    assert runs.table["e2e_log_var"].tolist() == pytest.approx(expected.tolist())
    assert runs.table["e2e_log_var_n_eff"].tolist() == pytest.approx([56.0] * 4)


def test_cycles_are_drafted_tokens_over_k_where_they_are_not_counted() -> None:
    rows = table(e2e_mean_s=2.0, drafted_tokens=40_000, accepted_tokens=16_000)
    runs = bsd.read(rows, verifier_params=8e9, drafter_params=1e9)
    assert runs.table["drafts"].tolist() == [10_000] * 4
    assert runs.table["tokens_per_cycle"].tolist() == pytest.approx([2.6] * 4)


def test_a_result_of_sglang_is_read(tmp_path: Path) -> None:
    data = {
        "backend": "sglang", "request_rate": float("inf"), "max_concurrency": 4, "duration": 20.0,
        "completed": 40, "total_input_tokens": 20480, "total_output_tokens": 2560,
        "mean_e2e_latency_ms": 1990.0, "std_e2e_latency_ms": 60.0, "p99_e2e_latency_ms": 2100.0,
        "mean_ttft_ms": 100.0, "std_ttft_ms": 10.0, "mean_tpot_ms": 30.0, "mean_itl_ms": 80.0,
        "concurrency": 3.98, "accept_length": 2.9,
    }  # fmt: skip
    server = {"drafter": "eagle", "drafter_params": 0.25e9, "num_speculative_tokens": 4}
    row = run(tmp_path, data, **server)
    assert row["requests"] == 40 and row["concurrency"] == 4 and row["loop"] == "closed"
    assert row["e2e_mean_s"] == pytest.approx(1.99)
    assert row["tokens_per_cycle"] == pytest.approx(2.9, rel=1e-3)
