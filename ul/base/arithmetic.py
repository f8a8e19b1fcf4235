"""One arithmetic on every x86-64 processor with AVX2, however new it is: the same sums in the same order.

Libraries choose their instructions when they are loaded, so this must come before numpy and torch. Capping torch and
oneDNN leaves makers of processors apart, and MKL's reproducible branch alone leaves AVX-512 apart from AVX2; together
they make a network's outputs the same bits (Deep-MI/FastSurfer, pull request 892). `MKL_CBWR=AVX2` would not hold on
processors of other makers than Intel. Who uses `ul` as a library is left alone: notebooks, tests and commands fix it.
"""

import os
import platform
import sys
from pathlib import Path

# One thread a process: runs of several seeds share the machine instead.
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's and scipy's
}
# numpy's own loops; features by their names in several versions: those that a version does not know it ignores.
NUMPY = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"}
# glibc keeps what a network frees for its next batch, instead of asking the system for fresh pages each time: no number
# changes, training takes a sixth less time on two cores.
MEMORY = {
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}
GPU = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it CUDA's matrix products differ from call to call
LOADED = ("numpy", "torch")


def settings() -> dict[str, str]:
    """The environment variables that fix it on this machine, and MEMORY; other processors keep their instructions."""
    return THREADS | MEMORY | GPU | (INSTRUCTIONS | NUMPY if able() else {})


def able() -> bool:
    """Whether this is an x86-64 processor with AVX2; where nobody says, one of the last ten years is taken for one."""
    flags = _said("flags").split()
    return platform.machine().lower() in ("x86_64", "amd64") and (not flags or "avx2" in flags)


def processor() -> str:
    """The processor's name, for messages."""
    return _said("model name") or platform.processor() or platform.machine()


def _said(what: str) -> str:
    """A line of what Linux says of the processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")


def fix() -> None:
    """Fix it for this process and those that it starts. Too late where numpy or torch is loaded: `chosen` tells."""
    if not any(name in sys.modules for name in LOADED):
        os.environ.update(settings())


def chosen() -> str:
    """What this process' environment asks of its libraries; "as the processor has it" where it was not fixed."""
    names = [name for name in INSTRUCTIONS if os.environ.get(name)]
    return ", ".join(os.environ[name].lower() for name in names) or "as the processor has it"
