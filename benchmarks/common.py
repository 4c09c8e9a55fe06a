"""What the benchmarks share: fits used even where the gate refuses them, and parts of runs."""

import sys
from typing import Any

import numpy as np

import bayes_sd as bsd
from bayes_sd.errors import ConvergenceError
from bayes_sd.model.sample import ESS_MIN, RHAT_MAX
from bayes_sd.runs.schema import Runs


def fitted(model: bsd.LatencyModel, runs: Runs, **how: Any) -> bsd.Fit:
    """Fit; one that did not converge is used all the same, and said so on standard error."""
    try:
        return model.fit(runs, progress=False, **how)
    except ConvergenceError as error:
        print(error, file=sys.stderr)
        return error.fit


def converged(fit: bsd.Fit) -> bool:
    """Whether the fit passed the gate."""
    s = fit.sampling
    fewest = min(s["ess_bulk_min"], s["ess_tail_min"])
    return s["rhat_max"] <= RHAT_MAX and fewest >= ESS_MIN and s["divergences"] == 0


def part(runs: Runs, rows: np.ndarray) -> Runs:
    """The runs whose entry in `rows` is true."""
    return Runs(runs.table[np.asarray(rows)].reset_index(drop=True), runs.set_aside)


def random_fifth(count: int, seed: int) -> np.ndarray:
    """Which of `count` runs are in a random fifth of them."""
    order = np.random.default_rng(seed).permutation(count)
    return np.isin(np.arange(count), order[: round(0.2 * count)])


def statements(
    graph: Any, inputs: list[str], sources: dict[type, Any], line: str
) -> tuple[list[str], list[str]]:
    """A graph of scalars in another language, a statement a value, and what its outputs are called.

    `inputs` are the names of its inputs, `sources` print operators, `line` an assignment.
    """
    names, lines = dict(zip(graph.inputs, inputs, strict=True)), []

    def term(v: Any) -> str:
        return names[v] if v in names else f"({float(v.data)!r})"

    for node in graph.toposort():
        (output,) = node.outputs
        if output not in names:
            text = sources[type(node.op)]([term(v) for v in node.inputs])
            names[output] = f"v{len(names)}"
            lines.append(line.format(names[output], text))
    return lines, [term(v) for v in graph.outputs]
