"""The command line: what it prints, where, and with which exit code."""

import gzip
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from bayes_sd.answers.compare import default_loads
from bayes_sd.answers.servers import Server
from bayes_sd.cli.app import KINDS, PANELS, app
from bayes_sd.cli.options import fill, show
from bayes_sd.errors import ConvergenceError
from bayes_sd.fit import Fit, LatencyModel
from bayes_sd.runs.read import corpus, read

WORK = ["--prompt", "128", "--output", "64"]
PAIR = ["--verifier", "dense-60m", "--drafter", "draft-3m", "--acceptance", "0.7"]
QUESTIONS = {
    "latency": ["-k", "0,5", "--rps", "1:8:2"],
    "compare": ["-k", "2"],
    "schedule": ["-k", "0,2"],
    "capacity": ["-k", "0,5", "--slo", "2", "--rps", "10", "--price", "2"],
    "next-runs": ["-k", "0,2", "--rps", "7,8"],
}
VERBS = [verb.__name__.replace("_", "-") for verbs in PANELS.values() for verb in verbs]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def ask(verb: str, fit_path: Path, *arguments: str) -> Any:
    return run(verb, str(fit_path), *arguments, *PAIR, *WORK)


@pytest.fixture(autouse=True)
def loaded_once(fit: Fit, fit_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed fit is read once a session, not once a command."""
    load = Fit.load
    monkeypatch.setattr(Fit, "load", lambda path: fit if path == fit_path else load(path))


@pytest.fixture
def instant(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that fit get the committed fit: sampling is tested elsewhere."""
    monkeypatch.setattr(LatencyModel, "fit", lambda self, runs, **_: fit)


@pytest.fixture
def one_run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    source = corpus("vllm-cpu") / "dense-25m_0.json"
    (folder / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.mark.process
def test_help_is_light() -> None:
    code = (
        "import sys; from bayes_sd.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('pymc', 'pytensor', 'nutpie', 'arviz', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("verb", VERBS)
def test_help_reads_well_at_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = run(verb, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 240])
def test_a_table_wider_than_the_terminal_is_shown_in_blocks_and_in_full(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    numbers = {f"number_{i}_s": [1000.0 + i, float("nan")] * 2 for i in range(12)}
    names = ["dense-60m + draft-3m @ 0.7, k = 5", "plain"] * 2
    rates = {"rate_rps": [77, 77, 88, 88], "server": names}
    show("Title", pd.DataFrame({**rates, **numbers, "support": "extrapolated"}))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert all(words.count(f"{1000 + i}") == 2 for i in range(12))
    blocks = words.count("server")
    assert blocks == 1 if width == 240 else blocks > 1
    # It takes a load and a server to tell rows apart.
    assert {words.count(key) for key in ("77", "88", "draft-3m", "plain")} == {2 * blocks}
    assert words.count("extrapolated") == 4


def test_findings_are_wrapped_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    said = str(read(corpus("vllm-cpu-2")).check())
    assert max(map(len, said.splitlines())) > 80
    assert max(map(len, fill(said).splitlines())) <= 80
    assert fill(said).split() == said.split()
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert fill(said) == said  # a line stays a line for who searches it


def test_check_says_what_is_there(one_run: Path) -> None:
    result = run("check", str(one_run), "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["passed"] is True and data["summary"][0]["acceptance"] is None
    assert "dense-25m" in run("check", str(one_run)).stdout


@pytest.mark.parametrize(
    ("content", "says"), [("{", "JSON"), ('{"benchmarks": []}', "GuideLLM"), ("[]", "JSON")]
)
def test_a_bad_file_is_one_sentence_and_exit_1(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for command in (["check"], ["fit", "-o", str(tmp_path / "fit.nc")]):
        result = run(command[0], str(tmp_path / "a.json"), *command[1:])
        assert result.exit_code == 1
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "fit.nc").exists()


def test_only_saturated_runs_exit_3(tmp_path: Path) -> None:
    source = corpus("vllm-cpu") / "dense-200m_2.json"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    assert run("check", str(tmp_path)).exit_code == 3
    result = run("fit", str(tmp_path), "-o", str(tmp_path / "fit.nc"))
    assert result.exit_code == 3
    assert "no steady run" in result.stderr


def test_an_unconverged_fit_exits_3_and_writes_nothing(
    fit: Fit, one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConvergenceError(
            "The fit did not converge: try <<target_accept>>.", fit, pd.DataFrame()
        )

    monkeypatch.setattr(LatencyModel, "fit", refuse)
    result = run("fit", str(one_run), "-o", str(tmp_path / "fit.nc"))
    assert result.exit_code == 3
    assert "did not converge: try --target-accept." in result.stderr
    assert not (tmp_path / "fit.nc").exists()


def test_fit_into_a_missing_folder_is_refused_before_sampling(one_run: Path) -> None:
    result = run("fit", str(one_run), "-o", str(one_run / "no" / "fit.nc"))
    assert result.exit_code == 1
    assert "does not exist" in result.stderr


def test_fit_takes_the_reference_as_its_prior_where_the_machine_is_known(
    fit: Fit, one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fitted(model: LatencyModel, *_: Any, **__: Any) -> Fit:
        asked.append(next(p for p in model.priors if p.name == "read_weights").reason)
        return fit

    monkeypatch.setattr(LatencyModel, "fit", fitted)
    words = ("fit", str(one_run), "-o", str(tmp_path / "fit.nc"))
    refused = run(*words, "--reference")
    assert refused.exit_code == 1 and "--set machine=NAME" in refused.stderr and not asked
    public, known = "runs of other machines", ("--set", "machine=L4")
    assert run(*words).exit_code == 0 and asked.pop() != public
    for more, taken in ((known, True), ((*known, "--no-reference"), False)):
        said = run(*words, *more)
        assert said.exit_code == 0 and (asked.pop() == public) is taken
        assert ("Priors are those of public runs" in said.stderr) is taken


@pytest.mark.usefixtures("instant")
def test_fit_saves_and_says_so(one_run: Path, tmp_path: Path) -> None:
    result = run("fit", str(one_run), "-o", str(tmp_path / "fit.nc"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sampling"]["divergences"] == 0
    assert (tmp_path / "fit.nc").is_file()


@pytest.mark.parametrize("verb", QUESTIONS)
def test_every_question_answers_in_a_sentence_and_in_json(verb: str, fit_path: Path) -> None:
    text = ask(verb, fit_path, *QUESTIONS[verb])
    assert text.exit_code == 0, text.output
    first = text.stdout.splitlines()[0]
    assert first.endswith(".")
    data = json.loads(ask(verb, fit_path, *QUESTIONS[verb], "--json").stdout)
    assert data["answer"].splitlines()[0].startswith(first[:20]) and data["rows"]


@pytest.mark.parametrize("verb", ["latency", "compare", "schedule", "capacity", "next-runs"])
def test_every_question_takes_concurrencies(verb: str, fit_path: Path) -> None:
    rates = ("--rps", "1:8:2", "10", "7,8")
    words = [word for word in QUESTIONS[verb] if word not in rates]
    concurrency = "4" if verb == "capacity" else "1,4"
    result = ask(verb, fit_path, *words, "--concurrency", concurrency, "--json")
    assert result.exit_code == 0, result.output


def test_latency_past_capacity_has_no_number(fit_path: Path) -> None:
    row = json.loads(ask("latency", fit_path, "--rps", "1000", "--json").stdout)["rows"][0]
    assert row["mean_p50_s"] is None
    assert row["prob_saturated"] == 1


def test_compare_gives_probabilities_that_sum_to_one(fit_path: Path) -> None:
    data = json.loads(ask("compare", fit_path, "--rps", "1,8", "-k", "5", "--json").stdout)
    for row in data["rows"]:
        total = row["prob_faster"] + row["prob_slower"] + row["prob_both_saturated"]
        assert total == pytest.approx(1)
    (even,) = data["break_even"]
    assert sum(v for n, v in even.items() if n.startswith("prob")) == pytest.approx(1)
    assert even["p05_rps"] <= even["p50_rps"] <= even["p95_rps"]


def test_by_default_the_measured_draft_lengths_are_compared(fit_path: Path) -> None:
    rows = json.loads(ask("compare", fit_path, "--rps", "1", "--json").stdout)["rows"]
    assert [row["server"][-5:] for row in rows] == ["k = 2", "k = 5"]


def test_lengths_are_those_of_the_runs_where_they_are_alike(
    fit: Fit, fit_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = run("compare", str(fit_path), *PAIR, "--rps", "1")
    assert several.exit_code == 2 and "give --prompt and --output" in several.stderr
    runs = fit.tree["runs"].to_dataset()
    tokens = {name: runs[name] * 0 + 64.2 for name in ("prompt_tokens", "output_tokens")}
    tree = xr.DataTree.from_dict({n: c.to_dataset() for n, c in fit.tree.children.items()})
    tree["runs"] = xr.DataTree(runs.assign(tokens))
    tree.attrs = fit.tree.attrs
    monkeypatch.setattr(Fit, "load", lambda _: Fit(tree))
    assert "(64 + 64 tokens, " in run("compare", "fit.nc", *PAIR).stdout


def test_the_printed_schedule_says_which_model_it_needs(fit_path: Path) -> None:
    words = ["-k", "0,2,5", "--method", "eagle3", "--draft-model", "org/eagle"]
    config = json.loads(ask("schedule", fit_path, *words, "--json").stdout)["speculative_config"]
    assert (config["method"], config["model"]) == ("eagle3", "org/eagle")
    assert "PUT-PATH-HERE-draft-3m" in ask("schedule", fit_path, "-k", "0,2").stdout


def test_capacity_of_named_servers(fit_path: Path, tmp_path: Path) -> None:
    servers = tmp_path / "servers.yaml"
    servers.write_text(
        "plain: {verifier: dense-60m, price_per_hour: 1}\n"
        "sd: {verifier: dense-60m, drafter: draft-3m, k: 2, acceptance: 0.7, price_per_hour: 2}\n"
    )
    words = ["--slo", "2", "--rps", "10", *WORK, "--servers", str(servers)]
    result = run("capacity", str(fit_path), *words, "--json")
    assert result.exit_code == 0, result.output
    assert [row["server"] for row in json.loads(result.stdout)["rows"]] == ["plain", "sd"]
    servers.write_text("plain: {verifier: dense-60m, colour: red}\n")
    assert "'colour'" in run("capacity", str(fit_path), *words).stderr


def test_capacity_of_a_traffic_file(fit_path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    pd.DataFrame({"at": range(100), "prompt_tokens": 128, "output_tokens": 64}).to_csv(log)
    words = ["--slo", "2", "--traffic", str(log), "--columns", "timestamp=at", *PAIR]
    result = run("capacity", str(fit_path), *words, "--json")
    assert result.exit_code == 0, result.output
    assert "100 requests" in result.stderr


def test_next_runs_writes_a_plan(fit_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    words = ["-k", "0,2,5", "--rps", "4,7,8", "-o", str(folder), "--json"]
    result = ask("next-runs", fit_path, *words)
    assert result.exit_code == 0, result.output
    assert (folder / "run.sh").is_file()


def test_where_no_run_pays_only_the_sentence_says_so(fit_path: Path) -> None:
    result = ask("next-runs", fit_path, "-k", "0,2", "--rps", "4,7", "--runs", "0")
    assert result.exit_code == 0, result.output
    assert "no run would pay" in result.stdout and "Worth measuring" not in result.stdout


def test_a_new_model_by_size(fit_path: Path) -> None:
    new = ["--new-verifier", "params=8e9,layers=36", "--new-drafter", "params=5e8"]
    words = ["--rps", "0.1", *new, "--acceptance", "0.7", *WORK, "--json"]
    assert run("compare", str(fit_path), *words).exit_code == 3
    rows = json.loads(run("compare", str(fit_path), *words, "--extrapolate").stdout)
    assert rows["rows"][0]["support"] == "extrapolated"


def test_a_new_head_is_named_by_its_method(fit_path: Path) -> None:
    words = ["--rps", "0.1", "--acceptance", "0.7", *WORK, "--json", "--extrapolate"]
    words += ["--new-drafter", "eagle3", "-k", "2"]
    said = run("latency", str(fit_path), *words, "--new-verifier", "Qwen3-8B")
    assert "eagle3" in json.loads(said.stdout)["rows"][0]["server"]
    for verifier in (["--new-verifier", "params=8e9"], ["--verifier", "dense-60m"]):
        refused = run("latency", str(fit_path), *words, *verifier)
        assert refused.exit_code == 1 and "is neither" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--rps", "1", "--verifier", "gpt-5"], 1, "dense-115m"),
        (["--rps", "1"], 1, "--verifier"),
        (["--rps", "1", "--verifier", "dense-60m", "-k", "2"], 1, "--drafter"),
        (["--rps", "one", *PAIR], 2, "START:STOP:COUNT"),
        (["--rps", "1:2:1000000000", *PAIR], 2, "at most 10000"),
        (["--rps", "-1", *PAIR], 1, "--rps [-1.0]: must be finite numbers of at least 0"),
        (["--rps", "1", "--requests", "0", *PAIR], 1, "--requests 0: must be a whole number"),
        (["--concurrency", "4", "--rps", "1", *PAIR], 2, "exactly one"),
        (["--rps", "1", "-k", "2.5", *PAIR], 2, "whole numbers"),
        (["--rps", "1", "-k", "0,-3", *PAIR], 2, "-k '0,-3': write whole numbers of at least 0"),
        (["--rps", "1", "-k", "9", *PAIR], 3, "--extrapolate"),
        (["--rps", "1", *PAIR, "--new-verifier", "params=1e9"], 2, "not both"),
        (["--rps", "1", *PAIR, "--structure", "moon"], 2, "edge"),
        (["--rps", "1", *PAIR, "--environment", "mars"], 1, "AMD"),
    ],
)
def test_wrong_questions(fit_path: Path, arguments: list[str], code: int, says: str) -> None:
    result = run("latency", str(fit_path), *arguments, *WORK)
    assert result.exit_code == code, result.output
    sentence = " ".join(re.sub("[╭╮╰╯─│]", " ", result.stderr).split())
    assert says in sentence
    assert "bsd." not in sentence


def test_a_file_that_is_no_fit(tmp_path: Path) -> None:
    (tmp_path / "fit.nc").write_text("not netCDF")
    for name in ("fit.nc", "missing.nc"):
        result = run("latency", str(tmp_path / name), "--rps", "1", *WORK)
        assert result.exit_code == 1
        assert name in result.stderr


@pytest.mark.process
@pytest.mark.usefixtures("instant")
def test_demo_prints_tables_and_writes_its_page(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = Server("dense-115m"), Server("dense-115m", "draft-12m", 7, 0.7)
    load = default_loads(fit, plain, (128, 64))
    pair = (fit.compare(load, drafting, plain), [fit.break_even(load, drafting, plain)])
    monkeypatch.setattr(Fit, "decisions", lambda *_: [pair])
    result = run("demo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    said = ("Qwen3-32B on 2x H100", "Fitted coefficients", "reading the weights once")
    for text in (*said, "P(SD beats plain)", "wrote "):
        assert text in result.stdout
    assert result.stdout.count("dense-115m + draft-12m @ 0.7, k = 7") == 1
    assert all(
        (tmp_path / "out" / name).stat().st_size > 10_000 for name in ("fit.nc", "report.html")
    )


@pytest.mark.parametrize("k", ["-3", "-3,3", "2.5", ""])
def test_draft_lengths_that_are_none_are_refused_by_name(fit_path: Path, k: str) -> None:
    public = ["--verifier", "Qwen3-8B", "--machine", "H100", "-k", k]
    for result in (run("ask", *public), ask("compare", fit_path, "-k", k)):
        assert result.exit_code == 2 and f"-k '{k}': write whole numbers" in result.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("config=a", "write --config instead"),
        ("environment=a", "write --environment instead"),
        ("columns=a", "write --columns instead"),
        ("window_s=3", "write --window instead"),
        ("paths=3", "files are named without a flag"),
        ("foo=3", "nothing is called so"),
    ],
)
def test_what_is_no_configuration_is_not_set(one_run: Path, setting: str, says: str) -> None:
    result = run("check", str(one_run), "--set", setting)
    sentence = " ".join(re.sub("[╭╮╰╯─│]", " ", result.stderr).split())
    assert result.exit_code == 2 and f"--set {setting}: {says}; --set takes verifier," in sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["latency", "--rps", "1", "--gpus", "4"], "--gpus: of which machine is said by --machine"),
        (["report", "-o", "p.html", "--gpus", "4"], "--gpus: of which machine"),
        (["report", "-o", "p.html", "-k", "0"], "-k must name a draft length above 0"),
        (["compare", "--rps", "1", "--requests", "9"], "--requests: goes with --of run"),
        (
            ["plot", "collapse", "-o", "a.svg"],
            "--prompt, --output, --verifier, --drafter, --accept",
        ),
        (
            ["capacity", "--slo", "2", "--rps", "1", "--window", "60"],
            "--window: goes with --traffic",
        ),
        (["capacity", "--slo", "2", "--rps", "1", "--columns", "a=b"], "--columns: goes with"),
        (
            ["capacity", "--slo", "2", "--traffic", "t.csv"],
            "--prompt, --output: a traffic file has",
        ),
        (["capacity", "--slo", "2", "--rps", "1", "--servers", "s.yaml"], "--verifier, --drafter,"),
        (["next-runs", "--rps", "1", "-k", "2"], "-k must name at least two draft lengths"),
        (["next-runs", "--rps", "1", "--choice", "a"], "--choice 'a': must be one of measured,"),
        (["latency", "--rps", "1", "--structure", "edge"], "--structure edge: says nothing: write"),
    ],
)
def test_an_option_is_used_or_refused_by_its_name(
    fit_path: Path, words: list[str], says: str
) -> None:
    result = run(words[0], str(fit_path), *words[1:], *PAIR, *WORK)
    sentence = " ".join(re.sub("[╭╮╰╯─│]", " ", result.stderr).split())
    assert result.exit_code in (1, 2) and says in sentence


def test_prices_are_given_once(fit_path: Path, tmp_path: Path) -> None:
    servers = tmp_path / "servers.yaml"
    servers.write_text("plain: {verifier: dense-60m, price_per_hour: 1}\n")
    words = ["--slo", "2", "--rps", "10", *WORK, "--servers", str(servers), "--price", "3"]
    assert "the --servers file has prices" in run("capacity", str(fit_path), *words).stderr


def test_a_target_that_none_keeps_has_no_chance_to_sum(fit_path: Path) -> None:
    said = ask("capacity", fit_path, "--slo", "0.001", "--rps", "1", "-k", "0,5")
    assert said.exit_code == 0 and "nan" not in said.stdout


def test_several_lengths_have_each_their_own_line_to_paste(fit_path: Path) -> None:
    lengths = ["--prompt", "64,128", "--output", "64"]
    words = [*PAIR, *lengths, "-k", "0,2", "--method", "draft_model", "--draft-model", "org/small"]
    said = run("schedule", str(fit_path), *words)
    assert said.exit_code == 0, said.output
    for at in ("64 + 64", "128 + 64"):
        assert f"{at} tokens: --speculative-config '{{" in said.stdout
    data = json.loads(run("schedule", str(fit_path), *words, "--json").stdout)
    assert [*data["paste"]] == ["64 + 64", "128 + 64"]
    assert all('"model": "org/small"' in line for line in data["paste"].values())


def test_a_machine_by_its_numbers_may_have_a_name() -> None:
    words = ["ask", "--verifier", "Qwen3-8B", "-k", "3", "--machine"]
    assert "name=mine,gb_per_s=" in run(*words, "speed=3").stderr
    assert "give its tflops as well, as in gb_per_s=" in run(*words, "gb_per_s=1000").stderr
    assert "of mine" in run(*words, "name=mine,gb_per_s=1000,tflops=200").stdout


def test_metrics_of_a_server_are_checked_without_a_benchmark(tmp_path: Path) -> None:
    packed = Path(__file__).parents[1] / "data" / "prometheus" / "sd-server.txt.gz"
    (tmp_path / "scrapes.prom").write_bytes(gzip.decompress(packed.read_bytes()))
    given = ["verifier_params=60e6", "drafter=draft-3m", "drafter_params=3e6", "engine=cpu"]
    words = ["check", str(tmp_path / "scrapes.prom"), *(w for g in given for w in ("--set", g))]
    result = run(*words, "--window", "60", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["summary"][0]["drafter"] == "draft-3m"
    assert run(*words, "--window", "-1").exit_code == 1


@pytest.mark.parametrize("kind", KINDS)
def test_plot_draws_every_kind(kind: str, fit_path: Path, tmp_path: Path) -> None:
    asked = QUESTIONS.get(kind, [])
    if kind == "compare":
        asked = ["-k", "2,5", "--rps", "2,4,6"]
    asked = [] if kind == "collapse" else [*PAIR, *WORK, *asked]
    reply = run("plot", str(fit_path), kind, *asked, "-o", str(tmp_path / "a.svg"))
    assert reply.exit_code == 0, reply.output
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml") and f"wrote {tmp_path / 'a.svg'}" in reply.stdout


def test_plot_refuses_what_it_cannot_draw_or_write(fit_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    for kind, file, says in [
        ("capacity", path, "must be one of latency, compare, schedule, next-runs, collapse"),
        ("collapse", tmp_path / "a.txt", "must be one of .svg, .png, .pdf"),
        ("collapse", tmp_path / "no" / "a.svg", "does not exist"),
        ("latency", path, "A plot needs several rates"),
    ]:
        words = [*PAIR, *WORK, "--rps", "2"] if kind == "latency" else []
        reply = run("plot", str(fit_path), kind, "-o", str(file), *words)
        assert reply.exit_code == 1 and says in reply.stderr
    assert not path.exists()


def test_the_version_and_completion_are_said() -> None:
    assert run("--version").stdout == f"bayes-sd {version('bayes-sd')}\n"
    assert "schedule" in run("--help").stdout and "--show-completion" in run("--help").stdout
