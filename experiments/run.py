"""What a command is about, made once from its options: which run, where everything of it is, its shapes; and what a sweep of it asks for.

Below the commands no function takes the options as a whole: it takes a Run, a Sweep, or the values that it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf

from experiments.config import Config, DataConfig, DistillConfig, SftConfig, TeacherConfig, TrainerConfig, digest, model_shapes, sha256_of
from experiments.runs.fingerprint import fingerprint
from supernet.config import SupernetConfig

SHIPPED = Path(__file__).parent / "data" / "shipped"
"""A cache that comes with the suite, as another CPU would train another teacher; python -m experiments.ship made it."""


@dataclass(frozen=True)
class Run:
    """A run: what determines its checkpoints, and from that its name and its folders; with how its training is to go."""

    scale: str
    seed: int  # of placements and data order
    stage: str  # which training its checkpoints come from: distill | sft | cooled
    model: SupernetConfig
    teacher: TeacherConfig
    data: DataConfig
    distill: DistillConfig
    sft: SftConfig
    trainer: TrainerConfig
    threads: int  # of one operation of a training on a CPU
    kernels: str  # of the delta rule, as asked for
    supernet: str  # a checkpoint folder in place of a training; ''
    items_file: str  # evaluation items in place of those of the data; ''
    results: Path
    cache: Path
    teacher_folder: str  # a teacher to put back where the run's own is gone; ''
    options: Callable[[str], str] = field(repr=False, compare=False)  # all options of a stage, as config.yaml keeps them

    @classmethod
    def of(cls, config: Config) -> "Run":
        """The run that the options of a command mean."""

        def options(stage: str) -> str:
            return OmegaConf.to_yaml(OmegaConf.structured(replace(config, stage=stage)))

        own = {
            "model": model_shapes(config.model),
            "results": Path(config.results),
            "cache": Path(config.cache),
            "options": options,
        }
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls) if f.name not in own}, **own)

    @property
    def training(self) -> DistillConfig | SftConfig:
        """The options of the training that the checkpoints come from. The cooled copy's only one lies beyond the last step."""
        if self.stage == "cooled":
            return replace(self.distill, checkpoints_at=[1 + self.distill.cooldown])
        return self.sft if self.stage == "sft" else self.distill

    @property
    def distilled(self) -> "Run":
        """The distillation that this run is, or starts from."""
        return replace(self, stage="distill")

    @property
    def cooled(self) -> "Run | None":
        """A distillation's cooled copy, a run of its own with one checkpoint; None where none is wanted."""
        return replace(self, stage="cooled") if self.stage == "distill" and self.distill.cooldown else None

    @cached_property
    def id(self) -> str:
        """The name: from what determines the checkpoints and nothing else, never from a clock.

        Raises ValueError where a supernet is given and its folder or its items are not there.
        """
        if self.supernet:
            if not Path(self.supernet).is_dir():
                raise ValueError(f"no checkpoint folder {self.supernet}: download one (hf download NAME --local-dir {self.supernet}) or "
                                 "set supernet to a local folder that holds one")  # fmt: skip
            if not self.items.is_file():
                raise ValueError(f"no items at {self.items}: give items_file=..., or make them with python -m experiments.teach")
            return f"supernet-{digest(fingerprint(Path(self.supernet)), fingerprint(self.items))}"
        determined_by = (self.scale, self.seed, self.model, self.teacher, self.data, self.distill, *self.data_content)
        distilled = f"{self.distill.sampler}-s{self.seed}-{digest(*determined_by)}"
        return distilled + {"distill": "", "cooled": "-cooled", "sft": f"-sft-{digest(self.sft)}"}[self.stage]

    @cached_property
    def folder(self) -> Path:
        return self.results / self.scale / self.id

    @cached_property
    def teacher_dir(self) -> Path:
        its_data = self.data if self.teacher.source == "trained" else ""  # one trained here learns the sequences, another one does not
        determined_by = (self.teacher, self.model.replace(mixers="F"), its_data)
        return self.cache / "teachers" / f"{self.scale}-{digest(*determined_by)}"

    @cached_property
    def data_dir(self) -> Path:
        determined_by = (self.data, self.teacher_dir.name, *self.data_content)
        return self.cache / "data" / f"{self.scale}-{digest(*determined_by)}"

    @property
    def data_content(self) -> tuple[str, ...]:
        """The sha256 of the file that prompts come from, where they do: another content under the same name is other data."""
        path = Path(self.data.path)
        return (sha256_of(path),) if self.data.kind in ("prompts", "text") and path.is_file() else ()

    @property
    def items(self) -> Path:
        """The evaluation items: of the run's data, or a file of the user's."""
        return Path(self.items_file) if self.items_file else self.sequences("items")

    def sequences(self, name: str) -> Path:
        """The file of the ``train`` or ``items`` sequences of the data."""
        return self.data_dir / f"{name}.parquet"

    def shipped(self, path: Path, shipped: Path = SHIPPED) -> Path:
        """Where a path of the cache is copied from, should it come with the suite."""
        return shipped / path.relative_to(self.cache)

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The sequences that are wanted: a given supernet is not trained."""
        return ("items",) if self.supernet else ("items", "train")

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is wanted as a folder of ours: a sweep of a given supernet needs at most its traces."""
        return not self.supernet or self.teacher.source == "trained"


@dataclass(frozen=True)
class Sweep:
    """What a sweep asks for and how it is done; each field as ``Config`` says."""

    placements: str
    num_placements: int
    placement_seed: int
    bands: int
    proposals: int
    rounds: int
    test_share: float
    items: int
    steps: list[int]
    shards: int
    shard: int
    stream: bool
    memory_gib: float
    workers: int
    dtype: str
    score: str
    cost: str
    device: str

    @classmethod
    def of(cls, config: Config) -> "Sweep":
        """What the options of a command ask of a sweep."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})

    @property
    def part(self) -> str:
        """What a process of it is called in the run's records."""
        return "sweep" if self.shards == 1 else f"sweep-{self.shard}of{self.shards}"

    @property
    def costs(self) -> str | None:
        """For those who read scores; None: as the run's placements.parquet has them, which is as published."""
        return None if self.cost == "published" else self.cost

    def tables(self, folder: Path) -> Path:
        """Where the tables of its kind of score are: log-likelihoods in the run's folder, others in one below it with the same layout."""
        return folder if self.score == "loglik" else folder / self.score
