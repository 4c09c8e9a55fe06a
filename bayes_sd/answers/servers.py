"""Which server a question is about: measured ones by name, new ones by size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bayes_sd.errors import EvidenceError, InputError, require, shares
from bayes_sd.model import design
from bayes_sd.model.acceptance import generator, same_key
from bayes_sd.model.design import NONE, WEIGHT_BITS
from bayes_sd.model.posterior import Posterior
from bayes_sd.physics.acceptance import DRAFT_TOKENS_MAX
from bayes_sd.physics.structures import Placed, Structure
from bayes_sd.runs.checkpoint import is_head
from bayes_sd.runs.machine import Machine, captured
from bayes_sd.runs.sizes import Size


@dataclass(frozen=True)
class Server:
    """A verifier, and for speculative decoding a drafter and its draft length.

    Parameters
    ----------
    verifier : str or Size
        A measured verifier or a public model by name, or an unmeasured one by size.
    drafter : str or Size, optional
        Likewise, or as "eagle3", "mtp" or "ngram". Without one the server is plain.
    k : int
        Draft tokens per cycle; 0 with a drafter is a server that could draft and does not.
    acceptance : float or sequence of float, optional
        Acceptance rate per token, or one for each position, in [0, 1]. By default what was
        measured on this pair, with its uncertainty; a pair nobody measured needs it.
    environment : str or Machine, optional
        Where it runs: a measured environment, which may be left out when the verifier has run in
        one only; or a machine by its data sheet, whose answers are labelled "data sheet".
    structure : Structure, optional
        What to assume of where drafting, verifying and prefill run, of ``bayes_sd.structures``;
        by default all on one server, as measured. Answers are labelled "assumed structure".
    workload : str, optional
        Which of the data sets that its runs name, whose acceptance it then has.

    Raises
    ------
    InputError
        If an argument is out of range.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> print(bsd.Server("llama-8b", bsd.Size(0.5e9), k=3, acceptance=0.7))
    llama-8b + new 5e+08 (5e+08 active) @ 0.7, k = 3
    """

    verifier: str | Size
    drafter: str | Size | None = None
    k: int = 0
    acceptance: float | Sequence[float] | None = None
    environment: str | Machine | None = None
    structure: Structure | None = None
    workload: str | None = None

    def __post_init__(self) -> None:
        either = "the name of a measured one, or the size of a new one"
        require("verifier", self.verifier, isinstance(self.verifier, str | Size), either)
        require("drafter", self.drafter, isinstance(self.drafter, str | Size | None), either)
        object.__setattr__(self, "k", draft_lengths(self.k)[0])
        if self.k > 0 and self.drafter is None:
            raise InputError(f"k = {self.k} needs a drafter: give <<drafter>>.")
        assumed = isinstance(self.structure, Structure | None)
        require("structure", self.structure, assumed, "one of bsd.structures")
        if self.acceptance is not None:
            each = "a number in [0, 1], or one for each position"
            rates = shares("acceptance", self.acceptance, each).tolist()
            rates = tuple(rates) if isinstance(rates, list) else rates
            object.__setattr__(self, "acceptance", rates)

    def __str__(self) -> str:
        words = name_of(self.verifier)
        if self.drafter is None:
            words += ", plain"
        else:
            rates = () if self.acceptance is None else np.atleast_1d(self.acceptance)
            at = " @ " * bool(len(rates)) + ", ".join(f"{rate:g}" for rate in rates)
            words += f" + {name_of(self.drafter)}{at}, k = {self.k}"
        where = (self.environment, self.structure, self.workload)
        return ", ".join([words, *(str(x) for x in where if x)])

    def with_k(self, k: int) -> "Server":
        """The same server with another draft length, its drafter loaded."""
        return replace(self, k=k)


def name_of(model: str | Size | None) -> str:
    """A model's name, or what a new one is called."""
    return NONE if model is None else model if isinstance(model, str) else model.label


def shared_name(servers: Sequence[Server]) -> tuple[str, dict[str, str]]:
    """What servers have in common, and what tells each apart by its name: "k = 3", "plain"."""
    where = {replace(s, k=0, drafter=None, acceptance=None) for s in servers}
    drafters = {replace(s, k=0) for s in servers if s.drafter is not None}
    if len(where) > 1:
        return f"{len(servers)} servers", {str(s): str(s) for s in servers}
    shared = str(next(iter(where))).replace(", plain", "")
    start = f"{name_of(servers[0].verifier)} + "
    place = shared.removeprefix(name_of(servers[0].verifier))
    short = {str(s): str(s).removeprefix(start).removesuffix(place) for s in servers}
    if len(drafters) == 1:
        shared = str(next(iter(drafters))).replace(", k = 0", "")
        short = {str(s): f"k = {s.k}" for s in servers}
    return shared, short | {str(s): "plain" for s in servers if s.drafter is None}


def draft_lengths(k: int | Sequence[int]) -> list[int]:
    """Draft lengths asked for, checked, each once."""
    values = np.atleast_1d(np.asarray(k))
    number = values.size > 0 and values.dtype.kind in "iuf"
    fits = number and bool(np.isin(values, np.arange(DRAFT_TOKENS_MAX + 1)).all())
    allowed = f"one or more whole numbers of at least 0, at most {DRAFT_TOKENS_MAX}"
    require("k", k, fits, allowed)
    return list(dict.fromkeys(int(v) for v in values.ravel()))


def listed(servers: Server | Sequence[Server], fewest: int = 1) -> list[Server]:
    """The servers of a question, each once."""
    each = [servers] if isinstance(servers, Server) else list(servers)
    for server in each:
        require("servers", server, isinstance(server, Server), "bsd.Server(...), or a list of them")
    each = list(dict.fromkeys(each))
    if len(each) < fewest:
        raise InputError(f"servers: at least {fewest} different ones are needed, got {len(each)}.")
    return each


@dataclass(frozen=True, eq=False)
class Resolved:
    """A server ready to compute with.

    `coefficients` are (draws, 1) arrays, `sizes` numbers, `acceptance` a rate for each position;
    `measured` says that this very server ran, and `positions` at how many positions its pair's
    acceptance was counted (None where acceptance is given); `place` puts stage costs where an
    assumed structure has them, None where it changes nothing.
    """

    server: Server
    coefficients: Mapping[str, Any]
    sizes: Mapping[str, float]
    acceptance: list[Any]
    environment: str
    measured: np.ndarray
    positions: int | None
    place: Callable[..., Placed] | None


def of_verifier(table: pd.DataFrame, verifier: str | Size) -> pd.DataFrame:
    """Rows of a measured verifier; all rows for a new one."""
    return table[table["verifier"] == verifier] if isinstance(verifier, str) else table


def _ran(fit: Posterior, server: Server, column: str) -> list[str]:
    """What a column says of the servers of this verifier."""
    own = fit.server_columns["verifier"] == server.verifier
    return sorted({str(x) for x in fit.server_columns[column][own]})


def environment_of(fit: Posterior, server: Server) -> str | Machine:
    """Where a server runs."""
    asked, known = server.environment, fit.environments
    if isinstance(asked, Machine) or asked in known:
        return asked
    if asked is not None:
        raise InputError(f"The fit has no environment {asked!r}; it knows {'; '.join(known)}.")
    own = _ran(fit, server, "environment") or known
    if len(own) > 1:
        raise InputError(
            f"{name_of(server.verifier)} could run in {len(own)} environments; choose one with "
            f"<<environment>>: {'; '.join(own)}."
        )
    return own[0]


def workload_of(fit: Posterior, server: Server) -> str:
    """What requests a server is asked for; "" where its runs name none."""
    known = _ran(fit, server, "workload") if server.workload is None else [server.workload]
    if len(known) > 1:
        several = f"{server.verifier} ran with workloads {', '.join(known)}"
        raise InputError(f"{several}; choose one with <<workload>>.")
    return known[0] if known else ""


def find_pair(fit: Posterior, server: Server) -> dict[str, Any] | None:
    """The measured pair of a server; None if it is new or nothing is drafted."""
    v, d, given = server.verifier, server.drafter, server.acceptance
    if server.k == 0 or not isinstance(v, str) or not isinstance(d, str):
        return None
    pair: dict[str, Any] = {"verifier": v, "drafter": d, "workload": workload_of(fit, server)}
    ran = fit.server_columns
    rates = ran["acceptance_imposed"][same_key(ran, [*pair], pair) & (ran["draft_tokens"] > 0)]
    if np.isnan(rates).any():
        return pair | {"acceptance_imposed": np.nan}
    imposed = sorted({rate for rate in rates.tolist() if given in (None, rate)})
    if len(imposed) > 1:
        several = ", ".join(f"{a:g}" for a in imposed)
        measured = f"{v} + {d} was measured at acceptance {several}"
        raise InputError(f"{measured}; choose one with <<acceptance>>.")
    return pair | {"acceptance_imposed": imposed[0]} if imposed else None


def machine_facts(
    fit: Posterior, environment: str | Machine, verifier: str | Size, k: int
) -> dict[str, Any]:
    """What the law knows of an environment's machine, for passes that draft `k` tokens."""
    ran, bits = fit.server_columns, np.nan
    there, named = ran["environment"] == str(environment), ran["verifier"] == verifier
    own = there & (named | isinstance(verifier, Size))
    if isinstance(verifier, Size):
        bits = verifier.weight_bits or np.nan
    elif named.any():  # as it ran here, or else elsewhere
        bits = ran["weight_bits"][own if own.any() else named][0]
    if isinstance(environment, Machine):
        if np.isnan(ran["gb_per_s"]).all():
            raise EvidenceError(
                f"{environment} cannot be answered by its data sheet: that of the fitted machine "
                "is unknown; fit its runs with <<machine>>, or with gb_per_s and tflops."
            )
        tflops = environment.tflops_at(WEIGHT_BITS if np.isnan(bits) else bits)
        if tflops is None:
            raise EvidenceError(
                f"The arithmetic of {environment} is unknown; give its tflops as well, as in "
                "gb_per_s=1000,tflops=200."
            )
        return design.machine(environment.gb_per_s, tflops, environment.dies, captured(k), bits)
    same, captured_tokens = own & (ran["draft_tokens"] == k), ran["captured_tokens"]
    most = np.fmax.reduce(captured_tokens[same if same.any() else own], initial=np.nan)
    if not same.any() and 0 < most < np.inf:
        most = captured(k, int(most))
    alike = there & same_key(ran, ["weight_bits"], {"weight_bits": bits})
    like = next(rows for rows in (own, alike, there) if rows.any())  # arithmetic goes with the bits
    facts = {name: ran[name][like][0] for name in design.MACHINE}
    return design.machine(**facts | {"captured_tokens": most, "weight_bits": bits})


def _row_of(known: pd.DataFrame, level: str, model: str | Size | None) -> int | None:
    """Position of a measured model in its table; None for a new one."""
    if isinstance(model, str) and model not in known.index:
        said = f"The fit has no {level} {model!r}; it knows {', '.join(known.index) or 'none'}"
        raise InputError(f"{said}. For one nobody measured give its size (<<new_{level}>>).")
    return known.index.tolist().index(model) if isinstance(model, str) else None


def resolve(
    fit: Posterior, server: Server, seed: int = 0, started_anew: str | None = None, site: str = ""
) -> Resolved:
    """Coefficients, sizes and acceptance of a server.

    By default the one that was measured, if any; with `started_anew` another of that name, whose
    own effect is drawn, the same for every draft length. A machine by its data sheet has the
    factors of `site`, by default of the only fitted one of that machine. InputError where a name
    is unknown or a choice is open, EvidenceError where no acceptance is known.
    """
    v, d = server.verifier, server.drafter
    table = fit.server_columns
    ran = (table["verifier"] == name_of(v)) & (table["drafter"] == name_of(d))
    if isinstance(d, str) and (d not in fit.drafters.index or (is_head(d) and not ran.any())):
        own = f"{d} of {name_of(v)}"  # a head is of one verifier, see runs.schema
        d = own if own in fit.drafters.index else Size.public(d, name_of(v)) or d
    if isinstance(v, str) and v not in fit.verifiers.index:
        v = Size.public(v) or v
    server = replace(server, verifier=v, drafter=d)
    verifier_i = _row_of(fit.verifiers, "verifier", v)
    drafter_i = _row_of(fit.drafters, "drafter", d)
    facts: Any = v.features() if isinstance(v, Size) else fit.verifiers.loc[v].to_dict()
    if isinstance(d, str):
        facts |= fit.drafters.loc[d].rename({"drafter_params": "drafter"})
    else:
        facts |= design.UNDRAFTED if d is None else d.drafter_features()
    environment, pair = environment_of(fit, server), find_pair(fit, server)
    facts |= machine_facts(fit, environment, v, server.k)
    sizes = {str(name): float(value) for name, value in facts.items()}
    if isinstance(environment, Machine):
        verifier_gb = (sizes["shared"] + sizes["expert"]) * sizes["bytes"]
        environment.fits(verifier_gb + sizes["drafter"] * sizes["drafter_bytes"])
        where = site or fit.site_of_machine(environment.name)
    else:
        where = fit.site_of(environment)
    key = {
        "verifier": name_of(v),
        "drafter": name_of(d),
        "acceptance_imposed": pair["acceptance_imposed"] if pair else np.nan,
        "workload": workload_of(fit, server),
        "draft_tokens": server.k,
        "environment": str(environment),
    }
    measurable = pair or (server.k == 0 and not isinstance(v, Size) and not isinstance(d, Size))
    known = same_key(table, design.SERVER, key) & bool(measurable)
    index = int(np.flatnonzero(known)[0]) if known.any() and started_anew is None else None
    label = f"{started_anew} of {name_of(v)}"
    if started_anew is None:
        label = design.server_label(key | {"acceptance_imposed": np.nan}, len(fit.environments) > 1)
    site_i = fit.sites.index(where) if where in fit.sites else None
    slowness, *rest = fit.factors("server", index, label, seed)
    slowness = slowness * fit.elsewhere_factor(name_of(v), str(environment), seed)
    terms = design.coefficients(
        fit.law_terms,
        verifier=fit.factors("verifier", verifier_i, name_of(v), seed, sizes["moe"]),
        drafter=[1.0] if d is None else fit.factors("drafter", drafter_i, name_of(d), seed),
        server=[slowness, *rest],
        environment=fit.factors("environment", site_i, where, seed),
    )
    place = None
    if server.structure is not None and (d is not None or server.structure.changes_plain):
        place = server.structure.drawn(fit.draws, lambda name: generator(seed, name))
    rates, positions = _acceptance(fit, server, pair, seed)
    return Resolved(server, terms, sizes, rates, str(environment), known, positions, place)


def _acceptance(
    fit: Posterior, server: Server, pair: dict[str, Any] | None, seed: int
) -> tuple[list[Any], int | None]:
    """Acceptance by position, given or measured, and how many positions were counted."""
    k, given = server.k, server.acceptance
    if k == 0:
        return [], None
    # A single rate may only say which measured pair is meant; that pair's counts then tell it.
    chooses = pair is not None and given == pair["acceptance_imposed"]
    if given is not None and not chooses:
        rates = [given] * k if isinstance(given, float) else [*given[:k]]
        if len(rates) < k:
            raise InputError(f"k = {k} needs {k} acceptance rates, {len(rates)} given.")
        return rates, None
    known = None if pair is None else fit.acceptance(pair, k, seed)
    if known is None:
        raise EvidenceError(
            f"No acceptance was measured for {name_of(server.verifier)} + "
            f"{name_of(server.drafter)}; give one with <<acceptance>>, as 0.7."
        )
    return known[0], known[1] or None
