"""Small result files made from real ones of the corpus, and a table of runs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sd.runs.config import KNOWN
from bayes_sd.runs.read import read
from bayes_sd.runs.schema import Runs

CORPUS = Path(__file__).parents[2] / "traces" / "vllm-cpu"
PLAIN = CORPUS / "dense-115m_0.json"
SD = CORPUS / "dense-115m_draft-12m_k7_a70_3.json"
MOE = CORPUS / "moe-e8k2_5.json"
REMOVE = object()
METADATA = frozenset(KNOWN)
LISTS = ("input_lens", "output_lens", "ttfts", "latencies", "start_times", "queue_times")


def raw(path: Path) -> dict[str, Any]:
    """The corpus file as it is."""
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def without_detail(path: Path, **changes: Any) -> dict[str, Any]:
    """The corpus file as vLLM writes it without --save-detailed."""
    return changed({k: v for k, v in raw(path).items() if k not in LISTS}, **changes)


def changed(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with fields set, or left out where the value is REMOVE."""
    new = {**data, **changes}
    return {k: v for k, v in new.items() if v is not REMOVE}


def write(path: Path, data: Any) -> Path:
    """Write JSON (NaN and Infinity as Python does) and return the path."""
    path.write_text(json.dumps(data))
    return path


TABLE = pd.DataFrame(
    {
        "model": ["m", "m"],
        "rps": [1.0, 2.0],
        "n": [60, 120],
        "seconds": [60, 60],
        "lat_ms": [900.0, 1300.0],
        "lat_sd_ms": [80.0, 150.0],
        "alpha_pct": [80.0, 50.0],
    }
)
COLUMN_MAP: dict[str, Any] = {
    "verifier": "model",
    "rate_rps": "rps",
    "requests": "n",
    "duration_s": "seconds",
    "e2e_mean_s": ("lat_ms", "ms"),
    "e2e_std_s": ("lat_sd_ms", "ms"),
    "acceptance_imposed": ("alpha_pct", "%"),
}
CONSTANTS: dict[str, Any] = {
    "verifier_params": 8e9,
    "draft_tokens": 3,
    "drafter": "eagle",
    "prompt_tokens": 512,
    "output_tokens": 128,
}


def read_table(
    source: Any = TABLE,
    columns: dict[str, Any] | None = None,
    *,
    without: tuple[str, ...] = (),
    **constants: Any,
) -> Runs:
    """Read TABLE or one like it, with some of the mapping and the constants changed."""
    mapping = {k: v for k, v in (COLUMN_MAP | (columns or {})).items() if k not in without}
    given = {k: v for k, v in (CONSTANTS | constants).items() if k not in without}
    return read(source, columns=mapping, **given)


def one(path: Path, **constants: Any) -> pd.Series:
    """The one run of a file."""
    runs = read(path, **constants)
    assert len(runs) == 1
    return runs.table.iloc[0]
