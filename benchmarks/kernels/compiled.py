"""What Triton kernels become on GPUs that this machine need not have: Triton compiles for any target.

A file lists its calls in a function, which calls the operations on CPU tensors:

    def calls() -> None:
        my_operation(torch.empty(...))

    @pytest.mark.slow
    def test_compiles():
        for kernel in compile_calls(__file__, "calls", "sm_90"):
            assert kernel.shared <= SHARED_MEMORY["sm_90"] and kernel.spills == 0

Every launch then compiles its kernel with the very arguments of that launch, and runs nothing. This happens in
a process of its own, without TRITON_INTERPRET, which Triton reads once for a process.
"""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
"""Target -> most bytes of shared memory that one block may ask for."""


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled: bytes of shared memory and of a thread's spilled registers, registers a thread."""

    module: str
    """Of its launch, such as taylor_tiles."""
    name: str
    shared: int
    registers: int
    spills: int
    warps: int
    tensor_cores: str
    """"wgmma", "tcgen05", "mma", "mfma", or "" where every product is on the plain cores."""
    serialised: bool
    """Whether ptxas lets each wgmma wait for the one before (its warnings C7510 to C7519)."""
    signature: str


def compile_calls(file: str, function: str, target: str, *arguments: str) -> list[Compiled]:
    """Every kernel that a function of a file launches, compiled for a target with its arguments.

    Args:
        target: of :data:`SHARED_MEMORY`.
        arguments: of the function.
    """
    # The log of ptxas, which a cached kernel has not.
    environment = os.environ | {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, file, function, target, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Compiled(**kernel) for kernel in json.loads(done.stdout.splitlines()[-1])]


def _main(file: str, function: str, target: str, *arguments: str) -> None:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    nvidia = target.startswith("sm_")
    described = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)

    class Target:
        """The driver of a GPU that is not there."""

        def get_current_target(self) -> GPUTarget:
            return described

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    sys.path.insert(0, str(Path(__file__).parents[2]))
    found: dict[str, Compiled] = {}
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        log = io.StringIO()
        with redirect_stdout(log):
            compiled = run(kernel, *args, **{**kwargs, "warmup": True})
        if compiled.hash not in found:
            names = kernel.__module__.rpartition(".")[2].removesuffix("_programs"), kernel.__name__
            found[compiled.hash] = (_by_nvidia if nvidia else _by_amd)(names, compiled, log.getvalue())

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Target())
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, function)(*arguments)
    print(json.dumps([asdict(kernel) for kernel in found.values()]))


def _by_nvidia(names: tuple[str, str], compiled: Any, log: str) -> Compiled:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    products = re.search(r"(wgmma|tcgen05|mma)\.(?:mma_async\.|mma\.cta|sync)", compiled.asm["ptx"])
    return Compiled(
        *names,
        shared=compiled.metadata.shared,
        registers=numbers["REG"],
        spills=numbers["STACK"] + numbers["LOCAL"],
        warps=compiled.metadata.num_warps,
        tensor_cores=products.group(1) if products else "",
        serialised=re.search(r"C751\d", log) is not None,
        signature=_signature(compiled),
    )


def _by_amd(names: tuple[str, str], compiled: Any, log: str) -> Compiled:
    code = compiled.asm["amdgcn"]
    numbers = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)$", code, re.MULTILINE)}
    return Compiled(
        *names,
        shared=compiled.metadata.shared,
        registers=numbers["vgpr_count"],
        spills=numbers["private_segment_fixed_size"],
        warps=compiled.metadata.num_warps,
        tensor_cores="mfma" if "v_mfma" in code else "",
        serialised=False,
        signature=_signature(compiled),
    )


def _signature(compiled: Any) -> str:
    return ", ".join(str(value) for value in compiled.src.signature.values() if value != "constexpr")


if __name__ == "__main__":
    _main(*sys.argv[1:])
