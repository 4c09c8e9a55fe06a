"""What an accelerator offers: memory bandwidth and arithmetic, from data sheets or as numbers."""

import difflib
import re
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bayes_sd.errors import LARGEST, EvidenceWarning, InputError, require, shown

GRAPH_TOKENS = 512  # of the largest graph that vLLM captures by default
PRECISIONS = ("bf16", "fp16", "fp8", "int8", "fp4")
UNITS = {4: "fp4", 8: "fp8"}  # what computes with weights of so many bits
PARTS, VARIANT = re.compile("[/,;()|]"), re.compile(r" \d+gb| pcie")  # of a text; of a sheet's name
COUNT = (
    r"(?<![a-z\d])(?:(\d{1,4})\s*[x×*]\s*)?(?:(?:nvidia|tesla|geforce|amd|instinct|intel)[\s_-]+)*"
)
AFTER = re.compile(r"(?<![a-z\d])[x×*]\s*(\d{1,4})(?![a-z\d])")
# Of a GH200 the driver gives the 480 GB of its CPU.
MEMORY = re.compile(r"(?<!\d)(?!480\s*gb)(\d{1,4})\s*gi?b(?![a-z\d])")
OTHER_CARD = re.compile(r"[\s_-](nvl|ti|super|d|server|max[\s_-]?q|laptop|mobile)(?![a-z\d])")


@cache
def sheets() -> dict[str, Mapping[str, Any]]:
    """Data sheets by name; bytes, bytes/s and operations/s of one accelerator."""
    return tomllib.loads(Path(__file__).with_name("machines.toml").read_text(encoding="utf-8"))


@cache
def _cards() -> list[tuple[re.Pattern[str], list[str]]]:
    """How cards are spelled, and the sheets of each, the most usual first."""
    cards: dict[str, list[str]] = {}
    for name in sheets():
        words = VARIANT.sub("", name.casefold()).split()
        cards.setdefault(COUNT + r"[\s_-]*".join(words) + r"(?![a-wyz\d]|x(?!\d))", []).append(name)
    return [(re.compile(spelled), names) for spelled, names in cards.items()]


def _hits(part: str) -> Iterator[tuple[str, int | None]]:
    """Sheet ('' where the card has none) and number of each accelerator in a part of a text."""
    said = [int(gb) * 1e9 for gb in MEMORY.findall(part)]  # with or without what is reserved
    for spelled, names in _cards():
        if hit := spelled.search(part):
            memory = {name: sheets()[name]["memory_bytes"] for name in names}
            fit = [name for name in names if all(abs(x / memory[name] - 1) < 0.1 for x in said)]
            same = [name for name in fit if ("PCIe" in name) == ("pcie" in part)]
            # A card that comes as a module too is slower as a PCIe card.
            same = same or [name for name in fit if "SXM" not in sheets()[name]["source"]]
            rest = part[hit.end() :]
            count = hit[1] or next(iter(AFTER.findall(rest)), None)
            yield "" if OTHER_CARD.search(rest) or not same else same[0], count and int(count)


def named(text: str) -> tuple[str, int | None]:
    """The accelerator that a text names, and how many if it says so; '' if it is none or two."""
    text = re.sub(r"(v\de)-(\d)", r"\1 x \2", text.casefold())  # so many TPUs
    hits = [hit for part in PARTS.split(text) for hit in _hits(part)]
    if len({name for name, _ in hits}) != 1:
        return "", None
    return hits[0][0], next((count for _, count in hits if count), None)


def site(environment: str, machine: str) -> str:
    """An environment without how many accelerators it has: what their runs share is one machine.

    An environment whose machine has no data sheet stays itself: nothing says how many do more.
    """
    if machine not in sheets():
        return environment
    other = [part.strip() for part in environment.split(" / ") if named(part)[0] != machine]
    return " / ".join([machine, *other])


def machine_of(site: str) -> str:
    """The machine of a :func:`site`, which begins with it."""
    return site.partition(" / ")[0]


def near(name: str, cutoff: float = 0.75) -> list[str]:
    """Names of data sheets like this one, the most alike first."""
    all_of = {each.casefold(): each for each in sheets()}
    return [all_of[x] for x in difflib.get_close_matches(name.casefold(), all_of, 4, cutoff)]


def one_named(name: str, gpus: int | None, by_numbers: bool) -> tuple[str, int | None]:
    """Like `named`, of a machine's own name; InputError if it has no data sheet nor numbers."""
    known, count = named(name)
    if not (known or by_numbers):
        like = ", ".join((near(name, 0.5) or list(sheets()))[:4])
        hint = f"known are {like}, ...; of others give gb_per_s and, where known, tflops"
        raise InputError(f"machine {name!r} has no data sheet here; {hint}")
    if count and gpus and count != gpus:
        raise InputError(f"machine {name!r} says {count} accelerators but gpus is {gpus}")
    return known, count


def sheet_of(machine: "Machine | str") -> str:
    """The data sheet's name of a machine, or its own; a warning where that is nearly another's."""
    name = machine.name if isinstance(machine, Machine) else machine
    if not (known := named(name)[0]) and (alike := near(name)):
        what = f"machine {name!r} has no data sheet here (like it are called {', '.join(alike)})"
        text = f"{what}; the reference says of it what it does of any machine."
        warnings.warn(shown(text), EvidenceWarning, stacklevel=3)
    return known or name


def so_many(name: str, gpus: int) -> str:
    """So many of an accelerator, as one text; '' for one of which nothing is known."""
    return f"{gpus}x {name or 'accelerator'}" if gpus > 1 else name


def captured(draft_tokens: int, most: int = GRAPH_TOKENS, sizes: Iterable[int] = ()) -> int:
    """Most tokens of a pass that vLLM captures a graph for; of the usual sizes if none are given.

    It rounds each size up to a multiple of ``draft_tokens + 1`` and drops those beyond `most`.
    """
    sizes = list(sizes) or [1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)]
    rounded = [-(-size // (draft_tokens + 1)) * (draft_tokens + 1) for size in sizes]
    return max((size for size in rounded if size <= most), default=0)


@dataclass(frozen=True, init=False)
class Machine:
    """Accelerators of one kind that serve a model together, from their data sheet or by numbers.

    Parameters
    ----------
    name : str
        As in ``"H100"``, ``"NVIDIA A100-SXM4-40GB"``, ``"RTX 4090"``, ``"GB200"``. Where a name
        fits several cards the most usual is meant: of A100 that of 80 GB, of A100 and H100 the
        SXM module. A CPU, or what has no data sheet here, is given by its numbers.
    gpus : int
        How many there are; `gb_per_s`, `memory_gb` and `dies` (over which tensor parallelism
        splits) as attributes are those of all together.
    gb_per_s, tflops, memory_gb : float, optional
        Of one accelerator, instead of its data sheet: memory bandwidth, dense arithmetic in 16
        bits, memory (1e9 bytes).

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> two = bsd.Machine("NVIDIA H100 80GB HBM3", gpus=2)
    >>> two.name, two.gb_per_s, two.tflops_at(16)
    ('H100', 6700.0, 1978.0)
    >>> bsd.Machine("my card", gb_per_s=1000, tflops=200, memory_gb=48).fits(weights_gb=16)
    """

    name: str
    gpus: int
    gb_per_s: float = field(repr=False)
    memory_gb: float | None = field(repr=False)
    dies: int = field(repr=False)
    rates: tuple[tuple[str, float], ...] = field(repr=False)  # TFLOPS of one, by precision

    def __init__(
        self,
        name: str,
        gpus: int = 1,
        *,
        gb_per_s: float | None = None,
        tflops: float | None = None,
        memory_gb: float | None = None,
    ) -> None:
        whole = isinstance(gpus, Integral) and 1 <= gpus <= 1e6
        require("gpus", gpus, whole, "a whole number from 1 to 1e6")
        own = {"gb_per_s": gb_per_s, "tflops": tflops, "memory_gb": memory_gb}
        for key, x in own.items():
            fine = x is None or (isinstance(x, Real) and 0 < x <= LARGEST)
            require(key, x, fine, "a positive finite number")
        known, _ = one_named(str(name), gpus, gb_per_s is not None)
        sheet = sheets().get(known, {})
        rates = {p: sheet[p] / 1e12 for p in PRECISIONS if p in sheet}
        rates |= {} if tflops is None else {"bf16": tflops}
        memory = memory_gb or sheet.get("memory_bytes", 0) / 1e9
        self.__dict__.update(  # the fields are frozen
            name=known or str(name).strip(),
            gpus=gpus,
            gb_per_s=gpus * (gb_per_s or sheet["bandwidth"] / 1e9),
            memory_gb=gpus * memory or None,
            dies=gpus * sheet.get("dies", 1),
            rates=tuple(rates.items()),
        )

    def __str__(self) -> str:
        return so_many(self.name, self.gpus)

    def tflops_at(self, bits: float | str = 16) -> float | None:
        """Dense arithmetic of all together with weights of so many bits, None where unknown.

        8 bits are computed in fp8 and 4 bits in fp4. Where a card has no units for them, and for
        other numbers of bits, weights are unpacked and computed in 16 bits, as engines do. A
        precision by name (``"int8"``) is refused on a card whose data sheet does not have it.
        """
        rates = dict(self.rates)
        half = rates.get("bf16", rates.get("fp16"))
        if isinstance(bits, str):
            if half and bits not in rates:
                have = f"{self.name} computes in {', '.join(rates)}, not in {bits}"
                raise InputError(f"{have}; if only weights have fewer bits, say how many.")
            one = rates.get(bits)
        else:
            require("bits", bits, 2 <= bits <= 64, "a number from 2 to 64")
            one = None if bits > 16 else rates.get(UNITS.get(int(bits), ""), half)
        return None if one is None else one * self.gpus

    def fits(self, weights_gb: float, kv_gb: float = 0.0) -> None:
        """Refuse weights, with keys and values, that need more than the memory of all together."""
        if self.memory_gb is not None and weights_gb + kv_gb > self.memory_gb:
            kv = f" and {kv_gb:g} GB of keys and values" if kv_gb > 0 else ""
            need = f"{weights_gb:.3g} GB of weights{kv}"
            raise InputError(f"{need} do not fit into the {self.memory_gb:g} GB of {self}.")
