"""An OpenAI-compatible server of a supernet: ``.venv-vllm/bin/python -m supernet.serving RUN_OR_FOLDER``.

A request asks for a placement with ``"vllm_xargs": {"placement": "FFSK..."}`` or ``{"preset": "loglik-18"}``, or with the model
``NAME:loglik-18``. Options that are not listed go to vLLM's server, such as ``--port 8000`` or ``--max-model-len 4096``.
"""

import argparse
import json
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from supernet.presets import ALL_FA, read_presets, resolve
from supernet.reader import native_raw, open_layers, read_json

SERVER = "vllm.entrypoints.openai.api_server"
QUIET = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; errors are one line."""
    parser = argparse.ArgumentParser(prog="python -m supernet.serving", description=__doc__, allow_abbrev=False)
    parser.add_argument("where", type=Path, metavar="RUN_OR_FOLDER", help="a run (its last checkpoint), or a checkpoint folder")
    parser.add_argument("--placement", default="", help="of requests that ask for none: a preset, letters or all-FA (default)")
    parser.add_argument("--name", help="of the model (default: the folder's)")
    parser.add_argument("--teacher", type=Path, help="the teacher's folder of a run (default: found by its sha256 in .cache/teachers)")
    parser.add_argument("--tokenizer", type=Path, help="its folder (default: that of the run, folder or teacher; else token ids)")
    given, others = parser.parse_known_args(argv)
    try:
        if find_spec("vllm") is None:
            raise ValueError("vLLM is not in this environment: make .venv-vllm/.done, then .venv-vllm/bin/python -m supernet.serving ...")
        with tempfile.TemporaryDirectory(prefix="serving-") as front:
            arguments = write_front(Path(front), given)
            os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
            sys.argv = [SERVER, *arguments, *others]
            runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
    except (ValueError, OSError) as error:
        print(f"error: {refusal(error)}", file=sys.stderr)
        return 1
    return 0


def refusal(error: Exception) -> str:
    """What an error says, in one line, without what vLLM (pydantic) puts around a refusal of ours."""
    said = " ".join(str(error).split())
    inner = re.search(r"Value error, (.*?) \[type=value_error", said)
    return inner[1] if inner else said


def write_front(front: Path, given: argparse.Namespace) -> list[str]:
    """Fill a folder that vLLM can open whatever the checkpoint's format: a config.json that names it. The arguments of vLLM's server."""
    folder = last_checkpoint(given.where)
    reader = open_layers(folder, given.teacher)
    config = reader.config
    presets = read_presets(folder)
    placement = resolve(given.placement, presets, config) if given.placement else ""
    dtype = str(reader.tensors["embed.weight"].dtype).removeprefix("torch.")
    raw = native_raw(config, dtype, reader.kept)
    raw |= {"checkpoint": str(folder.resolve()), "teacher": given.teacher and str(given.teacher.resolve()), "default_placement": placement}
    raw |= {"presets": presets}
    beside = reader.tensors["embed.weight"].file.parent  # a run's frozen tensors are its teacher's
    tokenizer = find_tokenizer(given.tokenizer, given.where, folder, beside)
    if tokenizer and (end := end_token(tokenizer)) is not None:
        raw |= {"eos_token_id": end}
    (front / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    name = given.name or given.where.resolve().name
    if ":" in name:
        raise ValueError(f"--name is {name!r}: a colon comes before a preset; choose another name")
    shown = ([ALL_FA] if "F" in config.mixers and not config.fixed else []) + list(presets)
    arguments = ["--model", str(front), "--served-model-name", name, *(f"{name}:{preset}" for preset in shown)]
    arguments += ["--tokenizer", str(tokenizer)] if tokenizer else ["--skip-tokenizer-init"]
    arguments += ["--dtype", dtype]  # vLLM by itself would make float32 bfloat16
    arguments += ["--middleware", "supernet.serving.names.PresetNames"]
    return arguments if torch.cuda.is_available() else [*arguments, "--enforce-eager"]


def last_checkpoint(where: Path) -> Path:
    """The checkpoint that a path means. ValueError with a remedy where there is none."""
    if not where.is_dir():
        raise ValueError(f"no folder {where}: give a run such as results/135m/RUN, or a checkpoint folder")
    if any((where / name).is_file() for name in ("meta.json", "config.json")):
        return where
    steps = {int(meta.parent.name.removeprefix("step-")): meta.parent for meta in (where / "checkpoints").glob("step-*/meta.json")}
    if not steps:
        raise ValueError(f"{where} holds no checkpoint: give a run with checkpoints/step-*, or a checkpoint folder")
    return steps[max(steps)]


def find_tokenizer(given: Path | None, where: Path, folder: Path, teacher: Path) -> Path | None:
    """The folder of the tokenizer that was named, of the run, of the checkpoint, or of the teacher."""
    if given and not any(given.glob("tokenizer*")):
        raise ValueError(f"--tokenizer is {given}, which holds no tokenizer*")
    runs = (folder.resolve().parents[1],) if (folder / "meta.json").is_file() else ()
    places = [given] if given else [place for above in (where, folder, *runs, teacher) for place in (above / "tokenizer", above)]
    return next((place for place in places if place.is_dir() and any(p.is_file() for p in place.glob("tokenizer*"))), None)


def end_token(tokenizer: Path) -> int | None:
    """Its id, as the files of a tokenizer tell it."""
    for path in (tokenizer / "generation_config.json", tokenizer / "config.json"):
        if path.is_file() and "eos_token_id" in (found := read_json(path)):
            return found["eos_token_id"]
    return None  # vLLM asks the tokenizer


if __name__ == "__main__":
    sys.exit(main())
