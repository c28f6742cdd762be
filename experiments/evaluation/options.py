"""The options of ``python -m experiments.evaluate``, their ranges, and how they are typed."""

import dataclasses
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs.ranges import check_ranges, option

TASKS = ("retrieval", "synthetic", "reasoning", "lm_eval")


@dataclass
class Options:
    """Every option; several values with commas."""

    # retrieval | synthetic (of tiny) | reasoning[:GENERATOR+GENERATOR] | lm_eval:NAME
    tasks: list[str] = field(default_factory=lambda: ["retrieval"])
    # presets | uniform | random | scored (all that the run's tables have) | exhaustive | all-FA, a preset's name or letters; all-FA is
    # always among them
    placements: list[str] = field(default_factory=lambda: ["presets", "uniform", "random"])
    items: int = option(40, least=1)  # retrieval: of each haystack, length and depth; else of each task
    random: int = option(20, least=1)  # random placements per cost band; those that the run's sweep has scored come first
    lengths: list[int] = option(lambda: [128, 256, 512, 1024, 2048], least=1)  # retrieval, RULER: tokens of a prompt
    depths: list[float] = option(lambda: [0.0, 0.25, 0.5, 0.75, 1.0], least=0, most=1)  # retrieval: 0 is the beginning of the text
    haystacks: list[str] = option(lambda: ["repeat", "needle"], choices=("repeat", "needle"))  # retrieval: what the text is made of
    steps: str = "last"  # checkpoints: last | all | 0,80,658
    # engine: exact match and likelihood in one pass of the sweep engine; generate: exact match by decoding. Both say the same
    match: str = option("engine", choices=("engine", "generate"))
    new_tokens: int = option(256, least=1)  # reasoning: of an answer, at most
    rows: int = option(32, least=1)  # sequences that are decoded at a time
    seed: int = option(0, least=0)  # of questions and random placements
    shards: int = option(1, least=1)  # processes that share the items
    shard: int = option(0, least=0)  # which of them this is: 0 .. shards - 1
    memory_gib: float = option(2.0, above=0)  # for activations of the sweep engine (stream: the weights too)
    stream: bool = False  # one layer's weights at a time in memory, read anew for every chunk of questions that fits memory_gib
    dtype: str = option("", choices=("", "float32", "bfloat16", "float16"))  # default: as the run's sweep, else as stored
    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    teacher: str = ""  # the teacher's folder (default: found by its sha256 in .cache/teachers)
    tokenizer: str = ""  # folder of the tokenizer (default: the run's, the folder's or the teacher's)
    out: str = ""  # default: RUN/evaluation; of a checkpoint folder: results/evaluation/NAME

    @property
    def part(self) -> str:
        """What a process is called in a task's records."""
        return "evaluate" if self.shards == 1 else f"evaluate-{self.shard}of{self.shards}"


def parse(arguments: Sequence[str]) -> Options:
    """From ``key=value`` arguments. Raises ValueError, one line, that names value, choices and remedy."""
    fields = {field.name: field for field in dataclasses.fields(Options)}
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is no option: give a run or a folder first, then key=value")
        if name not in fields:
            raise ValueError(f"unknown option {name}: choose from {', '.join(fields)}")
        several = typing.get_origin(fields[name].type) is list
        given[name] = [one for one in re.split(r"[,\s]+", value.strip("[]")) if one] if several else value
        if several and not given[name]:
            raise ValueError(f"{name} is empty: give one or more values, with commas")
    try:
        options: Options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), given))
    except OmegaConfBaseException as error:
        raise ValueError(f"{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from None
    check_ranges(options)
    if options.shard >= options.shards:
        raise ValueError(f"shard is {options.shard}: give 0 to {options.shards - 1} with shards={options.shards}")
    for task in options.tasks:
        name, _, more = task.partition(":")
        if name not in TASKS or (more and name not in ("reasoning", "lm_eval")) or (name == "lm_eval" and not more):
            raise ValueError(f"tasks has {task!r}: choose from retrieval, synthetic, reasoning, reasoning:GENERATOR, lm_eval:NAME")
    if options.stream and (decoded := needs_decoding(options)):
        raise ValueError(f"stream=true keeps one layer in memory, and {decoded} is decoded, which needs all of them at every token: leave "
                         "stream out, or choose tasks=retrieval or synthetic with match=engine")  # fmt: skip
    if not all(map(math.isfinite, options.depths)):
        raise ValueError(f"depths is {options.depths}: give shares from 0 to 1")
    return options


def needs_decoding(options: Options) -> str:
    """The first option that asks for text to be generated; "" where scoring does."""
    if options.match == "generate":
        return "match=generate"
    return next((f"tasks={task}" for task in options.tasks if task.partition(":")[0] in ("reasoning", "lm_eval")), "")


def described() -> str:
    """The options with their defaults, for --help."""
    blank = Options()
    return "\n".join(f"  {f.name}={_typed(getattr(blank, f.name))}" for f in dataclasses.fields(Options))


def _typed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
