"""What Triton kernels become on GPUs that this machine need not have: Triton compiles for any target.

A test file lists its calls in a function without arguments, which calls the operations on CPU tensors:

    def calls() -> None:
        my_operation(torch.empty(...), launch=...)

    @pytest.mark.slow
    def test_compiles():
        for kernel in compile_calls(__file__, "calls", (9, 0)):
            assert kernel.shared <= SHARED_MEMORY[9, 0] and kernel.spills == 0

Every launch then compiles its kernel with the very arguments of that launch, and runs nothing. This happens in
a process of its own, without TRITON_INTERPRET, which Triton reads once for a process.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Capability = tuple[int, int]
SHARED_MEMORY: dict[Capability, int] = {(8, 0): 163 * 1024, (8, 6): 99 * 1024, (9, 0): 227 * 1024}
"""Most bytes of shared memory that one block may ask for."""


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled: bytes of shared memory and of spilled registers, registers a thread."""

    name: str
    shared: int
    registers: int
    spills: int
    warps: int
    tensor_cores: str
    """"wgmma", "mma", or "" where every product is on the plain cores."""
    signature: str


def compile_calls(file: str, function: str, capability: Capability) -> list[Compiled]:
    """Every kernel that `function` of the test file `file` launches, compiled for `capability` with its arguments."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, file, function, *map(str, capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Compiled(**kernel) for kernel in json.loads(done.stdout.splitlines()[-1])]


def _main(file: str, function: str, major: str, minor: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Target:
        """The driver of a GPU that is not there."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 10 * int(major) + int(minor), 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    sys.path.insert(0, str(Path(__file__).parents[3]))
    found: dict[str, Compiled] = {}
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        compiled = run(kernel, *args, **{**kwargs, "warmup": True})
        found[compiled.hash] = _described(kernel.__name__, compiled)

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Target())
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, function)()
    print(json.dumps([asdict(kernel) for kernel in found.values()]))


def _described(name: str, compiled: Any) -> Compiled:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    products = re.search(r"(wgmma|mma)\.(?:mma_async\.)?sync", compiled.asm["ptx"])
    types = ", ".join(str(value) for value in compiled.src.signature.values() if value != "constexpr")
    return Compiled(
        name=name,
        shared=compiled.metadata.shared,
        registers=numbers["REG"],
        spills=numbers["STACK"] + numbers["LOCAL"],
        warps=compiled.metadata.num_warps,
        tensor_cores=products.group(1) if products else "",
        signature=types,
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
