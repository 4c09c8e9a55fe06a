"""What a set of runs can answer and what it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sd.runs.config import finite_or_none

SERVER = ["environment", "verifier", "drafter", "draft_tokens"]
LEVELS = ("error", "warning", "note")
# Flag to level, what the flagged runs have, and what follows.
FLAGS = {
    "saturated": (
        "warning",
        "are past saturation or ended before a steady state",
        "they bound the capacity but are not fitted as steady states",
    ),
    "failed>5%": (
        "warning",
        "lost over 5% of their requests",
        "only successful requests are measured, which may be the lucky ones",
    ),
    "no-tpot": (
        "warning",
        "have no time per output token",
        "prefill and decode cost cannot be told apart from these runs",
    ),
    "few-requests": (
        "warning",
        "have under ten requests",
        "their means and above all their tails are uncertain",
    ),
    "no-counts": (
        "warning",
        "have no acceptance counts",
        "the imposed acceptance is taken for the real one",
    ),
    "concurrency-cap": (
        "note",
        "offered a rate but also limited the requests in flight",
        "a limit that was reached makes latency shorter than the rate alone would",
    ),
    "rate-from-achieved": (
        "note",
        "do not say which rate was offered",
        "the rate of finished requests stands in, which is lower near saturation",
    ),
}
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
        """Plain values for JSON; missing ones are None.

        Returns
        -------
        dict
            passed, summary, findings.
        """
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
            *_unknown_acceptance(runs),
            *_flagged(runs),
            *_load_levels_missing(steady),
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
    table = runs.assign(
        steady=~runs.saturated,
        rps=runs.rate_rps.fillna(runs.achieved_rps),
        accepted_share=_accepted_share(runs),
        load=runs[["loop", "rate_rps", "concurrency"]].apply(tuple, axis=1).astype(str)
        if len(runs)
        else "",
    )
    return (
        table.groupby(SERVER, sort=True)
        .agg(
            runs=("run_id", "size"),
            steady=("steady", "sum"),
            requests=("requests", "sum"),
            load_levels=("load", "nunique"),
            min_rps=("rps", "min"),
            max_rps=("rps", "max"),
            min_prompt=("prompt_tokens", "min"),
            max_prompt=("prompt_tokens", "max"),
            min_output=("output_tokens", "min"),
            max_output=("output_tokens", "max"),
            acceptance=("accepted_share", "mean"),
            min_imposed=("acceptance_imposed", "min"),
            max_imposed=("acceptance_imposed", "max"),
        )
        .reset_index()
    )


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
    if not len(runs):
        yield "error", "all runs", "there are no runs", "there is nothing to fit"
    elif runs.saturated.all():
        yield "error", "all runs", "no run reached a steady state", "there is nothing to fit"
    elif not len(usable):
        problem = "no steady run has a known acceptance"
        yield "error", "all runs", problem, "there is nothing to fit"


def _unknown_acceptance(runs: pd.DataFrame) -> Iterator[Finding]:
    unknown = runs.tokens_per_cycle.isna()
    for server, group in runs.groupby(SERVER):
        hit = group[unknown[group.index]]
        if len(hit):
            yield (
                "error",
                _label(server),
                f"acceptance is unknown in {len(hit)} of {len(group)} runs: {_files(hit)}",
                "they are not fitted; give acceptance (accepted share of a draft token, 0 to 1), "
                "or drafts and accepted_tokens as the server counts them",
            )


def _flagged(runs: pd.DataFrame) -> Iterator[Finding]:
    # Without counts and without an imposed acceptance a run is an error above.
    explained = {"no-counts": runs.tokens_per_cycle.notna()}
    for server, group in runs.groupby(SERVER):
        flags = group["flags"].str.split(",")
        for flag, (level, finding, consequence) in FLAGS.items():
            hit = group[[flag in names for names in flags]]
            if flag in explained:
                hit = hit[explained[flag][hit.index]]
            if len(hit):
                text = f"{len(hit)} of {len(group)} runs {finding}: {_files(hit)}"
                yield level, _label(server), text, consequence


def _load_levels_missing(steady: pd.DataFrame) -> Iterator[Finding]:
    for server, group in steady.groupby(SERVER):
        if len(group[["loop", "rate_rps", "concurrency"]].drop_duplicates()) == 1:
            yield (
                "warning",
                _label(server),
                "only one load level",
                "the cost alone (C1) and the cost of other requests (C2) cannot be told apart "
                "from end-to-end latency: the size law and the prior decide",
            )


def _extreme_acceptance(steady: pd.DataFrame) -> Iterator[Finding]:
    drafting = steady[steady.draft_tokens > 0]
    share = _accepted_share(drafting).fillna(drafting.acceptance_imposed)
    for (_, verifier, drafter), values in share.groupby([drafting[name] for name in SERVER[:3]]):
        for level in (0, 1):
            if (values == level).all():
                yield (
                    "warning",
                    f"{verifier} with {drafter}",
                    f"acceptance is {level} in every run",
                    "nothing is learned about other acceptances: answers for them extrapolate",
                )


def _verifiers(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[Finding]:
    for (_, verifier), group in steady.groupby(["environment", "verifier"]):
        if (group.arm != "plain").all():
            refused = "whether SD beats plain decoding cannot be answered for it"
            yield "warning", str(verifier), "no steady plain run", refused
    for environment, group in steady.groupby("environment"):
        if group.verifier_params.nunique() == 1:
            yield (
                "note",
                str(environment),
                "only one verifier size",
                "there is no size law: extrapolation to other sizes rests on the prior",
            )
        depths = group.groupby("verifier").verifier_layers.first()
        if depths.isna().any():
            yield (
                "note",
                str(environment),
                f"verifier_layers not given for {', '.join(map(str, depths[depths.isna()].index))}",
                "the depth usual at its size is assumed, which can be off by 40%, and keys and "
                "values by a factor of 3; give verifier_layers and verifier_kv_bytes",
            )
    if runs.environment.nunique() > 1:
        names = "; ".join(map(str, runs.environment.drop_duplicates()))
        yield (
            "note",
            "all runs",
            f"{runs.environment.nunique()} environments: {names}",
            "each has factors of its own on overhead, memory and compute",
        )
