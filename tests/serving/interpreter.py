"""Makes vLLM's CPU build take its GPU's kernels, in Triton's interpreter. Import it before vLLM."""

import os

os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

import triton  # noqa: E402
import vllm.platforms  # noqa: E402

# vLLM's CPU build turns Triton off, and takes the convolution's CPU kernels where the platform is a CPU.
vllm.platforms.vllm_version_matches_substr = lambda _: False
type(vllm.platforms.current_platform).is_cpu = lambda _: False

_autotune = triton.autotune
# Autotuning would time kernels on a GPU: the first configuration is as right as any.
triton.autotune = lambda configs, **how: _autotune(configs[:1], **how)

ACTIVE = True
