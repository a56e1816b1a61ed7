"""Compilation of the null GPU for this interpreter's CUDA build of PyTorch, by the system's C compiler."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("runtime.c", "driver.c", "kernels.c", "exchange.c")
LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so")


def missing() -> str | None:
    """Return why there can be no null GPU here, or None."""
    import torch

    if torch.version.cuda is None:
        return "PyTorch is no CUDA build"
    if not _includes():
        return "there are no CUDA headers"
    return None if shutil.which("cc") and shutil.which("nm") else "there is no C compiler"


def build(out: Path) -> dict[str, str]:
    """Compile into the folder `out`, which is made; return the environment of a process that is to see the GPU."""
    out.mkdir(parents=True)
    (out / "others.c").write_text(_others(), encoding="utf-8")
    library = out / "libnullgpu.so"
    sources = [*(str(HERE / name) for name in SOURCES), str(out / "others.c")]
    flags = ["-w", "-O1", "-fPIC", "-shared", "-fno-builtin", *(f"-I{path}" for path in _includes())]
    subprocess.run(["cc", *flags, *sources, "-o", str(library), "-ldl", "-lpthread"], check=True)
    shutil.copy(library, out / "libcuda.so.1")
    (out / "libnvidia-ml.so.1").symlink_to(library.name)
    return os.environ | {
        "NULLGPU": str(library),
        "NULLGPU_CAP": "80",  # an A100: attention on a Hopper goes through cuDNN, which this does not stand in for
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(out),
        "TRITON_LIBCUDA_PATH": str(out),
        "OMP_NUM_THREADS": "1",
    }


def _others() -> str:
    """Return C of what PyTorch calls and nobody needs an answer from: counted, and a success."""
    text = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SOURCES)
    ours = set(re.findall(r"\b((?:__)?(?:cuda|cublas|nccl)\w+)\s*\(", text))
    ours |= set(re.findall(r"\bGEMM\((\w+)\)", text))
    wanted: set[str] = set()
    for library in LIBRARIES:
        command = ["nm", "-D", "--undefined-only", str(_site() / "torch/lib" / library)]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            name = line.split()[-1].split("@")[0]
            if re.match(r"(cuda[A-Z]|__cuda|cublas|nccl)", name):
                wanted.add(name)
    lines = [f'int {name}(){{static int id=-1; nullgpu_count(&id,"{name}"); return 0;}}' for name in wanted - ours]
    return "\n".join(["void nullgpu_count(int*,const char*);", *sorted(lines), ""])


def _includes() -> list[Path]:
    wheels = sorted(_site().glob("nvidia/*/include"))
    return [path for path in [*wheels, *sorted(Path("/usr/local").glob("cuda*/include"))] if path.is_dir()]


def _site() -> Path:
    import torch

    return Path(torch.__file__).parents[1]


if __name__ == "__main__":
    print(build(Path(sys.argv[1]))["NULLGPU"])
