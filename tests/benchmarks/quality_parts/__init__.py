"""The parts of ``tests/benchmarks/quality.py``: tables, systems, measures, intervals, report."""
