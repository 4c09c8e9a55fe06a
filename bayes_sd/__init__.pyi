# Public names, and where they live: read by lazy_loader and by type checkers.
from . import errors
from .checks.compare import compare_models
from .checks.validate import validate
from .fit import Fit
from .latency_model import LatencyModel
from .physics import structures
from .physics.law import Law
from .answers.servers import Server
from .plan.design import plan
from .runs.load import Load
from .runs.read import read
from .runs.sizes import Size

__version__: str
