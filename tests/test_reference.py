"""The shipped reference: what it holds, what it answers before anything is measured, as a prior."""

import json
import os
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import bayes_sd as bsd
from bayes_sd.cli.app import app
from bayes_sd.errors import EvidenceError, EvidenceWarning, InputError
from bayes_sd.fit import REFERENCE
from bayes_sd.model.file import TABLES

H100 = bsd.Machine("H100")
LOAD = bsd.Load(concurrency=[1, 64], prompt=512, output=256)


def servers(machine: bsd.Machine, acceptance: float = 0.7) -> tuple[bsd.Server, bsd.Server]:
    """Qwen3-8B plain and with three tokens of EAGLE-3."""
    size, head = bsd.Size.read("Qwen3-8B"), bsd.Size.drafter("eagle3", "Qwen3-8B")
    plain = bsd.Server(size, environment=machine)
    return plain, bsd.Server(size, head, 3, acceptance, machine)


def test_it_is_small_and_holds_no_row_of_what_it_was_fitted_to() -> None:
    assert REFERENCE.stat().st_size < 5 * 2**20
    fit = bsd.reference()
    for table in TABLES:
        assert fit.tree[table].sizes[table[:-1]] <= 4, table
    card = fit.provenance["card"]
    assert {"GB200", "H100"} <= set(card["sources"]) and card["note"]


def test_an_answer_is_by_the_data_sheet_and_says_so() -> None:
    plain, sd = servers(H100)
    table = bsd.reference().compare(LOAD, sd, plain).table
    assert set(table["support"]) == {"data sheet"}
    assert table["prob_faster"].iloc[0] > 0.9  # alone, 2.5 tokens a pass that reads 14 GB
    seconds = bsd.reference().latency(LOAD, plain).table["mean_p50_s"]
    read_s = 256 * bsd.Size.read("Qwen3-8B").params * 2 / (H100.gb_per_s * 1e9)
    assert read_s < seconds.iloc[0] < 4 * read_s


def test_drafts_that_are_not_accepted_do_not_pay_anywhere() -> None:
    plain, sd = servers(H100, acceptance=0.0)
    assert (bsd.reference().compare(LOAD, sd, plain).table["prob_faster"] < 0.05).all()


def test_faster_memory_serves_sooner() -> None:
    cards = [bsd.Machine(name) for name in ("L4", "A100", "H100", "B200")]
    alone = [bsd.reference().latency(LOAD, servers(card)[0]).table["mean_p50_s"].iloc[0]
             for card in cards]  # fmt: skip
    assert alone == sorted(alone, reverse=True)


def test_what_it_cannot_say_is_refused() -> None:
    plain, sd = servers(H100)
    with pytest.raises(InputError, match="do not fit into the 24 GB of L4"):
        bsd.reference().latency(LOAD, bsd.Server(bsd.Size.read("Qwen3-32B"),
                                                 environment=bsd.Machine("L4")))  # fmt: skip
    with pytest.raises(EvidenceError, match="No acceptance was measured"):
        bsd.reference().compare(LOAD, bsd.Server(sd.verifier, sd.drafter, 3, None, H100), plain)


def test_as_a_prior_it_says_more_than_the_default_and_about_the_same() -> None:
    wide = {p.name: p for p in bsd.LatencyModel().priors}
    near = {p.name: p for p in bsd.LatencyModel(prior=bsd.reference()).priors}
    assert wide.keys() == near.keys()
    narrower = [name for name in near if near[name].b < wide[name].b]
    assert {"overhead_verify_alone", "overhead_token", "overhead_experts"} <= set(narrower)
    for name in ("read_weights", "overhead_verify_alone", "prefill_token"):
        assert abs(np.log(near[name].a / wide[name].a)) < 2 * wide[name].b


def test_a_machine_that_was_measured_speaks_for_itself_and_no_other_does() -> None:
    anyone, own = bsd.reference(), bsd.reference("H200")
    assert bsd.reference("MI300X") is anyone is bsd.reference("a machine of no data sheet")
    assert own.posterior.sizes == anyone.posterior.sizes

    def width(fit: bsd.Fit) -> float:
        plain, _ = servers(bsd.Machine("H200"))
        row = fit.latency(LOAD, plain).table.iloc[0]
        return float(row["mean_p95_s"] / row["mean_p05_s"])

    assert 1.3 < width(own) < 0.6 * width(anyone)
    spread = {fit: {p.name: p.b for p in bsd.LatencyModel(prior=fit).priors}
              for fit in (anyone, own)}  # fmt: skip
    assert spread[own]["pace_dense"] < 0.6 * spread[anyone]["pace_dense"]


def test_a_machine_may_be_spelled_in_other_ways_and_a_misspelt_one_is_said() -> None:
    own, plain = bsd.reference("H200"), servers(bsd.Machine("H200"))[0]
    expected = own.latency(LOAD, plain).table
    for name in ("nvidia h200", bsd.Machine("H200", gpus=2)):
        assert bsd.reference(name).latency(LOAD, plain).table.equals(expected)
    with pytest.warns(EvidenceWarning, match="'H2000' has no data sheet here .like it .* H200"):
        assert bsd.reference("H2000") is bsd.reference()


def ask(*arguments: str) -> str:
    """What `bayes-sd ask` prints."""
    result = CliRunner().invoke(app, ["ask", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_ask_answers_before_measuring_and_says_what_it_assumed() -> None:
    said = ask("--verifier", "Qwen3-8B", "--machine", "H100", "--concurrency", "1,64")
    each = r"1 request in flight, k = \d at 64|1 to 64 requests in flight"
    assert re.match(rf"Least expected loss of latency: k = \d at ({each})\.", said)
    assert "acceptance 0.65 a token (usual of its kind" in said and "data sheet of H100" in said
    answer = json.loads(ask("--verifier", "Qwen3-8B", "--machine", "H100", "--gpus", "2", "--rps",
                            "1", "-k", "2", "--acceptance", "0.8", "--json"))  # fmt: skip
    assert {row["support"] for row in answer["rows"]} == {"data sheet"}
    assert len(answer["least_loss"]) == 1


@pytest.mark.parametrize("drafter", ["ngram", "mtp", "Qwen3-0.6B", "params=5e8,layers=20"])
def test_ask_takes_drafters_of_every_kind(drafter: str) -> None:
    said = ask("--verifier", "Qwen3-8B", "--machine", "A100", "--drafter", drafter, "-k", "2")
    assert "Least expected loss" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--machine", "H10"], "known are H100"),
        (["--machine", "H100", "--gpus", "0"], "gpus"),
        (["--machine", "H100", "-k", "0"], "draft length above 0"),
        (["--machine", "tflops=10"], "write a name, or numbers"),
        (["--machine", "H100", "--drafter", "Qwen3-99B"], "Qwen3-99B"),
    ],
)
def test_ask_refuses_in_the_users_words(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["ask", "--verifier", "Qwen3-8B", *arguments])
    assert result.exit_code in (1, 2) and says in result.output.replace("\n", " "), os.linesep


@pytest.mark.parametrize(
    "about", ["families", "accuracy", "misfits", "plot_collapse", "to_datatree"]
)
def test_what_is_said_of_runs_is_not_said_of_the_reference(about: str) -> None:
    with pytest.raises(bsd.errors.EvidenceError, match="holds no measured run"):
        getattr(bsd.reference(), about)()
