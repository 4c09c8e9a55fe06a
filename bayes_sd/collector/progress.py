"""A progress bar with the time left on a terminal, a line a run elsewhere; all on stderr."""

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Counts expected seconds; the time left is scaled by how well they held so far."""

    def __init__(self, total_s: float, runs: int, show: bool = True) -> None:
        self._total_s, self._runs, self._show = max(total_s, 1e-9), runs, show
        self._done_s, self._done, self._began = 0.0, 0, time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def left_s(self) -> float:
        """Seconds left, by the plan until a tenth is done and by the clock afterwards."""
        left = self._total_s - self._done_s
        if self._done_s < 0.1 * self._total_s:
            return left
        return left * (time.monotonic() - self._began) / self._done_s

    def advance(self, seconds: float, runs: int = 0) -> None:
        """Count expected seconds, and runs, as done."""
        self._done_s = min(self._done_s + seconds, self._total_s)
        self._done += runs

    def say(self, text: str) -> None:
        """What is going on, or what went wrong."""
        if not self._show:
            return
        left = f"{self._done}/{self._runs} runs, {_clock(self.left_s)} left"
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            self._bar.update(self._task, completed=self._done_s, description=left)
        else:
            print(f"[{left}] {text}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
