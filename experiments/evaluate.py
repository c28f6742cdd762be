"""Accuracy of placements: ``python -m experiments.evaluate RUN_OR_FOLDER tasks=retrieval placements=presets,uniform,random items=40``.

Asks the frozen teacher and placements of a run's checkpoints (or of a checkpoint folder) questions with a right answer. Rows, in the
score schema with ``score`` per item, go to RUN/evaluation/TASK, laid out like a run: ``python -m analysis.report RUN/evaluation/TASK``
reads them, ``python -m analysis.evaluation RUN`` compares them with likelihoods. Killed at any moment, the same command continues.
"""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from experiments.config import REASONING
from experiments.evaluation import probes, retrieval, verifiers
from experiments.evaluation.asking import Asked, Verifier, ask
from experiments.evaluation.chosen import choose
from experiments.evaluation.opening import memory_in_words, opener, opener_of_teacher
from experiments.evaluation.options import Options, described, parse
from experiments.evaluation.questions import Question
from experiments.machine import pick_device
from experiments.runs.fingerprint import fingerprint
from experiments.runs.progress import end_bars
from experiments.runs.sources import Source, find, is_run, load_tokenizer, options_of
from experiments.runs.steps import whole_checkpoints
from experiments.runs.stopping import Stopped, listening
from supernet.presets import read_presets
from supernet.reader import LayerReader, open_layers, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; errors are one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(
            f"{__doc__}\nOptions and defaults (experiments/evaluation/options.py says what they mean; --dry-run only tells):\n{described()}"
        )
        return 0 if argv else 1
    dry = "--dry-run" in argv
    where, *rest = [a for a in argv if a != "--dry-run"]
    try:
        with listening():
            evaluate(Path(where), parse(rest), dry)
    except Stopped as stopped:
        end_bars()
        print(stopped, file=sys.stderr)
        return int(stopped.code)
    except (ValueError, OSError, yaml.YAMLError) as error:
        end_bars()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def evaluate(where: Path, options: Options, dry: bool = False) -> None:
    """Every task, first of the frozen teacher where it is known, then of the placements."""
    if "=" in str(where) and not where.exists():
        raise ValueError(f"{where} is no run: give a run such as results/135m/RUN, or a checkpoint folder, before the options")
    source = find(where, None)
    config = options_of(source.run) if source.run and is_run(source.run) else {}
    reader = open_layers(source.folder, options.teacher or None)
    out = folder_of(source, options)
    device = pick_device(options.device)
    dtype = options.dtype or config.get("dtype") or None
    at = checkpoints(source, options.steps)
    named = {
        "scale": str(config.get("scale", "folder")),
        "run": source.run.name if config else folder_of(source, Options()).name,
        "seed": config.get("seed", 0),
    }
    teacher = Path(options.teacher) if options.teacher else teacher_folder(reader)
    asked = Asked(**named, tokens={step: tokens_of(folder) for step, folder in at.items()},
                  open=opener(at, teacher, dtype, device, options))  # fmt: skip
    placements = choose(options.placements, source.run, read_presets(source.run or source.folder), reader.config, options.random,
                        options.seed)  # fmt: skip
    if dry:
        print(f"memory: {memory_in_words(reader, dtype, device, options)}")
    for task in options.tasks:
        below = out / task.replace(":", "-").replace("+", "-")
        frozen = Asked(**named, tokens={0: 0}, open=opener_of_teacher(teacher, dtype, device, options))
        alone = pd.DataFrame({"placement": ["F" * reader.config.layers], "source": "preset", "cost": float(reader.config.layers)})
        if task.startswith("lm_eval:"):
            from experiments.evaluation.harness import ask_harness, load_tasks  # needs the eval extra, and takes seconds

            if dry:
                print(f"{task}: {len(placements)} placements x {len(at)} checkpoints, and the frozen teacher, into {below}")
                continue
            tokenizer, name = tokenizer_of(source, options), task.partition(":")[2]
            load = cache(lambda name=name, tokenizer=tokenizer: load_tasks(name, options.lengths, tokenizer, options.seed))
            if teacher:
                ask_harness(below / "teacher", frozen, alone, load, tokenizer, options)
            ask_harness(below, asked, placements, load, tokenizer, options)
            continue
        questions, verifier = questions_of(task, source, config, options)
        if dry:
            tokens = sum(len(q.prompt) + len(q.answer) for q in questions)
            print(f"{task}: {len(placements)} placements x {len(questions)} questions ({tokens} tokens) x {len(at)} checkpoints, and the "
                  f"frozen teacher, into {below}")  # fmt: skip
            continue
        if teacher:
            ask(below / "teacher", frozen, alone, questions, options, verifier)
        else:
            print("no frozen teacher is known of this checkpoint: name its folder with teacher=")
        ask(below, asked, placements, questions, options, verifier)


def questions_of(task: str, source: Source, config: dict, options: Options) -> tuple[list[Question], Verifier | None]:
    """The questions of a task, and who judges the answers where that takes more than to compare tokens."""
    kind, _, more = task.partition(":")
    data = config.get("data") or {}
    if kind == "synthetic":
        if data.get("kind") != "synthetic":
            raise ValueError(f"tasks=synthetic is for runs on synthetic sequences (tiny), data.kind here is {data.get('kind')!r}: "
                             "choose retrieval or reasoning")  # fmt: skip
        return probes.questions(int(data["length"]), options.items, options.seed), None
    tokenizer = tokenizer_of(source, options)
    if kind == "retrieval":
        fits = [n for n in options.lengths if n <= tokenizer.model_max_length]
        if not fits:
            raise ValueError(f"lengths is {options.lengths}: the tokenizer goes up to {tokenizer.model_max_length}, give shorter ones")
        if len(fits) < len(options.lengths):
            print(f"lengths above the tokenizer's {tokenizer.model_max_length} are left out")
        return retrieval.questions(tokenizer, fits, options.depths, options.haystacks, options.items, options.seed), None
    tasks = more.split("+") if more else list(data.get("tasks") or REASONING)
    found, judge = verifiers.questions(tokenizer, tasks, options.items, options.seed)
    return found, Verifier(judge, tuple({tokenizer.eos_token_id} - {None}))


def tokenizer_of(source: Source, options: Options) -> "PreTrainedTokenizerBase":
    return load_tokenizer(source, Path(options.tokenizer) if options.tokenizer else None, "tokenizer=FOLDER", without="")


def checkpoints(source: Source, steps: str) -> dict[int, Path]:
    """Folders of the checkpoints by step. ValueError names the choices."""
    there = whole_checkpoints(source.run) if source.run else {}
    if source.folder not in there.values():
        if steps != "last":
            raise ValueError(f"steps={steps}: {source.folder} is one checkpoint, leave steps out")
        return {0: source.folder}
    if steps == "all":
        return there
    here = {step: folder for step, folder in there.items() if folder == source.folder}
    if steps == "last":
        return here
    asked = [text.strip() for text in steps.strip("[]").split(",")]
    if unknown := [text for text in asked if not text.isdecimal() or int(text) not in there]:
        raise ValueError(f"steps has {unknown[0]!r}: choose from last, all, {', '.join(map(str, there))}")
    return {int(text): there[int(text)] for text in asked}


def tokens_of(folder: Path) -> int:
    """Training tokens of a checkpoint; 0 where nothing is said of them."""
    return int(read_json(folder / "meta.json").get("tokens", 0)) if (folder / "meta.json").is_file() else 0


def teacher_folder(reader: LayerReader) -> Path | None:
    """Where a run's frozen tensors are: its teacher. None for whole checkpoints, which do not tell."""
    folder = reader.tensors["embed.weight"].file.parent
    return folder if (folder / "source.json").is_file() else None


def folder_of(source: Source, options: Options) -> Path:
    """Where the tasks' folders go."""
    if options.out:
        return Path(options.out)
    if source.run and is_run(source.run):
        return source.run / "evaluation"
    return Path("results") / "evaluation" / f"{source.folder.resolve().name}-{fingerprint(source.folder)[:8]}"


if __name__ == "__main__":
    sys.exit(main())
