"""From runs to the law's inputs: levels, indices, arrays, and what no longer is dropped."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tables import DRAFTING, PLAIN, closed, table

from bayes_sd.errors import EvidenceError, EvidenceWarning, InputError
from bayes_sd.fit import LatencyModel
from bayes_sd.model.acceptance import same_key
from bayes_sd.model.design import (
    NONE,
    TYPICAL_GB_PER_S,
    TYPICAL_TFLOPS,
    Design,
    build_design,
    coefficients,
    machine,
    run_machine,
    server_label,
    sites_of,
    workload,
)
from bayes_sd.model.priors import population
from bayes_sd.physics.acceptance import cycles
from bayes_sd.physics.law import FULL, Outcome, outcome
from bayes_sd.runs.schema import Runs

LEVELS = ["verifier", "drafter", "acceptance_imposed", "workload", "draft_tokens", "environment"]


@pytest.fixture(scope="module")
def design(runs: Runs) -> Design:
    return build_design(runs)


def test_levels_of_the_corpus(runs: Runs, design: Design) -> None:
    steady = runs.steady.table
    assert len(design.data["e2e_rows"]) == len(steady) < len(design.table) == len(runs)
    assert design.table["saturated"][design.data["censored_rows"]].all()
    assert len(build_design(runs, censored=False).table) == len(steady)
    assert design.verifiers.index.tolist() == sorted(runs.table["verifier"].unique())
    assert design.drafters["drafter_params"].to_dict() == pytest.approx(
        {"draft-12m": 0.010616832, "draft-3m": 0.001327104}
    )
    assert len(design.servers) == len(runs.table[LEVELS].drop_duplicates())
    assert {"dense-60m plain", "moe-e8k2 + draft-3m @ 0.9 k=3"} <= set(design.servers["server"])
    assert design.moe


def test_indices_point_at_the_levels_of_the_runs(design: Design) -> None:
    """PyMC on numba does not check bounds, so this must."""
    sites, data = sites_of(design.table), design.data
    table = design.table.assign(site=design.table["environment"].map(sites))
    drafted = (table["drafter"] != NONE).to_numpy()
    names = {
        "verifier": (design.verifiers.index, np.full(len(table), True)),
        "drafter": (design.drafters.index, drafted),
        "server": (pd.Index(design.servers["server"]), np.full(len(table), True)),
        "site": (pd.Index(design.sites), np.full(len(table), True)),
    }
    for level, (known, rows) in names.items():
        index = data[f"{level}_i"]
        assert index.min() >= 0 and index.max() < len(known), level
        assert known[index[rows]].tolist() == table[level][rows].tolist(), level
    np.testing.assert_array_equal(data["drafted"], drafted)


def test_arrays_are_those_of_the_runs_and_finite(design: Design) -> None:
    table, data = design.table, design.data
    np.testing.assert_allclose(np.exp(data["log_e2e"]), table["e2e_mean_s"])
    steady = data["e2e_rows"]
    variance = (data["se_e2e"] ** 2 * table["requests"])[steady]
    np.testing.assert_allclose(variance, table["e2e_log_var"][steady])
    np.testing.assert_array_equal(data["rate_rps"], table["rate_rps"])
    by_counts = 1 + table["accepted_tokens"] / table["drafts"]
    plain = cycles(table["output_tokens"], [], 0)
    faster = data["cycles"] < plain
    assert (faster == (table["draft_tokens"] > 0)).all()
    np.testing.assert_allclose(((plain / data["cycles"]) / by_counts)[faster], 1, rtol=0.12)
    for name, array in data.items():
        assert np.isfinite(array).all() or name == "captured", name
        if not name.endswith("rows"):
            assert array.shape == (len(table),), name


def test_a_concurrency_is_the_number_of_others_and_one() -> None:
    data = build_design(closed()).data
    np.testing.assert_array_equal(data["others"], [0, 7, 31])
    np.testing.assert_array_equal(data["pass_tokens"], [1, 8, 32])
    assert (data["closed"] == 1).all() and (data["rate_rps"] == 0).all()


def test_runs_and_questions_have_one_builder() -> None:
    runs = closed(DRAFTING, drafts=1000.0, accepted_1=900.0, accepted_2=540.0, accepted_3=162.0)
    asked = workload(
        k=3.0,
        drafter_loaded=1.0,
        acceptance=[0.9, 0.6, 0.3],
        prompt_tokens=512.0,
        output_tokens=128.0,
        concurrency=np.array([1.0, 8.0, 32.0]),
        requests=runs.table["requests"].to_numpy(float),
    )
    data = build_design(runs).data
    for name, values in asked.items():
        np.testing.assert_allclose(data[name], np.broadcast_to(values, 3), err_msg=name)


def test_prompts_come_together_the_less_the_more_answers_differ_and_follow() -> None:
    """Where a concurrency is held: a first wave does, and plain answers of one length for ever."""
    how: dict[str, Any] = {"drafter_loaded": 0, "prompt_tokens": 512.0, "output_tokens": 128.0}

    def share(k: int, **load: Any) -> float:
        return float(workload(k=k, acceptance=[0.7] * k, **how, **load)["together"])

    plain = {"concurrency": np.array(8.0), "requests": np.array(80.0)}
    assert share(0, **plain) == 1 == share(3, **plain | {"requests": np.array(8.0)})
    assert share(0, concurrency=np.array(8.0)) == 1
    assert share(3, concurrency=np.array(8.0)) == 0 == share(3, rate_rps=1.0)
    assert share(0, concurrency=np.array(8.0), output_cv=0.3) == 0
    longer = share(3, **plain | {"requests": np.array(800.0)})
    assert 0.01 < longer < share(3, **plain) < share(1, **plain) < 1
    assert share(0, **plain, output_cv=0.3) < share(0, **plain, output_cv=0.03) < 1


def test_runs_without_ttft_or_a_spread_are_left_out_of_their_likelihoods() -> None:
    runs = table(ttft_mean_s=[0.1, np.nan, 0.2], ttft_std_s=0.02)
    bare = runs.table.assign(e2e_log_var=[0.04, np.nan, 0.05])  # as of a file of means only
    data = build_design(replace(runs, table=bare)).data
    assert data["ttft_rows"].tolist() == [0, 2]
    assert data["e2e_rows"].tolist() == [0, 1, 2]
    assert data["e2e_spread_rows"].tolist() == [0, 2]
    np.testing.assert_allclose(np.exp(data["log_ttft"][[0, 2]]), [0.1, 0.2])


SHEET: dict[str, Any] = {"gb_per_s": 3350, "tflops": 990, "dies": 4, "weight_bits": 4.5}
MOE: dict[str, Any] = {"verifier": "x", "verifier_active_params": 1e9}
MOE |= {"experts": 64, "experts_per_token": 8}


def test_machines_of_runs_and_typical_ones_where_they_are_not_known() -> None:
    known, unknown = run_machine(table(**SHEET).table), run_machine(table().table)
    assert {n: float(v[0]) for n, v in known.items()} == {
        "gb_per_s": 3350,
        "tflops": 990,
        "dies": 4,
        "captured": np.inf,
        "bytes": 4.5 / 8,
        "drafter_bytes": 2.0,  # a head of a quantized model is not
    }
    assert {n: float(v[0]) for n, v in unknown.items()} == {
        "gb_per_s": TYPICAL_GB_PER_S,
        "tflops": TYPICAL_TFLOPS,
        "dies": 1,
        "captured": np.inf,
        "bytes": 2.0,
        "drafter_bytes": 2.0,
    }
    assert machine(weight_bits=32)["drafter_bytes"] == 4.0
    data = build_design(table(**SHEET) + table(PLAIN | MOE)).data
    np.testing.assert_array_equal(data["gb_per_s"], [3350] * 3 + [TYPICAL_GB_PER_S] * 3)
    np.testing.assert_array_equal(data["dies"], [4] * 3 + [1] * 3)


EXPERTS, PACES = {"overhead_experts", "uneven_experts"}, {"pace_dense", "pace_experts"}
DRAFTS, ALONE = {"overhead_draft_alone", "overhead_draft_others"}, "overhead_parallel"
BEYOND = {"captured_tokens": 8, "loop": "closed", "rate_rps": None, "concurrency": [4, 8, 9]}
WITHIN = {"concurrency": 8, "prompt_tokens": 1}


@pytest.mark.parametrize(
    ("runs", "untold"),
    [
        (table(), {*EXPERTS, *PACES, ALONE}),
        (table(dies=2), {*EXPERTS, *PACES}),
        (table(PLAIN | MOE), {*PACES, ALONE}),
        (table(**BEYOND), {*EXPERTS, "pace_experts", ALONE}),
        (table(**BEYOND | WITHIN), {*EXPERTS, *PACES, ALONE}),
        (table(**BEYOND | WITHIN | {"prompt_tokens": 2}), {*EXPERTS, "pace_experts", ALONE}),
        (table(PLAIN | MOE, **BEYOND), {"pace_dense", ALONE}),
        (table(**BEYOND) + table(PLAIN | MOE, **BEYOND | {"dies": 2}), set()),
        (table() + table(PLAIN | MOE, **BEYOND | {"dies": 2}), {"pace_dense"}),
    ],
    ids=[
        "dense",
        "two dies",
        "experts",
        "beyond",
        "just within",
        "prompts beyond",
        "experts beyond",
        "all",
        "mixed",
    ],
)
def test_what_multiplies_nothing_in_the_runs_is_not_told(runs: Runs, untold: set[str]) -> None:
    design, priors, untold = build_design(runs), population(FULL), untold | DRAFTS  # all are plain
    assert design.untold == untold
    told = [p.name for p in design.told(priors)]
    assert told == [p.name for p in priors if p.name not in untold]
    terms = design.all_terms(dict.fromkeys(told, 1.0))
    assert set(FULL.terms) <= set(terms)
    assert all(terms[name] == (name not in untold) for name in FULL.terms)
    assert ("graphs" in design.fitted_law(FULL).parts) == (not untold >= PACES)
    # What is left out changes nothing that the law says of the runs.
    others = dict.fromkeys(untold, 3.0) | dict.fromkeys(told, 1.0)
    e2e = [said(design, some).e2e_s for some in (terms, others)]
    np.testing.assert_allclose(*e2e, rtol=1e-12)


@pytest.mark.parametrize(("prompt", "tell"), [(512, True), (400, False)])
def test_prompts_that_pass_the_graphs_beside_others_tell_the_pace(prompt: int, tell: bool) -> None:
    """Answers about such loads have a pace: a fit without one would be of another law."""
    design = build_design(table(captured_tokens=512, prompt_tokens=prompt))
    assert ("pace_dense" in design.untold) != tell
    assert ("graphs" in design.fitted_law(FULL).parts) == tell


def test_runs_with_drafts_tell_what_drafts_cost(runs: Runs) -> None:
    assert not DRAFTS & build_design(runs).untold


def said(design: Design, terms: dict[str, float]) -> Outcome:
    """What the law says of runs without a drafter."""
    rows = design.verifiers.iloc[design.data["verifier_i"]]
    sizes = (
        {str(n): v.to_numpy() for n, v in rows.items()}
        | design.data
        | {"drafter": 0.0, "drafter_layers": 1.0}
    )
    stages = FULL.stages(coefficients(terms), sizes, design.data)
    return outcome(stages, sizes, design.data, 0.01)


@pytest.mark.parametrize(
    ("sheet", "memory", "arithmetic"),
    [
        (SHEET, 0.0, 0.0),
        (SHEET | {"tflops": None}, 0.0, 1.0),
        (SHEET | {"gb_per_s": [3350, 3350, None]}, 1.0, 0.0),
        ({}, 1.0, 1.0),
    ],
)
def test_priors_are_wide_where_a_machine_is_not_known(
    sheet: dict[str, Any], memory: float, arithmetic: float
) -> None:
    design = build_design(table(**sheet))
    before = {p.name: p for p in population(FULL)}
    for prior in design.told(population(FULL)):
        own, wide = before[prior.name], 0.0
        if prior.name in ("read_weights", "read_keys"):
            wide = memory * own.unknown
            assert own.unknown > 1
        elif prior.name == "prefill_token":
            wide = arithmetic * own.unknown
            assert own.unknown > 1
        assert prior.b == pytest.approx(np.hypot(own.b, wide)), prior.name
        assert replace(prior, b=own.b) == own


def test_labels_are_for_people_and_keys_are_columns() -> None:
    server = {"verifier": "org/m@v2", "drafter": "d", "acceptance_imposed": np.nan, "workload": ""}
    server |= {"draft_tokens": 3, "environment": "gpu"}
    assert server_label(server, False) == "org/m@v2 + d k=3"
    assert (
        server_label(server | {"acceptance_imposed": 0.5}, True) == "org/m@v2 + d @ 0.5 k=3 [gpu]"
    )
    rows = pd.DataFrame([server, server | {"acceptance_imposed": 0.5}])
    assert same_key(rows, list(server), server).tolist() == [True, False]


def test_two_servers_of_one_label_stay_two() -> None:
    """An environment in brackets and a verifier that is named so."""
    one = table(verifier="m @ 0.5 k=3", environment="gpu")
    other = table(DRAFTING, verifier="m", drafter="x", acceptance_imposed=0.5)
    design = build_design(one + other)
    assert design.servers["server"].is_unique and len(design.servers) == 2


def two_environments() -> Design:
    """One of steady runs, one of saturated runs only."""
    steady = table(environment="gpu a") + table(PLAIN, verifier="m2", environment="gpu a")
    stuck = table(environment="gpu b")
    stuck = replace(stuck, table=stuck.table.assign(saturated=True))
    return build_design(steady + stuck)


def test_an_environment_with_saturated_runs_only_is_kept() -> None:
    design = two_environments()
    assert design.environments == ["gpu a", "gpu b"]
    assert set(design.servers["environment"]) == {"gpu a", "gpu b"}
    assert (design.data["site_i"][design.data["censored_rows"]] == 1).all()


@pytest.mark.sample
def test_an_environment_with_saturated_runs_only_has_its_factors() -> None:
    graph = LatencyModel().graph(two_environments())
    assert "log_environment" in graph.named_vars
    assert list(graph.coords["environment"]) == ["gpu a", "gpu b"]


@pytest.mark.parametrize("part", ["none", "all saturated"])
def test_nothing_to_fit_is_refused(runs: Runs, part: str) -> None:
    bad = runs.table.iloc[:0] if part == "none" else runs.table.assign(saturated=True)
    with pytest.raises(EvidenceError, match="no steady run"):
        LatencyModel().fit(replace(runs, table=bad))


@pytest.mark.parametrize(
    ("rows", "column", "value", "error", "message"),
    [
        (slice(0, 1), "verifier_params", 1e9, InputError, "verifier 'dense-115m' has runs of diff"),
        (slice(None), "drafter_params", np.nan, EvidenceError, "size of drafter 'draft-12m'"),
    ],
)
def test_a_size_that_is_unknown_or_two_is_refused(
    runs: Runs, rows: slice, column: str, value: float, error: Any, message: str
) -> None:
    changed = runs.table.copy()
    changed.loc[changed.index[rows], column] = value
    with pytest.raises(error, match=message):
        build_design(replace(runs, table=changed))


def test_assumed_acceptances_are_named_and_levels_with_one_member_too() -> None:
    runs = table() + table(DRAFTING)
    assert len(build_design(runs).table) == len(runs)
    model = LatencyModel()
    with pytest.warns(EvidenceWarning) as caught:
        model._warn(model.design(runs))
    messages = " ".join(str(each.message) for each in caught)
    assert "3 runs (table) do not tell their acceptance" in messages
    assert "Only one verifier and one drafter was measured" in messages
