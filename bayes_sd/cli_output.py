"""How the commands answer: tables or one JSON object on stdout, the rest on stderr."""

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(text: str) -> None:
    """Progress and errors, beside the answer."""
    print(text, file=sys.stderr)


def emit(data: Any) -> None:
    """The answer as one JSON object."""
    print(json.dumps(data, allow_nan=False))


def show(title: str, frame: "pd.DataFrame") -> None:
    """The answer as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in frame.columns:
        number = frame[name].dtype.kind in "fiu"
        table.add_column(str(name), justify="right" if number else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(v) for v in row))
    # A pipe has no width: let nothing be cut there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    console.print()


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"  # 16629 replicas, not 1.663e+04
