"""What a set of runs can answer and what it cannot."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sd.runs.checkpoint import is_head
from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.drafting import USUAL

SERVER = ["environment", "verifier", "drafter", "draft_tokens"]
LEVELS = ("error", "warning", "note")
RANGES = {"rps": "rps", "prompt_tokens": "prompt", "output_tokens": "output"}  # as they are shown
RANGES |= {"acceptance_imposed": "imposed"}
SHOWN = ("verifier", "drafter", "k", "steady", "rps")  # in all tables
FINDINGS = tomllib.loads(Path(__file__).with_name("findings.toml").read_text(encoding="utf-8"))
FLAGS, NOTES = FINDINGS["warning"], FINDINGS["note"]
CONSEQUENCES = FINDINGS["so"] | {flag: x["so"] for flag, x in (FLAGS | NOTES).items()}
KINDS = ", ".join(f"{kind} {a / (a + b):.2g}" for kind, (_, a, b) in USUAL.items())
Finding = tuple[str, Any, str, str]  # level, where, finding, key of its consequence


@dataclass(frozen=True, eq=False)
class Check:
    """What is there, and what is wrong or missing for which question.

    Parameters
    ----------
    passed : bool
        False when there is no steady run to fit, or fit would refuse them.
    summary : pandas.DataFrame
        One row an environment, verifier, drafter and number of draft tokens; rates in 1/s,
        lengths in tokens; acceptance is accepted over drafted tokens, imposed is per token.
    findings : pandas.DataFrame
        Columns level (error, warning, note), where, finding, consequence.
    """

    passed: bool
    summary: pd.DataFrame
    findings: pd.DataFrame

    @property
    def parts(self) -> list[Any]:
        """What it says: texts, and a titled table an environment."""
        refused = "These runs cannot be fitted; see the errors below."
        told = (
            f"{f.level:<8} {f.where}: {f.finding}\n{'':8} -> {f.consequence}"
            for f in self.findings.itertuples()
        )
        tables = [_narrow(own) for _, own in self.summary.groupby("environment", sort=False)]
        said = "There are steady runs to fit." if self.passed else refused
        return [said, *tables, *["\n".join(told)] * (len(self.findings) > 0)]

    def __str__(self) -> str:
        texts = (
            part if isinstance(part, str) else f"{part[0]}\n\n{part[1].to_string(index=False)}"
            for part in self.parts
        )
        return "\n\n".join(texts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; missing ones are None."""
        summary, findings = (x.to_dict("records") for x in (self.summary, self.findings))
        return finite_or_none({"passed": self.passed, "summary": summary, "findings": findings})


def fitted_as(runs: pd.DataFrame) -> pd.Series:
    """What a fit takes each run for: steady, bound (of the latency, from below) or none."""
    # An open loop that did not settle was cut before its latency had grown to what it would be.
    bound = pd.Series("none", runs.index).mask(runs["loop"] == "open", "bound")
    return bound.where(runs["saturated"], "steady")


def check(runs: pd.DataFrame, set_aside: pd.DataFrame) -> Check:
    """Check a run table and the list of what was set aside."""
    steady = runs[fitted_as(runs) == "steady"]
    nothing = "no run is steady" if len(runs) else "there are no runs"
    blocking: list[Finding] = [("error", "all runs", nothing, "nothing")] * steady.empty
    blocking += _unknown_sizes(runs)
    aside: list[Finding] = [
        ("warning", place(source, row), reason, "aside")
        for source, row, reason in set_aside.itertuples(index=False)
    ]
    rest = [*_flagged(runs), *_servers(steady), *_environments(runs, steady)]
    found = sorted([*aside, *blocking, *rest], key=lambda finding: LEVELS.index(finding[0]))
    told = [(*finding[:3], CONSEQUENCES[finding[3]].format(kinds=KINDS)) for finding in found]
    findings = pd.DataFrame(told, columns=["level", "where", "finding", "consequence"], dtype="str")
    return Check(not blocking, _summary(runs), findings)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    use, rps = fitted_as(runs), runs.rate_rps.fillna(runs.achieved_rps)
    table = runs.assign(steady=use == "steady", bounds=use == "bound", rps=rps, load=_load(runs))
    table["accepted"] = _accepted_share(runs)
    summary = table.groupby(SERVER).agg(
        runs=("run_id", "size"),
        steady=("steady", "sum"),
        bounds=("bounds", "sum"),
        requests=("requests", "sum"),
        load_levels=("load", "nunique"),
        **{f"{end}_{name}": (name, end) for name in RANGES for end in ("min", "max")},
        acceptance=("accepted", "mean"),
        acceptance_from=("acceptance_from", lambda x: ", ".join(sorted({*x} - {""}))),
    )
    return summary.reset_index()


def _narrow(summary: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What all rows that say it have alike, as a line; the rest, both ends of a range together."""
    text = summary.drop(columns=["runs", "bounds", "requests", "load_levels"])
    text = text.map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x) or "-")
    text = text.replace("nan", "-")
    text["steady"] += " of " + summary.runs.astype(str)
    for name, short in RANGES.items():
        low, high = (text.pop(f"{end}_{name}") for end in ("min", "max"))
        text[short] = low.where(low == high, low + "-" + high)
    text = text.rename(columns={"draft_tokens": "k", "acceptance_from": "told by"})
    values = {name: {*text[name]} - {"-"} for name in text if name not in SHOWN}
    alike = {name: "".join(each) for name, each in values.items() if len(each) < 2}
    said = ", ".join(f"{name} {value}" for name, value in alike.items() if value)
    return f"In all rows: {said}", text.drop(columns=list(alike))


def _load(runs: pd.DataFrame) -> pd.Series:
    """Loop, rate and concurrency as one value."""
    rate, concurrency = (runs[n].fillna(0).astype(str) for n in ("rate_rps", "concurrency"))
    return runs.loop + rate + "/" + concurrency


def _accepted_share(runs: pd.DataFrame) -> pd.Series:
    """Accepted per drafted token; NaN where it was not counted."""
    drafted = runs.drafted_tokens.fillna(runs.drafts * runs.draft_tokens)
    return runs.accepted_tokens / drafted.where(drafted > 0)


def _label(server: Any) -> str:
    _, verifier, drafter, k = server
    return f"{verifier} plain" if drafter == "none" else f"{verifier} with {drafter}, k={k}"


def place(source: str, row: int) -> str:
    """A file, or a row of it."""
    return source if row < 0 else f"{source} row {row}"


def _files(group: pd.DataFrame, most: int = 3) -> str:
    sources = group.source.str.rsplit("/", n=1).str[-1]
    names = [place(name, row) for name, row in zip(sources, group.row, strict=True)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _unknown_sizes(runs: pd.DataFrame) -> Iterator[Finding]:
    """Drafters that a fit refuses; it takes a size that one of their runs has for all."""
    fitted = runs[fitted_as(runs) != "none"]
    for drafter, group in fitted[fitted.drafter != "none"].groupby("drafter"):
        if group.drafter_params.isna().all():
            finding = f"its size is unknown in {len(group)} runs: {_files(group)}"
            yield "error", f"drafter {drafter}", finding, "size"


def _flagged(runs: pd.DataFrame) -> Iterator[Finding]:
    total, unfitted = runs.groupby(SERVER).size().to_dict(), fitted_as(runs) == "none"
    names = runs["flags"].mask(unfitted, runs["flags"].str.replace("saturated", "unfitted"))
    names = "," + names + "," + runs.acceptance_from + ","
    for level, flags in (("warning", FLAGS), ("note", NOTES)):
        for flag, told in flags.items():
            hits = names.str.contains(f",{flag},", regex=False)
            if not hits.any():
                continue
            for server, hit in runs[hits].groupby(SERVER):
                text = f"{len(hit)} of {total[server]} runs {told['runs']}: {_files(hit)}"
                yield level, _label(server), text, flag


def _servers(steady: pd.DataFrame) -> Iterator[Finding]:
    for server, loads in _load(steady).groupby([steady[name] for name in SERVER]).nunique().items():
        if loads == 1:
            yield "warning", _label(server), "only one load level", "load"
    drafting = steady[steady.draft_tokens > 0]
    share = _accepted_share(drafting).fillna(drafting.acceptance_imposed)
    for (_, verifier, drafter), values in share.groupby([drafting[name] for name in SERVER[:3]]):
        for level in (0, 1):
            if (values == level).all():
                finding = f"acceptance is {level} in every run"
                yield "warning", f"{verifier} with {drafter}", finding, "extreme"


def _environments(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[Finding]:
    for (_, verifier), group in steady.groupby(SERVER[:2]):
        if (group.arm != "plain").all():
            yield "warning", verifier, "no steady plain run", "plain"
    for environment, group in steady.groupby("environment"):
        if group.verifier_params.nunique() == 1:
            yield "note", environment, "only one verifier size", "verifiers"
        depths = group.groupby("verifier").verifier_layers.first()
        if depths.isna().any():
            names = ", ".join(map(str, depths[depths.isna()].index))
            yield "note", environment, f"verifier_layers not given for {names}", "depth"
    heads = runs.drafter_method.map(is_head).astype(bool)
    models = runs[(runs.drafter_params > 0) & ~heads]
    depths = models.groupby("drafter").drafter_layers.first()
    if depths.isna().any():
        names = ", ".join(map(str, depths[depths.isna()].index))
        yield "note", "all runs", f"drafter_layers not given for {names}", "drafter_depth"
    environments = runs.environment.drop_duplicates()
    if len(environments) > 1:
        finding = f"{len(environments)} environments: {'; '.join(map(str, environments))}"
        yield "note", "all runs", finding, "environments"
