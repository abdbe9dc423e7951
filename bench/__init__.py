"""Benchmarks: `python -m bench` prints the table and writes JSON, `pytest bench --benchmark-only` feeds pytest-benchmark."""
