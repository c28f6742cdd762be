"""Sequences for the ``tiny`` scale that separate the mixers, the teacher trained on them, and its own traces.

Three tasks: ``recall`` of key-value pairs from beyond the sliding window, ``local`` periodic patterns inside it, and ``state``, a few
registers that are written over now and then and read long after.
"""

import numpy as np
import torch
import torch.nn.functional as F

from experiments.config import DataConfig, TeacherConfig
from experiments.runs.progress import progress
from experiments.runs.streams import stream, torch_seed
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.scoring import Item

VOCAB = 64
BEGIN = {"recall": 0, "local": 1, "state": 2}
WRITE, READ = np.arange(3, 8), np.arange(56, 61)  # instructions: one of each for every register
KEYS, VALUES, SYMBOLS, DIGITS = np.arange(8, 28), np.arange(28, 48), np.arange(8, 48), np.arange(48, 56)


def recall(length: int, rng: np.random.Generator) -> list[int]:
    """Pairs of a key and its value, then the same keys again in random orders: every value after the first round can be known."""
    keys = rng.permutation(KEYS)[:12]
    value = dict(zip(keys.tolist(), rng.choice(VALUES, size=len(keys)).tolist(), strict=True))
    out = [BEGIN["recall"]]
    while len(out) < length:
        for key in rng.permutation(keys).tolist():
            out += [key, value[key]]
    return out[:length]


def local(length: int, rng: np.random.Generator) -> list[int]:
    """A motif of 3 to 8 symbols over and over; at one place in ten the motif itself changes."""
    motif = rng.choice(SYMBOLS, size=rng.integers(3, 9)).tolist()
    out = [BEGIN["local"]]
    for t in range(length - 1):
        if rng.random() < 0.1:
            motif[t % len(motif)] = int(rng.choice(SYMBOLS))
        out.append(motif[t % len(motif)])
    return out


def state(length: int, rng: np.random.Generator) -> list[int]:
    """Pairs of an instruction and a digit: what is read from a register is what was last written into it, 17 tokens ago on average."""
    out, held = [BEGIN["state"]], {}
    while len(out) < length:
        register = int(rng.integers(len(WRITE)))
        if register not in held or rng.random() < 0.3:
            held[register] = int(rng.choice(DIGITS))
            out.append(int(WRITE[register]))
        else:
            out.append(int(READ[register]))
        out.append(held[register])
    return out[:length]


TASKS = {"recall": recall, "local": local, "state": state}

UNLEARNED = 1.0
"""Nats: a teacher whose loss on what can be known is above it has not learned a task, so that no mixer can lose it (docs/study.md)."""

PROBES = 192
"""Sequences on which that loss is taken."""


def sequences(count: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """(tokens [count, length], task of each): the tasks in turn."""
    tasks = [list(TASKS)[i % len(TASKS)] for i in range(count)]
    return np.array([TASKS[task](length, rng) for task in tasks]), tasks


def known(task: str, tokens: list[int]) -> list[int]:
    """The places whose token follows from those before it: a value in recall whose key has come before, a digit that is read in state, a
    symbol of the motif that did not change in local."""
    if task == "local":
        period = min(range(3, 9), key=lambda p: (np.mean(np.array(tokens[1 + p :]) != tokens[1:-p]), p))
        return [t for t in range(1 + 2 * period, len(tokens)) if tokens[t] == tokens[t - period] == tokens[t - 2 * period]]
    if task == "recall":
        return [t for t in range(2, len(tokens), 2) if tokens[t - 1] in tokens[1 : t - 1 : 2]]
    return [t for t in range(2, len(tokens), 2) if tokens[t - 1] in READ]


@torch.no_grad()
def known_losses(net: Supernet, length: int, rng: np.random.Generator) -> dict[str, float]:
    """By task, the loss of an all-FA model in nats on the tokens that can be known in the second half of fresh sequences."""
    tokens, tasks = sequences(PROBES, length, rng)
    logits = net(torch.from_numpy(tokens[:, :-1]), "F" * net.config.layers)
    loss = F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(tokens[:, 1:]), reduction="none").numpy()
    found: dict[str, list[float]] = {}
    for row, task, its in zip(tokens.tolist(), tasks, loss, strict=True):
        found.setdefault(task, []).extend(its[t - 1] for t in known(task, row) if t >= length // 2)
    return {task: round(float(np.mean(values)), 6) for task, values in found.items() if values}


def unlearned(losses: dict[str, float]) -> list[str]:
    """What to warn of where a teacher has not learned a task: a sentence, or none."""
    those = ", ".join(f"{task} ({loss:.2f} nats)" for task, loss in losses.items() if loss > UNLEARNED)
    return [f"The teacher has not learned {those}: no placement can lose there what it never had. Try another teacher.lr, or more "
            "teacher.steps."] if those else []  # fmt: skip


def train_teacher(model: SupernetConfig, teacher: TeacherConfig, data: DataConfig) -> Supernet:
    """An all-FA model trained on fresh sequences with next-token loss; the same seed gives the same weights."""
    if model.vocab < VOCAB:
        raise ValueError(f"model.vocab is {model.vocab}: the synthetic sequences use {VOCAB} tokens, give at least that")
    rng = stream(teacher.seed, "teacher")
    with torch.random.fork_rng(devices=[]):  # module constructors know no generator
        torch.manual_seed(torch_seed(teacher.seed, "teacher's weights"))
        net = Supernet(model.replace(mixers="F"))
        torch.nn.init.normal_(net.embed.weight, std=0.5)
    if teacher.depth_scaled:
        for block in net.blocks:
            for added in (block.mixers["F"].o_proj, block.mlp.down_proj):
                added.weight.data.mul_((2 * model.layers) ** -0.5)  # GPT-2 (Radford et al. 2019, section 2.3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=teacher.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, teacher.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * (0.02 + 0.98 * max(0.0, 1 - s / teacher.steps))
    )
    placement = "F" * model.layers
    bar = progress(range(teacher.steps), "teacher")
    for _ in bar:
        tokens = torch.from_numpy(sequences(teacher.batch, data.length, rng)[0])
        loss = F.cross_entropy(net(tokens[:, :-1], placement).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return net.requires_grad_(False)


@torch.no_grad()
def sample_traces(net: Supernet, data: DataConfig, count: int, rng: np.random.Generator, generator: torch.Generator) -> list[Item]:
    """Fresh prompts continued by the teacher itself at temperature 1: the items that placements are scored on."""
    prompts, tasks = sequences(count, data.prompt, rng)
    tokens, placement = torch.from_numpy(prompts), "F" * net.config.layers
    for _ in progress(range(data.length - data.prompt), "traces"):
        probabilities = net.head(net.features(tokens, placement)[0][:, -1]).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return as_items(tokens, tasks, data.prompt)


def training_items(data: DataConfig, rng: np.random.Generator) -> list[Item]:
    tokens, tasks = sequences(data.train, data.length, rng)
    return as_items(torch.from_numpy(tokens), tasks, data.prompt)


def as_items(tokens: torch.Tensor, tasks: list[str], prompt: int) -> list[Item]:
    return [Item(f"{task}-{i:05d}", task, row, prompt) for i, (task, row) in enumerate(zip(tasks, tokens, strict=True))]
