"""The quickstart runs from top to bottom, and its outputs are committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def test_outputs_are_committed() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert sum(bool(c.outputs) for c in code) >= len(code) - 2
    assert "image/png" in str([c.outputs for c in code])


@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
def test_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    assert "SD is faster up to a break-even rate" in str(notebook.cells[-3].outputs)
