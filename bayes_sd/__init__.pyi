# Public names, and where they live: read by lazy_loader and by type checkers.
from . import errors as errors
from .answers.servers import Server as Server
from .checks.compare import compare_models as compare_models
from .checks.validate import validate as validate
from .fit import Fit as Fit
from .fit import LatencyModel as LatencyModel
from .fit import reference as reference
from .physics import structures as structures
from .physics.law import Law as Law
from .plan.design import plan_sweep as plan_sweep
from .runs.load import Load as Load
from .runs.machine import Machine as Machine
from .runs.read import read as read
from .runs.sizes import Size as Size

__version__: str
