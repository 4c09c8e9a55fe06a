"""Benchmark traces: readers, the tidy run table and its check."""

from bayes_sd.traces.check import Check
from bayes_sd.traces.read import read_traces
from bayes_sd.traces.schema import Traces
from bayes_sd.traces.table import read_table

__all__ = ["Check", "Traces", "read_table", "read_traces"]
