"""The benchmarks of the GPU path run on a CPU too: smaller, and they say what they left out."""

import pytest
import torch

from experiments.bench import distillation, generation, losses, token_mixing
from experiments.bench.timing import NO_GPU
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: sizes are another")


def test_kernels_compare_what_runs_here_and_name_what_does_not(monkeypatch):
    monkeypatch.setitem(token_mixing.SIZES, "cpu", (64, 2, torch.float32))
    monkeypatch.setattr(token_mixing, "naive", lambda channels: token_mixing.delta_way("torch"))  # the real one takes half a minute
    table = token_mixing.run()
    assert set(table["operation"]) == {"delta rule, KDA", "delta rule, GDN", "window attention, w=2", "window attention, w=16"}
    ran = table[table["note"] == ""]
    assert set(ran["way"]) >= {"torch", "masked", "blocks", "causal, no window"}
    assert (ran["with backward ms"] > 0).all() and (ran.groupby("operation")["speed-up"].first() == 1).all()
    skipped = table[table["way"].isin(["fla", "fla-kda", "flex"])]
    assert len(skipped) == 5 and skipped["forward ms"].isna().all() and skipped["note"].str.startswith("skipped: ").all()


def test_losses_compare_what_runs_here_and_name_what_does_not(monkeypatch):
    monkeypatch.setitem(losses.SIZES, "cpu", (32, 8, 64, torch.float32))
    table = losses.run().set_index("way")
    assert (table.loc[["eager", "chunked torch"], "ms"] > 0).all() and table.loc["eager", "speed-up"] == 1
    assert table.loc["fused (Triton)", "note"] == NO_GPU and table.loc["Liger JSD", "note"].startswith("skipped: ")


def test_all_ways_of_the_loss_benchmark_compute_the_same():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 9, 8, generator=generator) for _ in range(2))
    heads = [torch.nn.Linear(8, 17, bias=False) for _ in range(2)]
    mask = torch.rand(1, 9, generator=generator) < 0.7
    expected = losses.eager(student, teacher, *heads, mask)
    torch.testing.assert_close(losses.chunked(student, teacher, *heads, mask), expected)


def test_a_training_step_trains_the_mixers_it_drew_and_nothing_else(monkeypatch):
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 32, "gdn_key_heads": 1, "gdn_value_heads": 2, "kda_heads": 2}
    dims = {"gdn_key_dim": 32, "gdn_value_dim": 32, "kda_dim": 32}
    monkeypatch.setattr(distillation, "SMALL", {"layers": 4, "vocab": 64, "hidden": 64, "ffn": 64} | heads | dims)
    steps = distillation.Steps(distillation.shapes("135m").replace(**distillation.SMALL), 1, 20, "cpu")
    before = {name: p.detach().clone() for name, p in steps.student.named_parameters()}
    assert steps.step() == "FSKG"
    changed = {tuple(name.split(".")[:4]) for name, p in steps.student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {("blocks", str(i), "mixers", letter) for i, letter in enumerate("FSKG")}
    assert steps.step() == "SKGF"
    monkeypatch.setattr(distillation, "WARM_UP", 0)
    monkeypatch.setattr(distillation, "STEPS", 1)
    table = distillation.run(quick=True).set_index("scale")
    assert list(table.index) == ["135m", "0.5b"] and (table["tokens/s"] > 0).all() and table["delta rule"].isin(["torch", "numba"]).all()


def test_timed_decoding_gives_the_tokens_of_generate():
    torch.manual_seed(0)
    model = Supernet(SupernetConfig(layers=2, hidden=32, ffn=48, heads=2, kv_heads=1, head_dim=16, vocab=40, window=8)).eval()
    context = torch.randint(40, (3, 12))
    tokens, prefill, rest = generation.timed(model, "SG", context, 7)
    assert [t.tolist() for t in tokens] == [t.tolist() for t in generate(model, list(context), ["SG"] * 3, 7)]
    assert prefill > 0 and rest > 0


@pytest.mark.slow
def test_generation_is_compared_with_transformers():
    table = generation.run(quick=True)
    assert (table["same tokens"] == 1).all() and (table["ratio"] > 0).all()
