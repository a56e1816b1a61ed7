"""Triton kernels of the mixing operations: fused forward and backward passes on a GPU.

Each module has one operation, registered as `deconattn::...` so that torch.compile takes it as it is, and its
launch parameters (block sizes, warps, stages) as constants: a run's numbers must not depend on what was fastest
on the day. Only :mod:`deconattn.ops.backend` imports from here. On a CPU they run in Triton's interpreter
(`TRITON_INTERPRET=1`), which is how the tests run them.
"""
