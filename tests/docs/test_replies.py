"""What commands print with ``--json`` is as its schema says, and the schema says nothing else."""

import json
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from generate import EXAMPLE, REPLIES, reply_schema
from stand_in import StandIn
from typer.main import get_command
from typer.testing import CliRunner

from bayes_sd.answers import fitted
from bayes_sd.cli.app import app
from bayes_sd.fit import Fit, LatencyModel
from bayes_sd.runs.read import corpus

COMMANDS = [
    name
    for name, command in get_command(app).commands.items()
    if any("--json" in one.opts for one in command.params)
]
FIT = "{fit} --verifier dense-60m --drafter draft-3m --acceptance 0.7 --output 64"
ONE = f"{FIT} --prompt 128"
ASKED = {  # after the command: what has every field of its reply at least once
    "ask": [EXAMPLE.partition(" ")[2], "--verifier Qwen3-8B --machine H100 --rps 1,200"],
    "check": ["{runs}", "{one}"],
    "fit": ["{one} -o {out}/fit.nc"],
    "plan": ["{out}/plan.yaml", "{out}/plan.yaml -o {out}/new"],
    "demo": ["--out {out}"],
    "latency": [
        f"{ONE} -k 0,5 --rps 1,1000 --metric ttft",
        f"{FIT} -k 5 --concurrency 1,4 --prompt 64,128 --output 32,64 --requests 9",
    ],
    "compare": [f"{ONE} -k 2,5 --rps 1,8,1000", f"{ONE} -k 5 --concurrency 1,4 --of request"],
    "schedule": [
        f"{ONE} -k 0,2,5 --slo 2 --rps 1,2 --method eagle3",
        f"{ONE} -k 0,2 --concurrency 4",
        f"{FIT} -k 0,2 --prompt 64,128",
        ONE.replace("0.7", "0.01") + " -k 0,5",
    ],
    "capacity": [
        f"{ONE} -k 0,2 --slo 2 --rps 10 --price 2",
        f"{ONE} -k 0 --slo 0.01 --concurrency 4",
        f"{ONE} -k 0 --slo 2 --rps 1000 --replicas 1",
    ],
    "next-runs": [
        f"{ONE} -k 0,2 --rps 7,8 -o {{out}}/next",
        f"{ONE} -k 0,5 --concurrency 2,4,8".replace("dense-60m", "dense-200m").replace(
            "0.7", "0.5"
        ),
    ],
    "report": ["{fit} -o {out}/page.html"],
    "plot": [
        "{fit} collapse -o {out}/a.svg",
        *(f"{{fit}} {kind} {ONE[6:]} --rps 1,8 -o {{out}}/a.svg" for kind in REPLIES["plot"]["or"]),
    ],
    "compare-models": ["{runs} --models 'full,no censoring'"],
    "validate": ["{runs} --only verifier,priors", "{one} --only verifier"],
}
pytestmark = pytest.mark.docs


@pytest.fixture
def places(fit: Fit, fit_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The files that are asked about. Nothing is sampled, and no page written: others test it."""
    load, systems = Fit.load, fitted.measured_systems
    monkeypatch.setattr(Fit, "load", lambda path: fit if path == fit_path else load(path))
    monkeypatch.setattr(Fit, "report", lambda _, page, **__: page)
    monkeypatch.setattr(fitted, "measured_systems", lambda fit: systems(fit)[:1])
    monkeypatch.setattr(LatencyModel, "fit", lambda *_, **__: fit)
    monkeypatch.setattr(LatencyModel, "refitter", lambda self, runs: StandIn(self.design(runs)))
    monkeypatch.setattr("bayes_sd.checks.jobs._compiled", {})
    drafter = "{name: ngram, method: ngram}"
    described = f"verifiers: [org/llama-8b]\ndrafters: [{drafter}]\nk: [1, 3]\n"
    (tmp_path / "plan.yaml").write_text(described)
    runs = corpus("vllm-cpu")
    return {"fit": fit_path, "out": tmp_path, "runs": runs, "one": runs / "dense-25m_0.json"}


def printed(verb: str, words: str, places: dict[str, Path]) -> Any:
    done = CliRunner().invoke(app, [verb, *shlex.split(words.format(**places)), "--json"])
    assert done.exit_code in (0, 3), done.output  # 3: a check that is not passed
    return json.loads(done.stdout)


def in_reply(value: Any, at: str = "") -> Iterator[str]:
    """Names of fields, below those of the fields that they are in."""
    for one in value if isinstance(value, list) else [value]:
        for name, below in one.items() if isinstance(one, dict) else ():
            yield f"{at}.{name}"
            yield from in_reply(below, f"{at}.{name}")


def in_schema(schema: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, one in schema.get("properties", {}).items():
        yield f"{at}.{name}"
        yield from in_schema(one.get("items", one), f"{at}.{name}")


@pytest.mark.parametrize("verb", COMMANDS)
def test_replies_are_as_the_schema_says_and_have_all_that_it_says(
    verb: str, places: dict[str, Path]
) -> None:
    schema, there = reply_schema(verb), set[str]()
    jsonschema.Draft202012Validator.check_schema(schema)
    for words in ASKED[verb]:
        reply = printed(verb, words, places)
        jsonschema.validate(reply, schema)
        there |= {*in_reply(reply)}
    said = {*in_schema(schema.get("anyOf", [schema])[0])}
    assert {name for name in said - there if not name.startswith(".before.")} == set()  # of ask


def test_other_replies_are_refused(places: dict[str, Path]) -> None:
    schema, reply = reply_schema("ask"), printed("ask", ASKED["ask"][0], places)
    others = {"prob_faster": 1.5, "support": "guessed", "speedup_p50": "1", "new": 1}
    for name, value in others.items():
        wrong = deepcopy(reply)
        wrong["rows"][0][name] = value
        with pytest.raises(jsonschema.ValidationError, match=name if name == "new" else None):
            jsonschema.validate(wrong, schema)
    del reply["rows"][0]["server"]
    with pytest.raises(jsonschema.ValidationError, match="'server' is a required property"):
        jsonschema.validate(reply, schema)


def test_nothing_is_said_of_what_no_command_prints() -> None:
    fields, groups = REPLIES["fields"], REPLIES["groups"]
    assert {*REPLIES} - {"fields", "groups"} == {*COMMANDS}
    schemas = {verb: reply_schema(verb) for verb in COMMANDS}
    named = {verb: {x.rpartition(".")[2] for x in in_schema(s)} for verb, s in schemas.items()}
    named["plot"] = {"picture"}
    known = [(name, set().union(*named.values())) for name in fields]
    known += [(name, named[verb]) for verb in COMMANDS for name in REPLIES[verb].get("fields", ())]
    stale = [name for name, there in known if not any(re.fullmatch(name, x) for x in there)]
    used = {*known[0][1], *re.findall("@([a-z]+)", str(REPLIES))}
    assert stale == [] and {*groups} <= used
