"""``python -m experiments.teach scale=...``: the frozen teacher, training sequences and evaluation items, made once and cached."""

import torch

from experiments.config import Config
from experiments.data.items import read_items
from experiments.data.making import make_missing
from experiments.run import Run
from experiments.runs.entry import run


def teach(config: Config) -> None:
    """Make what is missing of teacher and data. Raises ValueError where the teacher's weights cannot be had."""
    if config.items_file:
        print(f"teach: nothing to make, items are given in {config.items_file}")
        return
    torch.set_num_threads(config.threads)
    run = Run.of(config)
    make_missing(run, config.device)
    if run.needs_teacher:
        print(f"teacher: {run.teacher_dir}")
    longest, model = 0, run.model
    for name in run.sequence_names:
        path = run.sequences(name)
        found = read_items(path)
        longest = max(longest, *(len(item.tokens) for item in found))
        print(f"{name}: {len(found)} sequences in {path}")
    if not config.supernet and "S" in model.mixers and longest <= model.window:
        raise ValueError(f"no sequence in {run.data_dir} has more than {longest} tokens: with model.window={model.window} S is F: "
                         f"set it to {longest // 2} or less, or give longer prompts or answers")  # fmt: skip


if __name__ == "__main__":
    run(teach)
