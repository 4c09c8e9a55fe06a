"""The latency law as pure functions: NumPy, xarray and PyTensor alike.

Every function uses arithmetic operators only (``+ - * / **`` and comparisons), so whatever goes in
comes out: floats, NumPy arrays, labelled xarray objects, or PyTensor graphs. The model, the
predictions, the decisions and the tests all call these functions; the law is written nowhere else.

Units: seconds, tokens, requests per second (rps), parameters.
"""

from bayes_sd.physics.acceptance import (
    constant_acceptance,
    cycles,
    cycles_variance,
    tokens_per_cycle,
    tokens_per_cycle_by_position,
)
from bayes_sd.physics.costs import FULL, PARTS, Law
from bayes_sd.physics.crowd import in_flight_open, in_flight_with_tiles
from bayes_sd.physics.experts import coverage, in_flight_with_experts, tokens_in_pass
from bayes_sd.physics.parts.attention import prompt_work
from bayes_sd.physics.shapes import typical_kv_gb, typical_layers
from bayes_sd.physics.stages import Cycle, Stages, add, combine, draft_passes
from bayes_sd.physics.steady import (
    break_even_rate,
    headroom,
    in_flight,
    latency_closed,
    latency_open,
    pole,
    speedup,
    utilization,
)
from bayes_sd.physics.tiles import computed_tokens, free_tokens

__all__ = [
    "FULL",
    "PARTS",
    "Cycle",
    "Law",
    "Stages",
    "add",
    "break_even_rate",
    "combine",
    "computed_tokens",
    "constant_acceptance",
    "coverage",
    "cycles",
    "cycles_variance",
    "draft_passes",
    "free_tokens",
    "headroom",
    "in_flight",
    "in_flight_open",
    "in_flight_with_experts",
    "in_flight_with_tiles",
    "latency_closed",
    "latency_open",
    "pole",
    "prompt_work",
    "speedup",
    "tokens_in_pass",
    "tokens_per_cycle",
    "tokens_per_cycle_by_position",
    "typical_kv_gb",
    "typical_layers",
    "utilization",
]
