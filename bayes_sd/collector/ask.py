"""Small questions to a server, never through a proxy: it is ours and usually on this machine."""

import http.client
import json
import urllib.request
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, timeout_s: float = 10.0) -> str:
    """Body of an answer.

    Raises
    ------
    OSError
        If there is none, or its status says failure.
    """
    return _ask(urllib.request.Request(url), timeout_s)


def get_json(url: str, timeout_s: float = 10.0) -> Any:
    """Body of an answer as JSON; OSError also if it is not JSON."""
    try:
        return json.loads(get(url, timeout_s))
    except ValueError:
        raise OSError(f"{url} does not answer in JSON") from None


def _ask(request: urllib.request.Request, timeout_s: float) -> str:
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return answer.read().decode("utf-8", "replace")
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error)) from None
