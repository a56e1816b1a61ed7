"""The null GPU: stands in for CUDA's runtime, driver, cuBLAS and NCCL under a CUDA build of PyTorch, without a GPU.

Every call succeeds, does nothing and is counted. Small copies are really made, memory is really handed out, and its
peak is kept. So the real trainer runs on it: values are garbage, but control flow, dtypes, launches, and every wait of
the host for the device are real. :mod:`.build` compiles the library, :mod:`.trace` trains on it, :mod:`.table` writes
down what was counted.
"""
