"""The kernels against eager and compiled PyTorch on this machine's CPU: workloads as data, and `lmser bench`.

`workloads` says what is measured and who competes, `measure` verifies and times, `roofline` draws. GPUs have
benchmarks of their own in the repository (`make gpu`).
"""
