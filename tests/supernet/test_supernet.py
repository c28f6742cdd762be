import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from supernet.checkpoint import load
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.mixers import MIXERS
from supernet.mixers.delta import GatedDeltaNet, KimiDeltaAttention
from supernet.scoring import Item, score
from supernet.size import count_bytes, count_parameters, count_trainable, forward_flops

TINY = SupernetConfig(layers=3, hidden=48, ffn=80, heads=4, kv_heads=2, head_dim=16, vocab=40, window=6)
SCALES = {
    "0.5b": SupernetConfig(24, 896, 4864, 14, 2, 64, 151936, 4096, tied=True, qkv_bias=True, rope_theta=1e6, norm_eps=1e-6),
    "15b": SupernetConfig(48, 5120, 14336, 32, 8, 128, 131072, 4096),
}
ORACLE = Path(__file__).parents[2].parent / "shared" / "oracles" / "apriel2" / "tiny_bias_tied"
oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"reference outputs {ORACLE} are not here")
LETTER = {"attention": "F", "sliding_window": "S", "kda": "K", "gdn": "G"}


def make_model(config=TINY):
    torch.manual_seed(0)
    model = Supernet(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


# --- sizes


def expected_mixers(c):
    """Parameters of one layer's mixers, from the tensors' shapes as published."""
    H, kv, d, D = c.heads, c.kv_heads, c.head_dim, c.hidden
    attention = D * d * (2 * H + 2 * kv) + c.qkv_bias * d * (H + 2 * kv)
    qkv = d * (2 * kv + H)
    gdn = D * (qkv + H * d) + D * 2 * H + 4 * qkv + H * d * D + 2 * H + d
    kda = 4 * D * H * d + 3 * 4 * H * d + 2 * (D * d + d * H * d) + D * H + H + H * d + d
    return {"F": attention, "S": attention, "K": kda, "G": gdn}


@pytest.mark.parametrize(("scale", "teacher", "supernet"), [("0.5b", 494_032_768, "685M"), ("15b", 14_428_902_400, "24.6B")])
def test_parameters_are_the_published_ones(scale, teacher, supernet):
    config = SCALES[scale]
    assert count_parameters(config, "F") == teacher
    total = count_parameters(config)
    assert total == teacher + config.layers * sum(expected_mixers(config)[letter] for letter in "SKG")
    assert supernet in (f"{total / 1e6:.0f}M", f"{total / 1e9:.1f}B")
    assert count_trainable(config) == config.layers * sum(expected_mixers(config).values())


def test_counts_agree_with_a_model_that_exists():
    model = make_model()
    assert count_parameters(TINY) == sum(p.numel() for p in model.parameters())
    assert count_bytes(TINY, torch.bfloat16) == 2 * count_parameters(TINY)
    assert count_trainable(TINY, "K") == sum(p.numel() for b in model.blocks for p in b.mixers["K"].parameters())


def test_flops_are_two_per_weight_and_token_plus_the_mixing():
    tokens, c = 10, TINY
    pairs = tokens * (tokens + 1) / 2
    weights = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.ffn
    expected = 2 * tokens * weights + 4 * pairs * c.heads * c.head_dim
    assert forward_flops(c, "F", tokens, head_tokens=0) == expected
    windowed = sum(min(i + 1, c.window) for i in range(tokens))
    assert forward_flops(c, "F", tokens) - forward_flops(c, "S", tokens) == 4 * (pairs - windowed) * c.heads * c.head_dim


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "model.layers is 0"),
        ({"heads": 3}, "model.heads=3 is not a multiple of model.kv_heads=2"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"kda_gate": "relu"}, "choose silu or sigmoid"),
        ({"mixers": "FF"}, "each mixer letter once"),
        ({"mixers": "FX"}, "unknown mixer X: choose from F, S, K, G"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Supernet(TINY.replace(**change))


# --- mixers


@pytest.mark.parametrize("letter", "FSKG")
def test_mixers_are_causal_and_deterministic(letter):
    torch.manual_seed(1)
    mixer = make_model().blocks[0].mixers[letter]
    x = torch.randn(2, 33, TINY.hidden)
    changed = x.clone()
    changed[:, 20:] = torch.randn(2, 13, TINY.hidden)
    with torch.no_grad():
        a, b, short = mixer(x), mixer(changed), mixer(x[:, :20])
    torch.testing.assert_close(a[:, :20], b[:, :20], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a[:, :20], short, atol=1e-5, rtol=1e-5)
    assert (a[:, 20:] - b[:, 20:]).abs().mean() > 1e-3


def test_window_limits_what_one_layer_sees():
    model = make_model()
    x = torch.randn(1, 20, TINY.hidden)
    changed = x.clone()
    changed[:, 0] += 1.0
    with torch.no_grad():
        for letter, sees in (("S", False), ("F", True), ("K", True), ("G", True)):
            difference = (model.blocks[0].mixers[letter](x) - model.blocks[0].mixers[letter](changed))[0].abs().amax(-1)
            assert difference[TINY.window - 1] > 1e-4  # the last token whose window holds token 0
            assert (difference[TINY.window :].max() > 1e-6) == sees, letter


def test_gdn_is_kda_with_a_decay_that_is_constant_over_channels():
    """Without grouping, KDA given GDN's weights and a rank-H decay path computes the same."""
    config = TINY.replace(kv_heads=4, gdn_key_heads=4)
    H, d, D = 4, 16, config.hidden
    torch.manual_seed(2)
    gdn, kda = GatedDeltaNet(config), KimiDeltaAttention(config)
    with torch.no_grad():
        for p in gdn.parameters():
            p.normal_(std=0.3)
        q, k, v, z = gdn.in_proj_qkvz.weight.split(gdn.widths)
        beta, alpha = gdn.in_proj_ba.weight.split(H)
        for name, weight in (("q", q), ("k", k), ("v", v)):
            getattr(kda, f"{name}_proj").weight.copy_(weight)
        for name, weight in zip("qkv", gdn.convolution.weight.split(H * d), strict=True):
            getattr(kda, f"{name}_conv").weight.copy_(weight)
        kda.beta_proj.weight.copy_(beta)
        kda.f_a_proj.weight.zero_()[:H] = alpha
        kda.f_b_proj.weight.zero_()
        for h in range(H):
            kda.f_b_proj.weight[h * d : (h + 1) * d, h] = 1.0
        kda.A_log.copy_(gdn.A_log)
        kda.dt_bias.copy_(gdn.dt_bias.repeat_interleave(d))
        kda.norm.weight.copy_(gdn.norm.weight)
        kda.o_proj.weight.copy_(gdn.out_proj.weight)
        # KDA's gate has rank d < H d, so it cannot copy z: replace the two projections by one.
        kda.g_a_proj, kda.g_b_proj = nn.Identity(), nn.Linear(D, H * d, bias=False)
        kda.g_b_proj.weight.copy_(z)
        x = torch.randn(2, 40, D)
        torch.testing.assert_close(kda(x), gdn(x), atol=1e-5, rtol=1e-4)


def test_features_give_each_layers_mixer_output():
    model, tokens = make_model(), torch.arange(24).view(2, 12)
    with torch.no_grad():
        hidden, outputs = model.features(tokens, "FKG")
        x = model.embed(tokens)
        for block, letter, output in zip(model.blocks, "FKG", outputs, strict=True):
            torch.testing.assert_close(output, block.mixers[letter](block.mixer_norm(x)))
            x = x + output
            x = x + block.mlp(block.mlp_norm(x))
        torch.testing.assert_close(hidden, model.norm(x))
        torch.testing.assert_close(model(tokens, "FKG"), hidden @ model.head.weight.T)


# --- a fifth mixer: one class and one entry


class MeanSoFar(nn.Module):
    """The mean of all tokens up to the present one, projected."""

    def __init__(self, config):
        super().__init__()
        self.proj = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x):
        return self.proj(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])

    @classmethod
    def mixing_flops(cls, config, tokens):
        return 2.0 * tokens * config.hidden


def test_fifth_mixer_is_one_class_and_one_entry(monkeypatch):
    monkeypatch.setitem(MIXERS, "Q", MeanSoFar)
    config = TINY.replace(mixers="FSKGQ")
    model = make_model(config)
    assert count_parameters(config) - count_parameters(TINY) == config.layers * config.hidden**2
    item = Item("a", "t", torch.arange(20), 5)
    placements = ["QQQ", "FQG", "FSK", "FQQ"]
    logp, counts = score(model, placements, [item], 1 << 30)
    with torch.no_grad():
        for p, found in zip(placements, logp[:, 0], strict=True):
            expected = model(item.tokens[None], p)[0].log_softmax(-1)[torch.arange(4, 19), item.tokens[5:]].sum()
            assert found == pytest.approx(float(expected), abs=1e-4)
    assert counts.layer_evaluations == len({p[:n] for p in placements for n in (1, 2, 3)})


# --- the reference implementation


@pytest.fixture(scope="module")
def reference():
    placements = json.loads((ORACLE / "placements.json").read_text())
    return load(ORACLE), {n: "".join(LETTER[m] for m in p) for n, p in placements.items()}, np.load(ORACLE / "oracle.npz")


@oracle
@pytest.mark.parametrize("length", ["short", "long"])
def test_logits_equal_the_reference_for_all_placements(reference, length):
    model, placements, expected = reference
    assert len(placements) == 10
    tokens = torch.from_numpy(expected[f"input_ids_{length}"])
    for name, placement in placements.items():
        with torch.no_grad():
            logits = model(tokens, placement)
        np.testing.assert_allclose(logits.numpy(), expected[f"logits_{length}/{name}"], atol=2e-4, rtol=0, err_msg=name)


@oracle
def test_hidden_states_equal_the_reference(reference):
    model, placements, expected = reference
    tokens = torch.from_numpy(expected["input_ids_short"])
    for name, placement in placements.items():
        with torch.no_grad():
            x, states = model.embed(tokens), []
            for block, letter in zip(model.blocks, placement, strict=True):
                states.append(x)
                x = block(x, letter)[0]
        states.append(model.norm(x).detach())
        np.testing.assert_allclose(torch.stack(states).detach().numpy(), expected[f"hidden_short/{name}"], atol=2e-4, rtol=0)


@oracle
@pytest.mark.parametrize("mixer", list(LETTER))
def test_mixer_outputs_equal_the_reference(reference, mixer):
    model, _, expected = reference
    with torch.no_grad():
        output = model.blocks[0].mixers[LETTER[mixer]](torch.from_numpy(expected["mixer_input"]))
    np.testing.assert_allclose(output.numpy(), expected[f"mixer_output_block0/{mixer}"], atol=2e-4, rtol=0)
