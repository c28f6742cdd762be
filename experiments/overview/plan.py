"""``--dry-run``: what a command would do, need and write, from the options and from what is there already. Touches no file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.config import Config
from experiments.data.items import read_items
from experiments.machine import free_memory, pick_device
from experiments.run import Run, Sweep
from experiments.runs.steps import state_path, step_dir, whole_checkpoints
from experiments.sweeping.parts import checkpoints, unseen_window
from experiments.sweeping.placements import select
from experiments.sweeping.tables import merge, scored_pairs
from experiments.sweeping.weights import of_folder
from experiments.training.schedule import never_reached, total_steps
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
        found = name == "sweep" and config.supernet and Path(config.supernet).is_dir()
        its = of_folder(config) if found else config
        lines = PLANS[name](Run.of(its), Sweep.of(its), flops_per_second)
        print(f"plan of {name}, scale {config.scale}: nothing is run or written")
        print("\n".join(f"  {label:<13} {text}" for label, text in lines), flush=True)
        seconds += sum(text.seconds for _, text in lines if isinstance(text, Work))
    return seconds


def plan_teach(run: Run, sweep: Sweep, rate: float) -> list[Line]:
    if run.items_file:
        return [("done", f"nothing to make, items are given in {run.items_file}")]
    model, teacher, data = run.model, run.teacher, run.data
    parameters = count_parameters(model, "F")
    lines = [("model", f"all-FA {count(parameters)} parameters, from {teacher.path or teacher.source}")]
    flops, there = 0.0, run.teacher_dir.exists()
    if run.needs_teacher:
        copied = run.shipped(run.teacher_dir).exists()
        lines += [("teacher", f"{run.teacher_dir}, {size(4 * parameters)}{done(there, copied)}")]
        if teacher.source == "trained" and not (there or copied):
            flops += 3 * teacher.steps * teacher.batch * forward_flops(model, "F" * model.layers, data.length)
    for name in run.sequence_names:
        (found, note), path = sequences(run, name), run.sequences(name)
        tokens, written, copied = sum(len(item.tokens) for item in found), path.exists(), run.shipped(path).exists()
        sampled = data.kind in ("reasoning", "prompts") and not data.answer or data.kind == "synthetic" and name == "items"
        flops += 0.0 if written or copied or not sampled else len(found) * forward_flops(model, "F" * model.layers, data.length)
        lines += [
            (name, f"{len(found)} sequences, {note}{count(tokens)} tokens, {path}, {size(tokens * TOKEN_BYTES)}{done(written, copied)}")
        ]
    return [*lines, *work(flops, rate, pick_device(sweep.device), 1)]


def plan_training(run: Run, _: Sweep, rate: float) -> list[Line]:
    """Of distillation or fine-tuning, as ``run.stage`` says."""
    if run.supernet:
        return [("done", f"nothing to train: supernet={run.supernet} is given")]
    model, options, folder, trainer = run.model, run.training, run.folder, run.trainer
    world, steps = trainer.devices * trainer.nodes, checkpoint_steps(options)
    found, note = sequences(run, "train")
    trained = count_trainable(model, run.distill.train_mixers)
    there = [step for step in whole_checkpoints(folder) if step in steps]
    tokens = np.mean([len(item.tokens) for item in found]) * options.batch * total_steps(options)
    device = "cuda" if trainer.accelerator in ("cuda", "gpu") or (trainer.accelerator == "auto" and cuda()) else "cpu"
    state = 12 * trained
    lines = [
        ("run", str(folder)),
        *(("warning", line) for line in never_reached(options)),
        ("model", f"{model.layers} layers of {model.mixers}: all-FA {count(count_parameters(model, 'F'))}, supernet "
                  f"{count(count_parameters(model))}, trained {count(trained)} parameters"),
        ("training", f"{options.steps} steps of {options.batch} sequences on {world} device{'s' * (world > 1)}, sampler {options.sampler}, "
                     f"{note}{count(tokens)} tokens"),
        *memory_lines(run, device),
        ("files", f"{len(steps)} checkpoints of {size(4 * trained)} ({size(4 * trained * len(steps))}), until the end a state to resume "
                  f"from of {size(state)}, metrics.jsonl {size(STEP_BYTES * total_steps(options))}"),
    ]  # fmt: skip
    if len(there) == len(steps):
        return [*lines, ("done", f"all {len(steps)} checkpoints are there: nothing would be done")]
    if there:
        resumed = " and a state to resume from" if state_path(folder).exists() else ""
        lines += [("done", f"{len(there)} of {len(steps)} checkpoints (the last: step {there[-1]}){resumed}")]
    return [*lines, *work(training_flops(run, Counter(len(item.tokens) for item in found)), rate, device, world)]


def memory_lines(run: Run, device: str) -> list[Line]:
    parts = training_memory(run)
    named = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
    how = f"{run.trainer.strategy}, recompute={str(run.trainer.recompute).lower()}"
    needed = sum(parts.values())
    said = f"{size(needed)} per device, at most, beside what torch itself takes ({how}): {named}; {fits(needed, device)}"
    return [("memory", said), ("a GPU of", cards(needed))]


def training_memory(run: Run) -> dict[str, float]:
    """Bytes per device at the peak of a training step, by what holds them; sequences all as long as data.length.

    Weights are held once, by student and teacher together. The placement is the one that keeps most, of those that can be drawn.
    Gradients and optimizer state are of mixers alone. What a layer's backward pass needs for a moment is left out.
    A step of 135m on a CPU took 3.12 GiB against 3.11 planned for all-FA, and 5.81 against 5.38 for all-KDA.
    """
    model, options, trainer = run.model, run.training, run.trainer
    world = trainer.devices * trainer.nodes
    batch, tokens = -(-options.batch // world), run.data.length
    frozen = active = 2 if run.distill.precision == "bf16-mixed" else 4
    of_mixer = {m: layer_parameters(model, m) for m in model.mixers}
    trained = [m for m in model.mixers if m in run.distill.train_mixers]
    placements = options.presets if options.sampler == "targeted" and options.presets else [m * model.layers for m in model.mixers]
    drawn = max(sum(of_mixer[m] for m in p if m in trained) for p in placements)
    all_trained = model.layers * sum(of_mixer[m] for m in trained)
    mixers, mlps = model.layers * sum(of_mixer.values()), 3 * model.layers * model.hidden * model.ffn
    teacher = model.layers * of_mixer["F"]
    rest = count_parameters(model, "F") - teacher - mlps
    share = world if trainer.strategy == "fsdp" else 1
    gathered = 2 * 4 * max(*of_mixer.values(), 3 * model.hidden * model.ffn) if share > 1 else 0
    per_layer = {m: layer_saved_bytes(model, m, batch, tokens, active) for m in model.mixers}
    outputs = batch * tokens * model.hidden * model.layers * (4 + 2 * active if run.stage == "distill" else 0)
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


def training_flops(run: Run, lengths: Mapping[int, int]) -> float:
    """FLOPs of a whole training on sequences of these lengths (length -> how many).

    The teacher's forward pass (distillation), the student's with the placements that will be drawn, and its backward pass.
    """
    model, options = run.model, run.training
    steps = total_steps(options)  # those of a cooled copy with them
    if options.sampler in ("targeted", "hybrid") and not options.presets:  # fine-tuning: known once there are presets
        visits = Counter(dict.fromkeys(model.mixers, steps * model.layers / len(model.mixers)))
    else:
        visits = Counter(m for step in range(steps) for m in draw(options, model, run.seed, step, run.distill.train_mixers))
    total = 0.0
    for tokens, times in lengths.items():
        head = 2.0 * model.vocab * model.hidden * tokens
        passes = 3 if options.batch * tokens > CHUNK else 2  # the head's chunks are computed again in the backward pass
        own = passes * head * steps
        if run.stage == "distill":
            own += steps * (forward_flops(model, "F" * model.layers, tokens) + (passes - 2) * head)
        for m, visited in visits.items():
            forward = layer_flops(model, m, tokens) * (2 if run.trainer.recompute else 1)
            own += visited * (forward + backward_flops(model, m, tokens, m in run.distill.train_mixers))
        total += own * times
    return total / sum(lengths.values()) * options.batch


def plan_sweep(run: Run, sweep: Sweep, rate: float) -> list[Line]:
    lines: list[Line] = []
    if run.supernet and not Path(run.supernet).is_dir():
        lines += [("missing", f"no folder {run.supernet} yet: this plan takes the shapes of scale={run.scale}")]
    model, device = run.model, pick_device(sweep.device)
    items, note = asked_items(run, sweep.items)
    folder, known = tables_of(run, sweep)
    steps = [0] if run.supernet else sweep.steps or checkpoint_steps(run.training)
    lines += [("run", str(folder)), *(("warning", line) for line in unseen_window(model, items) if run.supernet)]
    if sweep.placements == "winners":
        return [*lines, ("sweep", "the presets and all-FA on fresh items at the last checkpoint: a dozen placements at most")]
    placements = merge(folder / "placements.parquet", select(sweep, model))["placement"].tolist()
    have = {step: scored_pairs(step_dir(folder / "scores", step)) for step in steps}
    names = {item.name for item in items}
    wanted = len(placements) * len(items) * len(steps)
    asked = set(placements)
    rows = wanted - sum(item in names and placement in asked for pairs in have.values() for placement, item in pairs)
    there = [step for step in steps if step in checkpoints(run)] if known else []
    groups = Counter(group for pairs in have.values() for group in missing_groups(placements, items, pairs))
    prefixes, flops = 0, 0.0
    for (lacking, places), times in groups.items():
        trie, chosen = build_trie(model, list(lacking)), [items[i] for i in places]
        prefixes, flops = prefixes + times * trie.prefixes * len(chosen), flops + times * sweep_flops(model, trie, chosen)
    weights, said_of_weights = sweep_memory(model, getattr(torch, sweep.dtype), sweep.stream)
    needed = max(weights, sweep.memory_gib * 2**30) if sweep.stream else weights + sweep.memory_gib * 2**30
    lines += [
        ("sweep", f"{len(placements)} placements x {len(items)} items ({note}{count(sum(len(i.tokens) for i in items))} tokens) x "
                  f"{len(steps)} checkpoints = {wanted} rows; {wanted - rows} are there"),
        ("checkpoints", f"{len(there)} of {len(steps)} are there" if not run.supernet else run.supernet),
        ("memory", f"{said_of_weights} of weights, {sweep.memory_gib or 'a share of what is free, in'} GiB of activations; "
                   f"{fits(needed, device)}"),
        ("a GPU of", cards(needed)),
        ("files", f"scores {size(ROW_BYTES * rows)} in {folder / 'scores'}"),
    ]  # fmt: skip
    if sweep.placements == "proposed":
        lines += [("proposed", f"then at most {sweep.rounds} rounds of {sweep.proposals} placements, and the winners on fresh items")]
    if not rows:
        return [*lines, ("done", "every row is there: nothing would be done")]
    if sweep.shards > 1:
        flops, prefixes = flops / sweep.shards, prefixes // sweep.shards
        lines += [("shard", f"{sweep.shard} of {sweep.shards}: about a share of the work")]
    return [*lines, ("evaluations", f"{prefixes} of a layer on an item: distinct prefixes, each once"), *work(flops, rate, device, 1)]


def missing_groups(
    placements: Sequence[str], items: Sequence[Item], have: set[tuple[str, str]]
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(missing placements, the places of the items that lack just these)."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(tuple(p for p in placements if (p, item.name) not in have), []).append(i)
    return [(lacking, tuple(places)) for lacking, places in groups.items() if lacking]


def tables_of(run: Run, sweep: Sweep) -> tuple[Path, bool]:
    """(the folder of a sweep's tables, whether its name can be known: a given supernet and its items may not be there yet)."""
    known = not run.supernet or (Path(run.supernet).is_dir() and run.items.is_file())
    return (sweep.tables(run.folder) if known else run.results / run.scale / "supernet-...", known)


def sweep_memory(model: SupernetConfig, dtype: torch.dtype, stream: bool) -> tuple[float, str]:
    """Bytes of the weights that are held at once, and what is said of them."""
    whole = count_bytes(model, dtype)
    if not stream:
        return whole, size(whole)
    layer = (whole - count_bytes(model.replace(layers=1), dtype)) / max(1, model.layers - 1)
    held = whole - layer * (model.layers - 2)
    return held, f"{size(held)} (of {size(whole)}: what layers share, and two layers)"


def plan_report(run: Run, sweep: Sweep, _: float) -> list[Line]:
    folder, _ = tables_of(run, sweep)
    steps = len(list((folder / "scores").glob("step-*")))
    return [("run", str(folder)), ("done", f"scores of {steps} checkpoints are there"),
            ("files", f"report.md, tables and figures, {size(REPORT_BYTES)}: written anew")]  # fmt: skip


PLANS = {"teach": plan_teach, "distill": plan_training, "sft": plan_training, "sweep": plan_sweep, "report": plan_report}


def sequences(run: Run, name: str) -> tuple[list[Item], str]:
    """The sequences of a file of the data, and ""; where it is not made yet as many of data.length, and the words "at most "."""
    path, data = run.sequences(name), run.data
    for place in (path, run.shipped(path)):
        if place.exists():
            return read_items(place), ""
    stand_in = torch.empty(data.length, dtype=torch.int64, device="meta")
    return [Item(f"?{i}", "?", stand_in, data.prompt) for i in range(data.count(name))], "" if data.kind == "synthetic" else "at most "


def asked_items(run: Run, count: int) -> tuple[list[Item], str]:
    """The items that a sweep of ``count`` (0: all) scores, and "at most " where they are stand-ins."""
    if run.items_file:
        return read_items(run.items, count or None), ""
    items, note = sequences(run, "items")
    asked = count or run.data.items
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


def done(there: bool, copied: bool) -> str:
    return ": there, skipped" if there else ": comes with the suite, copied" if copied else ""


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
