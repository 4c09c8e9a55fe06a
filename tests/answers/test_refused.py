"""Questions that are refused, each in one sentence that speaks Python or a shell's language."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from questions import MOE, NEW, PLAIN, SD, SHORT, in_flight, rps, without_runs

from bayes_sd.answers.servers import Server
from bayes_sd.errors import EvidenceError, InputError, in_words
from bayes_sd.fit import Fit
from bayes_sd.physics.structures import Edge
from bayes_sd.runs.load import Load
from bayes_sd.runs.sizes import Size

ONE, BOTH = rps(1.0), [PLAIN, SHORT]
EDGE = replace(SHORT, structure=Edge(0.02))
# What is asked, as it is written, and a part of the sentence it earns.
INPUT: list[tuple[str, str]] = [
    (
        'fit.latency(ONE, Server("llama-8b"))',
        r"no verifier 'llama-8b'; it knows .*dense-25m.*moe-e8k2",
    ),
    (
        'fit.break_even(ONE, Server("nobody", "draft-3m", 3, 0.7), Server("nobody"))',
        r"no verifier 'nobody'; it knows",
    ),
    (
        'fit.compare(ONE, Server("dense-25m", "eagle", 1, 0.8), Server("dense-25m"))',
        r"no drafter 'eagle'; it knows draft-12m, draft-3m\. For one nobody",
    ),
    (
        'fit.latency(ONE, Server("dense-25m", "draft-3m", 2))',
        r"at acceptance 0.5, 0.7; choose one with acceptance=",
    ),
    (
        'fit.latency(ONE, Server("dense-25m", Size(5000000.0), 3, [0.9, 0.8]))',
        r"k = 3 needs 3 acceptance rates, 2 given",
    ),
    ('Server("dense-25m", k=2)', r"k = 2 needs a drafter: give drafter="),
    ("SD.with_k(-1)", r"k = -1: must be one or more whole numbers of at least 0"),
    ('Server("v", "d", 1.5)', r"k = 1.5: must be"),
    ('fit.schedule(ONE, SHORT, k=float("nan"))', r"k = nan: must be"),
    ('Server("v", "d", "3")', r"k = '3': must be"),
    ("Server(3)", r"verifier = 3: must be the name of a measured one, or"),
    ('Server("v", 1000000000.0)', r"drafter = 1000000000.0: must be"),
    ('Server("v", "d", 1, -0.1)', r"acceptance = -0.1: must be a number in \[0, 1\]"),
    ('Server("v", "d", 1, float("nan"))', r"acceptance = nan: must"),
    ('Server("v", "d", 1, [0.9, 2.0])', r"acceptance = \[0.9, 2.0\]: must"),
    ('Server("v", "d", 1, "high")', r"acceptance = 'high': must"),
    ('replace(SD, structure="edge")', r"structure = 'edge': must be one of"),
    ('fit.latency(ONE, SD, metric="itl")', r"metric = 'itl': must be one of e2e, ttft, tpot"),
    (
        'fit.latency(rps(0.1, output=1), PLAIN, metric="tpot", extrapolate=True)',
        r"answers of more than one token",
    ),
    ("fit.thin(0)", r"draws = 0: must be a whole number of at least 1"),
    ("Size(8e9, experts=2.5)", r"experts = 2.5: must be 0, or a number from 1 .*whole count"),
    ('Server("v", "d", 10**400)', r"k = 10{19} \.\.\. 0{20}: must be one or more"),
    ("fit.latency(ONE, SD, requests=0)", r"requests = 0: must be a whole number of at least 1"),
    (
        'fit.compare(ONE, SD, PLAIN, of="median")',
        r"of = 'median': must be one of mean, run, request",
    ),
    ("fit.compare(ONE, SD, SD)", r"at least 2 different ones are needed, got 1"),
    ('fit.latency(ONE, ["dense-60m"])', r"servers = 'dense-60m': must be"),
    ("fit.latency(3.0, SD)", r"load = 3.0: must be bsd.Load"),
    ("fit.latency(ONE, SD).quantile([-1])", r"q = \[-1\]: must be probabilities"),
    ("fit.latency(ONE, SD).quantile([])", r"q = \[\]: must be probabilities"),
    ("fit.latency(ONE, SD).quantile([[0.1, 0.2]])", r"q = .*: must be probabilities"),
    ("fit.break_even(ONE, SD, PLAIN).quantile([-1])", r"q = \[-1\]: must be probabilities"),
    ("fit.latency(ONE, SD, seed=-1)", r"seed = -1: must be a whole number"),
    ("fit.capacity(ONE, Server(Size(9e7)), slo_s=2.0, seed=-1)", r"seed = -1: must be a whole"),
    ("fit.latency(ONE, SD, requests=10**400)", r"requests = 10{19} \.\.\. 0{20}: must be a whole"),
    ("fit.latency(rps(1e308), SD)", r"rps = .*: must be 0 or from 1e-60 to 1e\+19"),
    ("fit.latency(ONE, Server(Size(1e300)), extrapolate=True)", r"must be a number from 1 to"),
    ("fit.capacity(ONE, BOTH, slo_s=1e308)", r"slo_s = 1e\+308: must be a positive number, 1e-60"),
    ("fit.capacity(ONE, BOTH, slo_s=1, price_per_hour=1e308)", r"must be a positive number"),
    (
        "fit.capacity(ONE, BOTH, slo_s=1, replicas=10**300)",
        r"replicas = 10{19} \.\.\. 0{20}: must be",
    ),
    ("fit.next_runs(ONE, BOTH, run_seconds=1e308)", r"run_seconds = 1e\+308: must be a pos"),
    ("fit.predict(None)", r"runs = 'NoneType': must be from bayes_sd.read"),
    ("fit.coefficients(prob=2)", r"prob = 2: must be between 0 and 1"),
    ('fit.families(prob="most")', r"prob = 'most': must be between 0 and 1"),
    ("fit.latency(ONE, SD).quantile(1.5)", r"q = 1.5: must be probabilities"),
    ('fit.latency(ONE, SD).quantile("high")', r"q = 'high': must be probabilities"),
    ("fit.latency(Load(rps=1, prompt=9, output=64), SD).plot()", r"plot needs several"),
    (
        "fit.break_even(Load(rps=1.0, prompt=[128, 256], output=64), SD, PLAIN)",
        r"one prompt and one output length",
    ),
    ("fit.schedule(ONE, SHORT, k=[1])", r"k = \[1\].*at least two"),
    ("fit.schedule(ONE, SHORT, k=[2, 5000])", r"k = \[2, 5000\].*at most 1024"),
    ("fit.schedule(ONE, SHORT, k=[2, 5], max_batch=0)", r"max_batch = 0"),
    ("fit.schedule(ONE, SHORT, k=[2, 5], confidence=0.3)", r"confidence = 0.3"),
    ('fit.schedule(ONE, SHORT, k=[2, 5], loss="p100")', r"loss = 'p100'"),
    ("fit.schedule(ONE, SHORT, k=[2, 5], loss=95)", r"loss = 95"),
    ("fit.schedule(ONE, SHORT, k=[2, 5], slo_s=-1.0)", r"slo_s = -1.0"),
    ('fit.schedule(ONE, SHORT, k=[2, 5], loss="p95", slo_s=1.0)', r"give one of the two"),
    ("fit.schedule(ONE, PLAIN, k=[2, 5])", r"with a drafter: give drafter="),
    ("fit.schedule(rps(0.0), SHORT, k=[2, 5])", r"at rates above 0"),
    ("fit.capacity(ONE, BOTH, slo_s=0)", r"slo_s = 0"),
    ('fit.capacity(ONE, BOTH, slo_s=float("nan"))', r"slo_s = nan"),
    ("fit.capacity(ONE, BOTH, slo_s=1, percentile=100)", r"percentile = 100"),
    ("fit.capacity(ONE, BOTH, slo_s=1, confidence=1)", r"confidence = 1"),
    ("fit.capacity(ONE, BOTH, slo_s=1, replicas=0)", r"replicas = 0"),
    ("fit.capacity(ONE, BOTH, slo_s=1, price_per_hour=-1)", r"price_per_hour of .* = -1"),
    (
        'fit.capacity(ONE, {"a": PLAIN, "b": SD}, slo_s=1, price_per_hour={"a": 1.0})',
        r"name every server and no other; b is missing",
    ),
    (
        'fit.capacity(ONE, {"a": PLAIN}, slo_s=1, price_per_hour={"a": 1.0, "x": 1.0})',
        r"name every server and no other; x is unknown",
    ),
    ("fit.capacity(rps(1, 2), BOTH, slo_s=1)", r"one load, or a traffic over time"),
    ('fit.capacity(ONE, {"a": Server("gpt")}, slo_s=1)', r"a: The fit has no verifier 'gpt'"),
    ("fit.capacity(ONE, {}, slo_s=1)", r"at least 1 different ones are needed"),
    ("fit.next_runs(ONE, [SHORT])", r"needed, got 1"),
    ("fit.next_runs(rps(0.0), BOTH)", r"rates that are chosen for must be above 0"),
    ("fit.next_runs(ONE, BOTH, runs=-1)", r"runs = -1: must be a whole number"),
    ("fit.next_runs(ONE, BOTH, run_seconds=0.0)", r"run_seconds = 0.0: must be a positive"),
    ('fit.next_runs(ONE, BOTH, server_seconds=float("nan"))', r"server_seconds = nan"),
    ('fit.next_runs(ONE, BOTH, server="last")', r"server = 'last': must be one of measured, next"),
    ("fit.next_runs(ONE, [PLAIN, EDGE])", r"assumed structure cannot be measured"),
]
EVIDENCE: dict[str, tuple[Server, Load]] = {
    r"No acceptance was measured for dense-25m \+ new": (Server("dense-25m", Size(5e6), 2), ONE),
    r"active verifier parameters .* 8 is": (replace(NEW, verifier=Size(8e9)), ONE),
    r"drafter parameters .* 0.06 is": (replace(NEW, drafter=Size(60e6)), ONE),
    r"k = 40 is outside the draft lengths measured here \(": (SD.with_k(40), ONE),
    r"prompt tokens 1e\+05 is more than 4": (PLAIN, rps(0.1, prompt=1e5)),
    r"output tokens 1e\+04 is more than 4": (PLAIN, rps(0.1, output=1e4)),
    r"concurrency 1e\+04 is more than 4": (PLAIN, in_flight(1e4)),
}


@pytest.mark.parametrize(("question", "message"), INPUT)
def test_bad_input_is_refused_in_one_sentence(fit: Fit, question: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        eval(question, globals(), {"fit": fit})
    text = str(error.value)
    assert "\n" not in text and "<<" not in text


@pytest.mark.parametrize("message", EVIDENCE)
def test_what_the_data_cannot_say_is_refused_unless_asked_for_by_name(
    fit: Fit, message: str
) -> None:
    server, load = EVIDENCE[message]
    with pytest.raises(EvidenceError, match=message) as error:
        fit.latency(load, server)
    assert "\n" not in str(error.value)
    if "acceptance" in message:
        assert "give one with acceptance=, as 0.7" in str(error.value)
        return
    assert str(error.value).endswith("say extrapolate=.")
    answer = fit.latency(load, server, extrapolate=True)
    assert set(answer.table["support"]) == {"extrapolated"}
    assert (answer.draws["mean_s"] > 0).all()


def test_without_a_plain_run_there_is_nothing_to_beat(fit: Fit) -> None:
    none = without_runs(fit, lambda s: s["drafter"] == "none")
    but_one = without_runs(fit, lambda s: (s["drafter"] == "none") & (s["verifier"] == "dense-60m"))
    questions: list[Callable[[Fit], Any]] = [
        lambda f: f.compare(ONE, SD, PLAIN),
        lambda f: f.break_even(ONE, SD, PLAIN),
        lambda f: f.schedule(ONE, SD, k=[0, 5]),
        lambda f: f.next_runs(ONE, [PLAIN, SD]),
    ]
    for less in (none, but_one):
        for ask in questions:
            with pytest.raises(EvidenceError, match="No run of dense-60m .* was fitted"):
                ask(less)
    with pytest.raises(EvidenceError, match="No run of new .* plain was fitted"):
        none.compare(ONE, NEW, replace(NEW, drafter=None, k=0, acceptance=None))
    assert np.isfinite(none.latency(ONE, SD).draws["mean_s"]).all()
    assert but_one.compare(ONE, MOE, Server("moe-e8k2")).table["prob_faster"].notna().all()
    asked = but_one.compare(ONE, SD, PLAIN, extrapolate=True)
    assert asked.table["support"].item() == "extrapolated"


def test_messages_speak_python_or_flags(fit: Fit) -> None:
    with pytest.raises(InputError) as error:
        fit.latency(ONE, Server("dense-25m", "draft-3m", 2))
    assert str(error.value).endswith("choose one with acceptance=.")
    assert in_words(error.value.message, shell=True).endswith("choose one with --acceptance.")
    assert in_words("<<max_batch>> or <<k>>", shell=True) == "--max-batch or -k"
    again = EvidenceError(f"a: {error.value.message}")
    assert str(again) == f"a: {error.value}"
