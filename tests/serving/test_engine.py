"""A real vLLM against whole forward passes without a cache: placements in one batch, past the window, preempted and aborted."""

import json
import subprocess
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet.checkpoint import load, main, save
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.serving.check import TOLERANCE, compare

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ORACLE = HERE.parents[1].parent / "shared" / "oracles" / "apriel2" / "tiny_bias_tied"
WINDOW, ROOM = 32, 256
NATIVE = SupernetConfig(layers=4, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=97, window=WINDOW, gdn_key_heads=2)


def random_supernet(config):
    torch.manual_seed(0)
    model = Supernet(config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.25)
    return model.eval()


def run(vllm, folder, tmp_path, requests, kv_bytes, abort=(), bad=(), dtype="float32"):
    python, environment = vllm
    options = {
        "dtype": dtype,
        "max_model_len": ROOM,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 48,
        "kv_cache_memory_bytes": kv_bytes,
    }
    job, out = tmp_path / "job.json", tmp_path / "out.json"
    job.write_text(json.dumps({"folder": str(folder), "options": options, "requests": requests, "abort": abort, "bad": bad}))
    environment = environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [python, str(HERE / "engine.py"), str(job), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def requests_of(layers, vocab, new):
    """Pure placements and mixed ones; prompts shorter and longer than the window and than a step of 48 tokens."""
    rng = np.random.default_rng(0)
    pure = [letter * layers for letter in "FSKG"]
    mixed = [(pattern * layers)[:layers] for pattern in ("FSGK", "KGSF", "GFKF", "SKGG", "FFSK", "SGSG")]
    lengths = (24, 7, 40, 13, 90, 5, 80, 19, 33, 61)
    return [[p, rng.integers(3, vocab, size=n).tolist(), new] for p, n in zip(pure + mixed, lengths, strict=True)]


@pytest.mark.parametrize("format", ["native", "apriel2", "oracle"])
def test_every_answer_is_that_of_whole_forward_passes(format, vllm, greedy, tmp_path):
    folder = ORACLE
    if format == "oracle" and not ORACLE.exists():
        pytest.skip(f"no {ORACLE}")
    if format != "oracle":
        # Untied without biases and SiLU gates; the oracle is tied, has biases; native has the sigmoid.
        folder = tmp_path / "supernet"
        save(
            random_supernet(NATIVE.replace(kda_gate="sigmoid" if format == "native" else "silu", qkv_bias=format == "native")),
            folder,
            format,
        )
    model = load(folder)
    requests = requests_of(model.config.layers, model.config.vocab, 24)
    small = 40 * 8192 if format == "native" else 64 << 20  # fewer pages than the requests want together
    seen = run(vllm, folder, tmp_path, requests, small, abort=[6], bad=["FXFF", "FF", 7])
    expected = {str(i): greedy(model, *request) for i, request in enumerate(requests) if i != 6}
    assert {i: answer for i, answer in seen["answers"].items() if i != "6"} == expected
    assert seen["largest_batch"] >= 8 or format == "native"
    assert seen["mixed_steps"] > 0, "prefill and decode in one step"
    assert seen["free_after"] == seen["free_before"]
    assert seen["kernels"] == "numba" and not seen["prefix_caching"]
    for sentence, word in zip(seen["refused"], ("unknown mixer X", "has 2 layers", "got 7"), strict=True):
        assert word in sentence and "\n" not in sentence
    if format == "native":
        assert seen["preempted"] > 0
        pages_are_those_of_the_placement(seen)


def pages_are_those_of_the_placement(seen):
    """No request holds more pages than the exact bytes of its mixers need, but for the part of a page in every layer."""
    size = seen["page_tokens"]
    assert seen["page_bytes"] == size * 2 * NATIVE.kv_heads * NATIVE.head_dim * 4
    for placement, total, new, held in seen["pages"]:  # the total counts what this step computes
        if not new:
            continue
        for letter, pages in zip(placement, held, strict=True):
            exact = {"F": total, "S": min(total, WINDOW - 1 + new), "K": 1, "G": 1}[letter]  # tokens
            least = ceil(exact / size)
            assert least <= pages <= least + (letter == "S"), (placement, total, new, held)
    most = {p: max(sum(held) for q, *_, held in seen["pages"] if q == p) for p in ("FFFF", "SSSS", "KKKK", "GGGG")}
    assert most["KKKK"] == most["GGGG"] == 4


def test_bfloat16_weights_give_the_likeliest_tokens_of_whole_forward_passes(vllm, tmp_path):
    model, folder = random_supernet(NATIVE).cast(torch.bfloat16), tmp_path / "supernet"
    save(model, folder)
    requests = requests_of(NATIVE.layers, NATIVE.vocab, 24)
    seen = run(vllm, folder, tmp_path, requests, 64 << 20, dtype="bfloat16")
    placements, prompts, _ = zip(*requests, strict=True)
    said = [seen["answers"][str(i)] for i in range(len(requests))]
    equal, worst = compare(model.float(), list(prompts), list(placements), said)
    assert max(worst) < TOLERANCE["bfloat16"]
    assert sum(equal) > 0.6 * 24 * len(requests)  # one tie that breaks the other way changes all that follows


def test_a_fixed_layout_serves_its_one_placement(vllm, greedy, tmp_path):
    """``python -m supernet.checkpoint convert --placement``: the mixers of one placement, and no others. It is native always."""
    save(random_supernet(NATIVE), tmp_path / "supernet")
    folder = tmp_path / "fixed"
    assert main(["convert", str(tmp_path / "supernet"), str(folder), "--to", "native", "--placement", "KFGS"]) == 0
    model = load(folder)
    assert model.config.fixed == "KFGS"
    requests = [[placement, prompt, 12] for placement, (_, prompt, _) in zip(("KFGS", "", "KFGS"), requests_of(4, 97, 1)[4:], strict=False)]
    seen = run(vllm, folder, tmp_path, requests, 64 << 20, bad=["FFFF"])
    assert seen["answers"] == {str(i): greedy(model, "KFGS", prompt, 12) for i, (_, prompt, _) in enumerate(requests)}
    assert "exported with KFGS alone" in seen["refused"][0]


REFUSALS = """
from types import SimpleNamespace as Some
import vllm
from supernet.serving.register import refuse
fine = dict(
    parallel_config=Some(tensor_parallel_size=1, pipeline_parallel_size=1), model_config=Some(quantization=None),
    cache_config=Some(cache_dtype="auto"), lora_config=None, speculative_config=None, kv_transfer_config=None,
)
refuse(Some(**fine))
for field, value in (
    ("parallel_config", Some(tensor_parallel_size=2, pipeline_parallel_size=1)),
    ("parallel_config", Some(tensor_parallel_size=1, pipeline_parallel_size=2)),
    ("model_config", Some(quantization="fp8")),
    ("cache_config", Some(cache_dtype="fp8")),
    ("lora_config", Some()),
    ("speculative_config", Some()),
    ("kv_transfer_config", Some()),
    (None, None),
):
    if field is None:
        vllm.__version__ = "0.99.0"
    try:
        refuse(Some(**fine | {field: value} if field else fine))
    except ValueError as error:
        print(error)
"""


def test_what_is_not_served_is_refused_in_one_line_each(vllm):
    done = subprocess.run([vllm[0], "-c", REFUSALS], env=vllm[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "INFO" not in line and "WARNING" not in line]
    named = ("--tensor-parallel-size is 2", "--pipeline-parallel-size is 2", "--quantization fp8", "--kv-cache-dtype", "--enable-lora",
             "--speculative-config", "--kv-transfer-config", "vLLM 0.99.0")  # fmt: skip
    assert len(lines) == len(named) and all(name in line for name, line in zip(named, lines, strict=True)), lines
