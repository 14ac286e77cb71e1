"""The Triton kernels and their launchers: one file per operator, and the device functions that they share.

A launcher has the arguments and results of the dispatcher operator of its name. It never waits for the device: sizes
come from shapes and from the plan. Accumulation is float32 in a fixed order, without float atomics, and row offsets are
64 bits wide.
"""
