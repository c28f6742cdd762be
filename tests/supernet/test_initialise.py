"""Initialisation: exact where it can be, useful where it can't, and fair to the converter it is compared with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compare_init import compare, packed, public_initialise, table
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.initialise import calibrate, initialise
from supernet.scoring import Item

ORACLE = Path(__file__).parents[2].parent / "shared" / "oracles" / "apriel2" / "init_qwen2like"
CONFIG = SupernetConfig(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=40, window=8)


def pair(config=CONFIG, seed=0):
    """A random teacher, whose attention is sharper than torch's default, and an initialised supernet."""
    torch.manual_seed(seed)
    teacher, model = Supernet(config.replace(mixers="F")), Supernet(config)
    with torch.no_grad():
        for block in teacher.blocks:
            for projection in (block.mixers["F"].q_proj, block.mixers["F"].k_proj):
                projection.weight *= 3
    initialise(model, teacher)
    return model, teacher


def tokens(config=CONFIG, n=24, length=32, seed=1):
    return torch.randint(config.vocab, (n, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def errors(model, teacher, x):
    """Relative squared error of each layer's KDA and GDN on the teacher's layer inputs: {letter: [L]}."""
    h, out = teacher.embed(x), {"K": [], "G": []}
    for block, source in zip(model.blocks, teacher.blocks, strict=True):
        inputs = source.mixer_norm(h)
        target = source.mixers["F"](inputs)
        for letter, row in out.items():
            row.append(float((block.mixers[letter](inputs) - target).square().sum() / target.square().sum()))
        h = source(h, "F")[0]
    return {letter: np.array(row) for letter, row in out.items()}


@given(
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_all_fa_equals_the_teacher_exactly(group, kv_heads, layers, bias, tied, seed):
    config = CONFIG.replace(layers=layers, heads=group * kv_heads, kv_heads=kv_heads, gdn_value_heads=group * kv_heads,
                            gdn_key_heads=kv_heads, kda_heads=group * kv_heads, qkv_bias=bias, tied=tied)  # fmt: skip
    model, teacher = pair(config, seed)
    x = tokens(config, 2, 9)
    assert torch.equal(model(x, "F" * layers), teacher(x, "F" * layers))
    short = x[:, : config.window]  # inside the window SWA sees everything
    torch.testing.assert_close(model(short, "S" * layers), teacher(short, "F" * layers))


@pytest.mark.parametrize("calibrated", [False, True])
def test_every_part_of_a_delta_mixer_can_learn(calibrated):
    model, teacher = pair()
    x = tokens(n=4)
    if calibrated:
        calibrate(model, teacher, tokens())
    for placement in ("KK", "GG"):
        model.zero_grad()
        model(x, placement).square().mean().backward()
        for block in model.blocks:
            for name, p in block.mixers[placement[0]].named_parameters():
                # f_a and g_a sit behind maps that start (partly) at zero; they move once those have
                if name not in ("f_a_proj.weight",):
                    assert p.grad is not None and p.grad.abs().max() > 0, name


def test_kda_keys_and_values_follow_the_teachers_grouping():
    model, teacher = pair()
    kda, gdn, attention = model.blocks[0].mixers["K"], model.blocks[0].mixers["G"], teacher.blocks[0].mixers["F"]
    d, group = CONFIG.head_dim, CONFIG.group
    v = gdn.in_proj_qkvz.weight[sum(gdn.widths[:2]) : sum(gdn.widths[:3])]
    for h in range(CONFIG.heads):
        own, its = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
        assert torch.equal(kda.k_proj.weight[own], attention.k_proj.weight[its])
        assert torch.equal(kda.v_proj.weight[own], attention.v_proj.weight[its])
        assert torch.equal(v[own], attention.v_proj.weight[its])


def test_calibration_brings_unseen_activations_closer_and_is_deterministic():
    model, teacher = pair()
    x = tokens(n=12, seed=2)
    before = errors(model, teacher, x)
    calibrate(model, teacher, tokens(n=32))
    after = errors(model, teacher, x)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate(model, teacher, tokens(n=32))
    for letter in "KG":
        assert (after[letter] < 0.95 * np.minimum(before[letter], 1)).all(), (letter, before[letter], after[letter])
    assert all(torch.equal(v, first[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x, "FF"), teacher(x, "FF"))


def test_calibration_folds_biases_in():
    config = CONFIG.replace(qkv_bias=True)
    model, teacher = pair(config)
    with torch.no_grad():
        teacher.embed.weight += 1.0  # a common direction, as real residual streams have
        for block in teacher.blocks:
            block.mixers["F"].k_proj.bias.normal_(0, 3)
    initialise(model, teacher)
    x = teacher.blocks[0].mixer_norm(teacher.embed(tokens(n=4)))
    attention, kda = teacher.blocks[0].mixers["F"], model.blocks[0].mixers["K"]
    wanted = attention.k_proj(x).unflatten(-1, (config.kv_heads, -1)).repeat_interleave(config.group, 2).flatten(2)
    dropped = (kda.k_proj(x) - wanted).norm()
    calibrate(model, teacher, tokens())
    assert (kda.k_proj(x) - wanted).norm() < 0.2 * dropped


def test_what_does_not_fit_is_refused():
    model, teacher = pair()
    with pytest.raises(ValueError, match="mixers 'FSKG': give an all-FA model"):
        initialise(model, model)
    with pytest.raises(ValueError, match="model.hidden is 64, the teacher's is 32"):
        initialise(model, Supernet(CONFIG.replace(hidden=32, mixers="F")))
    with pytest.raises(ValueError, match="kda has 2 heads of 16, the teacher 4 of 16"):
        initialise(Supernet(CONFIG.replace(kda_heads=2)), teacher)
    with pytest.raises(ValueError, match="model.gdn_key_dim is 8"):
        initialise(Supernet(CONFIG.replace(gdn_key_dim=8)), teacher)


def test_public_mapping_equals_the_public_converter():
    if not ORACLE.is_dir():
        pytest.skip("the reference conversion ../shared/oracles/apriel2/init_qwen2like is not here")
    load_file = pytest.importorskip("safetensors.torch").load_file
    given, wanted = load_file(ORACLE / "teacher.safetensors"), load_file(ORACLE / "supernet.safetensors")
    c = json.loads((ORACLE / "config_supernet.json").read_text())
    m = c["decoder"]["block"]["mixer"]["mixers"]
    config = SupernetConfig(
        layers=c["decoder"]["num_blocks"], hidden=c["hidden_size"], ffn=c["decoder"]["block"]["mlp"]["intermediate_size"],
        heads=m["attention"]["heads"], kv_heads=m["attention"]["head_groups"], head_dim=m["attention"]["head_size"],
        vocab=c["vocab_size"], window=m["sliding_window"]["window_size"], tied=True, qkv_bias=True, rope_theta=1e6, norm_eps=1e-6,
    )  # fmt: skip
    teacher, model = Supernet(config.replace(mixers="F")), Supernet(config)
    with torch.no_grad():
        for i, block in enumerate(teacher.blocks):
            for name, p in block.mixers["F"].named_parameters():
                p.copy_(given[f"model.decoder.blocks.{i}.mixer.{name}"])
    public_initialise(model, teacher, torch.Generator().manual_seed(0))
    letters = {"attention": "F", "sliding_window": "S", "gdn": "G", "kda": "K"}
    random = ("f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj", "beta_proj")
    for i, block in enumerate(model.blocks):
        for public, letter in letters.items():
            for name, p in block.mixers[letter].named_parameters():
                theirs = wanted[f"model.decoder.blocks.{i}.mixer.mixers.{public}.{name}"]
                if name.startswith(random):
                    assert p.shape == theirs.shape
                    assert abs(float(p.detach().std() / theirs.std()) - 1) < 0.25
                else:
                    torch.testing.assert_close(p.data, theirs, msg=f"{public}.{name}")


def test_comparison_judges_on_items_that_did_not_calibrate():
    _, teacher = pair()
    train = [Item(f"t{i}", "x", row, 4) for i, row in enumerate(tokens(n=32))]
    held = [Item(f"e{i}", "x", row, 4) for i, row in enumerate(tokens(n=6, length=20, seed=5))]
    frame = compare(teacher, train, held, 32, [0, 1], torch.float32)
    assert not frame.duplicated(["mapping", "placement", "mixer", "layer"]).any()
    whole = frame[frame["placement"] == "FF"]
    assert whole["quality"].nunique() == 1  # all-FA is the teacher, whatever the mapping
    mean = frame[frame["layer"].notna()].groupby("mapping")["error"].mean()
    assert mean["calibrated"] < mean["public"]
    gdn = frame[(frame["mapping"] == "public") & (frame["mixer"] == "G")]
    assert np.allclose(gdn["error"], 1)  # the public GDN puts out zero
    assert table(frame).count("\n") == 4
    with pytest.raises(ValueError, match="a row needs 99999"):
        packed(train, 99999)
