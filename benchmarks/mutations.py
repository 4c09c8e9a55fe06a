"""Mutate small real files of every reader, and see that each is read rightly or refused in words.

    uv run benchmarks/mutations.py [--count 20000] [--seed 1] [--readers vllm,aiperf] [--show 5]

Every input has one or two faults of the kinds that users' files have, or that a broken disk makes:
absurd and impossible numbers, wrong types, deep nesting, text that no encoding holds, control
characters, megabytes in a field, missing keys, files cut off, names that are not UTF-8. A row a
reader: how many were read, how many refused in words, and three columns that must be 0: other
exceptions (unprintable or endless messages among them), warnings that are not ours, and impossible
numbers accepted. The exit status is 1 if one is not. About 20 ms an input, 100 ms of metrics.
"""

import argparse
import copy
import gzip
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from bayes_sd.errors import LONGEST, EvidenceError, EvidenceWarning, InputError
from bayes_sd.plan.design import plan_sweep
from bayes_sd.plan.sweep import Plan
from bayes_sd.runs.config import KNOWN
from bayes_sd.runs.load import Load
from bayes_sd.runs.metrics import USED
from bayes_sd.runs.read import corpus, read
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import Size

DATA = Path(__file__).parents[1] / "tests" / "data"
BAD = ("other", "warning", "impossible")
COLUMNS = ("read", "refused", *BAD)
DEEP = "@deep@"  # stands for thousands of brackets
LIMIT_S = 30  # of CPU; whoever takes longer never ends
MEGABYTES = 20_000_000
NAMES = [b"a\xff\xfe.json", b"x\x1b[2J.json", b"line\nbreak.json", "名前.json".encode()]
NUMBERS = [
    *(-1, 0, 0.5, 1, 2**63, 10**19, 1e19, 1e300, -1e300, 1e-300, 5e-324, 1.8e308, 10**400),
    *(-(10**400), 1e9, -0.0, math.nan, math.inf, -math.inf, True),
]
TEXTS = [
    *("inf", "nan", "", " ", "x", "0x10", "1_000", "1e999", "-1", "\ud800", "a\udfff\ud800"),
    *("\x1b[2J", "a\x00b", "two\nlines", "\u202e\u2028", "٣", "none", "x" * 5000, DEEP),
]
TOKENS = [str(x) for x in NUMBERS] + TEXTS[:9] + ["1" * 5000, "0x" + "f" * 5000, "[" * 2000, '"']
WORD = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|[A-Za-z_]\w*")


@dataclass(frozen=True)
class Reader:
    """Files by name, JSON values or texts; which of them is mutated; and who reads them."""

    files: dict[str, Any]
    mutated: str
    call: Callable[[Path], Any]  # of the mutated file

    def dump(self, value: Any, name: str) -> bytes:
        """What is written of a JSON value, a table of keys in YAML, or a text."""
        if not isinstance(value, str | bytes):
            dump = yaml.safe_dump if name.endswith(".yaml") else json.dumps
            value = dump(value).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    for key, item in (
        value.items() if isinstance(value, dict) else
        enumerate(value) if isinstance(value, list) else ()
    ):  # fmt: skip
        yield value, key
        yield from places(item)


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """A JSON value with one item replaced, removed, scaled, nested or given twice."""
    value = copy.deepcopy(value)
    if not (found := list(places(value))):
        return value
    into, key = rng.choice(found)
    old, kind = into[key], rng.random()
    if kind < 0.35:
        into[key] = rng.choice(NUMBERS)
    elif kind < 0.55:
        into[key] = rng.choice(TEXTS)
    elif kind < 0.7:
        into[key] = rng.choice([None, [], {}, [old], {"a": old}, [1, "x"], [[]], [None], [{}]])
    elif kind < 0.8:
        del into[key]
    elif kind < 0.92 and isinstance(old, int | float):
        into[key] = old * rng.choice([-1, 1e-3, 1e3, 10, 1e-9, 1e12])
    elif kind < 0.96:
        for _ in range(rng.choice([2, 150])):
            old = [old]
        into[key] = old
    elif kind < 0.998:
        into[f"{key}{rng.choice(TEXTS)}" if isinstance(into, dict) else slice(0, 0)] = [old]
    else:
        into[key] = "x" * MEGABYTES
    return value


def mutate_text(text: str, rng: random.Random) -> bytes:
    """A text with one word or number replaced, a line lost, or bytes that do not belong there."""
    kind, lines = rng.random(), text.splitlines(keepends=True)
    if kind < 0.6 and (words := list(WORD.finditer(text))):
        word = rng.choice(words)
        text = text[: word.start()] + rng.choice(TOKENS) + text[word.end() :]
    elif kind < 0.7:
        del lines[rng.randrange(len(lines))]
        text = "".join(lines)
    elif kind < 0.8:
        line = rng.randrange(len(lines))
        text = "".join([*lines[:line], lines[rng.randrange(len(lines))], *lines[line:]])
    elif kind < 0.9:
        text = text[: rng.randrange(len(text) + 1)]
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if kind >= 0.9 or not data:
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.choice([b"\xff", b"\x00", b"\x1b[2J", b"\xed\xa0\x80", b"\r", b"\xef"])
    return bytes(data)


def mutated(reader: Reader, rng: random.Random) -> bytes:
    """Content of the mutated file."""
    content = reader.files[reader.mutated]
    for _ in range(1 + (rng.random() < 0.2)):
        if not isinstance(content, str | bytes) and rng.random() < 0.8:
            content = mutate_tree(content, rng)
        else:
            text = reader.dump(content, reader.mutated).decode("utf-8", "surrogateescape")
            content = mutate_text(text.encode("utf-8", "replace").decode(), rng)
    return reader.dump(content, reader.mutated)


def outcome(call: Callable[[Path], Any], path: Path, printed: bool) -> tuple[str, str]:
    """One of the columns, and what was wrong; `printed` with the check of the runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            result = call(path)
        except (InputError, EvidenceError) as error:
            found, problems = "refused", unprintable(str(error))
        except Exception as error:
            return "other", f"{type(error).__name__}: {str(error)[:200]}"
        else:
            found, problems = "read", []
            if isinstance(result, Runs):
                for reason in result.set_aside["reason"]:
                    problems += unprintable(reason)
                if printed:
                    problems += unprintable(str(result.check()))
            impossible = list(IMPOSSIBLE[type(result)](result))
            if impossible:
                return "impossible", impossible[0]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    if problems:
        return "other", problems[0]
    foreign = [w for w in caught if not issubclass(w.category, EvidenceWarning)]
    return ("warning", str(foreign[0].message)) if foreign else (found, "")


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took more than {LIMIT_S} s of CPU")


signal.signal(signal.SIGPROF, _too_long)


def unprintable(text: str) -> list[str]:
    """What is wrong with a message or a table as it is printed."""
    if not text.replace("\n", "").isprintable():
        return [f"unprintable: {text[:200]!r}"]
    longest = max(map(len, text.split("\n")))
    return [f"a line of {longest} characters: {text[:100]!r}"] if longest > LONGEST + 300 else []


POSITIVE = (
    *("verifier_params", "verifier_active_params", "prompt_tokens", "output_tokens", "requests"),
    *("rate_rps", "concurrency", "achieved_rps", "span_s", "duration_s", "in_flight"),
    *(f"{m}_{x}_s" for m in ("e2e", "ttft", "tpot") for x in ("mean", "p50", "p90", "p95", "p99")),
)
NOT_NEGATIVE = (
    *("drafter_params", "failed", "drafts", "drafted_tokens", "accepted_tokens", "draft_tokens"),
    *("prompt_tokens_sd", "output_tokens_sd", "e2e_log_var", "ttft_log_var", "tpot_log_var"),
)
ALWAYS = ("verifier_params", "prompt_tokens", "output_tokens", "requests", "span_s", "e2e_mean_s")


def impossible_runs(runs: Runs) -> Iterator[str]:
    """Numbers of a run table that no run has."""
    for row in runs.table.to_dict("records"):
        given = {name: x for name, x in row.items() if isinstance(x, int | float) and x == x}
        yield from (f"{name} is missing" for name in ALWAYS if name not in given)
        yield from (f"{name} is {x}" for name, x in given.items() if math.isinf(x))
        yield from (f"{name} is {given[name]}" for name in POSITIVE if given.get(name, 1) <= 0)
        yield from (f"{name} is {given[name]}" for name in NOT_NEGATIVE if given.get(name, 0) < 0)
        served = row["achieved_rps"] * row["duration_s"] / row["requests"]
        if not (math.isnan(served) or 0.5 <= served <= 2):
            yield f"achieved_rps {row['achieved_rps']} in {row['duration_s']} s: {row['requests']}"
        if row["accepted_tokens"] > row["draft_tokens"] * row["drafts"]:
            yield "more is accepted than drafted"
        if row["tokens_per_cycle"] < 1 or row["tokens_per_cycle"] > row["draft_tokens"] + 1.01:
            yield f"tokens_per_cycle is {row['tokens_per_cycle']}"


def impossible_load(load: Load) -> Iterator[str]:
    """Windows that no traffic has."""
    w = load.windows.to_numpy(float)
    if (w < 0).any() or np.isinf(w).any() or not (load.windows["seconds"] > 0).all():
        yield f"windows are {w[:3].tolist()}"
    if not (math.isfinite(load.requests) and load.requests > 0):
        yield f"{load.requests} requests"


def impossible_size(size: Size) -> Iterator[str]:
    """Sizes that no model has."""
    values = size.features().values()
    if not (size.params > 0 and size.active <= size.params and np.isfinite([*values]).all()):
        yield str(size)


def impossible_plan(plan: Plan) -> Iterator[str]:
    """Runs that no benchmark can make."""
    for p in (point for points in plan.points for point in points):
        load = p.rate_rps if p.concurrency is None else p.concurrency
        if not (p.requests >= 1 and p.prompt_tokens >= 1 and 0 < (load or 0) < math.inf):
            yield str(p)
    if not 0 < plan.minutes < math.inf:
        yield f"{plan.minutes} minutes"


IMPOSSIBLE: dict[type, Callable[[Any], Iterator[str]]] = {
    Runs: impossible_runs,
    Load: impossible_load,
    Size: impossible_size,
    Plan: impossible_plan,
}
PLAIN: dict[str, Any] = {"verifier_params": 60e6}
SD: dict[str, Any] = {**PLAIN, "drafter": "draft-3m", "drafter_params": 3e6, "draft_tokens": 3}
SGLANG = {
    "backend": "sglang", "request_rate": math.inf, "max_concurrency": 4, "duration": 20.0,
    "completed": 40, "total_input_tokens": 20480, "total_output_tokens": 2560,
    "request_throughput": 2.0, "mean_e2e_latency_ms": 1990.0, "std_e2e_latency_ms": 60.0,
    "p99_e2e_latency_ms": 2100.0, "mean_ttft_ms": 100.0, "mean_tpot_ms": 30.0,
    "mean_itl_ms": 80.0, "concurrency": 3.98, "accept_length": 2.9,
}  # fmt: skip
TABLE = """verifier,verifier_params,drafter,drafter_params,draft_tokens,prompt_tokens,output_tokens\
,requests,duration_s,rate_rps,achieved_rps,e2e_mean_s,e2e_std_s,e2e_p50_s,e2e_p95_s,ttft_mean_s,\
drafts,accepted_1,accepted_2
m,8e9,none,,0,512,128,60,60,1.0,1.0,0.9,0.08,0.88,1.2,0.11,,,
m,8e9,eagle,1e9,2,512,128,120,60,2.0,2.0,1.3,0.15,1.25,1.7,0.12,6000,5000,3000
"""
LOG = pd.DataFrame(
    {
        "timestamp": 1.79e9 + np.cumsum(np.random.default_rng(0).exponential(5, 40)).round(2),
        "prompt_tokens": np.arange(100, 140),
        "output_tokens": np.arange(40) % 9 * 20 + 1,
    }
)
DESCRIPTION = {
    "verifiers": ["org/llama-8b", "org/llama-1b"],
    "drafters": [{"name": "e", "model": "org/e", "method": "eagle3"}, {"name": "n", "method": "n"}],
    "k": [1, 5], "acceptance": [0.5, 0.9], "sd_servers_per_verifier": 2, "idle_drafter_servers": 1,
    "runs_per_server": [4, 8], "replicated_cells": 2, "max_concurrency": 64, "rates_rps": [1, 2],
    "prompts": [128, 512], "outputs": [64, 256], "run_seconds": 20, "min_requests": 16,
    "time_budget_minutes": 300, "environment": "H100 / vllm", "seed": 1, "token_s": 0.01,
    "vllm": {"serve_args": "--max-model-len 4096", "env": {"A": 1}, "startup_timeout_s": 900},
}  # fmt: skip


def metrics_text() -> str:
    """Every second of a server's readings under load, without the metrics that are not read."""
    text = gzip.decompress((DATA / "prometheus" / "sd-server.txt.gz").read_bytes()).decode()
    scrapes = [part for part in re.split(r"(?=^# time )", text, flags=re.MULTILINE) if part]
    steady = [s for s in scrapes if 1795487434 < float(s.split()[2]) < 1795487470]
    lines = [line for s in steady for line in s.splitlines(True)]
    return "".join(x for x in lines if x.startswith("# time") or x.split("{")[0] in USED)


def as_range(text: str) -> dict[str, Any]:
    """The same as Prometheus answers to query_range."""
    series: dict[str, list[Any]] = {}
    time_s = 0.0
    for line in text.splitlines():
        key, value = line.rsplit(" ", 1)
        if line.startswith("# time"):
            time_s = float(value)
        else:
            series.setdefault(key, []).append([time_s, value])
    result = []
    for key, values in series.items():
        name, labels = key.rstrip("}").split("{", 1)
        metric = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        result.append({"metric": metric | {"__name__": name}, "values": values})
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def readers() -> dict[str, Reader]:
    """Small real inputs of every reader."""

    def loaded(path: Path) -> Any:
        return json.loads(path.read_text())

    def runs(**given: Any) -> Callable[[Path], Any]:
        return lambda path: read(path, **given)

    measured = DATA / "sweep" / "measured" / "dense-12m_draft-3m_k3_a80"
    swept = loaded(next(measured.rglob("*c2*/run=0.json")))
    sweep = {**swept, "verifier_params": 12e6, "drafter_params": 3e6}
    detailed = loaded(corpus("vllm-cpu") / "dense-115m_draft-12m_k7_a70_3.json")
    lists = ("input_lens", "output_lens", "ttfts", "latencies", "start_times", "queue_times")
    plain = {k: v for k, v in detailed.items() if k not in lists}
    bare = {k: v for k, v in plain.items() if k not in KNOWN}
    aiperf = DATA / "aiperf" / "v0.13-poisson"
    export, records = (
        loaded(aiperf / "profile_export_aiperf.json"),
        (aiperf / "profile_export.jsonl").read_text(),
    )
    both = {"profile_export_aiperf.json": export, "profile_export.jsonl": records}
    guidellm = loaded(DATA / "guidellm" / "v0.8-sd-poisson.json")
    text = metrics_text()
    side = {"verifier": "dense-115m", "verifier_params": 115e6, "drafter_params": 12e6}
    side |= {"drafter": "draft-12m", "draft_tokens": 7, "hardware": "cpu", "engine": "vllm"}
    moe = {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": 4, "intermediate_size": 6144, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    }  # fmt: skip
    json_lines = LOG.to_json(orient="records", lines=True)
    return {
        "vllm": Reader({"a.json": plain}, "a.json", runs()),
        "vllm-detailed": Reader({"a.json": detailed}, "a.json", runs()),
        "sweep": Reader({"run=0.json": sweep}, "run=0.json", runs()),
        "sglang": Reader({"a.json": SGLANG}, "a.json", runs(verifier="m", **SD)),
        "aiperf": Reader(both, "profile_export_aiperf.json", runs(**PLAIN)),
        "aiperf-records": Reader(
            both, "profile_export.jsonl",
            lambda path: read(path.with_name("profile_export_aiperf.json"), **PLAIN),
        ),
        "guidellm": Reader({"a.json": guidellm}, "a.json", runs(**SD)),
        "metrics": Reader({"m.txt": text}, "m.txt", runs(window_s=30, **SD)),
        "query-range": Reader({"m.json": as_range(text)}, "m.json", runs(window_s=30, **SD)),
        "table": Reader({"t.csv": TABLE}, "t.csv", runs()),
        "log": Reader({"l.csv": LOG.to_csv(index=False)}, "l.csv", Load.read),
        "log-lines": Reader({"l.jsonl": json_lines}, "l.jsonl", Load.read),
        "sidecar": Reader(
            {"s.yaml": {"bare*.json": side}, "bare.json": bare}, "s.yaml",
            lambda path: read(path.with_name("bare.json"), config=path),
        ),
        "config.json": Reader({"config.json": moe}, "config.json", Size.read),
        "plan": Reader({"d.yaml": DESCRIPTION}, "d.yaml", plan_sweep),
    }  # fmt: skip


def run(reader: Reader, count: int, seed: int, show: int = 0) -> Counter[str]:
    """So many mutated inputs of a reader, by outcome."""
    rng, found, faults = random.Random(seed), Counter(dict.fromkeys(COLUMNS, 0)), set()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, content in reader.files.items():
            (folder / name).write_bytes(reader.dump(content, name))
        intact = outcome(reader.call, folder / reader.mutated, True)
        assert intact == ("read", ""), intact
        for number in range(count):
            path = folder / reader.mutated
            if len(reader.files) == 1 and rng.random() < 0.03:
                path = folder / os.fsdecode(rng.choice(NAMES))
            path.write_bytes(mutated(reader, rng))
            column, problem = outcome(reader.call, path, number % 20 == 0)
            found[column] += 1
            if problem and problem[:50] not in faults and len(faults) < show:
                faults.add(problem[:50])
                kept = Path(tempfile.gettempdir()) / f"mutation-{number}-{reader.mutated}"
                shutil.copy(path, kept)
                print(f"  {column}: {problem} ({kept})", file=sys.stderr)
            path.unlink()
    return found


def main() -> int:
    """Print the table; 1 if a column is not 0 that must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="inputs a reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", default="", help="names with commas; else all")
    parser.add_argument("--show", type=int, default=5, help="faults shown, and kept, a reader")
    given = parser.parse_args()
    known = readers()
    chosen = given.readers.split(",") if given.readers else list(known)
    counts = {}
    for name in chosen:
        counts[name] = run(known[name], given.count, given.seed, given.show)
        print(f"{name}: {dict(counts[name])}", file=sys.stderr)
    table = pd.DataFrame(counts).T[list(COLUMNS)]
    print(table.to_string())
    return int(table[list(BAD)].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
