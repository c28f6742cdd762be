"""``--dry-run``: what a command would do, need and write, from the options and from what is there already. Touches no file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.config import (
    Config,
    data_dir,
    items_path,
    model_config,
    needs_teacher,
    run_dir,
    sequence_files,
    stage_options,
    teacher_dir,
)
from experiments.data.items import read_items
from experiments.runs.steps import checkpoint_dir, state_path
from experiments.sweeping.parts import checkpoints, merge, pick_device, scored_pairs, tables_dir, unseen_window
from experiments.sweeping.placements import select
from experiments.sweeping.weights import free_memory, of_folder
from experiments.training.schedule import total_steps
from experiments.training.strategy import checkpoint_steps, draw
from supernet.config import SupernetConfig
from supernet.ops.losses import CHUNK
from supernet.scoring import Item, build_trie, sweep_flops
from supernet.size import (
    backward_flops,
    count_bytes,
    count_parameters,
    count_trainable,
    forward_flops,
    layer_flops,
    layer_parameters,
    layer_saved_bytes,
)

ASSUMED = {"cpu": 5e10, "cuda": 2e14}
"""FLOP/s of a device where ``--flops`` gives none: a few CPU cores; half of what dense bf16 kernels reach on an H100."""

LOGIT_COPIES = 7
"""float32 tensors of the size of one chunk's logits that live at once in the KL losses and their backward pass."""

ROW_BYTES, STEP_BYTES, REPORT_BYTES, TOKEN_BYTES = 10, 190, 2e6, 2
"""On disk: a row of a score table (5 to 17 measured), a line of metrics.jsonl, tables and figures of a report, a token of a sequence."""

CARDS = {"24 GB": 23.5, "80 GB": 79.1, "141 GB": 139.7}
"""GiB that programs can have of GPUs of these names."""

CHAIN = ("teach", "distill", "sweep", "report")
Line = tuple[str, str]


class Work(str):
    """What is said of a command's work, and the seconds that it says."""

    seconds = 0.0


def taken_from(arguments: list[str]) -> float:
    """Take ``--dry-run`` and ``--flops N`` out of a command's arguments: the FLOP/s per device that are given, or 0.

    Raises ValueError on a ``--flops`` that is no positive number.
    """
    arguments.remove("--dry-run")
    if {"-m", "--multirun"} & set(arguments):  # the cells are planned here, one after another, wherever they would run
        arguments[:] = [argument for argument in arguments if not argument.startswith(("hydra/launcher=", "hydra.launcher."))]
    given = [i for i, argument in enumerate(arguments) if argument.split("=")[0] == "--flops"]
    if not given:
        return 0.0
    _, equals, text = arguments.pop(given[0]).partition("=")
    text = text if equals else arguments.pop(given[0]) if given[0] < len(arguments) else ""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise ValueError(f"--flops is {text!r}: give a positive number of FLOP/s per device, such as 4e14")
    return rate


def print_plan(command: str, config: Config, flops_per_second: float = 0.0) -> float:
    """The plan of one command, or of each of the chain; the seconds of work that it says.

    ValueError where there is none, or where the options ask for the impossible.
    """
    if command == "sft":
        config = replace(config, stage="sft")
    seconds = 0.0
    for name in CHAIN if command == "chain" else (command,):
        if name not in PLANS:
            raise ValueError(f"--dry-run knows no plan of {name}: choose from {', '.join([*PLANS, 'chain'])}")
        lines = PLANS[name](config, flops_per_second)
        print(f"plan of {name}, scale {config.scale}: nothing is run or written")
        print("\n".join(f"  {label:<13} {text}" for label, text in lines), flush=True)
        seconds += sum(text.seconds for _, text in lines if isinstance(text, Work))
    return seconds


def plan_teach(config: Config, rate: float) -> list[Line]:
    if config.items_file:
        return [("done", f"nothing to make, items are given in {config.items_file}")]
    model, teacher = model_config(config), config.teacher
    parameters = count_parameters(model, "F")
    lines = [("model", f"all-FA {count(parameters)} parameters, from {teacher.path or teacher.source}")]
    flops, there = 0.0, teacher_dir(config).exists()
    if needs_teacher(config):
        lines += [("teacher", f"{teacher_dir(config)}, {size(4 * parameters)}{done(there)}")]
        if teacher.source == "trained" and not there:
            flops += 3 * teacher.steps * teacher.batch * forward_flops(model, "F" * model.layers, config.data.length)
    for name in sequence_files(config):
        found, note = sequences(config, name)
        tokens, written = sum(len(item.tokens) for item in found), (data_dir(config) / f"{name}.parquet").exists()
        sampled = (
            config.data.kind in ("reasoning", "prompts") and not config.data.answer or config.data.kind == "synthetic" and name == "items"
        )
        flops += 0.0 if written or not sampled else len(found) * forward_flops(model, "F" * model.layers, config.data.length)
        path = data_dir(config) / f"{name}.parquet"
        lines += [(name, f"{len(found)} sequences, {note}{count(tokens)} tokens, {path}, {size(tokens * TOKEN_BYTES)}{done(written)}")]
    return [*lines, *work(flops, rate, pick_device(config), 1)]


def plan_training(config: Config, rate: float) -> list[Line]:
    """Of distillation or fine-tuning, as ``config.stage`` says."""
    if config.supernet:
        return [("done", f"nothing to train: supernet={config.supernet} is given")]
    model, options, folder = model_config(config), stage_options(config), run_dir(config)
    world, steps = config.trainer.devices * config.trainer.nodes, checkpoint_steps(options)
    found, note = sequences(config, "train")
    trained = count_trainable(model, config.distill.train_mixers)
    there = [step for step in steps if (checkpoint_dir(folder, step) / "meta.json").exists()]
    tokens = np.mean([len(item.tokens) for item in found]) * options.batch * total_steps(options)
    device = "cuda" if config.trainer.accelerator in ("cuda", "gpu") or (config.trainer.accelerator == "auto" and cuda()) else "cpu"
    state = 12 * trained
    lines = [
        ("run", str(folder)),
        ("model", f"{model.layers} layers of {model.mixers}: all-FA {count(count_parameters(model, 'F'))}, supernet "
                  f"{count(count_parameters(model))}, trained {count(trained)} parameters"),
        ("training", f"{options.steps} steps of {options.batch} sequences on {world} device{'s' * (world > 1)}, sampler {options.sampler}, "
                     f"{note}{count(tokens)} tokens"),
        *memory_lines(config, device),
        ("files", f"{len(steps)} checkpoints of {size(4 * trained)} ({size(4 * trained * len(steps))}), until the end a state to resume "
                  f"from of {size(state)}, metrics.jsonl {size(STEP_BYTES * total_steps(options))}"),
    ]  # fmt: skip
    if len(there) == len(steps):
        return [*lines, ("done", f"all {len(steps)} checkpoints are there: nothing would be done")]
    if there:
        resumed = " and a state to resume from" if state_path(folder).exists() else ""
        lines += [("done", f"{len(there)} of {len(steps)} checkpoints (the last: step {there[-1]}){resumed}")]
    return [*lines, *work(training_flops(config, Counter(len(item.tokens) for item in found)), rate, device, world)]


def memory_lines(config: Config, device: str) -> list[Line]:
    parts = training_memory(config)
    named = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
    how = f"{config.trainer.strategy}, recompute={str(config.trainer.recompute).lower()}"
    needed = sum(parts.values())
    said = f"{size(needed)} per device, at most, beside what torch itself takes ({how}): {named}; {fits(needed, device)}"
    return [("memory", said), ("a GPU of", cards(needed))]


def training_memory(config: Config) -> dict[str, float]:
    """Bytes per device at the peak of a training step, by what holds them; sequences all as long as data.length.

    Weights are held once, by student and teacher together. The placement is the one that keeps most, of those that can be drawn.
    Gradients and optimizer state are of mixers alone. What a layer's backward pass needs for a moment is left out: a step of 135m on a CPU
    took 3.12 GiB against 3.11 planned for all-FA, and 5.81 against 5.38 for all-KDA.
    """
    model, options, trainer = model_config(config), stage_options(config), config.trainer
    world = trainer.devices * trainer.nodes
    batch, tokens = -(-options.batch // world), config.data.length
    frozen = active = 2 if config.distill.precision == "bf16-mixed" else 4
    of_mixer = {m: layer_parameters(model, m) for m in model.mixers}
    trained = [m for m in model.mixers if m in config.distill.train_mixers]
    placements = options.presets if options.sampler == "targeted" and options.presets else [m * model.layers for m in model.mixers]
    drawn = max(sum(of_mixer[m] for m in p if m in trained) for p in placements)
    all_trained = model.layers * sum(of_mixer[m] for m in trained)
    mixers, mlps = model.layers * sum(of_mixer.values()), 3 * model.layers * model.hidden * model.ffn
    teacher = model.layers * of_mixer["F"]
    rest = count_parameters(model, "F") - teacher - mlps
    share = world if trainer.strategy == "fsdp" else 1
    gathered = 2 * 4 * max(*of_mixer.values(), 3 * model.hidden * model.ffn) if share > 1 else 0
    per_layer = {m: layer_saved_bytes(model, m, batch, tokens, active) for m in model.mixers}
    outputs = batch * tokens * model.hidden * model.layers * (4 + 2 * active if config.stage == "distill" else 0)
    if trainer.recompute:
        kept = model.layers * batch * tokens * model.hidden * active + max(per_layer.values())
    else:
        kept = max(sum(per_layer[m] for m in p) for p in placements)
    return {
        "weights": frozen * (rest + (mlps + teacher) / share) + 4 * mixers / share + gathered,
        "bf16 copies": 2 * drawn / share if active == 2 else 0,
        "gradients": 4 * (all_trained if world > 1 and share == 1 else drawn) / share,
        "optimizer": 8 * all_trained / share,
        "activations": kept + outputs,
        "logits": 4 * LOGIT_COPIES * min(CHUNK, batch * tokens) * model.vocab,
    }


def training_flops(config: Config, lengths: Mapping[int, int]) -> float:
    """FLOPs of a whole training on sequences of these lengths (length -> how many).

    The teacher's forward pass (distillation), the student's with the placements that will be drawn, and its backward pass.
    """
    model, options = model_config(config), stage_options(config)
    steps = total_steps(options)  # those of a cooled copy with them
    if options.sampler in ("targeted", "hybrid") and not options.presets:  # fine-tuning: known once there are presets
        visits = Counter(dict.fromkeys(model.mixers, steps * model.layers / len(model.mixers)))
    else:
        visits = Counter(m for step in range(steps) for m in draw(options, model, config.seed, step, config.distill.train_mixers))
    total = 0.0
    for tokens, times in lengths.items():
        head = 2.0 * model.vocab * model.hidden * tokens
        passes = 3 if options.batch * tokens > CHUNK else 2  # the head's chunks are computed again in the backward pass
        own = passes * head * steps
        if config.stage == "distill":
            own += steps * (forward_flops(model, "F" * model.layers, tokens) + (passes - 2) * head)
        for m, visited in visits.items():
            forward = layer_flops(model, m, tokens) * (2 if config.trainer.recompute else 1)
            own += visited * (forward + backward_flops(model, m, tokens, m in config.distill.train_mixers))
        total += own * times
    return total / sum(lengths.values()) * options.batch


def plan_sweep(config: Config, rate: float) -> list[Line]:
    lines: list[Line] = []
    if config.supernet:
        if Path(config.supernet).is_dir():
            config = of_folder(config)
        else:
            lines += [("missing", f"no folder {config.supernet} yet: this plan takes the shapes of scale={config.scale}")]
    model, device = model_config(config), pick_device(config)
    items, note = asked_items(config)
    known = not config.supernet or (Path(config.supernet).is_dir() and items_path(config).is_file())
    folder = tables_dir(config) if known else Path(config.results) / config.scale / "supernet-..."
    steps = [0] if config.supernet else config.steps or checkpoint_steps(stage_options(config))
    lines += [("run", str(folder)), *(("warning", line) for line in unseen_window(config, items) if config.supernet)]
    if config.placements == "winners":
        return [*lines, ("sweep", "the presets and all-FA on fresh items at the last checkpoint: a dozen placements at most")]
    placements = merge(folder / "placements.parquet", select(config))["placement"].tolist()
    have = {step: scored_pairs(folder / "scores" / f"step-{step:06d}") for step in steps}
    names = {item.name for item in items}
    wanted = len(placements) * len(items) * len(steps)
    asked = set(placements)
    rows = wanted - sum(item in names and placement in asked for pairs in have.values() for placement, item in pairs)
    there = [step for step in steps if step in checkpoints(config)] if known else []
    groups = Counter(group for pairs in have.values() for group in missing_groups(placements, items, pairs))
    prefixes, flops = 0, 0.0
    for (lacking, places), times in groups.items():
        trie, chosen = build_trie(model, list(lacking)), [items[i] for i in places]
        prefixes, flops = prefixes + times * trie.prefixes * len(chosen), flops + times * sweep_flops(model, trie, chosen)
    weights, said_of_weights = sweep_memory(config, model)
    needed = max(weights, config.memory_gib * 2**30) if config.stream else weights + config.memory_gib * 2**30
    lines += [
        ("sweep", f"{len(placements)} placements x {len(items)} items ({note}{count(sum(len(i.tokens) for i in items))} tokens) x "
                  f"{len(steps)} checkpoints = {wanted} rows; {wanted - rows} are there"),
        ("checkpoints", f"{len(there)} of {len(steps)} are there" if not config.supernet else config.supernet),
        ("memory", f"{said_of_weights} of weights, {config.memory_gib or 'a share of what is free, in'} GiB of activations; "
                   f"{fits(needed, device)}"),
        ("a GPU of", cards(needed)),
        ("files", f"scores {size(ROW_BYTES * rows)} in {folder / 'scores'}"),
    ]  # fmt: skip
    if config.placements == "proposed":
        lines += [("proposed", f"then at most {config.rounds} rounds of {config.proposals} placements, and the winners on fresh items")]
    if not rows:
        return [*lines, ("done", "every row is there: nothing would be done")]
    if config.shards > 1:
        flops, prefixes = flops / config.shards, prefixes // config.shards
        lines += [("shard", f"{config.shard} of {config.shards}: about a share of the work")]
    return [*lines, ("evaluations", f"{prefixes} of a layer on an item: distinct prefixes, each once"), *work(flops, rate, device, 1)]


def missing_groups(
    placements: Sequence[str], items: Sequence[Item], have: set[tuple[str, str]]
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(missing placements, the places of the items that lack just these)."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(tuple(p for p in placements if (p, item.name) not in have), []).append(i)
    return [(lacking, tuple(places)) for lacking, places in groups.items() if lacking]


def sweep_memory(config: Config, model: SupernetConfig) -> tuple[float, str]:
    """Bytes of the weights that are held at once, and what is said of them."""
    dtype = getattr(torch, config.dtype)
    whole = count_bytes(model, dtype)
    if not config.stream:
        return whole, size(whole)
    layer = (whole - count_bytes(model.replace(layers=1), dtype)) / max(1, model.layers - 1)
    held = whole - layer * (model.layers - 2)
    return held, f"{size(held)} (of {size(whole)}: what layers share, and two layers)"


def plan_report(config: Config, rate: float) -> list[Line]:
    known = not config.supernet or (Path(config.supernet).is_dir() and items_path(config).is_file())
    folder = tables_dir(config) if known else Path(config.results) / config.scale / "supernet-..."
    steps = len(list((folder / "scores").glob("step-*")))
    return [("run", str(folder)), ("done", f"scores of {steps} checkpoints are there"),
            ("files", f"report.md, tables and figures, {size(REPORT_BYTES)}: written anew")]  # fmt: skip


PLANS = {"teach": plan_teach, "distill": plan_training, "sft": plan_training, "sweep": plan_sweep, "report": plan_report}


def sequences(config: Config, name: str) -> tuple[list[Item], str]:
    """The sequences of a file of the data, and ""; where it is not made yet as many of data.length, and the words "at most "."""
    path = data_dir(config) / f"{name}.parquet"
    if path.exists():
        return read_items(path), ""
    asked = config.data.items if name == "items" else config.data.train
    stand_in = torch.empty(config.data.length, dtype=torch.int64, device="meta")
    exact = config.data.kind == "synthetic"
    return [Item(f"?{i}", "?", stand_in, config.data.prompt) for i in range(asked)], "" if exact else "at most "


def asked_items(config: Config) -> tuple[list[Item], str]:
    """The items that a sweep scores, and "at most " where they are stand-ins."""
    if config.items_file:
        return read_items(Path(config.items_file), config.items or None), ""
    items, note = sequences(config, "items")
    asked = config.items or config.data.items
    if asked > len(items):
        raise ValueError(f"items is {asked}, data.items {len(items)}: lower the first or raise the second")
    return items[:asked], note


def work(flops: float, rate: float, device: str, devices: int) -> list[Line]:
    """FLOPs and expected time; [] where there is nothing to do."""
    if not flops:
        return []
    given = rate or ASSUMED[device]
    origin = "given" if rate else f"assumed for {device}: --flops 4e14 says otherwise"
    each = " on each device" if devices > 1 else ""
    said = Work(f"{flops / 1e12:.3g} TFLOP: {duration(flops / given / devices)} at {given:.3g} FLOP/s{each} ({origin})")
    said.seconds = flops / given / devices
    there = [("work", said)]
    if not rate and device == "cpu" and said.seconds > 86400:
        there += [("on a GPU", f"{duration(flops / ASSUMED['cuda'] / devices)} at {ASSUMED['cuda']:.3g} FLOP/s{each}, as assumed of one")]
    return there


def cards(needed: float) -> str:
    """Whether so many bytes fit GPUs that are sold: what is planned here may run elsewhere."""
    over = {name: (needed / 2**30 - there) for name, there in CARDS.items()}
    return ", ".join(f"{name} {'fits' if by <= 0 else f'does not fit by {by:.1f} GiB'}" for name, by in over.items())


def fits(needed: float, device: str) -> str:
    """Whether so many bytes fit the memory of this machine's device: all of a GPU's, on a CPU what is free now."""
    on_gpu = device == "cuda" and cuda()
    try:
        there = torch.cuda.get_device_properties(0).total_memory if on_gpu else free_memory()
    except ValueError:  # no Linux
        return "what is free here is not known"
    over = (needed - there) / 2**30
    where = f"the {there / 2**30:.1f} GiB of {'this GPU' if on_gpu else 'memory that are free here'}"
    return f"fits {where}" if over <= 0 else f"does not fit {where}, by {over:.1f} GiB"


def cuda() -> bool:
    return torch.cuda.is_available()


def done(there: bool) -> str:
    return ": there, skipped" if there else ""


def count(number: float) -> str:
    """1234567 -> 1.23M"""
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes, in the unit that fits."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**power:
            return f"{number / 2**power:.3g} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    for length, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
