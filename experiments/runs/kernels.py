"""Which kernels a process uses: the delta rule's, tested once per machine and recorded in the manifest; what torch.compile takes."""

import fcntl
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.config import digest
from experiments.runs.records import cpu_name, read_json, write_json
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops import kernels

TEST_SECONDS = 1800
"""The first call of Triton's kernels compiles and tunes them: minutes, on a busy machine more."""


def choose_kernels(asked: str, model: SupernetConfig, device: str, dtype: str, cache: Path) -> str:
    """Choose the delta rule's kernels for this process, for a model in ``dtype`` (float32, bfloat16) on ``device`` (cpu, cuda).

    Returns what the manifest says of them. ``asked=auto`` takes the first way that passes its self-test: on a GPU fla, then fla-kda, on
    a CPU numba, else torch. It says in one line why it passed over another. One that was asked for by name is refused with a ValueError
    where it fails.
    """
    dims = (model.gdn_key_dim, model.gdn_value_dim, model.kda_dim)
    warn_of_bfloat16(device, dtype)
    asked = asked if set(model.mixers) & set("KG") else "torch"
    way = first_that_works(asked, device, dtype, dims, cache / "kernels")
    kernels.use(way)
    return kernels.describe(way)


def warn_of_bfloat16(device: str, dtype: str) -> None:
    """Say in one line that bfloat16 crawls on a CPU without instructions for it, where that is so."""
    if device == "cpu" and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print(
            "warning: this CPU has no instructions for bfloat16, which can be 28 times slower than float32: "
            "dtype=float32 distill.precision=32-true avoids it",
            file=sys.stderr,
            flush=True,
        )


def first_that_works(asked: str, device: str, dtype: str, dims: tuple[int, int, int], cache: Path) -> str:
    """The way to use, given the one that was asked for. See ``choose_kernels``."""
    if asked == "torch":
        return "torch"
    for way in ("numba" if device == "cpu" else "fla fla-kda").split() if asked == "auto" else (asked,):
        reason = why_not(way, device, dtype, dims, cache)
        if reason is None:
            return way
        if asked != "auto":
            raise ValueError(f"kernels={way} cannot be used: {reason}: set kernels=auto, which takes what works here, or kernels=torch")
        print(f"kernels: not {way}: {reason}", flush=True)
    return "torch"


def why_not(way: str, device: str, dtype: str, dims: tuple[int, int, int], cache: Path) -> str | None:
    """Why a way cannot be used here, or None. A self-test that came to an end is kept in ``cache`` for this machine and these packages."""
    if device not in kernels.ON[way]:
        return "it needs a CUDA GPU" if device == "cpu" else "it is for a CPU"
    if way == "numba":
        machine = {name: version(name) for name in ("torch", "numba", "llvmlite")} | {"cpu": cpu_name()}
        if machine["numba"] is None:
            return "numba is not installed (pip install -e .)"
    else:
        machine = {name: version(name) for name in ("torch", "triton", "fla-core")} | {"gpu": torch.cuda.get_device_name()}
        if machine["fla-core"] is None or machine["triton"] is None:
            return "fla-core is not installed (pip install -e '.[kernels]')"
    about = {"way": way, "dtype": dtype, "dims": list(dims), **machine}
    path = cache / f"{way}-{dtype}-{digest(about)}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of a run start at once: one tests, the others read
        errors = read_json(path).get("errors")
        if errors is None:
            errors = measure(way, dtype, dims)
            if isinstance(errors, str):
                return errors  # not kept: a GPU that was full or lost may be well the next time
            write_json(path, about | {"errors": errors, "tolerance": kernels.tolerance(way, dtype)})
    failed = kernels.failures(errors, dtype, way)
    if failed:
        worst = max(failed, key=lambda name: (errors[name] != errors[name], errors[name]))
        return f"its self-test failed ({worst} is off by {errors[worst]:.1%}; all errors in {path})"
    return None


def measure(way: str, dtype: str, dims: tuple[int, int, int]) -> dict[str, float] | str:
    """The errors of the self-test, or one line why there are none. A GPU's run in a process of its own, which a crash takes down."""
    if way == "numba":
        try:
            return kernels.self_test(way, dtype, dims, "cpu")
        except Exception as error:  # numba may be there and not fit this Python, numpy or CPU; torch computes the same
            return f"its self-test ended with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    command = [sys.executable, "-m", "supernet.ops.kernels", way, dtype, ",".join(map(str, dims)), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its self-test took more than {TEST_SECONDS} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()
    return f"its self-test ended with code {done.returncode}: {said[-1] if said else 'no message'}"


def compile_shared(model: Supernet, backend: str | Callable = "inductor") -> None:
    """torch.compile what all placements share, the norms and MLPs of the blocks, in place: parameter names stay.

    The mixers and the path through them are left alone, so a new placement compiles nothing. Each kind of module is compiled once for all
    layers (with and without gradient) and once more for sequences of varying length.
    """
    for block in model.blocks:
        for module in (block.mixer_norm, block.mlp_norm, block.mlp):
            module.compile(backend=backend)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
