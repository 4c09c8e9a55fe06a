"""What the commands take and how they answer.

Results go to stdout, progress and errors to stderr. Exit codes: 0 answered, 1 bad input or failure,
2 wrong usage, 3 not converged or evidence missing.
"""

import functools
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from typer.models import OptionInfo

from bayes_sd.answers.answer import cell
from bayes_sd.errors import EvidenceError, InputError, in_words
from bayes_sd.physics.structures import NAMES, Structure
from bayes_sd.runs.checkpoint import is_head
from bayes_sd.runs.config import KNOWN, finite_or_none
from bayes_sd.runs.machine import Machine
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import Size
from bayes_sd.runs.table import INPUTS, POSITIONS

COUNT_MAX = 10_000  # values of START:STOP:COUNT
NOT_SET = {  # arguments of `read` that are no configuration of a server, and how they are given
    **{name: f"write --{name} instead" for name in ("config", "environment", "columns")},
    "window_s": "write --window instead",
    "paths": "files are named without a flag",
}
File = Path | None
Text = str | None


def option(help: str, metavar: Text = None, *names: str, panel: Text = None) -> Any:
    """An option of a command, in a group of its help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


file_option, load_option, server_option, sampling_option = (
    functools.partial(option, panel=panel) for panel in ("Files", "Load", "Server", "Sampling")
)
AsJson = Annotated[bool, option("Print JSON instead of tables.", None, "--json")]
Seed = Annotated[int, sampling_option("Equal seeds give equal draws.", "N")]
Draws = Annotated[int, sampling_option("Kept draws of each of 4 chains.", "N")]
Tune = Annotated[int, sampling_option("Discarded draws of each chain.", "N")]
Requests = Annotated[int | None, option("Of one run; default: as measured.", "N")]


@dataclass(frozen=True)
class Reply:
    """What a command answers: JSON, or sentences and titled tables; exit code 3 if not passed."""

    data: dict[str, Any]
    shown: list[Any]
    passed: bool = True
    answer: Any = None  # that is told

    @classmethod
    def of(cls, answer: Any, title: str, *shown: Any, **more: Any) -> "Reply":
        """An answer: its sentence first, then its ``table`` and what else is shown."""
        data = {"answer": str(answer), "rows": answer.table.to_dict("records"), **more}
        return cls(data, [fill(str(answer)), (title, answer.table), *shown], answer=answer)


def parameters(of: Any) -> Iterator[inspect.Parameter]:
    """What typer reads of a verb: its parameters, and in place of a dataclass its fields."""
    for one in inspect.signature(of).parameters.values():
        if is_dataclass(one.annotation):
            yield from parameters(one.annotation)
        else:
            yield one.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def command(verb: Callable[..., Reply]) -> Callable[..., None]:
    """A verb as typer runs it: dataclasses become options; ``--json``; one sentence an error."""
    takes = {n: one.annotation for n, one in inspect.signature(verb).parameters.items()}
    kinds: dict[str, Any] = {n: kind for n, kind in takes.items() if is_dataclass(kind)}

    @functools.wraps(verb)
    def wrapped(*, as_json: bool, **given: Any) -> None:
        for name, kind in kinds.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        try:
            reply = verb(**given)
        except (InputError, EvidenceError) as error:
            bad, said = isinstance(error, InputError), in_words(error.message, shell=True)
            # An argument of Python that begins it is an option here.
            name, equals, rest = said.partition(" = ")
            flag = name.removesuffix("_s")
            said = in_words(f"<<{flag}>> {rest}", True) if equals and flag in options else said
            say(f"{'error' if bad else 'insufficient'}: {said}")
            raise typer.Exit(1 if bad else 3) from None
        if as_json:
            # What is missing or has no bound is null.
            print(json.dumps(finite_or_none(reply.data), allow_nan=False))
        else:
            for part in reply.shown:
                print(part) if isinstance(part, str) else show(*part)
        if not reply.passed:
            raise typer.Exit(3)

    keyword = inspect.Parameter.KEYWORD_ONLY
    flag = inspect.Parameter("as_json", keyword, default=False, annotation=AsJson)
    signature = inspect.Signature([*parameters(verb), flag])
    options = {
        one.name
        for one in parameters(verb)
        if isinstance(one.annotation.__metadata__[0], OptionInfo)
    }
    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    return wrapped


@dataclass(frozen=True)
class Source:
    """Where runs come from."""

    paths: Annotated[list[str], typer.Argument(help="Result files, folders or globs.")]
    config: Annotated[File, file_option("YAML or CSV: which file is which server.", "FILE")] = None
    environment: Annotated[Text, file_option("Hardware and engine of all files.", "TEXT")] = None
    settings: Annotated[
        list[str] | None, file_option("Configuration of all files.", "NAME=VALUE", "--set")
    ] = None
    columns: Annotated[Text, file_option("Other headers of a table.", "OURS=THEIRS")] = None
    window: Annotated[float, file_option("Seconds of metrics in a run.", "S")] = 300.0

    def read(self) -> Runs:
        """The runs of these files."""
        settings = pairs(",".join(self.settings or []), "--set")
        for name in settings:
            if name in NOT_SET or name not in (*KNOWN, *INPUTS, *POSITIONS):
                why = NOT_SET.get(name, "nothing is called so")
                takes = ", ".join(known for known in KNOWN if known not in NOT_SET)
                text = f"--set {name}={settings[name]}: {why}; --set takes {takes}."
                raise typer.BadParameter(text)
        columns = pairs(self.columns, "--columns") or None
        how: dict[str, Any] = {"config": self.config, "environment": self.environment}
        return read(self.paths, **how, columns=columns, window_s=self.window, **settings)


@contextmanager
def written(how: str) -> Iterator[None]:
    """Say `how` an option is written where its text cannot be read."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError):
        raise typer.BadParameter(how) from None


def numbers(text: str, flag: str) -> list[float]:
    """``1:16:16`` or ``1,2,4`` as numbers."""
    form = f"write numbers with commas or START:STOP:COUNT, at most {COUNT_MAX}."
    with written(f"{flag} {text!r}: {form}"):
        if ":" not in text:
            return [float(v) for v in text.split(",")]
        start, stop, count = text.split(":")
        if int(count) > COUNT_MAX:
            raise ValueError
        return np.linspace(float(start), float(stop), int(count)).tolist()


def unused(names: Iterable[str], why: str) -> None:
    """Refuse options that a command would ignore."""
    if flags := [in_words(f"<<{name}>>", shell=True) for name in names]:
        raise typer.BadParameter(f"{', '.join(flags)}: {why}.")


def draft_lengths(text: str) -> list[int]:
    """``0,3`` as draft lengths."""
    with written(f"-k {text!r}: write whole numbers of at least 0, with commas."):
        lengths = [int(v) for v in text.split(",")]
        if min(lengths) < 0:
            raise ValueError
        return lengths


def amount(text: str | None, flag: str) -> float | list[float] | None:
    """A number alone, or several as a list; None from None."""
    several = None if text is None else numbers(text, flag)
    return several[0] if several and len(several) == 1 else several


def pairs(text: str | None, flag: str) -> dict[str, str]:
    """``name=value,name=value`` as a mapping."""
    parts = [part.partition("=") for part in text.split(",")] if text else []
    named = {name.strip(): value.strip() for name, _, value in parts}
    if "" in named or "" in named.values():
        raise typer.BadParameter(f"{flag} {text!r}: write NAME=VALUE with commas.")
    return named


def structure_of(text: str | None) -> Structure | None:
    """A structure from ``name:term=number,term=low..high``; None from None."""
    if text is None:
        return None
    kind, _, terms = text.partition(":")
    if kind.strip() not in NAMES:
        raise typer.BadParameter(f"--structure {text!r}: known are {', '.join(NAMES)}.")
    where = f"--structure {kind.strip()}:"
    return built(NAMES[kind.strip()], pairs(terms, where), where)


def size_of(text: str, flag: str) -> Size:
    """A model nobody measured, from a name, a config.json or ``name=number`` pairs."""
    return built(Size, pairs(text, flag), flag) if "=" in text else Size.read(text)


def drafter_of(text: str, flag: str, verifier: str) -> Size:
    """Size of a drafter: a head of its verifier, a model, or nothing to read."""
    if not is_head(text):
        return Size.public(text) or size_of(text, flag)
    try:
        return Size.drafter(text.lower(), verifier)
    except InputError:
        sized = "is sized by a verifier's public name or config.json"
        raise InputError(f"{flag} {text} {sized}, {verifier} is neither.") from None


def machine_of(text: str, gpus: int) -> Machine:
    """A machine from its name, or ``gb_per_s=number,tflops=number`` of one accelerator."""
    if "=" not in text:
        return Machine(text, gpus)
    given = pairs(text, "--machine")
    name = given.pop("name", "")
    allowed = "a name, or numbers as name=mine,gb_per_s=1000,tflops=200,memory_gb=48"
    with written(f"--machine {text}: write {allowed}."):
        terms = {term: float(number) for term, number in given.items()}
        if not (name or "gb_per_s" in terms):
            raise TypeError("neither names a machine nor says its bandwidth")
        return Machine(name or "machine", gpus, **terms)


def built[Kind: (Size, Structure)](kind: type[Kind], given: Mapping[str, Any], where: str) -> Kind:
    """A size or a structure from names and numbers; a structure's may be ``low..high``."""
    known = [field.name for field in fields(kind) if field.name != "name"]
    form = "NAME=NUMBER" if kind is Size else "NAME=NUMBER or NAME=LOW..HIGH"
    said = ",".join(f"{name}={value}" for name, value in given.items())
    names = f"with names {', '.join(known)}, {known[0]} at least."
    with written(f"{where} {said or 'says nothing'}: write {form} {names}"):
        terms: dict[str, Any] = {}
        for name, value in given.items():
            ends = str(value).split("..", 1)
            interval = tuple(int(end) if end.isdigit() else float(end) for end in ends)
            terms[name] = interval if len(ends) > 1 else interval[0]
        return kind(**terms)


def say(text: str) -> None:
    """Progress and errors, beside the answer."""
    print(text, file=sys.stderr)


def width() -> int:
    """Columns of the terminal; of a file or a pipe so many that few tables need blocks."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def fill(text: str) -> str:
    """Text with lines wrapped at the width of the terminal, set in; to a file or pipe as it is."""
    if not sys.stdout.isatty():
        return text
    wrapper = textwrap.TextWrapper(
        width(), subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(wrapper.fill, text.split("\n")))


def show(title: str, table: pd.DataFrame) -> None:
    """A table; one wider than the terminal in blocks of columns, so that nothing is cut off."""
    if table.empty:  # the sentence before it says so
        return
    columns, numeric = [], [table[name].dtype.kind in "fiu" for name in table]
    for name, is_number in zip(table, numeric, strict=True):
        texts = [str(name).replace("_", " "), *table[name].map(cell)]
        longest = max(map(len, texts))
        columns.append([x.rjust(longest) if is_number else x.ljust(longest) for x in texts])
    # Every block begins with the columns at the left that tell rows apart.
    first = next((n for n in range(1, len(columns)) if not table.iloc[:, :n].duplicated().any()), 1)
    keys, rest = columns[:first], columns[first:]
    print(fill(title))
    while True:
        block, room = [*keys], width() - sum(len(column[0]) + 1 for column in keys)
        while rest and (len(block) == first or len(rest[0][0]) <= room):
            room -= len(rest[0][0]) + 1
            block.append(rest.pop(0))
        lines = map(" ".join, zip(*block, strict=True))
        print(*lines, sep="\n", end="\n\n")
        if not rest:
            return
