"""The latency law as pure functions: NumPy, xarray and PyTensor alike.

Every function uses arithmetic operators only (``+ - * / **`` and comparisons), so whatever goes in
comes out: floats, NumPy arrays, labelled xarray objects, or PyTensor graphs. The model, the
predictions, the decisions and the tests all call these functions; the law is written nowhere else.

Units: seconds, tokens, requests per second (rps), parameters.
"""

from bayes_sd.physics.acceptance import (
    constant_acceptance,
    cycles,
    tokens_per_cycle,
    tokens_per_cycle_by_position,
)
from bayes_sd.physics.costs import Cycle, Stages, combine, prompt_work, stage_costs
from bayes_sd.physics.experts import coverage, in_flight_with_experts, tokens_in_pass
from bayes_sd.physics.shapes import typical_kv_gb, typical_layers
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

__all__ = [
    "Cycle",
    "Stages",
    "break_even_rate",
    "combine",
    "constant_acceptance",
    "coverage",
    "cycles",
    "headroom",
    "in_flight",
    "in_flight_with_experts",
    "latency_closed",
    "latency_open",
    "pole",
    "prompt_work",
    "speedup",
    "stage_costs",
    "tokens_in_pass",
    "tokens_per_cycle",
    "tokens_per_cycle_by_position",
    "typical_kv_gb",
    "typical_layers",
    "utilization",
]
