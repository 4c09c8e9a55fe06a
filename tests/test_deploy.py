"""Deployments at one traffic: laws, bad input, and agreement with what else the fit answers."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_light_import import HEAVY, loaded_after
from test_traffic import AZURE, WINDOWS, many
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli import app
from bayes_sd.decide.capacity import DRAWS, Asked, at_scale, capacity, share_within, sustained
from bayes_sd.decide.deploy import Deployments, deployments

PLAIN = bsd.System("dense-60m")
SD = bsd.System("dense-60m", "draft-3m", 0.7)
MOE = bsd.System("moe-e8k2", "draft-3m", 0.9)
NEW = bsd.System(bsd.Size(90e6), bsd.Size(3e6), 0.7, extrapolate=True)
THREE = {"plain": (PLAIN, 0), "sd": (SD, 2), "moe": (MOE, 3)}
STEADY = bsd.Traffic.constant(20.0, prompt=128, output=64)
UNEVEN = many(20).scaled(5.0)


def compare(fit: bsd.Fit, traffic: bsd.Traffic = UNEVEN, **arguments: object) -> Deployments:
    asked = {"candidates": THREE, "slo_s": 2.5} | arguments
    return deployments(fit, traffic=traffic, **asked)  # type: ignore[arg-type]


def by_name(found: Deployments) -> pd.DataFrame:
    return found.table.set_index("name")


def capacity_of(fit: bsd.Fit, traffic: bsd.Traffic, **arguments: object) -> pd.DataFrame:
    asked = {
        "k": [0, 2],
        "system": SD,
        "slo_s": 2.0,
        "prompt": None,
        "output": None,
        "percentile": 95.0,
        "confidence": 0.9,
        "price_per_hour": None,
        "seed": 0,
    }
    return capacity(fit, traffic=traffic, **(asked | arguments))  # type: ignore[arg-type]


# --- capacity for a traffic -------------------------------------------------------------------


def test_one_window_is_the_single_point(fit: bsd.Fit) -> None:
    point = fit.capacity(2.0, [0, 2], SD, prompt=128, output=64, traffic=20.0)
    window = capacity_of(fit, STEADY)
    for column in ("max_rps", "median_rps", "idle_s", "prob_possible"):
        np.testing.assert_allclose(window[column], point[column], rtol=1e-6)
    assert window["replicas"].tolist() == point["replicas"].tolist()
    deployed = compare(fit, STEADY, candidates={"a": (SD, 0), "b": (SD, 2)}, slo_s=2.0)
    assert deployed.table["replicas"].tolist() == point["replicas"].tolist()


def test_a_window_split_in_two_changes_nothing(fit: bsd.Fit) -> None:
    half = UNEVEN.windows.assign(seconds=UNEVEN.windows["seconds"] / 2)
    whole, split = (
        compare(fit),
        compare(fit, bsd.Traffic(pd.concat([half.iloc[:2], half.iloc[:2]]))),
    )
    first = compare(fit, bsd.Traffic(UNEVEN.windows.iloc[:2]))
    numbers = first.table.select_dtypes("number").columns
    np.testing.assert_allclose(split.table[numbers], first.table[numbers], rtol=1e-6, atol=1e-9)
    assert whole.table["replicas"].gt(0).all()


def test_the_order_of_windows_changes_nothing(fit: bsd.Fit) -> None:
    back = capacity_of(fit, bsd.Traffic(UNEVEN.windows.iloc[::-1]))
    np.testing.assert_allclose(back["max_rps"], capacity_of(fit, UNEVEN)["max_rps"], rtol=1e-6)


def test_twice_the_traffic_needs_twice_at_most_and_never_fewer(fit: bsd.Fit) -> None:
    counts = [by_name(compare(fit, UNEVEN.scaled(f)))["replicas"] for f in (0.5, 1.0, 2.0, 4.0)]
    for fewer, more in itertools.pairwise(counts):
        assert (fewer <= more).all() and (more <= 2 * fewer).all()


def test_the_replicas_are_the_fewest_that_keep_the_target(fit: bsd.Fit) -> None:
    """By evaluating the rule itself, with one replica fewer too."""
    thin, asked = fit.thin(DRAWS), Asked.of(UNEVEN)
    for row in compare(fit).table.itertuples():
        system, k = THREE[str(row.name)]
        arm = sustained(thin, system, k, asked, 2.5, 95.0, 0).arm
        kept = [
            float((share_within(asked, *at_scale(thin, asked, arm, 1 / n), 2.5) >= 0.95).mean())
            for n in (row.replicas, row.replicas - 1)
            if n >= 1
        ]
        assert kept[0] == pytest.approx(row.prob_kept) and kept[0] >= 0.9
        assert all(one < 0.9 for one in kept[1:])


def test_thinning_changes_answers_little(fit: bsd.Fit) -> None:
    """More windows than an answer takes, against all of them."""
    traffic = many(120).scaled(8.0)
    thin = fit.thin(DRAWS)
    few, every = Asked.of(traffic), Asked(traffic.load(), traffic.shares)
    assert len(few.shares) < len(every.shares)
    for slo_s in (1.5, 2.5):
        a, b = (sustained(thin, SD, 2, asked, slo_s, 95.0, 0) for asked in (few, every))
        assert a.sustained_with(0.9) == pytest.approx(b.sustained_with(0.9), rel=0.03)
        np.testing.assert_allclose(a.idle_s, b.idle_s, rtol=0.03)


def test_the_share_in_time_is_that_of_simulated_requests(fit: bsd.Fit) -> None:
    """The posterior predictive of single requests knows no shares and no roots."""
    traffic = many(10).scaled(3.0)
    load = traffic.load()
    draws = fit.latency(load, 2, SD).draws.isel(k=0)
    served = float(((draws["request_s"] <= 1.0).mean(("chain", "draw")) * traffic.shares).sum())
    thin, asked = fit.thin(DRAWS), Asked.of(traffic)
    arm = sustained(thin, SD, 2, asked, 1.0, 95.0, 0).arm
    share = float(share_within(asked, *at_scale(thin, asked, arm, 1.0), 1.0).mean())
    # A simulated request also shares the luck of its run.
    assert served == pytest.approx(share, abs=0.03)


def test_time_without_requests_costs_and_changes_nothing_else(fit: bsd.Fit) -> None:
    idle = pd.DataFrame([{"rate_rps": 0.0, "seconds": UNEVEN.seconds}])
    longer = bsd.Traffic(pd.concat([UNEVEN.windows, idle], ignore_index=True))
    a, b = (capacity_of(fit, t, price_per_hour=1.0) for t in (UNEVEN, longer))
    assert a["replicas"].tolist() == b["replicas"].tolist()
    np.testing.assert_allclose(
        2 * a["price_per_million_tokens"], b["price_per_million_tokens"], rtol=1e-9
    )


def test_the_bill_is_that_of_the_replicas(fit: bsd.Fit) -> None:
    table = capacity_of(fit, STEADY, price_per_hour=3.0)
    tokens = 20.0 * 64 * 3600
    np.testing.assert_allclose(
        table["price_per_million_tokens"], table["replicas"] * 3.0 / tokens * 1e6
    )


def test_longer_spread_of_lengths_needs_more(fit: bsd.Fit) -> None:
    table = STEADY.windows.assign(output_tokens_sd=40.0)
    wide = capacity_of(fit, bsd.Traffic(table))["max_rps"]
    assert (wide < capacity_of(fit, STEADY)["max_rps"]).all()


# --- deployments ------------------------------------------------------------------------------


def test_probabilities_sum_and_pairs_agree(fit: bsd.Fit) -> None:
    found = compare(fit, price_per_hour={"plain": 1.0, "sd": 1.2, "moe": 0.5})
    t = found.table
    assert t["prob_best"].sum() + found.prob_none == pytest.approx(1)
    assert t["prob_cheapest"].sum() == pytest.approx(1)
    assert (t["regret_ms"] >= 0).all() and (t["regret_per_hour"] >= 0).all()
    assert (t["prob_kept"] >= 0.9).all()
    pairs = found.beats
    assert pairs.loc["sd", "plain"] + pairs.loc["plain", "sd"] == pytest.approx(1)
    # Nobody is best more often than it beats any one of the others.
    for name in THREE:
        assert by_name(found)["prob_best"][name] <= pairs.loc[name].min() + 1e-9
    assert "cheapest" in found.sentence and "p95 <= 2.5 s" in found.sentence


def test_the_order_of_candidates_changes_nothing(fit: bsd.Fit) -> None:
    back = dict(reversed(THREE.items()))
    price = {"plain": 1.0, "sd": 1.2, "moe": 0.5}
    a, b = (compare(fit, candidates=c, price_per_hour=price) for c in (THREE, back))
    pd.testing.assert_frame_equal(by_name(a), by_name(b).loc[list(THREE)])
    pd.testing.assert_frame_equal(a.beats, b.beats.loc[list(THREE), list(THREE)])
    assert a.sentence == b.sentence


def test_equal_candidates_share_the_first_place(fit: bsd.Fit) -> None:
    found = compare(fit, candidates={"one": (SD, 2), "two": (SD, 2)}).table
    assert found["prob_best"].tolist() == [0.5, 0.5] and (found["regret_ms"] == 0).all()


def test_draws_are_shared(fit: bsd.Fit) -> None:
    """A new model is one model, whichever candidate has it: more acceptance then always wins."""
    better = bsd.System(NEW.verifier, NEW.drafter, 0.8, extrapolate=True)
    found = compare(fit, STEADY, candidates={"a": (NEW, 2), "b": (better, 2)}, replicas=40)
    assert found.beats.loc["b", "a"] == pytest.approx(1)


def test_labels_are_those_of_the_farthest_window(fit: bsd.Fit) -> None:
    asked = {"known": (SD, 2), "new": (NEW, 2)}
    near = by_name(compare(fit, STEADY, candidates=asked, slo_s=4.0))["support"]
    assert near["known"] == "measured" and near["new"] != "measured"
    rare = pd.DataFrame([{"rate_rps": 0.01, "prompt_tokens": 900, "output_tokens": 64}])
    both = bsd.Traffic(pd.concat([STEADY.windows, rare], ignore_index=True).fillna(1.0))
    assert by_name(compare(fit, both, slo_s=4.0))["support"].eq("extrapolated").all()


def test_a_target_below_the_idle_latency_is_impossible_with_the_number(fit: bsd.Fit) -> None:
    found = compare(fit, slo_s=0.05, price_per_hour=1.0)
    t = found.table
    assert t[["replicas", "per_hour", "mean_s", "regret_ms"]].isna().all(axis=None)
    assert (t["prob_possible"] == 0).all() and (t["idle_s"] > 0.05).all()
    assert f"its p95 is about {t['idle_s'][0]:.3g} s" in found.sentence
    assert "impossible at any load" in found.sentence


def test_one_impossible_candidate_leaves_the_others_to_compare(fit: bsd.Fit) -> None:
    idle = by_name(compare(fit, STEADY))["idle_s"]
    found = compare(fit, STEADY, slo_s=float(idle["sd"] * 1.15))
    assert math.isnan(by_name(found)["replicas"]["plain"])
    assert found.table["prob_best"].sum() + found.prob_none == pytest.approx(1)
    assert found.beats.loc["plain"].isna().all() and "plain: p95" in found.sentence


def test_traffic_beyond_every_candidate_says_so(fit: bsd.Fit) -> None:
    found = compare(fit, STEADY.scaled(20.0), replicas=1)
    assert found.prob_none > 0.99 and found.table["prob_saturated"].gt(0.99).all()
    assert found.table["prob_best"].sum() + found.prob_none == pytest.approx(1)
    assert "beyond the capacity of every candidate" in found.sentence
    assert found.table["needed"].gt(1).all() and "needs" in found.sentence


def test_a_peak_that_may_saturate_is_mentioned(fit: bsd.Fit) -> None:
    peak = pd.DataFrame([{"rate_rps": 900.0, "prompt_tokens": 128, "output_tokens": 64}])
    steady = STEADY.windows.assign(seconds=3600.0)
    both = bsd.Traffic(pd.concat([steady, peak.assign(seconds=1.0)], ignore_index=True))
    found = compare(fit, both)  # one second of requests in a hundred may be late
    assert found.table["prob_saturated"].gt(0.99).all() and found.table["prob_kept"].ge(0.9).all()
    assert found.prob_none > 0.99 and "past capacity in some window" in found.sentence
    assert "is kept by plain on" in found.sentence


def test_so_many_replicas_are_compared_as_they_are(fit: bsd.Fit) -> None:
    found = compare(fit, STEADY, replicas=3, price_per_hour=2.0)
    assert (found.table["replicas"] == 3).all() and (found.table["per_hour"] == 6).all()
    law = fit.latency(bsd.grid(rps=20 / 3, prompt=128, output=64), 2, SD)
    mean = float(law.quantile(0.5, of="mean").squeeze())
    assert by_name(found)["mean_s"]["sd"] == pytest.approx(mean, rel=0.02)


def test_without_names_candidates_are_called_what_they_are(fit: bsd.Fit) -> None:
    names = compare(fit, candidates=[(PLAIN, 0), (SD, 2)]).table["name"].tolist()
    assert names == ["dense-60m, plain", "dense-60m + draft-3m, k = 2, 0.7"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"candidates": {}}, "candidates is empty"),
        ({"candidates": []}, "candidates is empty"),
        ({"candidates": {"a": SD}}, "candidate 'a': must be"),
        ({"candidates": {"a": (SD, -1)}}, "k = -1"),
        ({"candidates": {"a": (SD, [1, 2])}}, "candidate 'a': must be"),
        ({"candidates": [(SD, 2), (SD, 2)]}, "Two candidates are called"),
        ({"candidates": {"a": (SD, 4)}}, "a: k = 4 was never measured here .*extrapolate=True"),
        ({"candidates": {"a": (PLAIN, 2)}}, "a: k = 2 needs a drafter"),
        ({"candidates": {"a": (bsd.System("gpt"), 0)}}, "a: The fit has no verifier 'gpt'"),
        ({"slo_s": 0.0}, "slo_s"),
        ({"percentile": 0.0}, "percentile"),
        ({"confidence": 1.0}, "confidence"),
        ({"replicas": 0}, "replicas"),
        ({"price_per_hour": -1.0}, "price_per_hour of plain = -1.0"),
        ({"price_per_hour": {"plain": 1.0}}, "moe, sd is missing"),
        ({"price_per_hour": dict.fromkeys([*THREE, "x"], 1.0)}, "x is unknown"),
        ({"traffic": 5.0}, "must be a Traffic"),
    ],
)
def test_bad_input_is_one_sentence(fit: bsd.Fit, arguments: dict, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says) as caught:
        compare(fit, **arguments)
    assert "\n" not in str(caught.value)


def test_a_k_never_measured_is_answered_when_asked_for(fit: bsd.Fit) -> None:
    far = bsd.System("dense-60m", "draft-3m", 0.7, extrapolate=True)
    found = compare(fit, candidates={"a": (far, 4)})
    assert found.table["replicas"].notna().all() and found.table["support"][0] != "measured"


def test_lengths_far_outside_are_refused_by_name(fit: bsd.Fit) -> None:
    with pytest.raises(bsd.EvidenceError, match="plain: output_tokens"):
        compare(fit, bsd.Traffic.constant(1.0, 128, 64_000))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": 128.0}, "leave prompt and output out"),
        ({"k": [0, 4]}, "k = 4 was never measured"),
        ({"traffic": 5.0}, "Lengths are missing"),
    ],
)
def test_capacity_refuses(fit: bsd.Fit, arguments: dict, says: str) -> None:
    with pytest.raises(bsd.InputError, match=says):
        capacity_of(fit, **({"traffic": UNEVEN} | arguments))


@pytest.mark.skipif(not AZURE.is_dir(), reason="the public log is not here")
def test_a_public_log_is_answered(fit: bsd.Fit) -> None:
    traffic = bsd.read_traffic(AZURE / "AzureLLMInferenceTrace_conv.csv")
    far = bsd.System("dense-60m", "draft-3m", 0.7, extrapolate=True)
    found = compare(fit, traffic, candidates={"plain": (far, 0), "sd": (far, 2)}, slo_s=20.0)
    assert found.table["replicas"].between(1, 60).all()
    assert found.table["support"].eq("extrapolated").all()


def test_an_answer_imports_nothing_heavy(fit_path: Path) -> None:
    loaded = loaded_after(
        "import bayes_sd as b; from bayes_sd.decide.deploy import deployments as d; "
        f"f = b.Fit.load({str(fit_path)!r}); t = b.Traffic.constant(1.0, 128, 64); "
        "d(f, [(b.System('dense-60m'), 0)], t, slo_s=3.0).table"
    )
    assert not [name for name in HEAVY if loaded[name]]


# --- command line -----------------------------------------------------------------------------

YAML = """
plain: {verifier: dense-60m, price_per_hour: 1}
sd: {verifier: dense-60m, drafter: draft-3m, acceptance: 0.7, k: 2, price_per_hour: 1.5}
new:
  verifier: {params: 90e6}
  drafter: {params: 3e6}
  acceptance: [0.8, 0.7]
  k: 2
  extrapolate: true
  price_per_hour: 2
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A file of candidates and one of traffic."""
    (tmp_path / "deployments.yaml").write_text(YAML)
    WINDOWS.assign(output_tokens=60.0).to_csv(tmp_path / "traffic.csv", index=False)
    return str(tmp_path / "deployments.yaml"), str(tmp_path / "traffic.csv")


def test_the_command_answers_in_json_and_words(fit_path: Path, files: tuple[str, str]) -> None:
    words = ["deploy", str(fit_path), files[0], "--traffic", files[1], "--slo", "2.5"]
    answered = CliRunner().invoke(app, [*words, "--json"])
    assert answered.exit_code == 0, answered.stderr
    found = json.loads(answered.stdout)
    assert [r["name"] for r in found["rows"]] == ["plain", "sd", "new"]
    assert found["beats"]["sd"]["sd"] is None and 0 <= found["beats"]["sd"]["plain"] <= 1
    assert "180 requests in 100 s" in answered.stderr
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and found["sentence"] in shown.stdout
    never = CliRunner().invoke(app, [*words[:-1], "0.01", "--json"])
    assert never.exit_code == 0 and json.loads(never.stdout)["rows"][0]["replicas"] is None


def test_the_command_takes_a_rate_and_exits_as_others(
    fit_path: Path, files: tuple[str, str], tmp_path: Path
) -> None:
    def code(*words: str) -> int:
        return CliRunner().invoke(app, ["deploy", str(fit_path), *words, "--slo", "3"]).exit_code

    lengths = ["--prompt", "128", "--output", "64"]
    assert code(files[0], "--traffic", "20", *lengths) == 0
    assert code(files[0], "--traffic", "20") == 2
    assert code(files[0], "--traffic", files[1], *lengths) == 2
    assert code(files[0], "--traffic", files[1], "--columns", "rate_rps") == 2
    assert code(files[0], "--traffic", "none.csv") == 1
    assert code("none.yaml", "--traffic", files[1]) == 1
    assert code(files[0], "--traffic", "20", "--prompt", "128", "--output", "64000") == 3


def test_tokens_that_are_not_served_have_no_price(fit_path: Path, files: tuple[str, str]) -> None:
    words = ["deploy", str(fit_path), files[0], "--traffic", "200", "--slo", "3", "--json"]
    words += ["--replicas", "1", "--prompt", "128", "--output", "64"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    for row in found["rows"]:
        assert row["prob_saturated"] == 1
        assert row["price_per_million_tokens"] is None and row["prob_cheapest"] is None
    assert "beyond the capacity of every candidate with probability 1.00" in found["sentence"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one"),
        ("[1, 2]", "must map a name"),
        ("a: {verifier: [", "is not YAML"),
        ("a: dense-60m", "a must map keys"),
        ("a: {drafter: draft-3m}", "a: verifier is missing"),
        ("a: {verifier: dense-60m, draft: x}", "a: draft"),
        ("a: {verifier: 5}", "a: verifier must be a measured model's name or a size"),
        ("a: {verifier: {params: 8e9, depth: 3}}", "unknown size 'depth'"),
        ("a: {verifier: {params: big}}", "a: verifier must be a number"),
        ("a: {verifier: dense-60m, k: 1.5}", "a: k must be a whole number"),
        ("a: {verifier: dense-60m, price_per_hour: 0}", "a: price_per_hour must be a positive"),
        ("a: {verifier: dense-60m, acceptance: 2}", "a: acceptance must lie between 0 and 1"),
        ("a: {verifier: dense-60m, acceptance: []}", "a: acceptance must be a number"),
        ("a: {verifier: {params: 8e9, experts: 2.5}}", "a: verifier must be a whole number"),
        ("a: {verifier: dense-60m, structure: edge}", "a: --structure 'edge': round_trip_s"),
        ("a: {verifier: dense-60m}\na: {verifier: dense-25m}", "a is named twice"),
    ],
)
def test_bad_candidates_are_one_sentence(
    fit_path: Path, tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(text)
    words = ["deploy", str(fit_path), str(path), "--traffic", "2", "--slo", "3"]
    refused = CliRunner().invoke(app, [*words, "--prompt", "128", "--output", "64"])
    assert refused.exit_code == 1 and says in refused.stderr and "d.yaml" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_capacity_command_takes_a_file(fit_path: Path, files: tuple[str, str]) -> None:
    words = ["capacity", str(fit_path), "-k", "0,2", "--verifier", "dense-60m", "--drafter"]
    words += ["draft-3m", "--acceptance", "0.7", "--slo", "1.5", "--traffic", files[1], "--json"]
    answered = CliRunner().invoke(app, words)
    assert answered.exit_code == 0, answered.stderr
    assert all(r["replicas"] >= 1 for r in json.loads(answered.stdout)["rows"])
    lengths = CliRunner().invoke(app, [*words, "--prompt", "128", "--output", "64"])
    assert lengths.exit_code == 1 and "leave prompt and output out" in lengths.stderr
