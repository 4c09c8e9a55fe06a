"""What a set of runs can answer and what it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sd.runs.config import finite_or_none

SERVER = ["environment", "verifier", "drafter", "draft_tokens"]
LEVELS = ("error", "warning", "note")
FLAGS = {  # what flagged runs have in common
    "saturated": "are past saturation or ended before a steady state",
    "overloaded": "were offered more than was served",
    "failed>5%": "lost over 5% of their requests",
    "cut-off>10%": "were cut off before over 10% of their requests were answered",
    "no-spread": "give the mean latency alone",
    "no-tpot": "have no time per output token",
    "few-requests": "have under ten requests",
    "no-counts": "have no acceptance counts",
    "no-acceptance": "have neither acceptance counts nor a known acceptance",
    "acceptance-from-length": "give an acceptance length without counts",
    "acceptance-from-itl": "show their acceptance only as time between chunks over time per token",
    "e2e-from-ttft-and-tpot": "give no end-to-end latency",
    "cap-reached": "offered a rate that their cap on requests in flight cut",
    "concurrency-cap": "offered a rate but also limited the requests in flight",
    "rate-from-achieved": "do not say which rate was offered",
}
NOTES = (
    *("no-spread", "acceptance-from-length", "acceptance-from-itl", "e2e-from-ttft-and-tpot"),
    *("cap-reached", "concurrency-cap", "rate-from-achieved"),
)
LEVEL = {"no-acceptance": "error", **dict.fromkeys(NOTES, "note")}
CONSEQUENCES = {
    "aside": "set aside: it is not in the table",
    "nothing": "there is nothing to fit",
    "saturated": "they bound the capacity but are not fitted as steady states",
    "overloaded": "their queue grew to the end: they bound the capacity and have no steady latency",
    "failed>5%": "only successful requests are measured, which may be the lucky ones",
    "cut-off>10%": "long requests are cut off more often than short ones: the mean is too low",
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
    "no-acceptance": "not fitted; give acceptance (0 to 1), or counts (drafts and accepted_tokens)",
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
            shown = self.summary
            if shown.environment.nunique() == 1:
                parts.append(f"Environment: {shown.environment.iloc[0]}")
                shown = shown.drop(columns="environment")
            parts.append(shown.to_string(index=False, na_rep="-", float_format="{:.3g}".format))
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


def check(runs: pd.DataFrame, set_aside: pd.DataFrame) -> Check:
    """Check a run table and the list of what was set aside."""
    steady = runs[~runs.saturated]
    blocking = [*_nothing(runs, steady), *_unknown_sizes(runs)]
    aside: list[Finding] = [
        ("warning", place(source, row), reason, "aside")
        for source, row, reason in set_aside.itertuples(index=False)
    ]
    rest = [*_flagged(runs), *_servers(steady), *_environments(runs, steady)]
    columns = ["level", "where", "finding", "consequence"]
    findings = pd.DataFrame([*aside, *blocking, *rest], columns=columns, dtype="str")
    findings["consequence"] = findings.consequence.map(CONSEQUENCES)
    order = findings.level.map({level: i for i, level in enumerate(LEVELS)})
    findings = findings.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    return Check(not blocking, _summary(runs), findings)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a server."""
    steady, rps = ~runs.saturated, runs.rate_rps.fillna(runs.achieved_rps)
    table = runs.assign(steady=steady, rps=rps, accepted=_accepted_share(runs), load=_load(runs))
    bounds = {"rps": "rps", "prompt": "prompt_tokens", "output": "output_tokens"}
    summary = table.groupby(SERVER).agg(
        runs=("run_id", "size"),
        steady=("steady", "sum"),
        requests=("requests", "sum"),
        load_levels=("load", "nunique"),
        **{f"{end}_{n}": (column, end) for n, column in bounds.items() for end in ("min", "max")},
        acceptance=("accepted", "mean"),
        min_imposed=("acceptance_imposed", "min"),
        max_imposed=("acceptance_imposed", "max"),
    )
    return summary.reset_index()


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


def _nothing(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[Finding]:
    if steady.tokens_per_cycle.isna().all():
        why = "no steady run has a known acceptance" if len(steady) else "no run is steady"
        problem = why if len(runs) else "there are no runs"
        yield "error", "all runs", problem, "nothing"


def _unknown_sizes(runs: pd.DataFrame) -> Iterator[Finding]:
    """Drafters that a fit refuses; it takes a size that one of their runs has for all."""
    fitted = runs[runs.tokens_per_cycle.notna() & (~runs.saturated | (runs.loop == "open"))]
    for drafter, group in fitted[fitted.drafter != "none"].groupby("drafter"):
        if group.drafter_params.isna().all():
            finding = f"its size is unknown in {len(group)} runs: {_files(group)}"
            yield "error", f"drafter {drafter}", finding, "size"


def _flagged(runs: pd.DataFrame) -> Iterator[Finding]:
    total = runs.groupby(SERVER).size().to_dict()
    raised = {flag for names in runs["flags"] for flag in names.split(",")}
    for flag, finding in ((flag, text) for flag, text in FLAGS.items() if flag in raised):
        for server, hit in runs[runs["flags"].str.contains(flag, regex=False)].groupby(SERVER):
            text = f"{len(hit)} of {total[server]} runs {finding}: {_files(hit)}"
            yield LEVEL.get(flag, "warning"), _label(server), text, flag


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
