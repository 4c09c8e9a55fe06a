"""What to measure, as files that vLLM itself runs."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, once imported, hides the public function of its name: so it calls it."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from bayes_sd.plan.design import plan

        return plan(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
