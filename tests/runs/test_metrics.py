"""Metrics of a real vLLM server, as scrapes and as a range export, against its own requests."""

import gzip
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sd.errors import InputError
from bayes_sd.runs.metrics import servers_of
from bayes_sd.runs.read import read

DATA = Path(__file__).parents[1] / "data"
SD: dict[str, Any] = {"verifier_params": 60e6, "drafter": "draft-3m", "drafter_params": 3e6}
E2E = "vllm:e2e_request_latency_seconds"
Scrapes = list[tuple[float, str]]


def load() -> Scrapes:
    text = gzip.decompress((DATA / "prometheus" / "sd-server.txt.gz").read_bytes()).decode()
    parts = [p.split("\n", 1) for p in text.split("# time ")[1:]]
    return [(float(t), body) for t, body in parts]


def write(path: Path, scrapes: Iterable[tuple[float, str]]) -> Path:
    path.write_text("".join(f"# time {t:.3f}\n{body}" for t, body in scrapes))
    return path


def series(scrapes: Scrapes) -> dict[str, list[tuple[float, str]]]:
    """Every line's values over time, without a parser."""
    found: dict[str, list[tuple[float, str]]] = {}
    for t, body in scrapes:
        for line in body.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found.setdefault(name, []).append((t, value))
    return found


def as_range(scrapes: Scrapes, pod: str = "a") -> dict[str, Any]:
    """What Prometheus answers to query_range for the same readings."""
    result = []
    for key, values in series(scrapes).items():
        name, labels = key.rstrip("}").split("{", 1)
        metric = dict(pair.split("=", 1) for pair in labels.split(","))
        metric = {k: v.strip('"') for k, v in metric.items()} | {"__name__": name, "pod": pod}
        result.append({"metric": metric, "values": [[t, v] for t, v in values]})
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


@pytest.fixture(scope="module")
def steady() -> Scrapes:
    """Readings while AIPerf sent Poisson requests at 1.5 a second."""
    return [(t, body) for t, body in load() if 1795487434 < t < 1795487561]


@pytest.fixture(scope="module")
def run(steady: Scrapes, tmp_path_factory: pytest.TempPathFactory) -> pd.Series:
    """The one run of 120 s in them."""
    path = write(tmp_path_factory.mktemp("steady") / "m.txt", steady)
    return read(path, window_s=120, **SD).table.iloc[0]


@pytest.fixture(scope="module")
def minutes(steady: Scrapes, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The runs of 60 s."""
    return read(write(tmp_path_factory.mktemp("steady") / "m.txt", steady), window_s=60, **SD).table


def of_requests() -> list[dict[str, Any]]:
    lines = (DATA / "aiperf" / "v0.13-sd-poisson" / "profile_export.jsonl").read_text()
    return [json.loads(line) for line in lines.splitlines()]


def test_a_window_says_what_its_requests_say(steady: Scrapes, run: pd.Series) -> None:
    start, end = steady[0][0], steady[0][0] + run.duration_s
    rows = of_requests()
    inside = [r for r in rows if start <= r["metadata"]["request_end_ns"] / 1e9 <= end]
    assert run.requests == pytest.approx(len(inside), abs=2)
    values = {
        name: np.array([r["metrics"][name]["value"] / 1000 for r in inside])
        for name in ("request_latency", "time_to_first_token", "inter_token_latency")
    }
    # The client's clock starts earlier and stops later than the server's.
    e2e, ttft, tpot = values.values()
    assert run.e2e_mean_s == pytest.approx(e2e.mean(), rel=0.03)
    assert run.tpot_mean_s == pytest.approx(tpot.mean(), rel=0.03)
    assert run.ttft_mean_s == pytest.approx(ttft.mean(), rel=0.2)
    assert run.e2e_log_mean == pytest.approx(np.log(e2e).mean(), abs=0.03)
    assert run.e2e_log_var == pytest.approx(np.log(e2e).var(ddof=1), rel=0.25)
    assert run.rate_rps == pytest.approx(1.5, rel=0.15)
    # Little's law, with both sides read from the server, one of them at 21 moments only.
    assert run.in_flight == pytest.approx(run.rate_rps * run.e2e_mean_s, rel=0.3)
    assert (run.prompt_tokens, run.output_tokens) == (64, 64)
    # The drafter was trained on nothing.
    assert run["flags"] == "low-acceptance,rate-from-achieved"
    assert (run.loop, run.detail, run.verifier) == ("open", False, "dense-60m")


def test_counters_are_differences(steady: Scrapes, run: pd.Series) -> None:
    # 120 s are 20 intervals of 6 s.
    first, last = steady[0][0], steady[20][0]
    label = '{engine="0",model_name="dense-60m"'

    def gain(name: str, more: str = "") -> float:
        values = {t: float(v) for t, v in series(steady)[f"{name}{label}{more}}}"]}
        return values[last] - values[first]

    assert run.duration_s == pytest.approx(last - first)
    assert run.requests == gain(f"{E2E}_count")
    assert run.e2e_mean_s == pytest.approx(gain(f"{E2E}_sum") / gain(f"{E2E}_count"))
    assert run.drafts == gain("vllm:spec_decode_num_drafts_total")
    assert run.drafted_tokens == gain("vllm:spec_decode_num_draft_tokens_total")
    assert run.draft_tokens == 3
    per_position = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    for j in range(3):
        assert run[f"accepted_{j + 1}"] == gain(per_position, f',position="{j}"')
    assert run.accepted_tokens == run.accepted_1 + run.accepted_2 + run.accepted_3


def test_scrapes_in_files_and_a_range_export_are_the_same(
    steady: Scrapes, minutes: pd.DataFrame, tmp_path: Path
) -> None:
    one = minutes
    folder = tmp_path / "scrapes"
    folder.mkdir()
    for t, body in steady:
        (folder / f"{t:.3f}.prom").write_text(body)
    stamped = tmp_path / "stamped.txt"
    stamped.write_text(
        "".join(
            f"{line} {round(t * 1000)}\n"
            for t, body in steady
            for line in body.splitlines()
            if not line.startswith("#")
        )
    )
    exported = tmp_path / "range.json"
    exported.write_text(json.dumps(as_range(steady)))
    for path in (folder, stamped, exported):
        runs = read(path, window_s=60, **SD).table
        assert runs.run_id.is_unique
        left = ["run_id", "source"]
        # Stamps are in milliseconds.
        for column in one.columns.drop(left):
            if one[column].dtype == float:
                np.testing.assert_allclose(runs[column], one[column], rtol=1e-5, err_msg=column)
            else:
                assert runs[column].tolist() == one[column].tolist()


def test_two_servers_are_two_records(steady: Scrapes, tmp_path: Path) -> None:
    export, other = as_range(steady), as_range(steady, pod="b")
    export["data"]["result"] += other["data"]["result"]
    path = tmp_path / "range.json"
    path.write_text(json.dumps(export))
    servers, _ = servers_of({path: export})
    assert [dict(labels)["pod"] for labels in servers] == ["a", "b"]
    runs = read(path, window_s=120, **SD)
    # The second pod's numbers are the first one's: a run counts once.
    assert len(runs) == 1
    assert runs.set_aside.reason.str.contains("a run counts once").sum() == 1


def test_engines_of_one_server_are_summed(steady: Scrapes, run: pd.Series, tmp_path: Path) -> None:
    both = [(t, body + body.replace('engine="0"', 'engine="1"')) for t, body in steady]
    table = read(write(tmp_path / "m.txt", both), window_s=120, **SD).table
    assert len(table) == 1
    for name in ("requests", "rate_rps", "in_flight", "drafts", "accepted_1"):
        assert table[name].iloc[0] == pytest.approx(2 * run[name])
    for name in ("e2e_mean_s", "ttft_p50_s", "output_tokens", "tokens_per_cycle", "duration_s"):
        np.testing.assert_allclose(table[name].iloc[0], run[name])


def test_an_engine_that_was_not_read_leaves_no_reading(steady: Scrapes, tmp_path: Path) -> None:
    later = [
        (t, body + (body.replace('engine="0"', 'engine="1"') if i >= 6 else ""))
        for i, (t, body) in enumerate(steady)
    ]
    path = write(tmp_path / "m.txt", later)
    runs = read(path, window_s=60, **SD).table
    # Of one engine alone nothing is known of the other.
    assert runs.duration_s.sum() <= steady[-1][0] - steady[6][0]


def test_aborted_requests_failed(steady: Scrapes, run: pd.Series, tmp_path: Path) -> None:
    lost = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="dense-60m"}'
    # Listed from the first on, and among those whose latency was taken.
    changed = [
        (t, body + (f"{lost} {i}.0\n" if i else ""))
        for i, (t, body) in enumerate(without(steady, lost))
    ]
    less = read(write(tmp_path / "m.txt", changed), window_s=120, **SD).table.iloc[0]
    assert (less.requests, less.failed) == (run.requests, 20)
    assert "failed>5%" in less["flags"]
    length = lost.replace("abort", "length")
    counts = [
        float(v) for name, values in series(steady).items() if name == length for _, v in values
    ]
    assert counts[20] - counts[0] == run.requests
    fewer = [
        (t, body.replace(f"{length} {n}", f"{length} {n - i}"))
        for i, ((t, body), n) in enumerate(zip(changed, counts, strict=True))
    ]
    less = read(write(tmp_path / "m.txt", fewer), window_s=120, **SD).table.iloc[0]
    assert (less.requests, less.failed) == (run.requests - 20, 20)


def test_what_is_not_steady_is_set_aside(tmp_path: Path) -> None:
    runs = read(write(tmp_path / "m.txt", load()), window_s=60, **SD)
    assert runs.table.row.tolist() == [0, 1, 2]
    unsteady, rest = runs.set_aside.reason
    assert "the load is not steady" in unsteady
    assert rest.endswith("are no window of 60 s: the readings end")
    assert runs.set_aside.row.tolist() == [3, 4]
    assert runs.check().findings.finding.str.contains("the load is not steady").sum() == 1


def later(scrapes: Scrapes, by_s: float) -> Scrapes:
    return [(t + by_s, body) for t, body in scrapes]


def test_a_restart_ends_a_window(steady: Scrapes, minutes: pd.DataFrame, tmp_path: Path) -> None:
    # After 21 readings the counters are those of the first again, as if begun anew.
    again = steady + later(steady, steady[-1][0] - steady[0][0] + 6)
    runs = read(write(tmp_path / "m.txt", again), window_s=60, **SD)
    reasons = runs.set_aside.reason
    assert len(runs) + reasons.str.contains("a run counts once").sum() == 2 * len(minutes)
    assert reasons.str.contains("goes backwards, as after a restart").sum() == 1


def test_changed_buckets_end_a_window(steady: Scrapes, tmp_path: Path) -> None:
    half = len(steady) // 2
    changed = [
        (t, "".join(x for x in body.splitlines(True) if f"{E2E}_bucket" not in x or "2.5" not in x))
        for t, body in steady[half:]
    ]
    path = write(tmp_path / "m.txt", steady[:half] + changed)
    runs = read(path, window_s=45, **SD)
    n = len([x for x in steady[0][1].splitlines() if f"{E2E}_bucket" in x])
    found = runs.set_aside.reason.str.contains(
        f"the buckets of {E2E} change \\({n} before, {n - 1} after\\)"
    )
    assert found.sum() == 1
    assert len(runs) == 2


def test_a_gap_ends_a_window(steady: Scrapes, tmp_path: Path) -> None:
    path = write(tmp_path / "m.txt", steady[:8] + steady[14:])
    runs = read(path, window_s=40, **SD)
    assert runs.set_aside.reason.str.contains(r"a gap of 42 s without a reading").sum() == 1
    assert runs.table.duration_s.max() < 50


def test_bad_scrapes_are_counted_and_the_others_read(
    steady: Scrapes, run: pd.Series, tmp_path: Path
) -> None:
    scrapes = list(steady)
    for i, mark in ((5, f"{E2E}_count"), (9, f"# TYPE {E2E}")):
        t, body = scrapes[i]
        scrapes[i] = (t, body[: body.index(mark) + 40 * (i == 5)])
    write(tmp_path / "a.txt", scrapes)
    (tmp_path / "untimed.txt").write_text(steady[0][1])
    runs = read(tmp_path, window_s=120, **SD)
    assert runs.table.requests.item() == run.requests
    reasons = runs.set_aside.reason
    for said in (
        f"a.txt: the scrape of '# time {steady[5][0]:.3f}' is cut off",
        "untimed.txt: does not say when it was scraped",
        f"1 scrape without {E2E}_count, the first of {steady[9][0]:.3f}",
    ):
        assert reasons.str.contains(re.escape(said)).sum() == 1


def without(scrapes: Scrapes, text: str) -> Scrapes:
    return [(t, "".join(x for x in body.splitlines(True) if text not in x)) for t, body in scrapes]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{E2E}_count", "_count is missing; it counts the requests"),
        (f"{E2E}_sum", "_sum is missing, so mean latency is unknown"),
        ("vllm:", "no metric of vLLM is in these files"),
        ('le="+Inf"', "the buckets of .* do not add up to its count"),
    ],
)
def test_missing_series(text: str, message: str, steady: Scrapes, tmp_path: Path) -> None:
    path = write(tmp_path / "m.txt", without(steady, text))
    with pytest.raises(InputError, match=message):
        read(path, window_s=60, **SD)


def test_missing_series_that_can_be_done_without(
    steady: Scrapes, run: pd.Series, tmp_path: Path
) -> None:
    everything = run
    for text in ("num_requests_waiting", "_bucket", "vllm:request_prompt_tokens"):
        steady = without(steady, text)
    run = read(write(tmp_path / "m.txt", steady), window_s=120, **SD).table.iloc[0]
    assert run.in_flight == pytest.approx(run.rate_rps * run.e2e_mean_s)
    assert run.e2e_mean_s == everything.e2e_mean_s
    assert math.isnan(run.e2e_log_var)
    # The counter is of prompts begun, the histogram of those finished.
    assert run.prompt_tokens == pytest.approx(64, rel=0.05)


RANGE: dict[str, Any] = {"status": "success", "data": {"resultType": "matrix", "result": []}}
METRIC = {"__name__": f"{E2E}_count"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"status": "success", "data"', "is not complete JSON"),
        ("", "is empty; needed is"),
        ("[1]", "is not a JSON object"),
        ({"data": {"resultType": "matrix"}}, r"is JSON of no known kind \(it has data\)"),
        ({"status": "error", "error": "bad query"}, "is an error of Prometheus: bad query"),
        ({"status": "success", "data": {"resultType": "vector"}}, "data.resultType is 'vector'"),
        (RANGE, "no metric of vLLM"),
        (RANGE | {"data": RANGE["data"] | {"result": 1}}, "data.result is '1'"),
        ([{"metric": {}, "values": [[1, "2"]]}], r"data.result\[0\] has no __name__"),
        ([{"metric": METRIC, "values": [["x", "2"]]}], r"data.result\[0\] lacks metric or values"),
        ([{"values": [[1, "2"]]}], r"data.result\[0\] lacks metric or values"),
        (
            [{"metric": METRIC, "values": [[1, "2"]]}, {"metric": METRIC, "values": [[1, "3"]]}],
            "has a second and other value of .*_count at 1.000",
        ),
        (f'{E2E}_count{{engine="0"}} 1\n', "does not say when it was scraped; put a line"),
        (f'# time x\n{E2E}_count{{engine="0"}} 1\n', "has a line '# time x'; seconds are needed"),
        (f'# time 5\n{E2E}_bucket{{le="x"}} 1\n', "has a bucket with le 'x'"),
        (f'# time 5\n{E2E}_bucket{{a="x"}} 1\n', "has a bucket with le None"),
        (f"# time 5\n{E2E}_count {10**400}\n", "has an impossible value 1000.* of .*_count at 5"),
        (f"# time 5\n{E2E}_count NaN\n", "_count is missing; it counts the requests"),
        ([{"metric": {"__name__": []}, "values": []}], r"data.result\[0\] lacks metric or values"),
        (f'# time 5\n{E2E}_count{{engine="0', "is cut off or no text of a metrics endpoint"),
        (f'# time 5\n{E2E}_count{{engine="0"}}', "is cut off or no text of a metrics endpoint"),
        (f"# time 5\n{E2E}_count 1\n# time 6\n{E2E}_count x\n", "json.*'# time 6' is cut off or"),
    ],
    ids=str,
)
def test_bad_file(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    if isinstance(content, list):
        content = {"status": "success", "data": {"resultType": "matrix", "result": content}}
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        read(path, **SD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_s": 3600}, "12. s from .* are no window of 3600 s: the readings end"),
        ({"drafter": "none"}, "draft_tokens is 3 but there is no drafter"),
        ({"window_s": 12}, "windows of 12 s are too short: readings are 6.01 s apart, .* needs 5"),
        ({"window_s": 2}, "windows of 2 s are too short"),
        ({"window_s": 1e-9}, "windows of 1e-09 s are too short"),
    ],
)
def test_bad_arguments(
    arguments: dict[str, Any], message: str, steady: Scrapes, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.txt", steady)
    given = {**SD, **arguments}
    if given["drafter"] == "none":
        del given["drafter_params"]
    with pytest.raises(InputError, match=message):
        read(path, **{"window_s": 60, **given})


@pytest.mark.parametrize("label", ["1" * 5000, "²", "-1", "", "7"])
def test_an_impossible_position_leaves_the_totals(
    label: str, steady: Scrapes, tmp_path: Path
) -> None:
    changed = [(t, body.replace('position="1"', f'position="{label}"')) for t, body in steady]
    (run,) = read(write(tmp_path / "m.txt", changed), window_s=90, **SD).table.to_dict("records")
    assert run["accepted_tokens"] > 0 and run["drafts"] > 0
    assert math.isnan(run["accepted_1"])


TTFT = "vllm:time_to_first_token_seconds"


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        *(
            (rf'({TTFT}_bucket.*le=")0.25"', rf'\g<1>{bound}"', "buckets of .* impossible bounds")
            for bound in ("-Inf", "-0.5", "0")
        ),
        (rf"({TTFT}_sum.*) (.*)", r"\1 \g<2>e3", f"{TTFT} sums to .* s, but its buckets allow"),
    ],
)
def test_impossible_histograms_are_refused(
    *, line: str, instead: str, says: str, steady: Scrapes, tmp_path: Path
) -> None:
    changed = [(t, re.sub(line, instead, body)) for t, body in steady]
    assert changed != steady
    with pytest.raises(InputError, match=says):
        read(write(tmp_path / "m.txt", changed), window_s=90, **SD)
