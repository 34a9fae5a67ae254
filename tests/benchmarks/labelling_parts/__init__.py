"""The parts of ``tests/benchmarks/labelling.py``: processes, throughput, memory, the table."""
