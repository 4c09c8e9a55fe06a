"""What check() says about sets of runs made to lack one thing each."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs_helpers import CORPUS, PLAIN, REMOVE, SD, TABLE, changed, raw, read_table, write

from bayes_sd.errors import InputError
from bayes_sd.runs.check import Check
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import Size


@pytest.fixture(scope="module")
def checked(corpus: Runs) -> Check:
    """The check of one shipped campaign."""
    return corpus.check()


def found(checked: Runs | Check, text: str) -> list[tuple[str, str, str]]:
    """(level, where, consequence) of the findings that contain the text."""
    findings = (checked.check() if isinstance(checked, Runs) else checked).findings
    hit = findings[findings.finding.str.contains(text, regex=False)]
    return list(hit[["level", "where", "consequence"]].itertuples(index=False, name=None))


def test_the_corpus_passes(corpus: Runs, checked: Check) -> None:
    assert checked.passed
    saturated = corpus.table[corpus.table.saturated]
    warned = checked.findings[checked.findings.level == "warning"]
    assert len(warned) == saturated.groupby(["verifier", "drafter", "draft_tokens"]).ngroups
    assert warned.finding.str.contains("are past saturation").all()
    note, drafters = checked.findings[checked.findings.level == "note"].itertuples()
    assert note.finding.startswith("verifier_layers not given for dense-115m, dense-200m")
    assert drafters.finding == "drafter_layers not given for draft-12m, draft-3m"


def test_summary_counts(corpus: Runs, checked: Check) -> None:
    summary = checked.summary
    assert summary.runs.sum() == len(corpus) == 144
    assert summary.steady.sum() == len(corpus.steady)
    assert summary.requests.sum() == corpus.table.requests.sum()
    row = summary[(summary.verifier == "dense-115m") & (summary.drafter == "draft-12m")].iloc[0]
    files = [raw(f) for f in sorted(CORPUS.glob("dense-115m_draft-12m*.json"))]
    rates = [f["request_rate"] for f in files]
    assert (row.runs, row.load_levels) == (5, 5)
    assert (row.min_rps, row.max_rps) == (min(rates), max(rates))
    shares = [f["spec_decode_acceptance_rate"] / 100 for f in files]
    assert row.acceptance == pytest.approx(sum(shares) / 5, rel=1e-4)
    assert (row.min_acceptance_imposed, row.max_acceptance_imposed) == (0.7, 0.7)
    plain = summary[summary.drafter == "none"]
    assert plain.acceptance.isna().all()


def test_saturated_runs_are_named(corpus: Runs) -> None:
    some = corpus.select(verifier="dense-115m", arm="plain")
    (only,) = some.check().findings.query("level == 'warning'").itertuples()
    assert only.finding == (
        "1 of 9 runs are past saturation or ended before a steady state: dense-115m_3.json"
    )


def test_set_aside_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", raw(PLAIN))
    bad = write(tmp_path / "b.json", changed(raw(SD), duration=0))
    assert found(read(tmp_path), "duration must be a positive finite number, got 0") == [
        ("warning", str(bad), "set aside: it is not in the table")
    ]


@pytest.mark.parametrize(
    ("change", "text", "consequence"),
    [
        ({"failed": 4}, "1 of 1 runs lost over 5% of their requests: a.json", "lucky"),
        (
            {"output_lens": [1] * 29, "total_output_tokens": 29},
            "1 of 1 runs have no time per output token: a.json",
            "prefill and decode cost cannot be told apart",
        ),
    ],
)
def test_flagged_runs(change: dict[str, Any], text: str, consequence: str, tmp_path: Path) -> None:
    runs = read(write(tmp_path / "a.json", changed(raw(PLAIN), **change)))
    ((level, where, why),) = found(runs, text)
    assert (level, where) == ("warning", "dense-115m plain") and consequence in why


def test_one_load_level(corpus: Runs, checked: Check) -> None:
    one = corpus.select(rate_rps=1.45)
    assert [w for _, w, _ in found(one, "only one load level")] == ["dense-115m plain"]
    assert found(checked, "only one load level") == []


def test_no_plain_arm(corpus: Runs) -> None:
    sd = corpus.select(arm="sd", verifier=["dense-60m", "moe-e8k2"])
    expected = "whether SD beats plain decoding cannot be answered for it"
    assert found(sd, "no steady plain run") == [
        ("warning", "dense-60m", expected),
        ("warning", "moe-e8k2", expected),
    ]


@pytest.mark.parametrize(("alpha", "level"), [(0.0, 0), (100.0, 1), (50.0, None)])
def test_acceptance_of_zero_or_one_everywhere(alpha: float, level: int | None) -> None:
    runs = read_table(TABLE.assign(alpha_pct=alpha))
    result = runs.check()
    hits = found(result, "in every run")
    assert [w for _, w, _ in hits] == ([] if level is None else ["m with eagle"])
    assert bool(found(result, f"acceptance is {level} in every run")) == (level is not None)


def test_measured_acceptance_overrules_the_imposed_one(tmp_path: Path) -> None:
    rates = "spec_decode_per_position_acceptance_rates"
    none = {"spec_decode_accepted_tokens": 0, rates: [0.0] * 7}
    runs = read(write(tmp_path / "a.json", changed(raw(SD), **none)))
    assert len(found(runs, "acceptance is 0 in every run")) == 1


def test_no_counts() -> None:
    hits = found(read_table(TABLE), "have no acceptance counts")
    assert [w for _, w, _ in hits] == ["m with eagle, k=3"]


def test_only_one_size(corpus: Runs) -> None:
    ((level, _, why),) = found(corpus.select(verifier="dense-60m"), "only one verifier size")
    assert level == "note" and "rests on the prior" in why
    assert found(corpus.select(verifier=["dense-60m", "dense-25m"]), "one verifier size") == []


def test_several_environments(corpus: Runs) -> None:
    both = corpus.select(verifier="dense-60m") + read_table(TABLE, environment="A100")
    hits = found(both, "2 environments: 2-core AMD EPYC")
    assert hits == [
        ("note", "all runs", "each has factors of its own on overhead, memory and compute")
    ]


@pytest.mark.parametrize("empty", [False, True])
def test_nothing_steady_does_not_pass(corpus: Runs, empty: bool) -> None:
    worst = corpus.select(saturated=True)
    runs = Runs(worst.table.head(0), worst.set_aside) if empty else worst
    result = runs.check()
    assert not result.passed
    assert result.findings.level[0] == "error"
    assert result.findings.consequence[0] == "there is nothing to fit"
    assert str(result).startswith("These runs cannot be fitted; see the errors below.")


def test_text_has_every_system_and_finding(corpus: Runs) -> None:
    result = corpus.select(verifier="dense-200m").check()
    text = str(result)
    assert text.startswith("There are steady runs to fit.\n\nIn all rows: environment 2-core AMD")
    for finding in result.findings.itertuples():
        assert f"{finding.where}: {finding.finding}" in text and str(finding.consequence) in text
    table = text.split("\n\n")[2].splitlines()
    assert len(table) == len(result.summary) + 1 and max(map(len, table)) <= 80
    assert "nan" not in text.lower()


def test_every_environment_has_a_table_that_need_not_name_it(corpus: Runs) -> None:
    some = corpus.select(verifier="dense-200m")
    both = pd.concat([some.table, some.table.assign(environment="elsewhere")])
    text = str(Runs(both, some.set_aside).check()).split("\nwarning")[0]
    assert text.count("In all rows: environment elsewhere") == text.count("elsewhere") == 1
    assert text.count("steady acceptance") == 2


def test_json(checked: Check) -> None:
    data = json.loads(json.dumps(checked.to_dict(), allow_nan=False))
    assert data["passed"] is True and len(data["summary"]) == 24
    plain = next(row for row in data["summary"] if row["drafter"] == "none")
    assert plain["acceptance"] is None and plain["runs"] == 9


def test_an_acceptance_that_nobody_told_is_assumed_and_said() -> None:
    runs = read_table(without=("acceptance_imposed",), drafter_params=4e8)
    result = runs.check()
    ((level, where, why),) = found(result, "2 of 2 runs do not tell their acceptance: table row 0")
    assert result.passed and (level, where) == ("warning", "m with eagle, k=3")
    assert why.startswith("a usual one is assumed") and "EAGLE-like 0.65" in why
    counted = read_table(TABLE.assign(drafts=100, accepted_tokens=210), drafter_params=4e8)
    assert counted.check().passed and not found(counted, "do not tell")
    assert counted.check().summary.acceptance_from.tolist() == ["totals"]


@pytest.mark.parametrize(
    ("imposed", "accepted", "low"), [(80.0, 100, True), (80.0, 150, False), (None, 50, True)]
)
def test_a_low_acceptance_points_at_the_temperature(
    imposed: float | None, accepted: int, low: bool
) -> None:
    counts = {"drafts": 100, "drafted_tokens": 300, "accepted_tokens": accepted}
    runs = read_table(TABLE.assign(alpha_pct=imposed, **counts))
    hits = [why for _, _, why in found(runs, "accept far less than was imposed or is usual")]
    assert len(hits) == low and all("--temperature 0" in why for why in hits)


def test_the_assumed_depth_is_said_to_be_rough() -> None:
    ((_, _, why),) = found(read_table(), "verifier_layers not given for m")
    assert "can be off by 40%" in why and "by a factor of 3" in why
    known = read_table(verifier_layers=32, verifier_kv_bytes=131072)
    assert not found(known, "verifier_layers")


def test_every_flag_is_explained() -> None:
    runs = read_table(columns={"achieved_rps": "rps"}, without=("rate_rps",), concurrency=9)
    notes = {text for text in runs.check().findings.finding if "2 of 2 runs" in text}
    assert any("do not say which rate was offered" in text for text in notes)
    assert any("limited the requests in flight" in text for text in notes)


def test_a_drafter_of_unknown_size_is_an_error_that_names_it() -> None:
    result = read_table().check()
    assert not result.passed
    assert found(result, "its size is unknown in 2 runs: table row 0, table row 1") == [
        (
            "error",
            "drafter eagle",
            "fit refuses all runs; give drafter_params (0 for a drafter without weights)",
        )
    ]
    # A fit takes the size from the run that has it; 0 is a size.
    some = read_table(TABLE.assign(p=[4e8, None]), {"drafter_params": "p"})
    for runs in (some, read_table(drafter="ngram", drafter_params=0)):
        assert runs.check().passed


def test_acceptance_is_accepted_over_drafted() -> None:
    counts = {"drafts": [6000] * 2, "drafted_tokens": [15600] * 2, "accepted_tokens": [4200] * 2}
    runs = read_table(TABLE.assign(**counts), drafter="ngram", drafter_params=0)
    # An n-gram drafter proposes fewer than k where it finds none.
    assert runs.check().summary.acceptance.tolist() == [pytest.approx(0.269, abs=5e-4)]
    assert runs.table.drafter_params.tolist() == [0.0, 0.0]


def test_sizes_of_known_models_are_taken_by_name_and_said(tmp_path: Path) -> None:
    names = {"verifier_params": REMOVE, "verifier": "Qwen/Qwen3-8B-FP8"}
    draft = {"drafter": "Qwen3-0.6B", "drafter_params": REMOVE}
    write(tmp_path / "plain.json", changed(raw(PLAIN), **names))
    write(tmp_path / "sd.json", changed(raw(SD), **names, **draft))
    runs = read(tmp_path)
    size, small = Size.read("Qwen3-8B"), Size.read("Qwen3-0.6B")
    assert set(runs.table.verifier_params) == {size.params}
    assert set(runs.table.verifier_kv_bytes) == {size.kv_bytes}
    assert set(runs.table.drafter_params.dropna()) == {small.params}
    assert set(runs.table.drafter_layers.dropna()) == {small.layers} == {28}
    # Its layers are known too where its size is given, if it is that of the model.
    for params, layers in (("6e8", [28.0]), ("2e7", [])):
        sized = changed(raw(SD), **names, **(draft | {"drafter_params": params}))
        told = read(write(tmp_path / "sized.json", sized)).table
        assert told.drafter_layers.dropna().tolist() == layers
    (tmp_path / "sized.json").unlink()
    assert len(found(runs, "give no size of their verifier, a model known by its name")) == 2
    assert len(found(runs, "give no size of their drafter, a known model or a head for one")) == 1
    # A given size holds for the runs that give a name, in any spelling; nothing is then assumed.
    given = {"verifier": "qwen3-8b-fp8", "verifier_params": "8.2e9", "verifier_layers": REMOVE}
    write(tmp_path / "given.json", changed(raw(CORPUS / "dense-115m_1.json"), **given))
    runs = read(tmp_path)
    assert set(runs.table.verifier_params) == {8.2e9} and runs.set_aside.empty
    assert runs.table.verifier_layers.isna().all() and runs.table.verifier.nunique() == 1
    assert not found(runs, "give no size of their verifier")


def test_unknown_layers_of_a_draft_model_are_said() -> None:
    given = read_table(drafter="d", drafter_params=4e8)
    assert len(found(given, "drafter_layers not given")) == 1
    for known in ({"drafter_layers": 28}, {"drafter_method": "eagle3"}):
        told = read_table(drafter="d", drafter_params=4e8, **known)
        assert not found(told, "drafter_layers not given")


def test_a_head_has_the_size_of_one_for_its_verifier(tmp_path: Path) -> None:
    """A public head, by the name of its method; one name, two sizes: they are told apart."""
    head = {"drafter": "eagle3", "drafter_params": REMOVE, "verifier_params": REMOVE}
    of = {
        "sd.json": (SD, "Qwen3-8B"),
        "larger.json": (CORPUS / "dense-115m_draft-3m_k1_a90_0.json", "Qwen3-32B"),
    }
    for name, (run, verifier) in of.items():
        write(tmp_path / name, changed(raw(run), **head, verifier=verifier))
    one = read(tmp_path / "sd.json").table.iloc[0]
    assert one.drafter == "eagle3"
    assert one.drafter_params == Size.drafter("eagle3", "Qwen3-8B").active
    assert (one.drafter_layers, one.drafter_method) == (1, "eagle3")
    runs = read(tmp_path)
    assert {*runs.table.drafter} == {"eagle3 of Qwen3-8B", "eagle3 of Qwen3-32B"}
    assert len(found(runs, "give no size of their drafter, a known model or a head")) == 2


def test_a_head_named_as_its_verifier_has_no_size_by_name(tmp_path: Path) -> None:
    head = {"drafter": "DeepSeek-V3", "drafter_method": "mtp", "drafter_params": REMOVE}
    runs = read(write(tmp_path / "sd.json", changed(raw(SD), **head)))
    assert runs.table.drafter_params.isna().all()


def test_an_unknown_verifier_is_refused_with_names_like_it(tmp_path: Path) -> None:
    names = {"verifier_params": REMOVE, "verifier": "Qwen/Qwen3-9B"}
    with pytest.raises(InputError, match="verifier_params is missing; .* known by name are Qwen3"):
        read(write(tmp_path / "plain.json", changed(raw(PLAIN), **names)))
