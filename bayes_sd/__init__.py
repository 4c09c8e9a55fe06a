"""Is speculative decoding worth it at my load, on my models, with how many draft tokens?

``read(...)`` runs, ``LatencyModel().fit(runs)``, and ask the ``Fit``. Names are imported on first
use, so importing this package is light; PyMC is imported when a model is fitted.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
