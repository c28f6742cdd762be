"""The GPU path without a GPU: vLLM's Triton kernels in the interpreter, and what vLLM's own loaders make of our hooks."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def triton(vllm):
    if not list(Path(vllm[0]).parents[1].glob("lib/python*/site-packages/triton")):
        missing = "no Triton in .venv-vllm: rm .venv-vllm/.done; make .venv-vllm/.done"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


def said_by(vllm, *command, **more):
    """The last line that vLLM's Python prints."""
    environment = {**vllm[1], "PYTHONPATH": f"{vllm[1]['PYTHONPATH']}:{HERE}", **more}
    done = subprocess.run([vllm[0], *command], env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.005)])
def test_mixed_rows_by_vllms_kernels_are_the_mixers_whole_forward(dtype, tolerance, vllm):
    """float32 takes the recurrent kernels, float16 the chunked ones. The interpreter does not know bfloat16."""
    found = json.loads(said_by(vllm, str(HERE / "interpreted.py"), dtype))
    assert found["parts"] > found["steps"] > 3 and found["widest"] == 4  # all four mixers share a step
    assert max(found["worst"].values()) < tolerance, found


CONFIGURED = """
import json, os
from types import SimpleNamespace as Some
import interpreter
from supernet.serving import placements, register, rows
from vllm.config import CUDAGraphMode
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

register.current_platform = Some(is_cpu=lambda: False, is_cuda=lambda: True, device_name="cuda")
raw = json.loads(os.environ["RAW"])
def config(eager):
    return Some(
        parallel_config=Some(tensor_parallel_size=1, pipeline_parallel_size=1), lora_config=None, speculative_config=None,
        model_config=Some(quantization=None, hf_config=Some(raw=raw), model=".", logits_processors=None, enforce_eager=eager),
        cache_config=Some(cache_dtype="auto", enable_prefix_caching=True), kv_transfer_config=None, use_v2_model_runner=True,
        scheduler_config=Some(async_scheduling=True), compilation_config=Some(cudagraph_mode=None),
    )
eager, graphs = config(True), config(False)
register.Choices.verify_and_update_config(eager)
assert eager.compilation_config.cudagraph_mode is None and "VLLM_USE_BREAKABLE_CUDAGRAPH" not in os.environ
register.Choices.verify_and_update_config(graphs)
assert graphs.compilation_config.cudagraph_mode == CUDAGraphMode.PIECEWISE
assert graphs.scheduler_config.scheduler_cls.endswith("AsyncPlacementScheduler") and not graphs.cache_config.enable_prefix_caching

# vLLM's own loader takes the processor, and turns a bad request down.
from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator as validator
validate = validator(graphs.model_config.logits_processors)
validate(SamplingParams(extra_args={"placement": "FSKG"}))
try:
    validate(SamplingParams(extra_args={"placement": "FS"}))
except VLLMValidationError as error:
    refused = str(error)

# The runner tells the state what joins, and which slots are the rows of a step.
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from supernet.serving.model import SupernetForCausalLM, mix_layer
from supernet.serving.runner2 import PlacementState
assert SupernetForCausalLM.get_model_state_cls() is PlacementState
state = PlacementState.__new__(PlacementState)
state.rope_state = state.prompt_embeds_state = None
state.slots = {}
for slot, placement in ((5, "FSKG"), (2, "GGGG")):
    state.add_request(slot, Some(sampling_params=SamplingParams(extra_args={"placement": placement})))
DefaultModelState.prepare_attn = lambda self, batch, **more: more
import numpy as np
assert state.prepare_attn(Some(idx_mapping_np=np.array([2, 5, 7])), a=1) == {"a": 1}
assert rows.placements_of(3) == ["GGGG", "FSKG", "FFFF"]
# Graphs end at the mixers.
assert mix_layer.__wrapped__.__name__ == "mix_layer"
print(refused)
"""


def test_a_gpu_gets_the_second_runner_graphs_that_end_at_the_mixers_and_the_same_checks(vllm):
    raw = {"layers": 4, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 97, "window": 32}
    refused = said_by(vllm, "-c", CONFIGURED, RAW=json.dumps(raw))
    assert "has 2 layers, the model has 4" in refused
