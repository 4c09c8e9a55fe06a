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
    "failed>5%": "lost over 5% of their requests",
    "no-tpot": "have no time per output token",
    "few-requests": "have under ten requests",
    "no-counts": "have no acceptance counts",
    "concurrency-cap": "offered a rate but also limited the requests in flight",
    "rate-from-achieved": "do not say which rate was offered",
}
CONSEQUENCES = {
    "saturated": "they bound the capacity but are not fitted as steady states",
    "failed>5%": "only successful requests are measured, which may be the lucky ones",
    "no-tpot": "prefill and decode cost cannot be told apart from these runs",
    "few-requests": "their means and above all their tails are uncertain",
    "no-counts": "the imposed acceptance is taken for the real one",
    "concurrency-cap": "where the limit was reached, latency is less than at that rate without it",
    "rate-from-achieved": "the rate of finished requests stands in; near saturation it is lower",
}
NOTES = ("concurrency-cap", "rate-from-achieved")  # the others are warnings
Finding = tuple[str, str, str, str]


@dataclass(frozen=True, eq=False)
class Check:
    """What is there, and what is wrong or missing for which question.

    Parameters
    ----------
    passed : bool
        False when there is no steady run to fit.
    summary : pandas.DataFrame
        One row an environment, verifier, drafter and number of draft tokens; rates in 1/s,
        lengths in tokens; acceptance is accepted over drafted tokens, imposed is per token.
    findings : pandas.DataFrame
        Columns level (error, warning, note), where, finding, consequence.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> from bayes_sd.runs.read import corpus
    >>> bsd.read(corpus("vllm-cpu")).check().passed
    True
    """

    passed: bool
    summary: pd.DataFrame
    findings: pd.DataFrame

    def __str__(self) -> str:
        parts = [f"There {'are steady runs' if self.passed else 'is no steady run'} to fit."]
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
        tables = {"summary": self.summary, "findings": self.findings}
        records = {name: table.to_dict("records") for name, table in tables.items()}
        return finite_or_none({"passed": self.passed, **records})


def check(runs: pd.DataFrame, set_aside: pd.DataFrame) -> Check:
    """Check a run table and the list of what was set aside."""
    steady = runs[~runs.saturated]
    usable = steady[steady.tokens_per_cycle.notna()]
    findings = pd.DataFrame(
        [
            *_set_aside(set_aside),
            *_nothing(runs, usable),
            *_flagged(runs),
            *_few_loads(steady),
            *_extreme_acceptance(steady),
            *_verifiers(runs, steady),
        ],
        columns=["level", "where", "finding", "consequence"],
        dtype="str",
    )
    order = findings.level.map({level: i for i, level in enumerate(LEVELS)})
    findings = findings.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    return Check(bool(len(usable)), _summary(runs), findings)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a server."""
    steady, rps = ~runs.saturated, runs.rate_rps.fillna(runs.achieved_rps)
    table = runs.assign(steady=steady, rps=rps, accepted=_accepted_share(runs), load=_load(runs))
    bounds = {"rps": "rps", "prompt": "prompt_tokens", "output": "output_tokens"}
    groups = table.groupby(SERVER, sort=True)
    summary = groups.agg(
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
    return runs.accepted_tokens / (runs.drafts * runs.draft_tokens).where(runs.drafts > 0)


def _label(server: tuple[Any, ...]) -> str:
    _, verifier, drafter, k = server
    return f"{verifier} plain" if drafter == "none" else f"{verifier} with {drafter}, k={k}"


def _files(group: pd.DataFrame, most: int = 3) -> str:
    """Names of the first runs of a group."""
    names = [
        name if row < 0 else f"{name} row {row}"
        for name, row in zip(group.source.str.rsplit("/", n=1).str[-1], group.row, strict=True)
    ]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _set_aside(rows: pd.DataFrame) -> Iterator[Finding]:
    for source, row, reason in zip(rows.source, rows.row, rows.reason, strict=True):
        where = source if row < 0 else f"{source} row {row}"
        yield "warning", where, reason, "set aside: it is not in the table"


def _nothing(runs: pd.DataFrame, usable: pd.DataFrame) -> Iterator[Finding]:
    if not len(usable):
        problem = "there are no runs"
        if len(runs):
            acceptance = "no steady run has a known acceptance"
            problem = "no run reached a steady state" if runs.saturated.all() else acceptance
        yield "error", "all runs", problem, "there is nothing to fit"


def _flagged(runs: pd.DataFrame) -> Iterator[Finding]:
    for server, group in runs.groupby(SERVER):
        unknown = group.tokens_per_cycle.isna()
        if unknown.any():
            hit = group[unknown]
            text = f"acceptance is unknown in {len(hit)} of {len(group)} runs: {_files(hit)}"
            consequence = (
                "they are not fitted; give acceptance (accepted share of a draft token, 0 to 1), "
                "or drafts and accepted_tokens as the server counts them"
            )
            yield "error", _label(server), text, consequence
        flags = group["flags"].str.split(",")
        for flag, finding in FLAGS.items():
            hit = group[[flag in names for names in flags]]
            if flag == "no-counts":  # the others are errors, above
                hit = hit[hit.tokens_per_cycle.notna()]
            if len(hit):
                level = "note" if flag in NOTES else "warning"
                text = f"{len(hit)} of {len(group)} runs {finding}: {_files(hit)}"
                yield level, _label(server), text, CONSEQUENCES[flag]


def _few_loads(steady: pd.DataFrame) -> Iterator[Finding]:
    consequence = (
        "the cost alone (C1) and the cost of other requests (C2) cannot be told apart "
        "from end-to-end latency: the size law and the prior decide"
    )
    for server, group in steady.groupby(SERVER):
        if _load(group).nunique() == 1:
            yield "warning", _label(server), "only one load level", consequence


def _extreme_acceptance(steady: pd.DataFrame) -> Iterator[Finding]:
    drafting = steady[steady.draft_tokens > 0]
    share = _accepted_share(drafting).fillna(drafting.acceptance_imposed)
    consequence = "nothing is learned about other acceptances: answers for them extrapolate"
    for (_, verifier, drafter), values in share.groupby([drafting[name] for name in SERVER[:3]]):
        for level in (0, 1):
            if (values == level).all():
                finding = f"acceptance is {level} in every run"
                yield "warning", f"{verifier} with {drafter}", finding, consequence


def _verifiers(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[Finding]:
    for (_, verifier), group in steady.groupby(["environment", "verifier"]):
        if (group.arm != "plain").all():
            refused = "whether SD beats plain decoding cannot be answered for it"
            yield "warning", str(verifier), "no steady plain run", refused
    for environment, group in steady.groupby("environment"):
        if group.verifier_params.nunique() == 1:
            consequence = "there is no size law: extrapolation to other sizes rests on the prior"
            yield "note", str(environment), "only one verifier size", consequence
        depths = group.groupby("verifier").verifier_layers.first()
        if depths.isna().any():
            names = ", ".join(map(str, depths[depths.isna()].index))
            consequence = (
                "the depth usual at its size is assumed, which can be off by 40%, and keys and "
                "values by a factor of 3; give verifier_layers and verifier_kv_bytes"
            )
            yield "note", str(environment), f"verifier_layers not given for {names}", consequence
    environments = runs.environment.drop_duplicates()
    if len(environments) > 1:
        finding = f"{len(environments)} environments: {'; '.join(map(str, environments))}"
        consequence = "each has factors of its own on overhead, memory and compute"
        yield "note", "all runs", finding, consequence
