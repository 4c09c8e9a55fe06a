"""What the commands take and how they answer.

Results go to stdout, progress and errors to stderr. Exit codes: 0 answered, 1 bad input or failure,
2 wrong usage, 3 not converged or evidence missing.
"""

import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np
import typer

from bayes_sd.answers.servers import Server
from bayes_sd.errors import EvidenceError, InputError, in_words
from bayes_sd.physics.structures import NAMES, Structure
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.load import Load
from bayes_sd.runs.sizes import Size

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sd.answers.answer import Answer
    from bayes_sd.fit import Fit
    from bayes_sd.plan.sweep import Plan
    from bayes_sd.runs.schema import Runs

LENGTHS_ALIKE = 1.1  # longest over shortest, of runs that have one length
COUNT_MAX = 10_000  # values of START:STOP:COUNT
SIZE = (
    "Unmeasured: a config.json, or params=8e9, with commas active_params, experts, "
    "experts_per_token, layers, kv_bytes."
)
STRUCTURE = f"Assume {', '.join(NAMES)}; terms as edge:round_trip_s=0.02..0.05."
File = Path | None
Text = str | None


def option(help: str, metavar: Text = None, *names: str, panel: Text = None) -> Any:
    """An option of a command, in a group of its help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


file_option, load_option, server_option, sampling_option = (
    functools.partial(option, panel=panel) for panel in ("Files", "Load", "Server", "Sampling")
)
AsJson = Annotated[bool, option("Print JSON instead of tables.", None, "--json")]
Paths = Annotated[list[str], typer.Argument(help="Result files, folders or globs.")]
FitFile = Annotated[Path, typer.Argument(help="A fit saved by `bayes-sd fit`.")]
Seed = Annotated[int, sampling_option("Equal seeds give equal draws.", "N")]
Draws = Annotated[int, sampling_option("Kept draws of each of 4 chains.", "N")]
Tune = Annotated[int, sampling_option("Discarded draws of each chain.", "N")]
Requests = Annotated[int | None, option("Of one run; default: as measured.", "N")]
DraftLengths = Annotated[
    Text, option("Draft tokens, as 0,3; 0 is plain. Default: those measured.", "LIST", "-k")
]


@dataclass(frozen=True)
class Reply:
    """What a command answers: JSON, or sentences and titled tables; exit code 3 if not passed."""

    data: dict[str, Any]
    shown: list[Any]
    passed: bool = True

    @classmethod
    def of(cls, answer: "Answer | Plan", title: str, *shown: Any, **more: Any) -> "Reply":
        """An answer: its sentence first, then its table and what else is shown."""
        data = {"answer": str(answer), "rows": answer.table.to_dict("records"), **more}
        return cls(data, [str(answer), (title, answer.table), *shown])


def command(verb: Callable[..., Reply]) -> Callable[..., None]:
    """A verb as typer runs it: dataclasses become options; ``--json``; one sentence an error."""
    hints = get_type_hints(verb, include_extras=True)
    options: list[inspect.Parameter] = []
    kinds: dict[str, type] = {}

    def add(name: str, default: Any, annotation: Any) -> None:
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))

    for name, parameter in inspect.signature(verb).parameters.items():
        if not is_dataclass(hints[name]):
            add(name, parameter.default, hints[name])
            continue
        kinds[name] = hints[name]
        own = get_type_hints(hints[name], include_extras=True)
        for field in fields(hints[name]):
            add(field.name, field.default, own[field.name])
    add("as_json", False, AsJson)

    @functools.wraps(verb)
    def wrapped(*, as_json: bool, **given: Any) -> None:
        for name, kind in kinds.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        try:
            reply = verb(**given)
        except (InputError, EvidenceError) as error:
            bad = isinstance(error, InputError)
            say(f"{'error' if bad else 'insufficient'}: {in_words(error.message, shell=True)}")
            raise typer.Exit(1 if bad else 3) from None
        if as_json:
            # What is missing or has no bound is null.
            print(json.dumps(finite_or_none(reply.data), allow_nan=False))
        else:
            for part in reply.shown:
                print(part) if isinstance(part, str) else show(*part)
        if not reply.passed:
            raise typer.Exit(3)

    # What typer reads.
    wrapped.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in options}
    return wrapped


@dataclass(frozen=True)
class Source:
    """Where runs come from."""

    config: Annotated[File, file_option("YAML or CSV: which file is which server.", "FILE")] = None
    environment: Annotated[Text, file_option("Hardware and engine of all files.", "TEXT")] = None
    settings: Annotated[
        list[str] | None, file_option("Configuration of all files.", "NAME=VALUE", "--set")
    ] = None
    columns: Annotated[Text, file_option("Other headers of a table.", "OURS=THEIRS")] = None
    window: Annotated[float, file_option("Seconds of metrics in a run.", "S")] = 300.0

    def read(self, paths: list[str]) -> "Runs":
        """The runs of these files."""
        from bayes_sd.runs.read import read

        return read(
            paths,
            config=self.config,
            environment=self.environment,
            columns=pairs(self.columns, "--columns") or None,
            window_s=self.window,
            **pairs(",".join(self.settings or []), "--set"),
        )


@dataclass(frozen=True)
class AskedLoad:
    """The load that a command asks about."""

    rps: Annotated[Text, load_option("Requests/s: 1,2,4 or START:STOP:COUNT.", "LIST")] = None
    concurrency: Annotated[Text, load_option("Requests in flight, instead.", "LIST")] = None
    prompt: Annotated[float | None, load_option("Prompt tokens of a request.", "N")] = None
    output: Annotated[float | None, load_option("Output tokens of a request.", "N")] = None

    def of(self, fit: "Fit", default: Callable[[tuple[float, float]], Load] | None = None) -> Load:
        """The load; without rates or concurrencies the `default` at these lengths."""
        lengths = self._lengths(fit)
        given = {"rps": self.rps, "concurrency": self.concurrency}
        axis = {n: numbers(text, f"--{n}") for n, text in given.items() if text is not None}
        if not axis and default is not None:
            return default(lengths)
        if len(axis) != 1:
            raise typer.BadParameter("give exactly one of --rps and --concurrency.")
        return Load(**axis, prompt=lengths[0], output=lengths[1])

    def _lengths(self, fit: "Fit") -> tuple[float, float]:
        """Prompt and output tokens; by default those of all runs, where they are alike."""
        if self.prompt is not None and self.output is not None:
            return self.prompt, self.output
        measured = fit.runs[["prompt_tokens", "output_tokens"]]
        if (measured.max() > LENGTHS_ALIKE * measured.min()).any():
            known = sorted({f"{prompt:.0f} + {output:.0f}" for prompt, output in measured.values})
            some = ", ".join(known[:6]) + " and others" * (len(known) > 6)
            raise typer.BadParameter(f"give --prompt and --output, in tokens; runs had {some}.")
        usual = measured.median().round().to_dict()
        given = {"prompt_tokens": self.prompt, "output_tokens": self.output}
        usual |= {name: value for name, value in given.items() if value is not None}
        return usual["prompt_tokens"], usual["output_tokens"]


@dataclass(frozen=True)
class AskedServer:
    """The server that a command asks about."""

    verifier: Annotated[Text, server_option("Measured verifier.", "NAME")] = None
    drafter: Annotated[Text, server_option("Measured drafter.", "NAME")] = None
    acceptance: Annotated[Text, server_option("If not as measured: 0.7, or 0.8,0.6.", "A")] = None
    new_verifier: Annotated[Text, server_option(SIZE, "SIZE")] = None
    new_drafter: Annotated[Text, server_option("Unmeasured drafter, likewise.", "SIZE")] = None
    environment: Annotated[Text, server_option("Where it runs, if several.", "NAME")] = None
    structure: Annotated[Text, server_option(STRUCTURE, "KIND:TERMS")] = None
    extrapolate: Annotated[
        bool, server_option("Answer far from what was measured.", None, "--extrapolate")
    ] = False

    def of(self, fit: "Fit", k: int, drafter_loaded: bool | None = None) -> Server:
        """The server with so many draft tokens, plain at 0; the fit's only one if none is named."""
        verifier, drafter = self._models(fit)
        structure = structure_of(self.structure)
        if not (k > 0 if drafter_loaded is None else drafter_loaded):
            return Server(verifier, environment=self.environment, structure=structure)
        if drafter is None:
            known = sorted({*fit.runs["drafter"][fit.runs["verifier"] == verifier]} - {"none"})
            drafter = only("drafter", known, f"of {verifier} the fit knows")
        rates = None if self.acceptance is None else numbers(self.acceptance, "--acceptance")
        accepted = rates[0] if rates and len(rates) == 1 else rates
        return Server(verifier, drafter, k, accepted, self.environment, structure)

    def lengths(self, fit: "Fit", k: Text) -> list[int]:
        """Draft lengths asked about; by default those that this verifier ran with, 0 included."""
        if k is not None:
            return whole_numbers(k)
        (verifier, drafter), ran = self._models(fit), fit.servers
        ran = ran[ran["verifier"] == verifier] if isinstance(verifier, str) else ran
        own = ran["drafter"] == drafter if isinstance(drafter, str) else True
        mine = (ran["draft_tokens"] == 0) | own
        return sorted(int(n) for n in ran["draft_tokens"][mine].unique()) or [0]

    def _models(self, fit: "Fit") -> tuple[str | Size, str | Size | None]:
        """The verifier, the fit's only one if none is named, and the drafter if one is."""
        if (self.verifier and self.new_verifier) or (self.drafter and self.new_drafter):
            raise typer.BadParameter("name a measured model or give a new one's size, not both.")
        verifier = self.verifier or size_of(self.new_verifier, "--new-verifier")
        drafter = self.drafter or size_of(self.new_drafter, "--new-drafter")
        return verifier or only("verifier", fit.verifiers.index, "the fit knows"), drafter


def only(what: str, names: Iterable[str], known: str) -> str:
    """The only name there is; of several, or none, one has to be given."""
    names = [str(name) for name in names]
    if len(names) != 1:
        raise InputError(f"Say which {what}: <<{what}>>; {known} {', '.join(names) or 'none'}.")
    return names[0]


def numbers(text: str, flag: str) -> list[float]:
    """``1:16:16`` or ``1,2,4`` as numbers."""
    try:
        if ":" not in text:
            return [float(v) for v in text.split(",")]
        start, stop, count = text.split(":")
        if int(count) <= COUNT_MAX:
            return np.linspace(float(start), float(stop), int(count)).tolist()
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{flag} {text!r}: write numbers with commas or START:STOP:COUNT, at most {COUNT_MAX}."
    )


def whole_numbers(text: str) -> list[int]:
    """``0,3,5`` as draft lengths."""
    try:
        return [int(v) for v in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"-k {text!r}: write whole numbers with commas.") from None


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
    return built(NAMES[kind.strip()], pairs(terms, "--structure"), "--structure")


def size_of(text: str | None, flag: str) -> Size | None:
    """A model nobody measured, from a config.json or ``name=number`` pairs; None from None."""
    if text is None:
        return None
    return built(Size, pairs(text, flag), flag) if "=" in text else Size.read(text)


def built[Kind: (Size, Structure)](kind: type[Kind], given: Mapping[str, Any], where: str) -> Kind:
    """A size or a structure from names and numbers; a structure's may be ``low..high``."""
    known = [field.name for field in fields(kind)]
    form = "NAME=NUMBER" if kind is Size else "NAME=NUMBER or NAME=LOW..HIGH"
    terms: dict[str, Any] = {}
    for name, value in given.items():
        number = int if name.startswith("experts") else float
        try:
            terms[name] = tuple(number(end) for end in str(value).split("..", 1))
        except ValueError:
            terms[name] = ()
        if name not in known or not terms[name] or (kind is Size and len(terms[name]) > 1):
            raise typer.BadParameter(
                f"{where} {name}={value}: write {form} with names {', '.join(known)}."
            )
    try:
        return kind(**{n: ends[0] if len(ends) == 1 else ends for n, ends in terms.items()})
    except TypeError:
        raise typer.BadParameter(f"{where}: {known[0]}=... is needed.") from None


def say(text: str) -> None:
    """Progress and errors, beside the answer."""
    print(text, file=sys.stderr)


def show(title: str, table: "pd.DataFrame") -> None:
    """A table; one wider than the terminal in blocks of columns, so that nothing is cut off."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    cells, names, numeric = table.map(_cell), [], []
    for place, name in enumerate(table):
        head = str(name).replace("_", " ")
        if table[name].dtype.kind in "fiu":
            numeric.append(place)
        else:  # texts stand at the left
            longest = max(len(head), *cells[name].str.len())
            cells[name], head = cells[name].str.ljust(longest), head.ljust(longest)
        names.append(head)
    # The texts at the left and the first number tell rows apart: every block begins with them.
    first = numeric[0] + 1 if numeric else 1
    cells.columns, keys, rest = names, names[:first], names[first:]

    def block(count: int) -> str:
        return cells[keys + rest[:count]].to_string(index=False)

    print(title)
    while rest or keys == names:
        counts = range(len(rest), 1, -1)
        count = next((n for n in counts if len(block(n).split("\n", 1)[0]) <= width), 1)
        print(f"{block(count)}\n")
        rest, names = rest[count:], []


def _cell(value: Any) -> str:
    """A number in four digits, a whole one in full; what is missing or infinite in words."""
    if not isinstance(value, float):
        return str(value)
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "no limit"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
