"""Benchmarks beside `lmser bench`: its workloads for pytest-benchmark (`pytest bench --benchmark-only`), and GPUs'."""
