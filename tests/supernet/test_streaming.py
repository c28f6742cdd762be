"""A streamed sweep against the same sweep with the whole supernet in memory."""

import dataclasses
import gc
import time
import weakref

import numpy as np
import pytest
import torch

from supernet import checkpoint
from supernet.config import SupernetConfig
from supernet.decoder import Block, Supernet
from supernet.placement import exhaustive
from supernet.scoring import Item, build_trie, plan_chunks, score, score_chunk
from supernet.streaming import Traffic, resident_bytes, streamed

CONFIG = SupernetConfig(layers=3, hidden=24, ffn=40, heads=2, kv_heads=1, head_dim=8, vocab=32, window=4)
AMPLE = 1 << 30
PLACEMENTS = [str(p) for p in exhaustive(3)][::3]


def make_items(lengths):
    rng = np.random.default_rng(0)
    return [Item(f"item-{i}", "task", torch.from_numpy(rng.integers(CONFIG.vocab, size=n)), n // 2) for i, n in enumerate(lengths)]


def saved(folder, config=CONFIG, dtype=torch.float32):
    """(the model in memory, the reader of its folder)."""
    torch.manual_seed(0)
    model = Supernet(config).eval().requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.cast(dtype)
    checkpoint.save(model, folder, shard_bytes=20_000)
    return model, checkpoint.open_layers(folder)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, tied=True, qkv_bias=True)], ids=["plain", "tied"])
def test_scores_are_the_same_numbers(tmp_path, config, dtype, ahead):
    model, reader = saved(tmp_path / "net", config)  # float32 on disk: reading converts it as Supernet.cast does
    items, traffic = make_items([17, 9, 30, 18]), Traffic()
    empty, block_at = streamed(reader, dtype, "cpu", ahead, traffic)
    got, counts = score(empty, PLACEMENTS, items, AMPLE, block_at)
    expected, same_counts = score(model.cast(dtype), PLACEMENTS, items, AMPLE)
    np.testing.assert_array_equal(got, expected)
    assert counts == same_counts
    assert traffic.bytes == sum(entry.bytes for entry in reader.tensors.values()) and traffic.seconds > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_one_layer_is_held_or_two(tmp_path, ahead):
    _, reader = saved(tmp_path / "net")
    given, most = [], 0

    class Watched:
        config = reader.config
        shared, bytes_of_layer = reader.shared, reader.bytes_of_layer

        def layer(self, i):
            nonlocal most
            arrays = {name: tensor.numpy().copy() for name, tensor in reader.layer(i).items()}
            given.append(weakref.ref(arrays["mlp.gate_proj.weight"]))  # lives as long as the tensor's memory
            gc.collect()
            most = max(most, sum(ref() is not None for ref in given))
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    empty, block_at = streamed(Watched(), torch.float32, "cpu", ahead, Traffic())

    trie = build_trie(CONFIG, PLACEMENTS)
    for chunk in range(2):  # every chunk of items reads every layer once

        def no_faster_than_reading(layer, before=chunk * CONFIG.layers):
            block = block_at(layer)
            while ahead and layer + 1 < CONFIG.layers and len(given) < before + layer + 2:
                time.sleep(0.001)
            return block

        score_chunk(empty, trie, make_items([9, 12]), no_faster_than_reading)
    assert len(given) == 2 * CONFIG.layers
    assert most == (2 if ahead else 1)


def test_a_request_to_stop_is_heeded_between_layers(tmp_path):
    _, reader = saved(tmp_path / "net")

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError("asked to stop")

    calls = []
    empty, block_at = streamed(reader, torch.float32, "cpu", True, Traffic(), before=stop)
    with pytest.raises(InterruptedError, match="asked to stop"):
        score(empty, PLACEMENTS, make_items([9]), AMPLE, block_at)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_bytes_are_those_of_the_tensors(tmp_path, dtype):
    model, reader = saved(tmp_path / "net", dtype=dtype)
    shared, layer = resident_bytes(reader, dtype)
    assert shared == sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("blocks."))
    assert layer == sum(p.nbytes for p in model.blocks[0].parameters())
    assert resident_bytes(reader, torch.bfloat16)[1] >= sum(p.numel() for p in Block(CONFIG).parameters()) * 2


def test_weights_take_their_share_of_the_budget():
    items, trie = make_items([20, 9, 13]), build_trie(CONFIG, PLACEMENTS)

    def smallest(weights):
        with pytest.raises(ValueError, match="give at least") as error:
            plan_chunks(CONFIG, trie, items, 1, torch.float32, weights=weights)
        return int(str(error.value).split()[-2])

    assert smallest(12345) - smallest(0) == 12345
    assert len(plan_chunks(CONFIG, trie, items, smallest(12345), torch.float32, weights=12345)) == 3
    assert len(plan_chunks(CONFIG, trie, items, smallest(0) + 10**9, torch.float32, weights=0)) == 1
