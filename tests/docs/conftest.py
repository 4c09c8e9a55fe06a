"""Paths of what these tests share with the site and with other tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "docs"), str(ROOT / "tests" / "checks")]
