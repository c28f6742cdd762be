"""What a CPU cannot show: kernels, training and sweep on CUDA against the same on a CPU. Skipped where torch sees no GPU."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.config import check
from experiments.data.items import collate, read_items, write_items
from experiments.data.synthetic import training_items
from experiments.distill import distill
from experiments.faults.drill import SMALL
from experiments.run import Run
from experiments.runs.records import read_json, read_metrics
from experiments.sweeping.weights import memory_bytes
from experiments.training.build import initialised_supernet
from experiments.training.distilling import Distillation
from experiments.training.resume import ResumeState
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import extend, generate
from supernet.ops import kernels, losses
from supernet.ops.window import window_attention, window_attention_masked
from supernet.placement import exhaustive
from supernet.scoring import Item, score
from supernet.state import States
from supernet.teacher import load_teacher, save_teacher

CONF = Path(__file__).parents[2] / "conf"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
needs_fla = pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="fla-core is not installed: pip install -e '.[kernels]'")


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """Every test starts with the torch kernels and full float32 products."""
    monkeypatch.setattr(kernels, "_way", "torch")
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def make_config(folder, *overrides):
    """A two-layer run whose teacher (random) and data are there."""
    places = [f"results={folder / 'results'}", f"cache={folder / 'cache'}"]
    on_gpu = ["trainer.accelerator=auto", "device=auto"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", ["scale=tiny", *SMALL, *on_gpu, *places, *overrides]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_teacher(Supernet(Run.of(config).model.replace(mixers="F")), Run.of(config).teacher_dir, "random")
    for name, seed in (("train", 0), ("items", 1)):
        write_items(training_items(config.data, np.random.default_rng(seed)), Run.of(config).data_dir / f"{name}.parquet")
    return config


def small_supernet(config):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Supernet(Run.of(config).model).requires_grad_(False).eval()
        for name, p in model.named_parameters():
            if "conv" in name:
                p.normal_()  # torch leaves them at zero, which would leave KDA and GDN there too
        return model


def some_items(config, count=6):
    rng = np.random.default_rng(2)
    lengths = rng.integers(8, 20, size=count)
    return [Item(f"item-{i}", "random", torch.from_numpy(rng.integers(config.model["vocab"], size=n)), 4) for i, n in enumerate(lengths)]


@needs_fla
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("way", ["torch", "fla", "fla-kda"])
@pytest.mark.parametrize("dims", [(32, 32, 32), (64, 64, 64), (128, 128, 128)])
def test_delta_rule_forward_backward_and_decode_step(way, dtype, dims):
    """fla itself refuses GDN's backward on Hopper with an old Triton: then ``fla-kda`` is the way to take."""
    try:
        errors = kernels.self_test(way, dtype, dims, "cuda")
    except RuntimeError as refusal:
        if way == "fla" and "Triton" in str(refusal):
            pytest.skip(f"fla refuses: {refusal}")
        raise
    assert kernels.failures(errors, dtype) == [], errors


@needs_fla
@pytest.mark.parametrize("length", [1, 63, 64, 65, 700])
def test_mixers_give_on_cuda_what_they_give_on_a_cpu(config, length):
    model, x = small_supernet(config), torch.randn(2, length, 32, generator=torch.Generator().manual_seed(0))
    for letter, mixer in model.blocks[0].mixers.items():
        expected = mixer(x)
        on_gpu = copy.deepcopy(mixer).cuda()
        for way in kernels.WAYS:
            kernels.use(way)
            error = (on_gpu(x.cuda()).cpu() - expected).norm() / expected.norm()
            assert error < (1e-4 if way == "torch" else 1e-2), (letter, way)


@pytest.mark.parametrize("tokens, window", [(100, 32), (257, 64), (64, 64), (300, 1)])
def test_window_attention_forward_and_backward(tokens, window):
    results = []
    for function in (window_attention_masked, window_attention):
        g = torch.Generator().manual_seed(0)
        qkv = [torch.randn(2, 3, tokens, 32, generator=g).cuda().requires_grad_() for _ in range(3)]
        function(*qkv, window).square().sum().backward()
        results.append([x.grad for x in qkv])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("vocab", [11, 4097, 50000])
def test_fused_losses_equal_the_chunked_ones(dtype, tolerance, vocab, monkeypatch):
    """More tokens than a chunk, not a multiple of it, some masked."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 300, 64, generator=g).to("cuda", dtype) for _ in range(2))
    heads = [torch.nn.Linear(64, vocab, bias=False).requires_grad_(False) for _ in range(2)]
    for head in heads:
        head.weight.copy_(torch.randn(vocab, 64, generator=g) / 4)
        head.to("cuda", dtype)
    mask = (torch.rand(2, 300, generator=g) < 0.9).cuda()
    results = []
    assert losses.fused(student, *heads)
    for way in (lambda *_: False, lambda *_: True):
        monkeypatch.setattr(losses, "fused", way)
        h = student.clone().requires_grad_()
        forward, reverse = losses.kl_losses(h, teacher, *heads, mask)
        (forward + 2 * reverse).backward()
        results.append((forward.detach(), reverse.detach(), h.grad.float()))
    for a, b in zip(*results, strict=True):
        assert float((a - b).norm() / a.norm()) < tolerance


def test_a_distillation_step_gives_the_losses_and_gradients_of_a_cpu(config):
    run, teacher = Run.of(config), load_teacher(Run.of(config).teacher_dir)
    on_cpu = Distillation(run, initialised_supernet(run, teacher), teacher)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    batch = collate(read_items(Run.of(config).data_dir / "train.parquet", 4))
    expected = on_cpu.losses(batch, "KG")
    found = on_gpu.losses(tuple(x.cuda() for x in batch), "KG")
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-5, rtol=1e-3)
    expected["loss"].backward()
    found["loss"].backward()
    for (name, a), b in zip(on_cpu.student.named_parameters(), on_gpu.student.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert float((a.grad - b.grad.cpu()).norm()) <= 1e-2 * float(a.grad.norm()) + 1e-6, name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_runs_and_a_killed_one_continues_to_the_same_losses(tmp_path, precision, monkeypatch):
    whole = make_config(tmp_path / "whole", f"distill.precision={precision}")
    cut = make_config(tmp_path / "cut", f"distill.precision={precision}")
    distill(whole)
    assert read_json(Run.of(whole).folder / "manifest.json")["delta_rule"] in {kernels.describe(way) for way in kernels.WAYS if usable(way)}

    saved = ResumeState.on_train_batch_end

    def killed_after_four(self, trainer, module, *rest):
        saved(self, trainer, module, *rest)
        if module.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumeState, "on_train_batch_end", killed_after_four)
    with pytest.raises(BaseException):  # noqa: B017, PT011  Lightning may turn it into SystemExit
        distill(cut)
    monkeypatch.setattr(ResumeState, "on_train_batch_end", saved)
    distill(cut)
    runs = [[row["loss"] for row in read_metrics(Run.of(c).folder)] for c in (whole, cut)]
    assert len(runs[0]) == whole.distill.steps
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-3 if precision == "32-true" else 3e-2)


def usable(way):
    return way == "torch" or importlib.util.find_spec("fla") is not None


def test_a_sweep_on_cuda_equals_one_on_a_cpu(config):
    model, items, placements = small_supernet(config), some_items(config), list(exhaustive(2))
    expected, counts = score(model, placements, items, 1 << 28)
    found, on_gpu = score(copy.deepcopy(model).cuda(), placements, items, 1 << 30)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (on_gpu.prefixes, on_gpu.layer_evaluations) == (counts.prefixes, counts.layer_evaluations)


def test_memory_gib_0_takes_a_share_of_the_free_memory_and_a_sweep_stays_within_its_budget(tmp_path):
    config = make_config(tmp_path, "memory_gib=0")
    free, total = torch.cuda.mem_get_info()
    assert 0.5 * free < memory_bytes(config.memory_gib, "cuda") < total
    model, budget = small_supernet(config).cuda(), 1 << 30
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score(model, list(exhaustive(2)), some_items(config), budget)
    assert torch.cuda.max_memory_allocated() - before <= budget


DECODED = ("FFFF", "SSSS", "KKKK", "GGGG", "FSKG")


def decoding_supernet():
    config = SupernetConfig(layers=4, hidden=128, ffn=192, heads=4, kv_heads=2, head_dim=64, vocab=97, window=16)
    torch.manual_seed(0)
    model = Supernet(config).requires_grad_(False).eval()
    for name, p in model.named_parameters():
        if "conv" in name:
            torch.nn.init.normal_(p, std=0.5)
    return model


def test_decoding_on_a_gpu_gives_the_tokens_of_a_cpu():
    model = decoding_supernet()
    prompts = [torch.randint(97, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 40, 40, 17, 100)]
    expected = generate(model, prompts, list(DECODED), 24)
    found = generate(copy.deepcopy(model).cuda(), prompts, list(DECODED), 24)
    assert [t.tolist() for t in found] == [t.tolist() for t in expected]


@needs_fla
@pytest.mark.parametrize("way", ["fla", "fla-kda"])
def test_decoding_by_fla_gives_the_logits_of_the_whole_forward(way):
    model = decoding_supernet().cast(torch.bfloat16).cuda()
    tokens = torch.randint(97, (2, 90), generator=torch.Generator().manual_seed(0)).cuda()
    for placement in DECODED:
        kernels.use("torch")
        whole = model(tokens, placement).float()
        kernels.use(way)
        states = States(model)
        rows = [states.join(placement) for _ in tokens]
        found = torch.cat([extend(model, states, rows, part, every=True) for part in tokens.split([70] + [1] * 20, 1)], 1)
        assert float((found - whole).norm() / whole.norm()) < 0.03, placement
