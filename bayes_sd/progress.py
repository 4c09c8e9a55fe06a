"""How far long work has come, on a terminal only."""

import sys
from collections.abc import Iterable, Iterator


def with_time_left[T](steps: Iterable[T], count: int, what: str) -> Iterator[T]:
    """The steps, of which there are so many, under a bar with the time that is left."""
    if count < 2 or not sys.stderr.isatty():
        yield from steps
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    yield from track(steps, escape(what), count, console=Console(stderr=True), transient=True)
