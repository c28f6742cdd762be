import json

import pytest
import torch
from chain import call, run_folder
from test_config import CONF, config

from experiments.data.items import write_items
from experiments.overview import plan
from experiments.run import Run, Sweep
from experiments.sweeping.placements import select
from supernet.ops.losses import activation_error, kl_losses
from supernet.scoring import Item, score
from supernet.size import count_trainable, forward_flops


def said(capsys, command, options, rate=0.0):
    plan.print_plan(command, options, rate)
    return capsys.readouterr().out


def test_flags_are_taken_out():
    for given, rate in (["--flops", "4e14"], 4e14), (["--flops=2"], 2.0), ([], 0.0):
        arguments = ["x", "seed=1", "--dry-run", *given, "scale=tiny"]
        assert plan.taken_from(arguments) == rate and arguments == ["x", "seed=1", "scale=tiny"]


@pytest.mark.parametrize("given", [["--flops", "fast"], ["--flops"], ["--flops=-1"]])
def test_flags_that_make_no_sense(given):
    with pytest.raises(ValueError) as caught:
        plan.taken_from(["x", "--dry-run", *given])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", sorted(p.stem for p in (CONF / "scale").glob("*.yaml")))
def test_every_shipped_scale_has_a_plan_and_fits_its_machine(scale, tmp_path, capsys):
    options = config(f"scale={scale}", f"results={tmp_path}/r", f"cache={tmp_path}/c", "distill.steps=20")
    text = said(capsys, "chain", options, 4e14)
    assert [line.split()[2] for line in text.splitlines() if line.startswith("plan of")] == ["teach,", "distill,", "sweep,", "report,"]
    if not options.supernet:
        assert sum(plan.training_memory(Run.of(options)).values()) < 76 * 2**30  # of a GPU of 80 GB
    assert not list(tmp_path.iterdir())


def test_what_comes_with_the_suite_is_no_work(tmp_path, capsys):
    where = [f"results={tmp_path}/r", f"cache={tmp_path}/c"]
    assert said(capsys, "teach", config("scale=tiny", *where)).count("comes with the suite, copied") == 2  # teacher and items
    assert "comes with the suite" not in said(capsys, "teach", config("scale=tiny", "teacher.seed=1", *where))


def test_a_warm_up_that_does_not_end_is_told_beforehand(tmp_path, capsys):
    options = ["scale=tiny", f"results={tmp_path}/r", f"cache={tmp_path}/c", "distill.tokens_per_parameter=0", "distill.steps=10"]
    assert "  warning       distill.warmup=20 is longer than distill.steps=10" in said(capsys, "distill", config(*options))
    assert "warning" not in said(capsys, "distill", config(*options, "distill.warmup=10"))


def test_the_work_of_a_sweep_is_what_the_engine_counts(tmp_path):
    """FLOPs of the plan against those that the engine reports, some rows being there."""
    options = config(*SMALL_MODEL, f"results={tmp_path}/r", f"cache={tmp_path}/c", "placements=FF+FG+KS", "items=3", "steps=[0]")
    run, sweep = Run.of(options), Sweep.of(options)
    items = [Item(f"i{n}", "t", torch.randint(64, (20 + n,)), 8) for n in range(3)]
    write_items(items, run.items)
    groups = plan.missing_groups(["FF", "FG", "KS"], items, {("FF", "i0"), ("FG", "i0"), ("KS", "i0"), ("FF", "i2")})
    assert groups == [(("FF", "FG", "KS"), (1,)), (("FG", "KS"), (2,))]
    text = dict(plan.plan_sweep(run, sweep, 1e12))
    counts = score(small_supernet(run.model), list(select(sweep, run.model)["placement"]), items, 2**30)[1]
    assert text["work"].startswith(f"{counts.flops / 1e12:.3g} TFLOP: ") and "given" in text["work"]
    assert text["evaluations"].startswith(f"{counts.layer_evaluations} ")
    assert text["sweep"].startswith("3 placements x 3 items (63 tokens) x 1 checkpoints = 9 rows; 0 are there")


SMALL_MODEL = ["model={layers: 2, hidden: 32, ffn: 64, heads: 2, kv_heads: 1, head_dim: 16, vocab: 64, window: 8}", "device=cpu"]


def small_supernet(model):
    from supernet.decoder import Supernet

    return Supernet(model).eval().requires_grad_(False)


def test_training_flops_are_three_passes_where_everything_is_trained():
    """All-FA alone, no MLP to speak of and one word: backward is twice the forward pass, and the teacher's pass is one more."""
    shapes = "model={layers: 3, hidden: 64, ffn: 1, heads: 2, kv_heads: 2, head_dim: 32, vocab: 1, window: 8}"
    options = config(shapes, "+model.mixers=F", "distill.train_mixers=F", "distill.steps=5", "distill.batch=4", "data.kind=reasoning")
    run = Run.of(options)
    forward = forward_flops(run.model, "FFF", 40)
    assert plan.training_flops(run, {40: 7}) == pytest.approx(5 * 4 * (forward + 3 * forward), rel=0.02)
    twice = plan.training_flops(run, {40: 1, 80: 1})
    assert plan.training_flops(run, {40: 1}) < twice < plan.training_flops(run, {80: 1})


def test_memory_is_divided_among_devices():
    one = plan.training_memory(Run.of(config("scale=0.5b")))
    ddp = plan.training_memory(Run.of(config("scale=0.5b", "trainer.devices=8")))
    fsdp = plan.training_memory(Run.of(config("scale=0.5b", "trainer.devices=8", "trainer.strategy=fsdp")))
    assert ddp["optimizer"] == one["optimizer"] == 8 * count_trainable(Run.of(config("scale=0.5b")).model)
    assert fsdp["optimizer"] == one["optimizer"] / 8 and fsdp["weights"] < one["weights"]
    assert ddp["activations"] == pytest.approx(one["activations"] / 8, rel=0.3)
    without = plan.training_memory(Run.of(config("scale=0.5b", "trainer.recompute=false")))
    assert without["activations"] > 5 * one["activations"]


@pytest.mark.parametrize("placement", ["FFF", "KGK"])
def test_activations_are_those_of_a_real_step(placement):
    """Bytes that autograd keeps of a whole distillation step, against the plan's activations."""
    from supernet.decoder import Supernet

    shapes = "model={layers: 3, hidden: 96, ffn: 160, heads: 3, kv_heads: 1, head_dim: 32, vocab: 32, window: 8}"
    given = ["distill.sampler=targeted", f"distill.presets=[{placement}]", "distill.batch=4", "data.length=64", "data.prompt=8"]
    options = config(shapes, *given)
    model = Supernet(Run.of(options).model).requires_grad_(False)
    for block in model.blocks:
        block.mixers.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens, mask = torch.randint(32, (4, 64)), torch.ones(4, 64, dtype=torch.bool)
    with torch.no_grad():
        hidden, outputs = model.features(tokens, "FFF")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        own, mixed = model.features(tokens, placement)
        errors = [activation_error(s, t, mask) for s, t in zip(mixed, outputs, strict=True)]
        kl_losses(own, hidden, model.head, model.head, mask)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in [*outputs, *mixed, *errors]}
    total = sum(storage.nbytes() for storage in (kept | held).values())
    parts = plan.training_memory(Run.of(options))
    assert parts["activations"] == pytest.approx(total, rel=0.15)


def test_what_does_not_fit_a_card_is_said():
    assert plan.cards(85.9 * 2**30) == "24 GB does not fit by 62.4 GiB, 80 GB does not fit by 6.8 GiB, 141 GB fits"


def test_the_plan_of_a_grid_is_that_of_its_cells(tmp_path):
    given = [*SMALL_MODEL, "data.kind=synthetic", f"results={tmp_path}/r", f"cache={tmp_path}/c", "seed=1,2", "hydra/launcher=slurm"]
    done = call("distill", ["-m", *given, "--dry-run", "--flops", "1e12"])
    assert done.stdout.count("plan of distill") == 2 and "plan of the grid: 2 cells, " in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_the_real_command_touches_nothing(small, tmp_path):
    done = call("distill", [*small, "--dry-run", "--flops", "1e12"])
    assert "plan of distill, scale tiny: nothing is run or written" in done.stdout and "(given)" in done.stdout
    assert not list(tmp_path.iterdir())
    line = call("distill", [*small, "--dry-run", "--flops", "many"], expect=1).stderr
    assert line.startswith("error: --flops is 'many'") and line.count("\n") == 1


@pytest.mark.slow
def test_what_is_done_is_said(small, tmp_path):
    for name in ("teach", "distill", "sweep"):
        call(name, small)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    text = call("chain", [*small, "--dry-run"]).stdout
    assert text.count("there, skipped") == 3 and "all 4 checkpoints are there: nothing would be done" in text
    assert "every row is there: nothing would be done" in text and "96 tokens" not in text
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    manifest = json.loads((run_folder(small) / "manifest.json").read_text())
    assert f"{manifest['sweep']['distinct_prefixes']} of a layer" in call("sweep", [*small, "--dry-run", f"results={tmp_path}/new"]).stdout


def test_a_plan_says_what_does_not_fit_and_times_that_a_person_reads(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda: 4 * 2**30)
    assert plan.fits(3 * 2**30, "cpu") == "fits the 4.0 GiB of memory that are free here"
    assert plan.fits(6.5 * 2**30, "cpu") == "does not fit the 4.0 GiB of memory that are free here, by 2.5 GiB"
    assert plan.duration(24804.9 * 86400) == "67.9 years" and plan.duration(700 * 86400) == "700.0 days"
