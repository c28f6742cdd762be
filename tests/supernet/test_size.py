import pytest
import torch

from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.placement import LETTERS
from supernet.size import backward_flops, forward_flops, layer_flops, layer_parameters, layer_saved_bytes

SHAPES = [
    {"hidden": 60, "ffn": 172, "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 16},
    {"hidden": 96, "ffn": 128, "heads": 3, "kv_heads": 1, "head_dim": 32, "window": 500},
    {"hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 4, "head_dim": 8, "window": 20, "gdn_key_dim": 16, "kda_dim": 24},
]


def saved_by_autograd(block, letter, x, autocast):
    """Bytes of distinct storages that are kept for backward: without weights, nor their copies in bf16."""
    shapes = {tuple(p.shape) for p in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tuple(tensor.shape) not in shapes and tuple(tensor.T.shape if tensor.dim() == 2 else ()) not in shapes:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        block(x, letter)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_bytes_are_those_that_autograd_saves(shape, letter, autocast):
    config = SupernetConfig(layers=1, vocab=64, **shape)
    block = Supernet(config).blocks[0].requires_grad_(False)
    block.mixers.requires_grad_(True)
    for p in block.parameters():
        if autocast and not p.requires_grad:
            p.data = p.data.bfloat16()
    batch, tokens = 2, 70  # no whole number of chunks
    x = torch.randn(batch, tokens, config.hidden, dtype=torch.bfloat16 if autocast else torch.float32, requires_grad=True)
    counted = layer_saved_bytes(config, letter, batch, tokens, 2 if autocast else 4)
    assert counted == pytest.approx(saved_by_autograd(block, letter, x, autocast), rel=0.02)


def test_backward_is_the_flops_that_torch_counts():
    """Attention layers: torch's own counter sees matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    config = SupernetConfig(layers=2, vocab=64, **SHAPES[1])
    model, tokens = Supernet(config).requires_grad_(False), 48
    for block in model.blocks:
        block.mixers.requires_grad_(True)
    x = torch.randn(1, tokens, config.hidden, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        y = x
        for block in model.blocks:
            y = block(y, "F")[0]
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    # torch counts all pairs of tokens, we the causal half of them
    pairs = 2 * (4.0 * tokens**2 * config.heads * config.head_dim - 2.0 * tokens * (tokens + 1) * config.heads * config.head_dim)
    assert forward.get_total_flops() == pytest.approx(2 * layer_flops(config, "F", tokens) + pairs, rel=1e-6)
    assert backward.get_total_flops() == pytest.approx(2 * backward_flops(config, "F", tokens, trained=True) + 2 * pairs, rel=1e-6)


def test_layers_add_up():
    config = SupernetConfig(layers=3, vocab=64, **SHAPES[0])
    assert forward_flops(config, "FKG", 40) == sum(layer_flops(config, m, 40) for m in "FKG") + 2.0 * 64 * 60 * 40
    assert layer_parameters(config, "F") == layer_parameters(config, "S") == 60 * (4 + 2 + 2) * 16 + 64 * 60
