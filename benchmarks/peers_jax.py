"""The operators of the model as JAX functions, with which NumPyro samples the same graph."""

from typing import Any

import pytensor.scalar as ps
from common import statements
from pytensor.graph.fg import FrozenFunctionGraph
from pytensor.link.jax.dispatch import jax_funcify

from bayes_sd.model.kernel import SOURCE, PerRun

SOURCES = SOURCE | {
    ps.Switch: lambda x: f"np.where({x[0]}, {x[1]}, {x[2]})",
    ps.Cast: lambda x: f"1.0 * {x[0]}",
}


def evaluator(graph: FrozenFunctionGraph) -> Any:
    """A graph of scalars as a function of arrays over runs."""
    import jax.numpy as jnp

    arguments = [f"x{i}" for i in range(len(graph.inputs))]
    lines, ends = statements(graph, arguments, SOURCES, "{} = {}")
    lines.append(f"return [{', '.join(ends)}]")
    here: dict[str, Any] = {"np": jnp, "math": jnp}
    exec("\n    ".join([f"def run({', '.join(arguments)}):", *lines]), here)
    return here["run"]


@jax_funcify.register(PerRun)
def _funcify(op: PerRun, **_: Any) -> Any:
    import jax
    import jax.numpy as jnp

    traced = op.traced
    value, pullback = evaluator(traced.value), evaluator(traced.pullback)
    places = [count or 1 for count in traced.outputs]

    def read(inputs: Any) -> list[Any]:
        *groups, level, data = inputs
        of_groups = [
            (x if x.ndim > 1 else x[:, None])[i][level[j]]
            for j, (x, count) in enumerate(zip(groups, traced.parameters, strict=True))
            for i in range(count)
        ]
        return [*of_groups, *data]

    def shaped(values: list[Any], runs: int) -> tuple[Any, ...]:
        rows = [jnp.broadcast_to(v, (runs,)) for v in values]
        out, at = [], 0
        for count, many in zip(traced.outputs, places, strict=True):
            out.append(jnp.stack(rows[at : at + many]) if count else rows[at])
            at += many
        return tuple(out)

    @jax.custom_vjp
    def run(*inputs: Any) -> tuple[Any, ...]:
        return shaped(value(*read(inputs)), inputs[-1].shape[1])

    def forward(*inputs: Any) -> Any:
        out = run(*inputs)
        return out, (inputs, out)

    def backward(kept: Any, given: Any) -> tuple[Any, ...]:
        (inputs, out), count = kept, len(traced.outputs) - traced.detached
        *groups, level, _ = inputs
        rows = [row for g in given[:count] for row in (g if g.ndim > 1 else g[None])]
        slopes = iter(pullback(*read(inputs), *rows, *out[count:]))
        found = []
        for j, (x, many) in enumerate(zip(groups, traced.parameters, strict=True)):
            total = jnp.zeros((many, x.shape[1] if x.ndim > 1 else 1))
            for i in range(many):
                row = jnp.broadcast_to(next(slopes), level.shape[1:])
                total = total.at[i, level[j]].add(row)
            found.append(total.reshape(x.shape))
        return (*found, None, None)

    run.defvjp(forward, backward)
    # Of one output JAX's linker takes the array itself.
    return run if len(places) > 1 else lambda *inputs: run(*inputs)[0]
