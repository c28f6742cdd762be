"""vLLM runs in its own environment, as a subprocess: ``make .venv-vllm/.done``."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
QUIET = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(scope="session")
def vllm():
    """(its Python, the variables of its environment)."""
    if not VLLM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("no .venv-vllm: make .venv-vllm/.done")
        pytest.skip("no .venv-vllm: make .venv-vllm/.done")
    return str(VLLM), {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def greedy():
    """The likeliest tokens after a prompt by whole forward passes, without any cache."""

    @torch.inference_mode()
    def tokens(model, placement, prompt, new):
        said = list(prompt)
        for _ in range(new):
            said.append(int(model(torch.tensor([said]), placement)[0, -1].argmax()))
        return said[len(prompt) :]

    return tokens
