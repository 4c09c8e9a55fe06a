"""What the commands take and how they answer: options, words turned into loads and servers, output.

Results go to stdout, progress and errors to stderr. Exit codes: 0 answered, 1 bad input or failure,
2 wrong usage, 3 not converged or evidence missing.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np
import typer

from bayes_sd.answers.servers import Server
from bayes_sd.errors import EvidenceError, InputError, in_words
from bayes_sd.physics.structures import NAMES, Structure
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.load import Load
from bayes_sd.runs.read import load_yaml
from bayes_sd.runs.sizes import Size

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sd.answers.answer import Answer
    from bayes_sd.fit import Fit
    from bayes_sd.runs.schema import Runs


def option(help: str, metavar: str | None = None, *names: str, panel: str | None = None) -> Any:
    """An option of a command, in a group of its help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


file_option, load_option, server_option, sampling_option = (
    functools.partial(option, panel=panel) for panel in ("Files", "Load", "Server", "Sampling")
)


AsJson = Annotated[bool, option("Print one JSON object instead of tables.", None, "--json")]
Paths = Annotated[list[str], typer.Argument(help="Result files, folders or globs.")]
FitFile = Annotated[Path, typer.Argument(help="A fit saved by `bayes-sd fit`.")]
Seed = Annotated[int, sampling_option("Equal seeds give equal draws.", "N")]
Draws = Annotated[int, sampling_option("Kept draws of each of 4 chains.", "N")]
Tune = Annotated[int, sampling_option("Discarded draws of each chain.", "N")]
DraftLengths = Annotated[str, option("Draft tokens, as 0,3,5; 0 is plain.", "LIST", "-k")]


def expands(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options, instead of an argument of that type."""
    hints = get_type_hints(kind, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        place = next(n for n, p in signature.parameters.items() if p.annotation is kind)
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [
            inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name])
            for f in fields(kind)
        ]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            command(**{place: kind(**{o.name: given.pop(o.name) for o in options})}, **given)

        shown: list[inspect.Parameter] = []
        for one in signature.parameters.values():
            shown += options if one.name == place else [one.replace(kind=keyword)]
        # What typer reads.
        wrapped.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in shown}
        return wrapped

    return decorate


@dataclass(frozen=True)
class Source:
    """Where runs come from."""

    config: Annotated[
        Path | None, file_option("YAML or CSV: which file is which server.", "FILE")
    ] = None
    environment: Annotated[str | None, file_option("Hardware and engine of all files.", "TEXT")] = (
        None
    )
    settings: Annotated[
        list[str] | None, file_option("Configuration of all files.", "NAME=VALUE", "--set")
    ] = None
    columns: Annotated[str | None, file_option("Other headers of a table.", "OURS=THEIRS")] = None
    window: Annotated[float, file_option("Seconds of metrics that make a run.", "S")] = 300.0

    def read(self, paths: list[str]) -> "Runs":
        """The runs of these files."""
        from bayes_sd.runs.read import read

        return read(
            paths,
            config=self.config,
            environment=self.environment,
            columns=pairs(self.columns, "--columns") or None,
            window_s=self.window,
            **pairs(",".join(self.settings or []) or None, "--set"),
        )


@dataclass(frozen=True)
class AskedLoad:
    """The load that a command asks about."""

    rps: Annotated[str | None, load_option("Requests/s: 1,2,4 or START:STOP:COUNT.", "LIST")] = None
    concurrency: Annotated[str | None, load_option("Requests in flight, instead.", "LIST")] = None
    prompt: Annotated[float | None, load_option("Prompt tokens of a request.", "N")] = None
    output: Annotated[float | None, load_option("Output tokens of a request.", "N")] = None

    def of(self, default: Callable[[tuple[float, float]], Load] | None = None) -> Load:
        """The load; without rates or concurrencies the `default` at these lengths."""
        if self.prompt is None or self.output is None:
            raise typer.BadParameter("give --prompt and --output, tokens of a request.")
        if self.rps is None and self.concurrency is None and default is not None:
            return default((self.prompt, self.output))
        if (self.rps is None) == (self.concurrency is None):
            raise typer.BadParameter("give exactly one of --rps and --concurrency.")
        lengths = {"prompt": self.prompt, "output": self.output}
        if self.rps is not None:
            return Load(rps=numbers(self.rps, "--rps"), **lengths)
        return Load(concurrency=numbers(self.concurrency or "", "--concurrency"), **lengths)


@dataclass(frozen=True)
class AskedServer:
    """The server that a command asks about."""

    verifier: Annotated[str | None, server_option("Measured verifier.", "NAME")] = None
    drafter: Annotated[str | None, server_option("Measured drafter.", "NAME")] = None
    acceptance: Annotated[
        str | None, server_option("Per token, or one a position; else measured.", "A")
    ] = None
    new_verifier: Annotated[
        str | None,
        server_option(
            "Unmeasured: a config.json, or params=8e9, with commas active_params, experts, "
            "experts_per_token, layers, kv_bytes.",
            "SIZE",
        ),
    ] = None
    new_drafter: Annotated[str | None, server_option("Unmeasured drafter, likewise.", "SIZE")] = (
        None
    )
    environment: Annotated[str | None, server_option("Where it runs, if several.", "NAME")] = None
    structure: Annotated[
        str | None,
        server_option(
            f"Assume {', '.join(NAMES)}; terms as round_trip_s=0.02..0.05.", "KIND:TERMS"
        ),
    ] = None
    extrapolate: Annotated[
        bool, server_option("Allow answers far from what was measured.", None, "--extrapolate")
    ] = False

    def of(self, fit: "Fit", k: int, drafter_loaded: bool | None = None) -> Server:
        """The server with so many draft tokens, plain at 0; the fit's only one if none is named."""
        if (self.verifier and self.new_verifier) or (self.drafter and self.new_drafter):
            raise typer.BadParameter("name a measured model or give a new one's size, not both.")
        verifier = self.verifier or size_of(self.new_verifier, "--new-verifier")
        drafter = self.drafter or size_of(self.new_drafter, "--new-drafter")
        if verifier is None:
            known = fit.verifiers.index.tolist()
            if len(known) > 1:
                raise InputError(
                    f"Say which verifier: <<verifier>>; the fit knows {', '.join(known)}."
                )
            verifier = str(known[0])
        loaded = k > 0 if drafter_loaded is None else drafter_loaded
        if loaded and drafter is None:
            known = sorted(fit.runs["drafter"][fit.runs["verifier"] == verifier].unique())
            known = [name for name in known if name != "none"]
            if len(known) != 1:
                names = ", ".join(known) or "none"
                raise InputError(f"Say which drafter: <<drafter>>; of {verifier} it knows {names}.")
            drafter = known[0]
        structure = structure_of(self.structure)
        if not loaded:
            return Server(verifier, environment=self.environment, structure=structure)
        rates = None if self.acceptance is None else numbers(self.acceptance, "--acceptance")
        accepted = rates[0] if rates is not None and len(rates) == 1 else rates
        return Server(verifier, drafter, k, accepted, self.environment, structure)


def answers(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can mend into one sentence, in the shell's words, and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            say(f"error: {in_words(error.message, shell=True)}")
            raise typer.Exit(1) from None
        except EvidenceError as error:
            say(f"insufficient: {in_words(error.message, shell=True)}")
            raise typer.Exit(3) from None

    return wrapped


def numbers(text: str, flag: str) -> list[float]:
    """``1:16:16`` or ``1,2,4`` as numbers."""
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            if int(count) > 10_000:
                raise ValueError
            return [float(v) for v in np.linspace(float(start), float(stop), int(count))]
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{flag} {text!r}: write START:STOP:COUNT (at most 10000) or numbers with commas."
        ) from None


def whole_numbers(text: str) -> list[int]:
    """``0,3,5`` as draft lengths."""
    try:
        return [int(v) for v in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"-k {text!r}: write whole numbers with commas.") from None


def pairs(text: str | None, flag: str) -> dict[str, Any]:
    """``name=value,name=value`` as a mapping."""
    parts = [part.partition("=") for part in text.split(",")] if text else []
    if any(not name.strip() or not value.strip() for name, _, value in parts):
        raise typer.BadParameter(f"{flag} {text!r}: write NAME=VALUE with commas.")
    return {name.strip(): value.strip() for name, _, value in parts}


def structure_of(text: str | None) -> Structure | None:
    """A structure from ``name:term=number,term=low..high``; None from None."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    if kind.strip() not in NAMES:
        raise typer.BadParameter(f"--structure {text!r}: known are {', '.join(NAMES)}.")
    structure = NAMES[kind.strip()]
    known, terms = [f.name for f in fields(structure)], {}
    for name, value in pairs(rest or None, "--structure").items():
        try:
            ends = tuple(float(v) for v in value.split(".."))
        except ValueError:
            ends = ()
        if name not in known or len(ends) not in (1, 2):
            raise typer.BadParameter(
                f"--structure {name}={value}: write TERM=NUMBER or TERM=LOW..HIGH with terms "
                f"{', '.join(known)}."
            )
        terms[name] = ends[0] if len(ends) == 1 else ends
    try:
        return structure(**terms)  # type: ignore[arg-type]
    except TypeError:
        raise typer.BadParameter(f"--structure {text!r}: {known[0]}=... is needed.") from None


def size_of(text: str | None, flag: str) -> Size | None:
    """A model nobody measured, from a config.json or ``name=number`` pairs; None from None."""
    if text is None:
        return None
    if "=" not in text:
        return Size.read(text)
    known = {f.name: int if f.name.startswith("experts") else float for f in fields(Size)}
    values: dict[str, Any] = {}
    for name, value in pairs(text, flag).items():
        try:
            values[name] = known[name](value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"{flag} {name}={value}: write NAME=NUMBER with names {', '.join(known)}."
            ) from None
    if "params" not in values:
        raise typer.BadParameter(f"{flag} {text!r}: params=... is needed.")
    return Size(**values)


def read_servers(path: Path) -> tuple[dict[str, Server], dict[str, float] | None]:
    """Named servers, and their prices an hour, of a YAML file.

    Each name maps to the fields of :class:`bayes_sd.Server` (a model nobody measured as
    ``{params: 8e9}``, a structure as behind ``--structure``) and perhaps ``price_per_hour``.
    """
    servers: dict[str, Server] = {}
    prices: dict[str, float] = {}
    known = [*(f.name for f in fields(Server)), "price_per_hour"]
    for name, given in load_yaml(path).items():
        where = f"{path}: {name}"
        if not isinstance(given, dict) or "verifier" not in given:
            raise InputError(f"{where} must map keys to values, verifier among them.")
        if unknown := [str(key) for key in given if key not in known]:
            raise InputError(f"{where} has the unknown key {unknown[0]!r}; known: {known}.")
        values = dict(given)
        for model in ("verifier", "drafter"):
            if isinstance(values.get(model), dict):
                text = ",".join(f"{n}={v}" for n, v in values[model].items())
                values[model] = size_of(text, f"{where}: {model}")
        try:
            values["structure"] = structure_of(values.get("structure"))
            price = values.pop("price_per_hour", None)
            servers[str(name)] = Server(**values)
            if price is not None:
                prices[str(name)] = float(price)
        except (InputError, typer.BadParameter, TypeError, ValueError) as error:
            raise InputError(f"{where}: {getattr(error, 'message', error)}") from None
    if not servers:
        raise InputError(f"{path}: must map a name to each server, at least one.")
    return servers, prices or None


def say(text: str) -> None:
    """Progress and errors, beside the answer."""
    print(text, file=sys.stderr)


def emit(data: Any) -> None:
    """The answer as one JSON object, in which what is missing or has no bound is null."""
    print(json.dumps(finite_or_none(data), allow_nan=False))


def give(answer: "Answer", as_json: bool, title: str, **more: Any) -> None:
    """An answer: its sentence first, then its table."""
    if as_json:
        emit({"answer": str(answer), "rows": answer.table.to_dict("records"), **more})
        return
    print(answer)
    show(title, answer.table)


def show(title: str, table: "pd.DataFrame") -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in table.columns:
        number = table[name].dtype.kind in "fiu"
        shown.add_column(str(name), justify="right" if number else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(_cell(v) for v in row))
    # A pipe has no width: let nothing be cut there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(shown)
    console.print()


def _cell(value: Any) -> str:
    """A number in four digits, a whole one in full; what is missing or infinite in words."""
    if not isinstance(value, float):
        return str(value)
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "no limit"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
