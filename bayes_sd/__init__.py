"""Is speculative decoding worth it at my load, on my models, with how many draft tokens?

Stages: ``read_traces -> LatencyModel().fit -> Fit.latency, prob_faster, break_even``. Importing
this package is light; PyMC is imported when a model is built.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names, and where they live: imported on first use, so that `import bayes_sd` stays light.
_HOME = {
    "read_traces": "bayes_sd.traces",
    "read_table": "bayes_sd.traces",
    "read_metrics": "bayes_sd.traces.prometheus",
    "read_traffic": "bayes_sd.traces.traffic",
    "Traces": "bayes_sd.traces",
    "Traffic": "bayes_sd.traces.traffic",
    "LatencyModel": "bayes_sd.model.latency_model",
    "Law": "bayes_sd.physics.costs",
    "Fit": "bayes_sd.inference.fit",
    "ConvergenceError": "bayes_sd.inference.fit",
    "InputError": "bayes_sd.errors",
    "EvidenceError": "bayes_sd.errors",
    "System": "bayes_sd.predict.system",
    "Size": "bayes_sd.predict.size",
    "structures": "bayes_sd.predict",
    "grid": "bayes_sd.predict.load",
    "predict_runs": "bayes_sd.predict.runs",
    "collect": "bayes_sd.collector.run",
    "deployments": "bayes_sd.decide.deploy",
    "compare": "bayes_sd.validate.compare",
    "compare_fits": "bayes_sd.validate.compare",
    "validate_model": "bayes_sd.validate.checks",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from bayes_sd.collector.run import collect as collect
    from bayes_sd.decide.deploy import deployments as deployments
    from bayes_sd.errors import EvidenceError as EvidenceError
    from bayes_sd.errors import InputError as InputError
    from bayes_sd.inference.fit import ConvergenceError as ConvergenceError
    from bayes_sd.inference.fit import Fit as Fit
    from bayes_sd.model.latency_model import LatencyModel as LatencyModel
    from bayes_sd.physics.costs import Law as Law
    from bayes_sd.predict import structures as structures
    from bayes_sd.predict.load import grid as grid
    from bayes_sd.predict.runs import predict_runs as predict_runs
    from bayes_sd.predict.size import Size as Size
    from bayes_sd.predict.system import System as System
    from bayes_sd.traces import Traces as Traces
    from bayes_sd.traces import read_table as read_table
    from bayes_sd.traces import read_traces as read_traces
    from bayes_sd.traces.prometheus import read_metrics as read_metrics
    from bayes_sd.traces.traffic import Traffic as Traffic
    from bayes_sd.traces.traffic import read_traffic as read_traffic
    from bayes_sd.validate.checks import validate_model as validate_model
    from bayes_sd.validate.compare import compare as compare
    from bayes_sd.validate.compare import compare_fits as compare_fits


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'bayes_sd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
