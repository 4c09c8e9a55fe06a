"""Plans: what is designed, what is written for vLLM, which descriptions are refused."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from bayes_sd.answers.servers import Server
from bayes_sd.errors import InputError
from bayes_sd.plan.design import plan_next, plan_sweep
from bayes_sd.plan.sweep import Point, SweepServer, write_sweep
from bayes_sd.runs import vllm

DESCRIPTION: dict[str, Any] = {
    "verifiers": ["models/tiny", "models/tiny-moe"],
    "drafters": [{"name": "draft", "model": "models/draft-a{percent}", "method": "draft_model"}],
    "k": [1, 4],
    "acceptance": [0.5, 0.6],
    "idle_drafter_servers": 1,
    "runs_per_server": [4, 6],
    "replicated_cells": 5,
    "time_budget_minutes": 120,
}


def described(folder: Path, **changes: Any) -> Path:
    for name in ("tiny", "tiny-moe", "draft-a50", "draft-a55", "draft-a60"):
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    path = folder / "describe.yaml"
    path.write_text(yaml.safe_dump(DESCRIPTION | changes))
    return path


def test_a_design_covers_what_was_asked(tmp_path: Path) -> None:
    made = plan_sweep(described(tmp_path))
    table = made.table
    assert (table.drafter == "none").sum() == 2 and (table.draft_tokens > 0).sum() == 6
    assert len(table) == 9 and set(table.draft_tokens) == {0, 1, 2, 3, 4}
    assert {s.drafter_path[-3:] for s in made.servers if s.draft_tokens} == {"a50", "a55", "a60"}
    assert all(Path(server.model).is_absolute() for server in made.servers)
    points = [p for runs in made.points for p in runs]
    assert len(points) == 54 and sum(p.replicate > 0 for p in points) == 5
    for runs in made.points:
        concurrencies = [p.concurrency for p in runs if p.concurrency]
        assert min(concurrencies) == 1 and max(concurrencies) == 32
        assert all(p.requests >= 4 * (p.concurrency or 0) for p in runs)
    assert str(made) == f"9 servers, 54 runs, about {made.minutes:.0f} minutes"
    assert plan_sweep(described(tmp_path)).points == made.points
    assert plan_sweep(described(tmp_path, seed=2)).points != made.points


@pytest.mark.parametrize(
    ("loads", "closed", "rates"),
    [
        ({}, 6, 0),
        ({"max_concurrency": 8}, 6, 0),
        ({"rates_rps": [1, 2, 4]}, 0, 6),
        ({"rates_rps": [1, 2, 4], "max_concurrency": 8}, 3, 3),
        ({"capacity_rps": 3.0}, 0, 6),
    ],
)
def test_loads_are_concurrencies_or_rates(
    tmp_path: Path, loads: dict[str, Any], closed: int, rates: int
) -> None:
    made = plan_sweep(described(tmp_path, replicated_cells=0, **loads))
    for runs in made.points:
        assert sum(p.concurrency is not None for p in runs) == closed
        assert sum(p.rate_rps is not None for p in runs) == rates
    asked = {p.rate_rps for runs in made.points for p in runs if p.rate_rps is not None}
    if "rates_rps" in loads:
        assert asked == {1, 2, 4}


def test_shares_of_a_capacity_spread_from_idle_to_overload(tmp_path: Path) -> None:
    shape = {"prompts": [128], "outputs": [64], "replicated_cells": 0}
    made = plan_sweep(described(tmp_path, capacity_rps=10.0, **shape))
    rates = sorted(p.rate_rps or 0 for p in made.points[0])
    assert 0.5 <= rates[0] < 3 and 8 < rates[-1] <= 12
    # Twice the tokens, half the rate.
    longer = plan_sweep(
        described(tmp_path, capacity_rps=10.0, **shape | {"prompts": [128, 256 + 256]})
    )
    long = [p.rate_rps or 0 for p in longer.points[0] if p.prompt_tokens == 512]
    assert max(long) <= 12 * (32 + 64) / (128 + 64)


@pytest.mark.parametrize("minutes", [60, 200, 900])
def test_the_most_runs_that_fit_are_found_in_few_designs(
    minutes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bayes_sd.plan import design

    tried: dict[int, float] = {}
    real = design._design

    def noted(d: Any, runs: int, *more: Any) -> Any:
        plan = real(d, runs, *more)
        tried[runs] = plan.minutes
        return plan

    monkeypatch.setattr(design, "_design", noted)
    path = described(tmp_path, time_budget_minutes=minutes, runs_per_server=[1, 1000])
    plan_sweep(path)
    found = min(tried)
    assert tried[found] <= minutes and len(tried) < 30
    plan_sweep(described(tmp_path, time_budget_minutes=1e6, runs_per_server=[1, found + 1]))
    assert tried[found + 1] > minutes


def test_a_tight_budget_means_fewer_runs_and_then_a_refusal(tmp_path: Path) -> None:
    free = plan_sweep(described(tmp_path))
    tight = plan_sweep(described(tmp_path, time_budget_minutes=free.minutes - 1))
    assert len(tight.points[0]) < len(free.points[0]) and tight.minutes < free.minutes
    with pytest.raises(InputError, match="time_budget_minutes is 1, so take fewer verifiers"):
        plan_sweep(described(tmp_path, time_budget_minutes=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verifier": []}, "unknown key 'verifier'; known are verifiers, drafters, k"),
        ({"vllm": {"args": ""}}, "vllm has unknown key 'args'; known are serve_args"),
        ({"vllm": {"env": {"A;B": "1"}}}, "vllm.env.*should match pattern"),
        ({"drafters": [{"name": "d", "path": "x"}]}, r"drafters\[0\] has unknown key 'path'"),
        ({"drafters": [{"name": "d"}]}, "needs a model or a method"),
        ({"verifiers": []}, "verifiers is empty; give at least one"),
        ({"verifiers": [""]}, "verifiers"),
        ({"verifiers": ["a/llama", "b/llama"]}, "names of verifiers and drafters must differ"),
        ({"k": [5, 1]}, "k must be .lowest, highest., both above 0"),
        ({"acceptance": 0.7}, "acceptance must be .lowest, highest., which may be equal, got 0.7"),
        ({"acceptance": [0.7]}, r"acceptance must be .lowest, highest., .*, got .0\.7."),
        ({"acceptance": [0.5, 1.5]}, r"acceptance\[1\] must lie between 0 and 1, got 1.5"),
        ({"loads": [0, 1]}, r"loads\[0\]: input should be greater than 0"),
        ({"loads": [0.1, 30]}, r"loads\[1\]: input should be less than or equal to 2"),
        ({"prompts": [0]}, r"prompts\[0\] must be a whole number of at least 1"),
        ({"outputs": []}, "outputs"),
        ({"rates_rps": [1, -1]}, r"rates_rps\[1\] must be a positive finite number"),
        ({"rates_rps": [1], "capacity_rps": 2}, "rates_rps and capacity_rps are both given"),
        ({"capacity_rps": 0}, "capacity_rps must be a positive finite number"),
        ({"drafters": []}, "drafters are missing; give some, or sd_servers_per_verifier 0"),
        ({"acceptance": None}, "acceptance is missing"),
        ({"verifiers": ["models/gone/x"]}, "'models/gone/x' is no folder; give a checkpoint"),
        ({"verifiers": ["./gone"]}, "'./gone' is no folder"),
        ({"acceptance": [0.9, 0.95]}, r"'models/draft-a9\d' is no folder"),
        ({"replicated_cells": 99}, "replicated_cells is 99; 9 servers can have 27"),
    ],
)
def test_impossible_descriptions_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = described(tmp_path, **change)
    with pytest.raises(InputError, match=reason) as refusal:
        plan_sweep(path, tmp_path / "sweep")
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)
    assert not (tmp_path / "sweep").exists()


def test_a_description_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        plan_sweep(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        plan_sweep(tmp_path / "bad.yaml")


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    path = described(tmp_path)
    made = plan_sweep(path, tmp_path / "sweep")
    assert made.path == tmp_path / "sweep" / "run.sh" and str(made).endswith("where vLLM is")
    with pytest.raises(InputError, match="is there already; give a new folder"):
        plan_sweep(path, tmp_path / "sweep")


def test_hub_names_and_folders_elsewhere_are_taken_as_they_are() -> None:
    made = plan_sweep({"verifiers": ["org/model", "/far/away"], "sd_servers_per_verifier": 0})
    assert [server.model for server in made.servers] == ["org/model", "/far/away"]
    assert made.table.verifier.tolist() == ["model", "away"]


def settings(folder: Path) -> dict[str, str]:
    """Assignments of settings.sh as a shell reads them."""
    lines = (folder / "settings.sh").read_text().splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_what_vllm_is_given(tmp_path: Path) -> None:
    options = {"serve_args": "--max-model-len 2048", "env": {"A": 1}, "startup_timeout_s": 5}
    path = described(tmp_path, vllm=options, environment="one 'H100'", sd_servers_per_verifier=1)
    folder = tmp_path / "sweep"
    made = plan_sweep(path, folder)
    given = settings(folder)
    assert given["export A"] == "1" and given["startup_timeout_s"] == "5"
    assert given["serve_args"] == "'--max-model-len 2048'"
    bench = shlex.split(shlex.split(given["bench_args"])[0])
    assert bench[bench.index("--temperature") + 1] == "0"
    assert bench[-2:] == ["--metadata", "environment=one 'H100'"]
    assert {"--save-detailed", "--ignore-eos"} <= set(bench)
    seeds = set()
    for server, points in zip(made.servers, made.points, strict=True):
        runs = json.loads((folder / server.name / "bench_params.json").read_text())
        assert len(runs) == len(points)
        for run, point in zip(runs.values(), points, strict=True):
            assert run["num_prompts"] == point.requests
            assert run["random_output_len"] == point.output_tokens
            assert ("max_concurrency" in run) != ("request_rate" in run)
            seeds.add(run["seed"])
    assert len(seeds) == sum(map(len, made.points))


@pytest.mark.parametrize(
    ("server", "config", "stated"),
    [
        (SweepServer("plain", "m"), {}, {}),
        (
            SweepServer("sd", "m", "d", "/x/d", "eagle3", 3),
            {"num_speculative_tokens": 3, "method": "eagle3", "model": "/x/d"},
            {"draft_tokens": 3, "drafter_method": "eagle3", "drafter_path": "/x/d"},
        ),
        (
            SweepServer("idle", "m", "d", "/x/d"),
            {
                "num_speculative_tokens": 1,
                "model": "/x/d",
                "num_speculative_tokens_per_batch_size": [[1, 4096, 0]],
            },
            {"draft_tokens": "0", "drafter_method": "draft_model", "drafter_path": "/x/d"},
        ),
        (
            SweepServer("ngram", "m", "ngram", "", "ngram", 2),
            {"num_speculative_tokens": 2, "method": "ngram"},
            {"draft_tokens": 2, "drafter_method": "ngram"},
        ),
        (
            SweepServer("imposed", "m", "d", "/x/d", "", 3, 0.5),
            {
                "num_speculative_tokens": 3,
                "model": "/x/d",
                "rejection_sample_method": "synthetic",
                "synthetic_acceptance_rates": [0.5, 0.25, 0.125],
            },
            {
                "draft_tokens": 3,
                "drafter_method": "draft_model",
                "drafter_path": "/x/d",
                "acceptance_imposed": 0.5,
            },
        ),
        (
            SweepServer("unknown", "", "d", "", "eagle3", 1),
            {"num_speculative_tokens": 1, "method": "eagle3", "model": "PUT-PATH-HERE-d"},
            {"draft_tokens": 1, "drafter_method": "eagle3", "drafter_path": "PUT-PATH-HERE-d"},
        ),
    ],
    ids=lambda x: x.name if isinstance(x, SweepServer) else "",
)
def test_a_speculative_config_is_read_back_as_it_was_meant(
    server: SweepServer, config: dict[str, Any], stated: dict[str, Any]
) -> None:
    params = server.params()
    assert params.get("speculative_config", {}) == config
    assert vllm.stated(params) == stated


@pytest.mark.parametrize(
    ("servers", "points", "reason"),
    [
        (["a", "a"], 1, "server names must differ and hold letters, got a, a"),
        (["///"], 1, "must differ and hold letters"),
        (["a"], 2, "a: a run is there twice; number them by replicate"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, servers: list[str], points: int, reason: str
) -> None:
    runs = [Point(1, 1, 1, concurrency=1)] * points
    with pytest.raises(InputError, match=reason):
        write_sweep(tmp_path / "s", [SweepServer(x) for x in servers], [runs] * len(servers))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("axis", "values", "requests"),
    [("rate_rps", [0.1, 4.0], [16, 120]), ("concurrency", [1.0, 16.0], [16, 240])],
)
def test_proposed_runs_are_written_as_a_plan(
    tmp_path: Path, axis: str, values: list[float], requests: list[int]
) -> None:
    """At 2 s a request, 16 in flight are 8 requests/s, 240 in 30 s."""
    servers = [Server("llama"), Server("llama", "eagle", k=3)]
    loads = [{axis: value, "prompt": 512, "output": 256} for value in values]
    mean_s = xr.DataArray(
        np.full((2, 5, 2, 2), 2.0),
        dims=("chain", "draw", "server", axis),
        coords={"server": [str(server) for server in servers], axis: values},
    )
    answer: Any = SimpleNamespace(
        points=lambda: [(server, loads) for server in servers],
        draws=xr.Dataset({"mean_s": mean_s}),
        load=SimpleNamespace(axis=axis),
    )
    runs = pd.DataFrame(
        {
            "drafter": ["none", "eagle", "eagle"],
            "drafter_method": ["", "eagle3", "eagle3"],
            "drafter_path": ["", "org/eagle", ""],
        }
    )
    posterior: Any = SimpleNamespace(runs=runs)
    made = plan_next(answer, posterior, tmp_path / "next", run_seconds=30, server_seconds=60)
    assert str(made).startswith("2 servers, 4 runs, about 4 minutes; start ")
    assert made.table[axis].tolist() == [f"{values[0]:g}-{values[1]:g}"] * 2
    for points in made.points:
        assert [point.requests for point in points] == requests
    config = json.loads((tmp_path / "next/llama_eagle_k3/serve_params.json").read_text())
    assert config["llama_eagle_k3"]["speculative_config"] == {
        "num_speculative_tokens": 3,
        "method": "eagle3",
        "model": "org/eagle",
    }
    assert "models=(PUT-PATH-HERE PUT-PATH-HERE)" in (tmp_path / "next/settings.sh").read_text()
