"""The null GPU's counters, read from Python."""

import ctypes
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = (
    ("attention", ("flash", "fmha", "attention")),
    ("compiled", ("triton_",)),
    ("copies", ("CatArray", "direct_copy", "copy_kernel", "FillFunctor", "fill_", "memcpy", "memset")),
    ("optimizer", ("multi_tensor", "fused_adam")),
    ("norms", ("layer_norm", "LayerNorm", "rms_norm", "RowwiseMoments", "GammaBeta")),
    ("reductions", ("reduce_kernel", "softmax", "SoftMax")),
    ("elementwise", ("elementwise", "gather", "scatter", "index", "Index", "embedding", "tri", "where")),
)
"""Kinds of launches, and parts of the names that PyTorch's kernels of the kind have; the first that fits counts."""


def kind_of(name: str) -> str:
    """Return a kernel's kind: one of `KINDS`, `products` (cuBLAS), `ours` (our Triton kernels) or `other`."""
    if name.startswith("LAUNCH cublas"):
        return "products"
    if not name.startswith(("_Z", "triton_", "mem")):
        return "ours"
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "other")


class Counts:
    """The null GPU's counters, and the places that its waits were asked for at."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["NULLGPU"])
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._waited)
        self._library.nullgpu_callback(self._callback)
        self._launches = ctypes.c_long.in_dll(self._library, "nullgpu_launches")
        self.places: Counter[str] = Counter()

    @contextmanager
    def reading_zeros(self) -> Iterator[None]:
        """Let the host read zeros of the device, in place of garbage."""
        self._library.nullgpu_zeros(1)
        try:
            yield
        finally:
            self._library.nullgpu_zeros(0)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count from zero, and note places."""
        self._library.nullgpu_reset()
        self.places.clear()
        self._library.nullgpu_trace(1)
        try:
            yield
        finally:
            self._library.nullgpu_trace(0)

    def now(self) -> dict[str, int]:
        """Return what was called since, by name."""
        return self._read(self._library.nullgpu_dump)

    def kernels(self) -> dict[str, int]:
        """Return how often each kernel was launched since, by name; those of cuBLAS by the function that was called."""
        products = {name: many for name, many in self.now().items() if name.startswith("LAUNCH")}
        return self._read(self._library.nullgpu_dump_launches) | products

    def launches(self) -> dict[str, int]:
        """Return launches since, by kind; copies on the device and memsets among them."""
        found: Counter[str] = Counter()
        for name, many in self.kernels().items():
            found[kind_of(name)] += many
        found["copies"] += sum(many for name, many in self.now().items() if name in ("memcpy D2D", "memset"))
        return dict(sorted(found.items()))

    def queued(self) -> int:
        """Return launches, copies on the device and memsets so far, in this process's life."""
        calls = self.now()
        return self._launches.value + calls.get("memcpy D2D", 0) + calls.get("memset", 0)

    def waits(self) -> int:
        return sum(count for name, count in self.now().items() if name.endswith("Synchronize"))

    def _read(self, dump: "ctypes._FuncPointer") -> dict[str, int]:
        text = ctypes.create_string_buffer(1 << 22)
        dump(text, len(text))
        found: Counter[str] = Counter()
        for line in text.value.decode().splitlines():
            name, many = line.rsplit(" ", 1)
            found[name] += int(many)
        return dict(found)

    def _waited(self, kind: bytes) -> None:
        if not kind.endswith(b"Synchronize"):
            return
        frames = [f for f in traceback.extract_stack() if "/deconattn/" in f.filename or "/deepspeed/" in f.filename]
        frames = [f for f in frames if "/accelerator/" not in f.filename]
        last = frames[-1] if frames else None
        where = f"{last.filename.split('site-packages/')[-1].split('/deconattn/')[-1]}:{last.lineno}" if last else "?"
        self.places[f"{kind.decode()} {where}"] += 1
