"""Makes vLLM's CPU build take its GPU's kernels, in Triton's interpreter. Import it before vLLM."""

import operator
import os
import sys
from contextlib import nullcontext

os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
import vllm.platforms  # noqa: E402
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, _implicit_cvt  # noqa: E402

# vLLM's CPU build turns Triton off, and takes the convolution's CPU kernels where the platform is a CPU.
type(vllm.platforms.current_platform).is_cpu = lambda _: False
vllm.platforms.vllm_version_matches_substr = lambda _: False
torch.accelerator.device_index = lambda _: nullcontext()  # there is no accelerator to switch to
torch.cuda.get_device_capability = lambda *_: (9, 0)

_autotune = triton.autotune
# Autotuning would time kernels on a GPU: the first configuration is as right as any.
triton.autotune = lambda configs, **how: _autotune(configs[:1], **how)

_execute = GridExecutor.__init__


def _with_a_copy(self, fn, names, grid, *rest):
    """vLLM's convolution changes the arguments while it counts its programs, which the interpreter has converted already."""
    _execute(self, fn, names, (lambda meta: grid(dict(meta))) if callable(grid) else grid, *rest)


def _with_a_bool(access, at):
    """``True & mask`` is a number in the interpreter, and a mask in compiled code."""

    def masked(self, *args):
        args[at].data = args[at].data.astype(bool)
        return access(self, *args)

    return masked


GridExecutor.__init__ = _with_a_copy
InterpreterBuilder.create_masked_load = _with_a_bool(InterpreterBuilder.create_masked_load, 1)
InterpreterBuilder.create_masked_store = _with_a_bool(InterpreterBuilder.create_masked_store, 2)


def name_again() -> None:
    """The delta rules' kernels have names of their own for functions of the language, which the interpreter would not find."""
    for module in [m for name, m in sys.modules.items() if ".flash_linear_attention.ops." in name]:
        for name in ("exp", "exp2", "log", "log2"):
            if hasattr(module, name):
                setattr(module, name, lambda x, name=name: getattr(tl.math, name)(x))
        if module.__name__.endswith("chunk_delta_h"):
            module.range = _counted


def _counted(*bounds):
    """A kernel asks the number of its loop for ``.to``, which a number of Python does not have."""
    return (_implicit_cvt(i) for i in range(*map(operator.index, bounds)))
