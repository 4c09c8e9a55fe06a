"""What a set of runs can answer and what it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

SYSTEM = ["environment", "verifier", "drafter", "draft_tokens"]
FINDING = ("level", "where", "finding", "consequence")
LEVELS = ("error", "warning", "note")
ON_FLAG = {
    "saturated": (
        "are past saturation or ended before a steady state",
        "they bound the capacity but are not fitted as steady states",
    ),
    "failed>5%": (
        "lost over 5% of their requests",
        "the successful ones may be the lucky ones",
    ),
    "no-tpot": (
        "have no time per output token",
        "prefill and decode cost cannot be told apart from these runs",
    ),
    "few-requests": (
        "have under ten requests",
        "their means and above all their tails are uncertain",
    ),
    "no-counts": (
        "have no acceptance counts",
        "acceptance rests on the imposed value or on the prior",
    ),
}


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
    >>> result = read_traces("traces/vllm-cpu").check()
    >>> result.passed
    True
    >>> print(result)
    """

    passed: bool
    summary: pd.DataFrame
    findings: pd.DataFrame

    def __str__(self) -> str:
        head = "There are steady runs to fit." if self.passed else "There is no steady run to fit."
        parts = [head]
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
        """Plain values for JSON; NaN becomes None.

        Examples
        --------
        >>> import json
        >>> text = json.dumps(traces.check().to_dict())
        """
        return {
            "passed": self.passed,
            "summary": [_plain(row) for row in self.summary.to_dict("records")],
            "findings": [_plain(row) for row in self.findings.to_dict("records")],
        }


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    values = {str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}
    return {k: None if pd.isna(v) else v for k, v in values.items()}


def check(runs: pd.DataFrame, set_aside: pd.DataFrame) -> Check:
    """Check a run table and the list of what was set aside."""
    steady = runs[~runs.saturated]
    found = [
        *_set_aside(set_aside),
        *_nothing(runs, steady),
        *_flagged(runs),
        *_systems(steady),
        *_acceptance(steady),
        *_verifiers(runs, steady),
    ]
    findings = pd.DataFrame(found, columns=list(FINDING), dtype="str")
    order = findings.level.map({level: i for i, level in enumerate(LEVELS)})
    findings = findings.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    return Check(bool(len(steady)), _summary(runs), findings)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, group in runs.groupby(SYSTEM, sort=True):
        rates = group.rate_rps.fillna(group.achieved_rps)
        rows.append(
            {
                **dict(zip(SYSTEM, key, strict=True)),
                "runs": len(group),
                "steady": int((~group.saturated).sum()),
                "requests": int(group.requests.sum()),
                "load_levels": _load_levels(group),
                "min_rps": rates.min(),
                "max_rps": rates.max(),
                "min_prompt": group.prompt_tokens.min(),
                "max_prompt": group.prompt_tokens.max(),
                "min_output": group.output_tokens.min(),
                "max_output": group.output_tokens.max(),
                "acceptance": _acceptance_of(group).mean(),
                "min_imposed": group.acceptance_imposed.min(),
                "max_imposed": group.acceptance_imposed.max(),
            }
        )
    columns = [
        *SYSTEM,
        "runs",
        "steady",
        "requests",
        "load_levels",
        "min_rps",
        "max_rps",
        "min_prompt",
        "max_prompt",
        "min_output",
        "max_output",
        "acceptance",
        "min_imposed",
        "max_imposed",
    ]
    return pd.DataFrame(rows, columns=columns)


def _acceptance_of(runs: pd.DataFrame) -> pd.Series:
    """Accepted per drafted token where counted; NaN where it was not."""
    return runs.accepted_tokens / (runs.drafts * runs.draft_tokens).where(runs.drafts > 0)


def _load_levels(runs: pd.DataFrame) -> int:
    return len(runs[["loop", "rate_rps", "concurrency"]].drop_duplicates())


def _label(system: tuple[Any, ...]) -> str:
    _, verifier, drafter, k = system
    return f"{verifier} plain" if drafter == "none" else f"{verifier} with {drafter}, k={k}"


def _named(group: pd.DataFrame, most: int = 3) -> str:
    names = [
        s if row < 0 else f"{s} row {row}"
        for s, row in zip(group.source.str.rsplit("/", n=1).str[-1], group.row, strict=True)
    ]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _set_aside(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    for source, row, reason in zip(rows.source, rows.row, rows.reason, strict=True):
        where = source if row < 0 else f"{source} row {row}"
        yield "warning", where, reason, "set aside: it is not in the table"


def _nothing(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    if len(runs) and not len(steady):
        yield (
            "error",
            "all runs",
            "no run reached a steady state",
            "there is nothing to fit",
        )
    if not len(runs):
        yield "error", "all runs", "there are no runs", "there is nothing to fit"


def _flagged(runs: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    for system, group in runs.groupby(SYSTEM):
        flags = group["flags"].str.split(",")
        for flag, (finding, consequence) in ON_FLAG.items():
            hit = group[[flag in names for names in flags]]
            if len(hit):
                text = f"{len(hit)} of {len(group)} runs {finding}: {_named(hit)}"
                yield "warning", _label(system), text, consequence


def _systems(steady: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    for system, group in steady.groupby(SYSTEM):
        if _load_levels(group) == 1:
            yield (
                "warning",
                _label(system),
                "only one load level",
                "C1 and C2 cannot be told apart from e2e: the size law and the prior decide",
            )


def _acceptance(steady: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    speculative = steady[steady.draft_tokens > 0]
    counted = _acceptance_of(speculative).fillna(speculative.acceptance_imposed)
    for (_, verifier, drafter), values in counted.groupby(
        [speculative[name] for name in SYSTEM[:3]]
    ):
        for level in (0, 1):
            if len(values) and (values == level).all():
                yield (
                    "warning",
                    f"{verifier} with {drafter}",
                    f"acceptance is {level} in every run",
                    "nothing is learned about other acceptances: answers for them extrapolate",
                )


def _verifiers(runs: pd.DataFrame, steady: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    for (_, verifier), group in steady.groupby(["environment", "verifier"]):
        if (group.arm != "plain").all():
            yield (
                "warning",
                str(verifier),
                "no steady plain run",
                "P(SD beats plain) will be refused for it",
            )
    for environment, group in steady.groupby("environment"):
        if group.verifier_params.nunique() == 1:
            yield (
                "note",
                str(environment),
                "only one verifier size",
                "there is no size law: extrapolation to other sizes rests on the prior",
            )
    for environment, group in steady.groupby("environment"):
        depths = group.groupby("verifier").verifier_layers.first()
        if depths.isna().any():
            names = ", ".join(str(v) for v in depths.index[depths.isna()])
            yield (
                "note",
                str(environment),
                f"verifier_layers not given for {names}",
                "the depth usual at its size is assumed; its own effect takes up the rest",
            )
    if runs.environment.nunique() > 1:
        names = "; ".join(map(str, runs.environment.drop_duplicates()))
        yield (
            "note",
            "all runs",
            f"{runs.environment.nunique()} environments: {names}",
            "each has factors of its own on overhead, memory and compute",
        )
