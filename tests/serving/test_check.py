"""``python -m supernet.serving.check``: the command for a first GPU, on a CPU, and what it finds in answers that are wrong."""

import re
import subprocess

import numpy as np
import pytest
import torch
from test_engine import NATIVE, random_supernet

from supernet.checkpoint import save
from supernet.generate import generate
from supernet.serving.check import TOLERANCE, compare, extra, placements_of

PRESETS = {"cheap": "GKSG", "dear": "FFSF"}


@pytest.mark.slow
def test_the_command_compares_eight_placements_and_measures_three_mixes(vllm, tmp_path):
    save(random_supernet(NATIVE), tmp_path / "small")
    (tmp_path / "small" / "presets.yaml").write_text("presets:\n  cheap: {placement: GKSG}\n  dear: {placement: FFSF}\n")
    words = ["--requests", "6", "--new-tokens", "10", "--prompt-tokens", "80", "--kv-cache-memory-bytes", "8388608"]
    command = [vllm[0], "-m", "supernet.serving.check", str(tmp_path / "small"), *words]
    done = subprocess.run(command, env=vllm[1], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(re.findall(r"10/10 ", done.stdout)) == 8
    for line in ("all-FA", "cheap", "mixed"):
        assert re.search(rf"^{line} +6 +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.M), done.stdout
    assert done.stdout.endswith("serving works here\n")


def test_a_folder_that_is_none_is_one_line(vllm, tmp_path):
    done = subprocess.run([vllm[0], "-m", "supernet.serving.check", str(tmp_path / "none")], env=vllm[1], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: no folder") and done.stderr.count("\n") == 1


def test_wrong_tokens_are_found_and_broken_ties_are_not(monkeypatch):
    model = random_supernet(NATIVE)
    rng = torch.Generator().manual_seed(0)
    placements = list(placements_of(NATIVE, PRESETS, np.random.default_rng(0)).values())
    assert len(placements) == 8 and placements[:4] == ["FFFF", "SSSS", "KKKK", "GGGG"] and set(PRESETS.values()) < set(placements)
    prompts = [torch.randint(3, NATIVE.vocab, (n,), generator=rng) for n in range(5, 13)]
    said = [tokens.tolist() for tokens in generate(model, prompts, placements, 6)]
    prompts = [prompt.tolist() for prompt in prompts]
    equal, worst = compare(model, prompts, placements, said)
    assert equal == [6] * 8 and max(worst) < 1e-4
    said[2][3] = (said[2][3] + 1) % NATIVE.vocab
    said[5] = said[5][:-1]
    equal, worst = compare(model, prompts, placements, said)
    assert equal[2] < 6 and worst[2] > TOLERANCE["float32"] and max(worst[:2] + worst[3:5] + worst[6:]) < 1e-4


def test_options_of_the_server_pass_through():
    assert extra(["--host", "::", "--enforce-eager", "--port", "1"]) == {"host": "::", "enforce-eager": None, "port": "1"}
