"""Files that ``vllm bench sweep serve`` runs, on a machine that has only vLLM."""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bayes_sd.errors import InputError, plural
from bayes_sd.runs.vllm import PLACEHOLDER, short_name, speculative_config

LARGEST_BATCH = 4096  # "any batch" in a schedule of draft tokens
SEEDS = 1000  # seeds of a server: no two runs of a campaign send the same prompts
# Greedy requests: at vLLM's default temperature a drafter is accepted far less often.
BENCH_ARGS = (
    "--backend vllm --dataset-name random --random-range-ratio 0 --ignore-eos --temperature 0 "
    "--save-detailed --metric-percentiles 50,90,95,99 --num-warmups 2 --disable-tqdm "
)
RUN_SH = Path(__file__).with_name("run.sh")


class Described(BaseModel):
    """Part of a description: a misspelt key is refused."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        # Before fields are looked at: a misspelt key also makes the right one missing.
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"has unknown key {key!r}; known are {known}")
        return data


class VllmOptions(Described):
    """How vLLM is called, beside what the plan says."""

    serve_args: str = ""
    bench_args: str = ""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str] = {}
    startup_timeout_s: int = Field(default=900, ge=1)


@dataclass(frozen=True)
class SweepServer:
    """A server to start; a drafter with 0 draft tokens idles, `acceptance` is imposed on it."""

    name: str
    model: str = ""
    drafter: str = ""
    drafter_path: str = ""
    drafter_method: str = ""
    draft_tokens: int = 0
    acceptance: float | None = None

    def params(self) -> dict[str, Any]:
        """What ``vllm serve`` is given beside the model; a placeholder for an unknown path."""
        if not (self.drafter or self.drafter_path or self.drafter_method):
            return {}
        drafter = self.drafter, self.drafter_method, self.drafter_path
        config = speculative_config(*drafter, max(self.draft_tokens, 1))
        if self.draft_tokens == 0:
            config["num_speculative_tokens_per_batch_size"] = [[1, LARGEST_BATCH, 0]]
        elif self.acceptance is not None:
            config["rejection_sample_method"] = "synthetic"
            # vLLM wants the share of drafts that reach each position, ours is per token.
            reached = (self.acceptance**j for j in range(1, self.draft_tokens + 1))
            config["synthetic_acceptance_rates"] = [round(share, 6) for share in reached]
        return {"speculative_config": config}


@dataclass(frozen=True)
class Point:
    """One run: lengths, number of requests, and a concurrency or a rate."""

    prompt_tokens: int
    output_tokens: int
    requests: int
    concurrency: int | None = None
    rate_rps: float | None = None
    replicate: int = 0

    @property
    def name(self) -> str:
        """Short name of its folder."""
        load = f"r{self.rate_rps:g}" if self.concurrency is None else f"c{self.concurrency}"
        again = f"_{self.replicate}" if self.replicate else ""
        return f"{load}_p{self.prompt_tokens}_g{self.output_tokens}{again}"

    def params(self, seed: int) -> dict[str, Any]:
        """What ``vllm bench serve`` is given."""
        load: dict[str, Any] = {"max_concurrency": self.concurrency, "request_rate": self.rate_rps}
        return {name: value for name, value in load.items() if value is not None} | {
            "num_prompts": self.requests,
            "random_input_len": self.prompt_tokens,
            "random_output_len": self.output_tokens,
            "seed": seed,
        }


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long that is expected to take.

    Parameters
    ----------
    servers, points : sequence
        The servers, and for each its runs.
    server_minutes : sequence of float
        Expected time of each server with its runs.
    path : Path or None
        The ``run.sh`` to start, None if nothing was written.
    """

    servers: Sequence[SweepServer]
    points: Sequence[Sequence[Point]]
    server_minutes: Sequence[float]
    path: Path | None = None

    @property
    def minutes(self) -> float:
        """Expected time of all servers and runs."""
        return sum(self.server_minutes)

    @property
    def table(self) -> pd.DataFrame:
        """A row a server: models, draft tokens, runs, lowest and highest load and lengths, time."""
        loads = ("concurrency", "rate_rps", "prompt_tokens", "output_tokens")
        rows = []
        for one, runs, minutes in zip(self.servers, self.points, self.server_minutes, strict=True):
            verifier, drafter = short_name(one.model) or one.name, one.drafter or "none"
            row: dict[str, Any] = {"server": one.name, "verifier": verifier, "drafter": drafter}
            ends = {name: _ends([getattr(run, name) for run in runs]) for name in loads}
            row |= {"draft_tokens": one.draft_tokens, "runs": len(runs)}
            rows.append(row | ends | {"minutes": round(minutes, 1)})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        runs = sum(map(len, self.points))
        start = "" if self.path is None else f"; start {self.path} where vLLM is"
        servers = plural(len(self.servers), "server")
        return f"{servers}, {runs} runs, about {self.minutes:.0f} minutes{start}"


def _ends(values: Sequence[float | None]) -> str | float:
    known = sorted({value for value in values if value is not None})
    return "-".join(f"{value:g}" for value in (known[:1] + known[1:][-1:])) or math.nan


def write_sweep(
    folder: str | Path,
    servers: Sequence[SweepServer],
    points: Sequence[Sequence[Point]],
    options: VllmOptions | None = None,
    environment: str = "",
    seed: int = 1,
) -> Path:
    """Write a folder a server, with its `points`, and ``run.sh``, which measures all; its path."""
    options, folder = options or VllmOptions(), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new folder for the plan")
    names = [re.sub(r"[^\w.+-]+", "-", server.name).lstrip(".-") for server in servers]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"server names must differ and hold letters, got {', '.join(names)}")
    bench_args = BENCH_ARGS + options.bench_args
    if environment:
        bench_args += " --metadata " + shlex.quote(f"environment={environment}")
    settings = [f"export {name}={shlex.quote(value)}" for name, value in options.env.items()]
    settings += [
        f"serve_args={shlex.quote(options.serve_args)}",
        f"bench_args={shlex.quote(bench_args)}",
        f"startup_timeout_s={options.startup_timeout_s}",
        f"servers=({shlex.join(names)})",
        f"models=({shlex.join(server.model or PLACEHOLDER for server in servers)})",
    ]
    files = {"settings.sh": "\n".join(settings) + "\n", "run.sh": RUN_SH.read_text("utf-8")}
    for i, (name, server, runs) in enumerate(zip(names, servers, points, strict=True)):
        bench = {run.name: run.params(seed + SEEDS * i + j) for j, run in enumerate(runs)}
        if len(bench) < len(runs):
            raise InputError(f"{server.name}: a run is there twice; number them by replicate")
        for kind, params in (("serve", {name: server.params()}), ("bench", bench)):
            files[f"{name}/{kind}_params.json"] = json.dumps(params, indent=1) + "\n"
    try:
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "run.sh").chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder / "run.sh"
