"""Text from any placement of a run or a checkpoint: ``python -m experiments.generate RUN_OR_FOLDER --placement loglik-18 --prompt "..."``.

A placement is a preset's name (RUN/presets.yaml), ``all-FA``, or letters. Several, with commas or the option repeated, run in one batch.
Without a prompt it is a chat: an empty line or end of file ends it, ``/placement NAME`` answers the next turns with another placement.
Tokens are shown as they come; their number per second is said on stderr.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from experiments.runs.kernels import first_that_works
from experiments.runs.records import read_status
from experiments.runs.steps import whole_checkpoints
from supernet import checkpoint
from supernet.decoder import Supernet
from supernet.generate import stream
from supernet.ops import kernels
from supernet.presets import read_presets, resolve
from supernet.teacher import smollm2_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; errors are one line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.generate", description=__doc__)
    parser.add_argument("where", type=Path, metavar="RUN_OR_FOLDER", help="a run, results/SCALE for its first run, or a checkpoint folder")
    parser.add_argument("--placement", action="append", default=[], help="preset, letters or all-FA (default); several with commas")
    parser.add_argument("--prompt", help="text to answer (default: a chat)")
    parser.add_argument("--tokens", help="token ids such as 1,2,3 instead of a prompt: what comes out are token ids too")
    parser.add_argument("--raw", action="store_true", help="go on after the prompt, without the tokenizer's chat template")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: its last)")
    parser.add_argument("--teacher", type=Path, help="the teacher's folder of a run (default: found by its sha256 in .cache/teachers)")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (default: the run's, the folder's, or the teacher's)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token; 1: the model's distribution")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--new-tokens", type=int, default=200, help="at most; the end token of the tokenizer ends earlier")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are stored)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(argv)
    try:
        answer(given)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def answer(given: argparse.Namespace) -> None:
    """What the command line asks for."""
    if given.prompt is not None and given.tokens is not None:
        raise ValueError("--prompt and --tokens are both given: choose one")
    source = find(given.where, given.step)
    presets = read_presets(source.run or source.folder)
    model = load(source, given)
    names = [name.strip() for some in given.placement or ["all-FA"] for name in some.split(",")]
    placements = {name: resolve(name, presets, model.config) for name in names}
    if given.tokens is not None:
        show(model, as_tokens(given.tokens), placements, given, (), lambda tokens: ",".join(map(str, tokens)))
        return
    tokenizer = load_tokenizer(source, given.tokenizer)
    ends = tuple({tokenizer.eos_token_id} - {None})

    def words(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    if given.prompt is not None:
        show(model, as_prompt(tokenizer, [given.prompt], given.raw), placements, given, ends, words)
        return
    said: list[str] = []
    for line in lines():
        if line.startswith("/placement"):
            try:
                name = line.removeprefix("/placement").strip()
                placements = {name: resolve(name, presets, model.config) for name in name.split(",")}
                print(f"placement {', '.join(placements.values())}", file=sys.stderr)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
            continue
        said.append(line)
        said.append(show(model, as_prompt(tokenizer, said, given.raw), placements, given, ends, words))


@dataclass(frozen=True)
class Source:
    """A checkpoint, and the run that it belongs to, if any."""

    folder: Path
    run: Path | None


def find(where: Path, step: int | None) -> Source:
    """The checkpoint that a path means. ValueError with a remedy where there is none."""
    if not where.is_dir():
        raise ValueError(f"no folder {where}: give a run such as results/135m/RUN, or a checkpoint folder")
    if any((where / name).is_file() for name in ("meta.json", "config.json")):
        if step is not None:
            raise ValueError(f"--step {step}: {where} is one checkpoint; give the run's folder instead")
        return Source(where, where.parents[1] if (where / "meta.json").is_file() and len(where.parents) > 1 else None)
    if not is_run(where):
        runs = sorted(filter(is_run, where.iterdir()))
        if not runs:
            raise ValueError(f"{where} is neither a run (no config.yaml) nor a checkpoint (no config.json)")
        where = max(runs, key=lambda run: (bool(whole_checkpoints(run)), (run / "presets.yaml").is_file()))
    found = whole_checkpoints(where)
    if not found:
        raise ValueError(f"{where} has its tables but no weights (checkpoints are not committed): {remedy(where)}")
    if step is not None and step not in found:
        raise ValueError(f"--step {step} is not in {where}: choose from {', '.join(map(str, found))}")
    return Source(found[max(found) if step is None else step], where)


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def remedy(run: Path) -> str:
    """How the checkpoints of a run are made."""
    scale = (yaml.safe_load((run / "config.yaml").read_text()) or {}).get("scale", "tiny")
    commands = [entry.get("command") or "" for entry in read_status(run).values()] if (run / "status.json").is_file() else []
    options = next((c.split(" ", 3)[3] for c in commands if c.startswith("python -m ") and len(c.split(" ", 3)) > 3), f"scale={scale}")
    kept = " ".join(o for o in options.split() if o.split("=")[0] in ("seed",) or o.startswith(("distill.", "data.", "teacher.")))
    return f"make sweep SCALE={scale}" + (f' ARGS="{kept}"' if kept else "") + " makes them"


def load(source: Source, given: argparse.Namespace) -> Supernet:
    """The whole supernet, once, on the device, with the kernels that work there."""
    model = checkpoint.load(source.folder, given.teacher).requires_grad_(False)
    dtype = given.dtype or str(model.embed.weight.dtype).removeprefix("torch.")
    model = model.cast(getattr(torch, dtype)).to(given.device)
    c = model.config
    if set(c.mixers) & set("KG") and dtype in kernels.TOLERANCE:
        dims = (c.gdn_key_dim, c.gdn_value_dim, c.kda_dim)
        kernels.use(first_that_works("auto", given.device, dtype, dims, Path(".cache") / "kernels"))
    return model


def load_tokenizer(source: Source, given: Path | None) -> "PreTrainedTokenizerBase":
    """The tokenizer that was named, or that of the run, of the folder, or of the run's teacher. ValueError where there is none."""
    places = [given] if given else [p for f in (source.run, source.folder) if f for p in (f / "tokenizer", f)]
    where: dict[str, Any] = next(({"path": str(p)} for p in places if p.is_dir() and any(p.glob("tokenizer*"))), {})
    if not where and source.run and is_run(source.run) and not given:
        where = of_teacher(yaml.safe_load((source.run / "config.yaml").read_text()).get("teacher") or {})
    if not where:
        at = given or source.run or source.folder
        raise ValueError(f"no tokenizer in {at}: name its folder with --tokenizer, or give --tokens 1,2,3")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError("text needs transformers (pip install .[llm]); --tokens 1,2,3 does without") from None
    try:
        gguf = {"gguf_file": where["gguf"]} if where.get("gguf") else {}
        return AutoTokenizer.from_pretrained(where["path"], **gguf)
    except Exception as error:  # of tokenizers, the hub and gguf, by version
        raise ValueError(f"the tokenizer of {where['path']} can't be loaded ({(str(error).strip() or 'no reason given').splitlines()[0]}): "
                         "name another folder with --tokenizer") from None  # fmt: skip


def of_teacher(teacher: dict[str, Any]) -> dict[str, Any]:
    """Where a run's teacher came from, if that has a tokenizer."""
    if teacher.get("source") == "smollm2":
        return dict(zip(("path", "gguf"), smollm2_gguf(), strict=True))
    return {"path": teacher["path"], "gguf": teacher.get("gguf")} if teacher.get("path") else {}


def as_prompt(tokenizer: "PreTrainedTokenizerBase", said: list[str], raw: bool) -> Tensor:
    """Turns of user and model, user first, as tokens: by the chat template where there is one."""
    if raw or not tokenizer.chat_template:
        return torch.tensor(tokenizer("\n".join(said))["input_ids"] or [tokenizer.eos_token_id])
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return torch.tensor(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])


def as_tokens(text: str) -> Tensor:
    try:
        return torch.tensor([int(t) for t in text.split(",")])
    except ValueError:
        raise ValueError(f"--tokens is {text!r}: give numbers with commas, such as 1,2,3") from None


def lines() -> Iterator[str]:
    """What the user types, a turn a line, until an empty one or the end."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def show(
    model: Supernet,
    prompt: Tensor,
    placements: dict[str, str],
    given: argparse.Namespace,
    ends: Sequence[int],
    words: Callable[[list[int]], str],
) -> str:
    """Print what follows the prompt, by one placement as it comes, by several one after another; the first one's text."""
    names = list(placements)
    found: list[list[int]] = [[] for _ in names]
    printed, begun, first = "", time.perf_counter(), 0.0
    rng = np.random.default_rng(given.seed)
    for i, token in stream(model, [prompt] * len(names), list(placements.values()), given.new_tokens, given.temperature, rng, ends):
        first = first or time.perf_counter() - begun
        found[i].append(token)
        if len(names) == 1 and not (text := words(found[0])).endswith("\ufffd"):  # half a character waits for its rest
            print(text[len(printed) :], end="", flush=True)
            printed = text
    seconds = time.perf_counter() - begun
    if len(names) == 1:
        print(words(found[0])[len(printed) :])
    else:
        for name, tokens in zip(names, found, strict=True):
            print(f"[{name} {placements[name]}]\n{words(tokens)}\n")
    after = sum(map(len, found)) - len(found)
    rate = f", then {after / (seconds - first):.1f} tokens/s" if after > 0 else ""
    many = f" by {len(names)} placements in one batch" if len(names) > 1 else ""
    print(f"({len(prompt)} tokens read in {first:.2f} s{rate}{many})", file=sys.stderr)
    return words(found[0])


if __name__ == "__main__":
    sys.exit(main())
