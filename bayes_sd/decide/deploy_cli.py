"""``bayes-sd deploy``, and traffic as the commands take it."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayes_sd.cli_options import AsJson, FitFile
from bayes_sd.cli_output import emit, say, show

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sd.traces.traffic import Traffic

TrafficWindow = Annotated[
    float, typer.Option("--window", help="Seconds of a request log that make a window.")
]
Columns = Annotated[
    str | None,
    typer.Option(help="Other headers of the traffic: timestamp=at,prompt_tokens=in."),
]
OwnPrompt = Annotated[
    float | None, typer.Option(help="Prompt tokens of a request; a traffic file has its own.")
]
OwnOutput = Annotated[
    float | None, typer.Option(help="Output tokens of a request; a traffic file has its own.")
]
Percentile = Annotated[float, typer.Option(help="Of single requests' latency.")]
Confidence = Annotated[float, typer.Option(help="Chance that the target is kept.")]


def rate_of(text: str | None) -> float | None:
    """A traffic that is written as a number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def traffic_of(text: str, window_s: float, columns: str | None) -> "Traffic":
    """The traffic of a file."""
    from bayes_sd.traces.traffic import read_traffic

    pairs = [part.partition("=") for part in columns.split(",")] if columns else []
    if any(not ours.strip() or not theirs.strip() for ours, _, theirs in pairs):
        raise typer.BadParameter(f"--columns {columns!r}: write OURS=THEIRS with commas.")
    names = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    found = read_traffic(text, window_s, names)
    say(repr(found))
    return found


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows for JSON, in which what is missing or has no bound is null."""
    return [
        {
            str(name): None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in row.items()
        }
        for row in table.to_dict("records")
    ]


def deploy(
    file: FitFile,
    candidates: Annotated[Path, typer.Argument(help="YAML with named candidates.")],
    traffic: Annotated[str, typer.Option(help="CSV of windows or requests; or requests/s.")],
    slo: Annotated[float, typer.Option(help="Target of the percentile, seconds.")],
    prompt: OwnPrompt = None,
    output: OwnOutput = None,
    window: TrafficWindow = 60.0,
    columns: Columns = None,
    percentile: Percentile = 95.0,
    confidence: Confidence = 0.9,
    replicas: Annotated[
        int | None, typer.Option(help="Compare so many of each, in place of the fewest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare deployments at one traffic: replicas, cost, latency, who wins."""
    from bayes_sd.decide.candidates import read_candidates
    from bayes_sd.decide.deploy import deployments
    from bayes_sd.inference.fit import Fit
    from bayes_sd.traces.traffic import Traffic

    rate = rate_of(traffic)
    if {prompt is None, output is None} != {rate is None}:
        raise typer.BadParameter(
            "give --prompt and --output with a rate, and neither with a file of traffic."
        )
    loaded, (named, prices) = Fit.load(file), read_candidates(candidates)
    if rate is not None and prompt is not None and output is not None:
        asked = Traffic.constant(rate, prompt, output)
    else:
        asked = traffic_of(traffic, window, columns)
    found = deployments(
        loaded,
        named,
        asked,
        slo_s=slo,
        percentile=percentile,
        confidence=confidence,
        replicas=replicas,
        price_per_hour=prices,
    )
    if as_json:
        emit(
            {
                "slo_s": slo,
                "percentile": percentile,
                "confidence": confidence,
                "rows": records(found.table),
                "beats": dict(zip(found.beats, records(found.beats), strict=True)),
                "prob_none": None if math.isnan(found.prob_none) else found.prob_none,
                "sentence": found.sentence,
            }
        )
        return
    counts, costs = found.table, ["per_hour", "price_per_million_tokens", "prob_cheapest"]
    costs = ["name", *costs, "regret_per_hour"]
    show(
        f"P(p{percentile:g} <= {slo:g} s) >= {confidence:g}",
        counts[["name", *(c for c in counts if c not in costs)]],
    )
    if prices:
        show("Cost of the replicas", counts[costs])
    show("P(row is faster than column)", found.beats.reset_index(names=""))
    print(found.sentence)
