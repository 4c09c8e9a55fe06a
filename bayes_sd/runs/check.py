"""What a set of runs can answer and what it cannot."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sd.runs.config import finite_or_none
from bayes_sd.runs.drafting import USUAL

SERVER = ["environment", "verifier", "drafter", "draft_tokens"]
LEVELS = ("error", "warning", "note")
WIDTH, SHOWN = 80, ("verifier", "drafter", "k", "steady", "rps")  # of a terminal; in all tables
FLAGS = {  # what flagged runs have in common
    "saturated": "are past saturation or ended before a steady state",
    "unfitted": "have no steady state",
    "overloaded": "were offered more than was served",
    "failed>5%": "lost over 5% of their requests",
    "cut-off": "ended with over 5% of their requests unfinished",
    "no-tpot": "have no time per output token",
    "few-requests": "have under ten requests",
    "no-counts": "have no acceptance counts",
    "prior": "do not tell their acceptance",
    "low-acceptance": "accept far less than was imposed or is usual for their kind of drafter",
    "little": "have other numbers in flight or served than rates and latency give (Little's law)",
    "parts": "have a TTFT and a TPOT that do not add up to the end-to-end latency",
    "spread": "have a standard deviation or a percentile unlike any of such a mean",
}
NOTES = {
    "no-spread": "give the mean latency alone",
    "other runs": "do not tell their acceptance",
    "acceptance-from-length": "give an acceptance length without counts",
    "acceptance-from-itl": "show their acceptance only as time between chunks over time per token",
    "e2e-from-ttft-and-tpot": "give no end-to-end latency",
    "cap-reached": "offered a rate that their cap on requests in flight cut",
    "cap-not-filled": "have fewer requests than their cap on requests in flight",
    "concurrency-cap": "offered a rate but also limited the requests in flight",
    "rate-from-achieved": "do not say which rate was offered",
    "verifier-by-name": "give no size of their verifier, a model known by its name",
    "drafter-by-name": "give no size of their drafter, a model known by its name",
    "respelled": "name their environment or a model, or give its size (by up to 2%), otherwise",
}
KINDS = ", ".join(f"{kind} {a / (a + b):.2g}" for kind, (_, a, b) in USUAL.items())
CONSEQUENCES = {
    "aside": "set aside: it is not in the table",
    "nothing": "there is nothing to fit",
    "saturated": "they bound the capacity but are not fitted as steady states",
    "overloaded": "their queue grew to the end: they bound the capacity and have no steady latency",
    "failed>5%": "only successful requests are measured, which may be the lucky ones",
    "no-spread": "how single requests differ is not learned from them",
    "no-tpot": "prefill and decode cost cannot be told apart from these runs",
    "few-requests": "their means and above all their tails are uncertain",
    "no-counts": "the imposed acceptance is taken for the real one",
    "acceptance-from-length": "positions are taken for equally likely to be accepted",
    "acceptance-from-itl": "a chunk is taken for a cycle; counts of drafts would be exact",
    "e2e-from-ttft-and-tpot": "it is ttft + (tokens - 1) x tpot; how requests differ is unknown",
    "cap-reached": "they count as closed loops at that concurrency",
    "concurrency-cap": "where the limit was reached, latency is less than at that rate without it",
    "rate-from-achieved": "the rate of finished requests stands in; near saturation it is lower",
    "verifier-by-name": "its published one is taken: parameters without embedding and head, depth",
    "drafter-by-name": "its published one is taken: parameters without embedding and head",
    "respelled": "it is taken for the one of the other runs",
    "cap-not-filled": "they count as closed loops of as many requests as they have",
    "cut-off": "the longest may be missing: the mean latency may be too low",
    **dict.fromkeys(("little", "parts", "spread"), "one of these is wrong: check units and counts"),
    "unfitted": "not fitted: needed is a long run at a rate, or with a cap (--max-concurrency)",
    "prior": f"a usual one is assumed, and as wide ({KINDS}); give it (0 to 1), or counts",
    "other runs": "that of the other runs of these models is taken",
    "low-acceptance": "sampling accepts less (a default of vllm bench serve): set --temperature 0",
    "size": "fit refuses all runs; give drafter_params (0 for a drafter without weights)",
    "load": "cost alone (C1) and cost of other requests (C2) cannot be told apart by e2e latency",
    "extreme": "nothing is learned about other acceptances: answers for them extrapolate",
    "plain": "whether SD beats plain decoding cannot be answered for it",
    "verifiers": "there is no size law: extrapolation to other sizes rests on the prior",
    "depth": "a typical depth is assumed: it can be off by 40%, keys and values by a factor of 3",
    "environments": "each has factors of its own on overhead, memory and compute",
}
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

    def __str__(self) -> str:
        refused = "These runs cannot be fitted; see the errors below."
        parts = ["There are steady runs to fit." if self.passed else refused]
        if len(self.summary):
            constant, shown = _narrow(self.summary)
            parts += [constant, shown.to_string(index=False, na_rep="-", line_width=WIDTH)]
        if len(self.findings):
            lines = (
                f"{f.level:<8} {f.where}: {f.finding}\n{'':8} -> {f.consequence}"
                for f in self.findings.itertuples()
            )
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

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
    told = [(*finding[:3], CONSEQUENCES[finding[3]]) for finding in found]
    findings = pd.DataFrame(told, columns=["level", "where", "finding", "consequence"], dtype="str")
    return Check(not blocking, _summary(runs), findings)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    use, rps = fitted_as(runs), runs.rate_rps.fillna(runs.achieved_rps)
    table = runs.assign(steady=use == "steady", bounds=use == "bound", rps=rps, load=_load(runs))
    table["accepted"] = _accepted_share(runs)
    bounds = {"rps": "rps", "prompt": "prompt_tokens", "output": "output_tokens"}
    summary = table.groupby(SERVER).agg(
        runs=("run_id", "size"),
        steady=("steady", "sum"),
        bounds=("bounds", "sum"),
        requests=("requests", "sum"),
        load_levels=("load", "nunique"),
        **{f"{end}_{n}": (column, end) for n, column in bounds.items() for end in ("min", "max")},
        acceptance=("accepted", "mean"),
        min_imposed=("acceptance_imposed", "min"),
        max_imposed=("acceptance_imposed", "max"),
        acceptance_from=("acceptance_from", lambda x: ", ".join(sorted({*x} - {""}))),
    )
    return summary.reset_index()


def _narrow(summary: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What all rows that say it have alike, as a line; the rest, both ends of a range together."""
    text = summary.drop(columns=["runs", "bounds", "requests", "load_levels"])
    text = text.map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x) or "-")
    text = text.replace("nan", "-")
    text["steady"] += " of " + summary.runs.astype(str)
    for name in ("rps", "prompt", "output", "imposed"):
        low, high = (text.pop(f"{end}_{name}") for end in ("min", "max"))
        text[name] = low.where(low == high, low + "-" + high)
    text = text.rename(columns={"draft_tokens": "k", "acceptance_from": "told by"})
    values = {name: {*text[name]} - {"-"} for name in text if name not in SHOWN}
    alike = {name: "".join(each) for name, each in values.items() if len(each) < 2}
    said = ", ".join(f"{name} {value}" for name, value in alike.items() if value)
    return textwrap.fill(f"In all rows: {said}", WIDTH), text.drop(columns=list(alike))


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
    """Names of the first runs of a group."""
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
        for flag, finding in flags.items():
            hits = names.str.contains(f",{flag},", regex=False)
            if not hits.any():
                continue
            for server, hit in runs[hits].groupby(SERVER):
                text = f"{len(hit)} of {total[server]} runs {finding}: {_files(hit)}"
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
    environments = runs.environment.drop_duplicates()
    if len(environments) > 1:
        finding = f"{len(environments)} environments: {'; '.join(map(str, environments))}"
        yield "note", "all runs", finding, "environments"
