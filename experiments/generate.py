"""Text from any placement of a run or a checkpoint: ``python -m experiments.generate RUN_OR_FOLDER --placement loglik-18 --prompt "..."``.

A placement is a preset's name (RUN/presets.yaml), ``all-FA``, or letters. Several, with commas or the option repeated, run in one batch.
Without a prompt it is a chat: an empty line or end of file ends it, ``/placement NAME`` answers the next turns with another placement.
With ``--draft NAME`` that placement drafts and ``--placement`` verifies: the same text, how often drafts were accepted, and the speed with
and without them.
Tokens are shown as they come; their number per second is said on stderr.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from torch import Tensor

from analysis.output.one_line import Parser, nobody_reads
from experiments.machine import pick_device
from experiments.runs.sources import find, load_tokenizer, open_model
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate, stream
from supernet.presets import read_presets, resolve
from supernet.speculative import acceptance, rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; errors are one line."""
    parser = Parser(prog="python -m experiments.generate", description=__doc__)
    parser.add_argument("where", type=Path, metavar="RUN_OR_FOLDER", help="a run, results/SCALE for its first run, or a checkpoint folder")
    parser.add_argument(
        "--placement",
        action="append",
        default=[],
        help="preset, letters or all-FA (default; of an exported model its own); several with commas",
    )
    parser.add_argument("--prompt", help="text to answer (default: a chat)")
    parser.add_argument("--tokens", help="token ids such as 1,2,3 instead of a prompt: what comes out are token ids too")
    parser.add_argument("--raw", action="store_true", help="go on after the prompt, without the tokenizer's chat template")
    parser.add_argument("--step", type=int, help="checkpoint of a run (default: its last)")
    parser.add_argument("--teacher", type=Path, help="the teacher's folder of a run (default: found by its sha256 in .cache/teachers)")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (default: the run's, the folder's, or the teacher's)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token; 1: the model's distribution")
    parser.add_argument("--draft", help="preset, letters or all-FA that drafts for --placement (speculative decoding)")
    parser.add_argument("--k", type=int, default=3, help="drafts of a round (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--new-tokens", type=int, default=200, help="at most; the end token of the tokenizer ends earlier")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are stored)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default): a GPU where there is one")
    given = parser.parse_args(argv)
    try:
        answer(given)
        sys.stdout.flush()
    except BrokenPipeError:
        return nobody_reads()
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
    if given.draft and given.prompt is None and given.tokens is None:
        raise ValueError(f"--draft is {given.draft!r}, but there is nothing to answer: give --prompt or --tokens")
    if given.seed < 0:
        raise ValueError(f"--seed is {given.seed}: give 0 or more")
    source, device = find(given.where, given.step), pick_device(given.device)
    presets = read_presets(source.run or source.folder)
    model = open_model(source.folder, given.teacher, given.dtype, device)
    names = [name.strip() for some in given.placement or [only(model.config) or "all-FA"] for name in some.split(",")]
    placements = {name: resolve(name, presets, model.config) for name in names}
    if given.draft and len(placements) > 1:
        raise ValueError(f"--placement gives {len(placements)} placements, but one verifies what --draft drafts: choose one")
    draft = resolve(given.draft, presets, model.config) if given.draft else ""
    if given.tokens is not None:
        show(model, as_tokens(given.tokens), placements, given, (), lambda tokens: ",".join(map(str, tokens)), draft)
        return
    tokenizer = load_tokenizer(source, given.tokenizer)
    ends = tuple({tokenizer.eos_token_id} - {None})

    def words(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    if given.prompt is not None:
        show(model, as_prompt(tokenizer, [given.prompt], given.raw), placements, given, ends, words, draft)
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
        said.append(show(model, as_prompt(tokenizer, said, given.raw), placements, given, ends, words, draft))


def only(model: SupernetConfig) -> str:
    """The placement of a model that was exported with one; "" of a supernet."""
    return model.fixed or (model.mixers * model.layers if len(model.mixers) == 1 else "")


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
    draft: str,
) -> str:
    """Print what follows the prompt, by one placement as it comes, by several or with a ``draft`` once whole; the first one's text."""
    names = list(placements)
    if draft:
        tokens, told = speculated(model, prompt, draft, *placements.values(), given, ends)
        print(words(tokens))
        print(told, file=sys.stderr)
        return words(tokens)
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


def speculated(
    model: Supernet, prompt: Tensor, draft: str, verify: str, given: argparse.Namespace, ends: Sequence[int]
) -> tuple[list[int], str]:
    """What ``verify`` says after ``prompt`` where ``draft`` drafts, and in words how often drafts were accepted and how fast that was,
    beside the same without drafts."""
    found, done = [], []
    begun = time.perf_counter()
    for round_ in rounds(model, prompt, draft, verify, given.new_tokens, given.k, given.temperature, np.random.default_rng(given.seed)):
        done.append(round_)
        end = next((i for i, token in enumerate(round_.tokens) if token in ends), None)
        found += round_.tokens[:end]
        if end is not None:
            break
    rate, begun = len(found) / (time.perf_counter() - begun), time.perf_counter()
    (alone,) = generate(model, [prompt], [verify], given.new_tokens, given.temperature, np.random.default_rng(given.seed), ends)
    plain = len(alone) / (time.perf_counter() - begun)
    deep = ", ".join(f"{good}/{tried}" for good, tried in acceptance(done))
    return found, (
        f"({sum(r.accepted for r in done)} of {sum(r.drafted for r in done)} drafts of {draft} accepted, by position {deep}; "
        f"{rate:.1f} tokens/s, {plain:.1f} without drafts: {rate / plain:.2f} times, prompt included)"
    )


if __name__ == "__main__":
    sys.exit(main())
