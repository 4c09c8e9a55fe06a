"""The command line: thin verbs. Results go to stdout, progress and errors to stderr.

Exit codes: 0 answered, 1 bad input or failure, 2 wrong usage, 3 not converged or evidence missing.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bayes_sd.cli_options import (
    NONE_NAMED,
    AsJson,
    Asked,
    Concurrency,
    Config,
    Environment,
    FitFile,
    Metrics,
    Output,
    Paths,
    Prompt,
    Rates,
    Seed,
    Window,
    arms,
    asks,
    load_of,
    numbers,
)
from bayes_sd.cli_output import emit, say, show
from bayes_sd.collector.cli import register as register_collect
from bayes_sd.decide.cli import register as register_decide
from bayes_sd.decide.next_cli import register as register_next
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.validate.cli import register as register_validate

if TYPE_CHECKING:
    from bayes_sd.traces import Traces

app = typer.Typer(
    help="Is speculative decoding worth it at my load, on my models, with how many draft tokens?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _answers(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can mend into one sentence and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from None
        except EvidenceError as error:
            say(f"insufficient: {error}")
            raise typer.Exit(3) from None

    return wrapped


def _read(
    paths: list[str],
    config: Path | None,
    environment: str | None,
    metrics: bool,
    window_s: float,
) -> "Traces":
    if metrics:
        from bayes_sd.traces.prometheus import read_metrics

        return read_metrics(paths, window_s=window_s, config=config, environment=environment)
    from bayes_sd.traces import read_traces

    return read_traces(paths, config=config, environment=environment)


@app.command()
@_answers
def check(
    paths: Paths,
    config: Config = None,
    environment: Environment = None,
    metrics: Metrics = False,
    window: Window = 300.0,
    as_json: AsJson = False,
) -> None:
    """Say what result files hold, what was set aside and why, and what is missing."""
    result = _read(paths, config, environment, metrics, window).check()
    if as_json:
        emit(result.to_dict())
    else:
        print(result)
    if not result.passed:
        raise typer.Exit(3)


@app.command()
@_answers
def fit(
    paths: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    config: Config = None,
    environment: Environment = None,
    metrics: Metrics = False,
    window: Window = 300.0,
    seed: Seed = 1,
    draws: Annotated[int, typer.Option(help="Kept draws of each of 4 chains.")] = 1200,
    tune: Annotated[int, typer.Option(help="Discarded draws of each chain.")] = 1000,
    target_accept: Annotated[
        float, typer.Option(help="Nearer to 1 takes smaller steps: against divergences.")
    ] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Fit the latency model to result files and save it; an unconverged fit is not saved."""
    from bayes_sd.inference.stored import writable
    from bayes_sd.model.latency_model import LatencyModel

    writable(output)
    traces = _read(paths, config, environment, metrics, window)
    say(repr(traces))
    result = LatencyModel().fit(
        traces, seed=seed, draws=draws, tune=tune, target_accept=target_accept
    )
    result.save(output)
    if as_json:
        emit({"file": str(output), "fit": result.sampling, "collapse": _finite(result.collapse())})
    else:
        print(result)
        print(f"saved to {output}")


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {k: round(v, 4) if np.isfinite(v) else None for k, v in values.items()}


@app.command()
@_answers
@asks
def predict(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    rps: Rates = None,
    concurrency: Concurrency = None,
    k: Annotated[str, typer.Option("-k", help="Draft tokens, 0 is plain: 0,3,5.")] = "0",
    asked: Asked = NONE_NAMED,
    metric: Annotated[str, typer.Option(help="e2e, ttft or tpot.")] = "e2e",
    as_json: AsJson = False,
) -> None:
    """Predict latency over loads: the mean, request percentiles, P(saturated)."""
    from bayes_sd.inference.fit import Fit

    load, ks = load_of(rps, concurrency, prompt, output), arms(k)
    loaded = Fit.load(file)
    system = asked.of(loaded, any(ks))
    table = loaded.latency(load, ks, system, metric=metric).table()
    if as_json:
        rows = [
            {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in r.items()}
            for r in table.to_dict("records")
        ]
        emit({"metric": metric, "rows": rows})
    else:
        show(f"{metric} latency, seconds", table)


@app.command()
@_answers
@asks
def decide(
    file: FitFile,
    prompt: Prompt,
    output: Output,
    rps: Rates = None,
    k: Annotated[str, typer.Option("-k", help="Draft tokens to compare with plain: 1,3,5.")] = "3",
    asked: Asked = NONE_NAMED,
    of: Annotated[str, typer.Option(help="Compare mean, run or request latencies.")] = "mean",
    as_json: AsJson = False,
) -> None:
    """Say with what probability SD beats plain decoding, and up to which rate."""
    from bayes_sd.inference.fit import Fit
    from bayes_sd.report import decisions

    rates, ks = (None if rps is None else numbers(rps, "--rps")), arms(k)
    loaded = Fit.load(file)
    system = asked.of(loaded, True)
    found = [decisions.decide(loaded, system, one, prompt, output, rates, of) for one in ks]
    if as_json:
        emit({"decisions": found})
    else:
        _print_decisions(found)


def _print_decisions(found: list[dict[str, Any]]) -> None:
    import pandas as pd

    from bayes_sd.report.decisions import sentence

    for d in found:
        columns = {name: d[name] for name in ("rates_rps", "prob_faster", "prob_both_saturated")}
        print(sentence(d))
        show(
            f"P(SD beats plain), {d['compared']} latency, by rate",
            pd.DataFrame(columns | {"support": d["support_by_rate"]}),
        )


@app.command()
@_answers
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figures and the fit.")] = Path(
        "bayes-sd-demo"
    ),
    seed: Seed = 1,
    campaign: Annotated[
        str, typer.Option(help="Which: vllm-cpu, vllm-cpu-2, or '' for all together.")
    ] = "vllm-cpu",
    draws: Annotated[int, typer.Option(help="Kept draws of each of 4 chains.")] = 1200,
    as_json: AsJson = False,
) -> None:
    """Fit the shipped vLLM measurements and decide for every system in them."""
    import pandas as pd

    from bayes_sd.corpus import corpus
    from bayes_sd.model.latency_model import LatencyModel
    from bayes_sd.report import decisions
    from bayes_sd.report.figures import save_figures
    from bayes_sd.traces import read_traces

    prompt, output = 128.0, 64.0
    traces = read_traces(corpus(campaign))
    say(repr(traces))
    say("compiling and sampling, about a minute ...")
    result = LatencyModel().fit(traces, seed=seed, draws=draws)
    found = [
        decisions.decide(result, system, k, prompt, output)
        for system, k in decisions.measured_arms(result)
    ]
    files = save_figures(result, found, out)
    files.append(result.save(out / "fit.nc"))
    steady = result.runs
    collapse = _finite(result.collapse())
    if as_json:
        emit(
            {
                "runs": len(steady),
                "requests": int(steady["requests"].sum()),
                "fit": result.sampling,
                "collapse": collapse,
                "decisions": found,
                "files": [str(f) for f in files],
            }
        )
        return
    print(result)
    print(
        f"compiled in {result.sampling['seconds_compile']:.0f} s, "
        f"sampled in {result.sampling['seconds_sample']:.0f} s; R^2 of log mean latency "
        f"{collapse['r2_dense']} dense, {collapse['r2_moe']} MoE; mean error {collapse['mape']}\n"
    )
    show("Fitted coefficients: median and 90% interval", result.coefficients())
    columns = ["verifier", "drafter", "k", "acceptance"]
    rows = [
        {c: d[c] for c in columns}
        | {
            f"P at {share:.0%}": d["prob_faster"][i]
            for share, i in ((0.08, 0), (0.48, 5), (0.95, 11))
        }
        | {
            n: "no limit" if v is None else f"{v:.3g}"
            for n, v in list(d["break_even_rps"].items())[:3]
        }
        | {f"P({o})": d["break_even_rps"][f"prob_{o}"] for o in ("never", "always")}
        | {"support": d["support"]}
        for d in found
    ]
    show(
        f"P(SD beats plain) in the mean at shares of plain capacity, and the break-even rate "
        f"(requests/s), {prompt:.0f} + {output:.0f} tokens",
        pd.DataFrame(rows),
    )
    print("wrote " + ", ".join(str(f) for f in files))


register_collect(app, _answers)
register_decide(app, _answers)
register_next(app, _answers)
register_validate(app, _answers)


def main() -> None:
    """Entry point of ``bayes-sd``."""
    # A warning is for the user, not for whoever looks for its line in the source.
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    app()
