"""What the commands take: their options, and words turned into loads, arms and systems."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np
import typer

if TYPE_CHECKING:
    from bayes_sd.inference.fit import Fit
    from bayes_sd.predict.size import Size
    from bayes_sd.predict.structures import Structure
    from bayes_sd.predict.system import System

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML or CSV that maps result files to configurations.")
]
Environment = Annotated[str | None, typer.Option(help="Hardware and engine of all files.")]
Paths = Annotated[list[str], typer.Argument(help="Result files, folders or globs.")]
Metrics = Annotated[
    bool, typer.Option("--metrics", help="The files are a server's Prometheus metrics.")
]
Window = Annotated[float, typer.Option(help="Seconds of metrics that make a run.")]
FitFile = Annotated[Path, typer.Argument(help="A fit saved by `bayes-sd fit`.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal draws.")]
Rates = Annotated[str | None, typer.Option(help="Requests/s: START:STOP:COUNT, or a comma list.")]
Concurrency = Annotated[str | None, typer.Option(help="Requests in flight, instead of --rps.")]
Prompt = Annotated[float, typer.Option(help="Prompt tokens of a request.")]
Output = Annotated[float, typer.Option(help="Output tokens of a request.")]
Verifier = Annotated[str | None, typer.Option(help="Measured verifier, by name.")]
Drafter = Annotated[str | None, typer.Option(help="Measured drafter, by name.")]
NewVerifier = Annotated[
    str | None,
    typer.Option(
        help="One nobody measured: params=30e9,active_params=3e9,experts=128,experts_per_token=8,"
        "layers=48; only params is needed for a dense model."
    ),
]
NewDrafter = Annotated[str | None, typer.Option(help="One nobody measured: params=0.5e9.")]
Where = Annotated[
    str | None, typer.Option(help="Where it runs, if the fit knows several environments.")
]
Extrapolate = Annotated[
    bool,
    typer.Option(
        help="Allow answers far outside what was measured; where commands choose between draft "
        "lengths, also ones never run."
    ),
]
Acceptance = Annotated[
    float | None, typer.Option(help="Per-token acceptance; by default the measured one.")
]
Deployment = Annotated[
    str | None,
    typer.Option(
        "--structure",
        help="A deployment to assume, terms as numbers or 90% intervals: edge, overlapped, "
        "asynchronous or disaggregated, as in edge:round_trip_s=0.02..0.05,slowdown=4.",
    ),
]


def numbers(text: str, option: str) -> list[float]:
    """``1:16:16`` or ``1,2,4`` as numbers."""
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            return [float(v) for v in np.linspace(float(start), float(stop), int(count))]
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text!r}: write START:STOP:COUNT or numbers with commas."
        ) from None


def arms(text: str) -> list[int]:
    """``0,3,5`` as draft lengths."""
    try:
        return [int(v) for v in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"-k {text!r}: write whole numbers with commas.") from None


def load_of(rps: str | None, concurrency: str | None, prompt: float, output: float) -> Any:
    """The load grid of a command."""
    from bayes_sd.predict.load import grid

    if (rps is None) == (concurrency is None):
        raise typer.BadParameter("give exactly one of --rps and --concurrency.")
    if rps is not None:
        return grid(rps=numbers(rps, "--rps"), prompt=prompt, output=output)
    assert concurrency is not None
    return grid(concurrency=numbers(concurrency, "--concurrency"), prompt=prompt, output=output)


@dataclass(frozen=True)
class Asked:
    """The system that a command asks about: its options, by name."""

    verifier: Verifier = None
    drafter: Drafter = None
    acceptance: Acceptance = None
    new_verifier: NewVerifier = None
    new_drafter: NewDrafter = None
    environment: Where = None
    structure: Deployment = None
    extrapolate: Extrapolate = False

    def of(self, fit: "Fit", needs_drafter: bool) -> "System":
        """The system; the only one of the fit if none is named."""
        from bayes_sd.predict.system import System, default_system

        if (self.verifier and self.new_verifier) or (self.drafter and self.new_drafter):
            raise typer.BadParameter("name a measured model or give a new one's size, not both.")
        first = self.verifier or size_of(self.new_verifier, "--new-verifier")
        where = structure_of(self.structure)
        second = self.drafter or size_of(self.new_drafter, "--new-drafter")
        if first is None:
            own = default_system(fit, needs_drafter and second is None)
            first, second = own.verifier, second or own.drafter
        return System(first, second, self.acceptance, self.environment, self.extrapolate, where)


NONE_NAMED = Asked()


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Asked` in place of its argument `asked`."""
    hints = get_type_hints(Asked, include_extras=True)
    options = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
        )
        for f in fields(Asked)
    ]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        asked = Asked(**{option.name: given.pop(option.name) for option in options})
        command(asked=asked, **given)

    shown: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        shown += options if one.name == "asked" else own
    # What typer reads.
    wrapped.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in shown}
    return wrapped


def structure_of(text: str | None) -> "Structure | None":
    """A deployment from ``name:term=number,term=low..high``; None from None."""
    from bayes_sd.predict.structures import NAMES

    if text is None:
        return None
    kind, _, rest = text.partition(":")
    if kind.strip() not in NAMES:
        raise typer.BadParameter(f"--structure {text!r}: known are {', '.join(NAMES)}.")
    structure = NAMES[kind.strip()]
    known = [f.name for f in fields(structure)]
    terms: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        name, _, value = part.partition("=")
        try:
            ends = tuple(float(v) for v in value.split(".."))
        except ValueError:
            ends = ()
        if name.strip() not in known or len(ends) not in (1, 2):
            raise typer.BadParameter(
                f"--structure {part!r}: write TERM=NUMBER or TERM=LOW..HIGH with terms "
                f"{', '.join(known)}."
            )
        terms[name.strip()] = ends[0] if len(ends) == 1 else ends
    try:
        return structure(**terms)
    except TypeError:
        raise typer.BadParameter(f"--structure {text!r}: {known[0]}=... is needed.") from None


def size_of(text: str | None, option: str) -> "Size | None":
    """A model nobody measured from ``name=number`` pairs; None from None."""
    from bayes_sd.predict.size import Size

    if text is None:
        return None
    known = {f.name: int if f.name.startswith("experts") else float for f in fields(Size)}
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            values[name.strip()] = known[name.strip()](value)
        except (KeyError, ValueError):
            raise typer.BadParameter(
                f"{option} {part!r}: write NAME=NUMBER with names {', '.join(known)}."
            ) from None
    if "params" not in values:
        raise typer.BadParameter(f"{option} {text!r}: params=... is needed.")
    return Size(**values)
