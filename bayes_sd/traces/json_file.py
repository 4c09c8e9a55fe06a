"""JSON objects from files, with errors that say what was found instead."""

import json
from pathlib import Path
from typing import Any

from bayes_sd.errors import InputError


def read_object(path: Path, needed: str) -> dict[str, Any]:
    """JSON object of a file; `needed` names what it should be, for the error.

    Raises
    ------
    InputError
        If the file cannot be read, is cut off, or holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"is not text; {needed} is needed") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not complete JSON ({error.msg} at line {error.lineno}); {needed} is needed"
        ) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise InputError(f"is JSON of an absurd size or depth; {needed} is needed") from None
    if not isinstance(data, dict):
        raise InputError(f"is not a JSON object; {needed} is needed")
    return data
