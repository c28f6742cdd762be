"""Parts of the training that one process's numbers do not show: recomputed blocks, shares of a mean, ranks from the environment."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.config import SftConfig, check
from experiments.data.items import collate
from experiments.run import Run
from experiments.runs.entry import CONF
from experiments.training import parallel
from experiments.training.tuning import FineTuning
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops.losses import activation_error, activation_power, kl_losses, next_token_sum
from supernet.scoring import Item

MODEL = SupernetConfig(layers=2, hidden=32, ffn=64, heads=2, kv_heads=1, head_dim=16, vocab=64, window=8)


def composed(options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", options))


def items(lengths):
    rng = np.random.default_rng(0)
    return [Item(f"i{n}", "t", torch.from_numpy(rng.integers(0, 64, n)), 4) for n in lengths]


def test_recomputed_blocks_give_the_same_loss_and_gradients(small):
    torch.manual_seed(0)
    model, batch = Supernet(MODEL), collate(items([12, 20]))
    found = []
    for recompute in (False, True):
        run = Run.of(composed([*small, "stage=sft", f"trainer.recompute={recompute}", "sft.sampler=local"]))
        module = FineTuning(run, run.training, model)
        model.zero_grad()
        loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (again, recomputed) = found
    assert again == pytest.approx(loss, abs=1e-6) and gradients.keys() == recomputed.keys()
    for name in gradients:
        torch.testing.assert_close(recomputed[name], gradients[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["relative", "l2"])
def test_shares_of_ranks_add_up_to_the_mean_over_everything(kind, monkeypatch):
    """What each of two processes computes from its sequences, weighted, against both batches in one."""
    torch.manual_seed(0)
    mask = collate(items([5, 17, 9, 24]))[1]
    student, teacher, head = torch.randn(4, 24, 8), torch.randn(4, 24, 8), torch.nn.Linear(8, 16)

    def of(rows, weighed):
        s, t, m = student[rows], teacher[rows], mask[rows]
        kl, power = kl_losses(s, t, head, head, m)[0], activation_power(t, m, kind)
        error = activation_error(s, t, m, kind)
        return (kl * weighed(m.sum().float(), 0), error * weighed(power, 1))

    ranks = [slice(0, 4, 2), slice(1, 4, 2)]
    sums = (mask.sum().float(), sum(activation_power(teacher[r], mask[r], kind) for r in ranks))
    monkeypatch.setattr(parallel, "mean_over_ranks", lambda weight: weight)
    assert parallel.share_of_mean(sums[0]) == 1

    def share(weight, which):
        monkeypatch.setattr(parallel, "mean_over_ranks", lambda _: sums[which] / 2)
        return parallel.share_of_mean(weight)

    both = [of(rows, share) for rows in ranks]
    whole = of(slice(None), lambda weight, which: 1.0)
    for a, b, expected in zip(*both, whole, strict=True):
        assert ((a + b) / 2).item() == pytest.approx(expected.item(), rel=1e-6)


def test_next_token_loss_counts_the_answers_alone():
    torch.manual_seed(0)
    model, (tokens, mask, answer) = Supernet(MODEL), collate(items([12, 20]))
    assert answer.sum(1).tolist() == [8, 16] and not answer[:, :4].any() and not (answer & ~mask).any()
    hidden = model.features(tokens, "FG")[0]
    expected = 0.0
    for row, length in enumerate((12, 20)):
        logp = model.head(hidden[row]).log_softmax(-1)
        expected -= sum(logp[t - 1, tokens[row, t]].item() for t in range(4, length))
    assert next_token_sum(hidden, model.head, tokens, answer).item() == pytest.approx(expected, rel=1e-5)


def test_ranks_come_from_torchrun_srun_or_lightning(small, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    two = composed([*small, "trainer.devices=2"]).trainer
    assert parallel.is_first(two)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not parallel.is_first(two) and parallel.is_first(composed(small).trainer)
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "4"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="4 processes were started for trainer.devices=2 x trainer.nodes=1: start 2"):
        parallel.is_first(two)
    assert not parallel.is_first(composed([*small, "trainer.devices=2", "trainer.nodes=2"]).trainer)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(ValueError, match="start 4 processes of this command with srun or torchrun"):
        parallel.is_first(composed([*small, "trainer.devices=2", "trainer.nodes=2"]).trainer)


def test_the_second_stage_is_a_run_of_its_own_and_the_first_keeps_its_name(small):
    base, tuned = Run.of(composed(small)).id, Run.of(composed([*small, "stage=sft"])).id
    assert tuned.startswith(f"{base}-sft-")
    assert Run.of(composed([*small, "sft.lr=1e-3"])).id == base
    assert Run.of(composed([*small, "stage=sft", "sft.lr=1e-3"])).id != tuned
    assert Run.of(composed([*small, "stage=sft", "trainer.recompute=true"])).id == tuned
    assert SftConfig().sampler == "targeted"
