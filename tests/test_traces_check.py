"""What check() says about sets of runs made to lack one thing each."""

import json
from pathlib import Path
from typing import Any

import pytest
from traces_helpers import (
    COLUMN_MAP,
    CONSTANTS,
    CORPUS,
    PLAIN,
    SD,
    TABLE,
    changed,
    raw,
    write,
)

from bayes_sd.traces import Traces, read_table, read_traces


@pytest.fixture(scope="module")
def corpus() -> Traces:
    return read_traces(CORPUS)


def found(traces: Traces, text: str) -> list[tuple[str, str, str]]:
    """(level, where, consequence) of the findings that contain the text."""
    findings = traces.check().findings
    hit = findings[findings.finding.str.contains(text, regex=False)]
    return list(hit[["level", "where", "consequence"]].itertuples(index=False, name=None))


def test_the_corpus_passes(corpus: Traces) -> None:
    result = corpus.check()
    assert result.passed
    saturated = corpus.runs[corpus.runs.saturated]
    warned = result.findings[result.findings.level == "warning"]
    assert len(warned) == saturated.groupby(["verifier", "drafter", "draft_tokens"]).ngroups
    assert warned.finding.str.contains("are past saturation").all()
    (note,) = result.findings[result.findings.level == "note"].itertuples()
    assert note.finding.startswith("verifier_layers not given for dense-115m, dense-200m")


def test_summary_counts(corpus: Traces) -> None:
    summary = corpus.check().summary
    assert summary.runs.sum() == len(corpus) == 144
    assert summary.steady.sum() == len(corpus.steady)
    assert summary.requests.sum() == corpus.runs.requests.sum()
    row = summary[(summary.verifier == "dense-115m") & (summary.drafter == "draft-12m")].iloc[0]
    files = [raw(f) for f in sorted(CORPUS.glob("dense-115m_draft-12m*.json"))]
    rates = [f["request_rate"] for f in files]
    assert (row.runs, row.load_levels) == (5, 5)
    assert (row.min_rps, row.max_rps) == (min(rates), max(rates))
    shares = [f["spec_decode_acceptance_rate"] / 100 for f in files]
    assert row.acceptance == pytest.approx(sum(shares) / 5, rel=1e-4)
    assert (row.min_imposed, row.max_imposed) == (0.7, 0.7)
    plain = summary[summary.drafter == "none"]
    assert plain.acceptance.isna().all()


def test_saturated_runs_are_named(corpus: Traces) -> None:
    some = corpus.select(verifier="dense-115m", arm="plain")
    (only,) = some.check().findings.query("level == 'warning'").itertuples()
    assert only.finding == (
        "1 of 9 runs are past saturation or ended before a steady state: dense-115m_3.json"
    )


def test_set_aside_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", raw(PLAIN))
    bad = write(tmp_path / "b.json", changed(raw(SD), duration=0))
    assert found(read_traces(tmp_path), "duration must be a positive finite number, got 0") == [
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
    traces = read_traces(write(tmp_path / "a.json", changed(raw(PLAIN), **change)))
    ((level, where, why),) = found(traces, text)
    assert (level, where) == ("warning", "dense-115m plain") and consequence in why


def test_one_load_level(corpus: Traces) -> None:
    one = corpus.select(rate_rps=1.45)
    assert [w for _, w, _ in found(one, "only one load level")] == ["dense-115m plain"]
    assert found(corpus, "only one load level") == []


def test_no_plain_arm(corpus: Traces) -> None:
    sd = corpus.select(arm="sd", verifier=["dense-60m", "moe-e8k2"])
    expected = "P(SD beats plain) will be refused for it"
    assert found(sd, "no steady plain run") == [
        ("warning", "dense-60m", expected),
        ("warning", "moe-e8k2", expected),
    ]


@pytest.mark.parametrize(("alpha", "level"), [(0.0, 0), (100.0, 1), (50.0, None)])
def test_acceptance_of_zero_or_one_everywhere(alpha: float, level: int | None) -> None:
    traces = read_table(TABLE.assign(alpha_pct=alpha), COLUMN_MAP, CONSTANTS)
    hits = found(traces, "in every run")
    assert [w for _, w, _ in hits] == ([] if level is None else ["m with eagle"])
    assert bool(found(traces, f"acceptance is {level} in every run")) == (level is not None)


def test_measured_acceptance_overrules_the_imposed_one(tmp_path: Path) -> None:
    rates = "spec_decode_per_position_acceptance_rates"
    none = {"spec_decode_accepted_tokens": 0, rates: [0.0] * 7}
    traces = read_traces(write(tmp_path / "a.json", changed(raw(SD), **none)))
    assert len(found(traces, "acceptance is 0 in every run")) == 1


def test_no_counts() -> None:
    hits = found(read_table(TABLE, COLUMN_MAP, CONSTANTS), "have no acceptance counts")
    assert [w for _, w, _ in hits] == ["m with eagle, k=3"]


def test_only_one_size(corpus: Traces) -> None:
    ((level, _, why),) = found(corpus.select(verifier="dense-60m"), "only one verifier size")
    assert level == "note" and "rests on the prior" in why
    assert found(corpus.select(verifier=["dense-60m", "dense-25m"]), "one verifier size") == []


def test_several_environments(corpus: Traces) -> None:
    both = corpus + read_table(TABLE, COLUMN_MAP, CONSTANTS, environment="A100")
    hits = found(both, "2 environments: 2-core AMD EPYC")
    assert hits == [
        (
            "note",
            "all runs",
            "each has factors of its own on overhead, memory and compute",
        )
    ]


@pytest.mark.parametrize("empty", [False, True])
def test_nothing_steady_does_not_pass(corpus: Traces, empty: bool) -> None:
    worst = corpus.select(saturated=True)
    traces = Traces(worst.runs.head(0), worst.set_aside) if empty else worst
    result = traces.check()
    assert not result.passed
    assert result.findings.level[0] == "error"
    assert result.findings.consequence[0] == "there is nothing to fit"
    assert str(result).startswith("There is no steady run to fit.")


def test_text_has_every_system_and_finding(corpus: Traces) -> None:
    some = corpus.select(verifier="dense-200m")
    text, result = str(some.check()), some.check()
    assert text.startswith("There are steady runs to fit.\n\nEnvironment: 2-core AMD EPYC")
    for finding in result.findings.itertuples():
        assert f"{finding.where}: {finding.finding}" in text and str(finding.consequence) in text
    assert text.count("dense-200m ") >= len(result.summary)
    assert "nan" not in text.lower()


def test_json(corpus: Traces) -> None:
    data = json.loads(json.dumps(corpus.check().to_dict(), allow_nan=False))
    assert data["passed"] is True and len(data["summary"]) == 24
    plain = next(row for row in data["summary"] if row["drafter"] == "none")
    assert plain["acceptance"] is None and plain["runs"] == 9
