import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch._dynamo.testing import CompileCounter

from experiments.config import check
from experiments.run import Run
from experiments.runs import kernels
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops import kernels as ops

DIMS = (6, 5, 4)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine that has a GPU, as far as the choice goes; and the process's way is put back."""
    monkeypatch.setattr(ops, "_way", "torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fast GPU")
    monkeypatch.setattr(kernels, "version", lambda package: "1.0")


def answer(monkeypatch, **by_way):
    """Have the self-tests come out as given; returns the list of those that ran."""
    ran = []

    def measure(way, dtype, dims):
        ran.append(way)
        return by_way[way.replace("-", "_")]

    monkeypatch.setattr(kernels, "measure", measure)
    return ran


def test_auto_takes_fla_where_it_passes_and_tests_it_once_per_machine(tmp_path, monkeypatch):
    ran = answer(monkeypatch, fla={"gdn d_g": 0.004})
    choose = lambda: kernels.first_that_works("auto", "cuda", "bfloat16", DIMS, tmp_path)  # noqa: E731
    assert [choose(), choose()] == ["fla", "fla"] and ran == ["fla"]
    (record,) = tmp_path.glob("*.json")
    kept = json.loads(record.read_text())
    assert kept["errors"] == {"gdn d_g": 0.004} and kept["gpu"] == "Fast GPU" and kept["fla-core"] == "1.0" and kept["dims"] == list(DIMS)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another GPU")
    assert choose() == "fla" and ran == ["fla", "fla"]
    assert kernels.first_that_works("auto", "cuda", "float32", DIMS, tmp_path) == "fla" and len(ran) == 3
    monkeypatch.setattr(kernels, "version", lambda package: "1.1")
    assert choose() == "fla" and len(ran) == 4


def test_auto_goes_on_to_the_next_way_and_says_so(tmp_path, monkeypatch, capsys):
    ran = answer(monkeypatch, fla={"gdn output": 0.001, "gdn d_g": 0.7}, fla_kda={"gdn d_g": 0.001})
    assert kernels.first_that_works("auto", "cuda", "bfloat16", DIMS, tmp_path) == "fla-kda" and ran == ["fla", "fla-kda"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("kernels: not fla: its self-test failed (gdn d_g is off by 70.0%; all errors in ")
    assert kernels.first_that_works("auto", "cuda", "bfloat16", DIMS, tmp_path) == "fla-kda" and len(ran) == 2  # failures are kept too


def test_auto_ends_at_torch_and_a_crash_is_tried_again_next_time(tmp_path, monkeypatch, capsys):
    crash = "its self-test ended with code -11: no message"
    ran = answer(monkeypatch, fla=crash, fla_kda={"gdn d_q": float("nan")})
    for _ in range(2):
        assert kernels.first_that_works("auto", "cuda", "bfloat16", DIMS, tmp_path) == "torch"
    assert ran == ["fla", "fla-kda", "fla"]
    assert capsys.readouterr().out.count(f"kernels: not fla: {crash}\n") == 2


@pytest.mark.parametrize("way, outcome, reason", [
    ("fla", {"gdn d_g": 0.7}, "its self-test failed .gdn d_g is off by 70.0%"),
    ("fla-kda", "its self-test took more than 1800 s", "its self-test took more than 1800 s"),
])  # fmt: skip
def test_what_was_asked_for_by_name_is_refused_with_reason_and_remedy(way, outcome, reason, tmp_path, monkeypatch):
    answer(monkeypatch, **{way.replace("-", "_"): outcome})
    with pytest.raises(ValueError, match=f"^kernels={way} cannot be used: {reason}.*: set kernels=auto.*or kernels=torch$"):
        kernels.first_that_works(way, "cuda", "bfloat16", DIMS, tmp_path)


def test_fla_needs_its_package_and_a_gpu(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="kernels=fla cannot be used: it needs a CUDA GPU: set kernels=auto"):
        kernels.first_that_works("fla", "cpu", "bfloat16", DIMS, tmp_path)
    monkeypatch.setattr(kernels, "version", lambda package: None if package == "fla-core" else "1.0")
    assert kernels.first_that_works("auto", "cuda", "bfloat16", DIMS, tmp_path) == "torch"
    assert "kernels: not fla: fla-core is not installed (pip install -e '.[kernels]')\n" in capsys.readouterr().out


def test_on_a_cpu_auto_takes_numba_and_without_it_torch_with_a_note(tmp_path, monkeypatch, capsys):
    assert kernels.first_that_works("auto", "cpu", "float32", DIMS, tmp_path) == "numba"
    (record,) = tmp_path.glob("numba-*.json")
    assert json.loads(record.read_text())["numba"] == "1.0" and capsys.readouterr().out == ""
    monkeypatch.setattr(ops, "self_test", lambda *_: {"kda d_g": 2e-5})
    assert kernels.first_that_works("auto", "cpu", "float32", DIMS, tmp_path) == "numba"  # what passed here once is not tested again
    assert kernels.first_that_works("auto", "cpu", "float32", (8, 8, 8), tmp_path) == "torch"
    assert capsys.readouterr().out.startswith("kernels: not numba: its self-test failed (kda d_g is off by 0.0%")
    monkeypatch.setattr(kernels, "version", lambda package: None if package == "numba" else "1.0")
    assert kernels.first_that_works("auto", "cpu", "float32", DIMS, tmp_path) == "torch"
    assert capsys.readouterr().out == "kernels: not numba: numba is not installed (pip install -e .)\n"
    with pytest.raises(ValueError, match="kernels=numba cannot be used: it is for a CPU: set kernels=auto"):
        kernels.first_that_works("numba", "cuda", "float32", DIMS, tmp_path)


def test_a_numba_that_does_not_fit_this_machine_is_a_reason_not_a_crash(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ImportError("Numba needs NumPy 2.9 or less")

    monkeypatch.setattr(ops, "self_test", broken)
    assert kernels.first_that_works("auto", "cpu", "float32", DIMS, tmp_path) == "torch"
    said = "kernels: not numba: its self-test ended with ImportError: Numba needs NumPy 2.9 or less\n"
    assert capsys.readouterr().out == said and not list(tmp_path.glob("*.json"))


def test_the_self_test_runs_in_a_process_of_its_own():
    errors = kernels.measure("torch", "float32", DIMS)
    assert len(errors) == 20 and max(errors.values()) < 1e-6
    reason = kernels.measure("torch", "float33", DIMS)  # a process that fails
    assert reason.startswith("its self-test ended with code 2: ") and "float33" in reason


def config(*overrides):
    with initialize_config_dir(str(Path(__file__).parents[3] / "conf"), version_base=None):
        return check(compose("config", ["scale=tiny", *overrides]))


def test_the_option_reaches_the_dispatch_and_the_manifest(monkeypatch, tmp_path):
    model = Run.of(config()).model

    def chosen(device, model=model, *overrides):
        run = Run.of(config(f"cache={tmp_path}", *overrides))
        return kernels.choose_kernels(run.kernels, model, device, "float32", run.cache)

    assert chosen("cpu").startswith("numba ") and ops._way == "numba"
    answer(monkeypatch, fla={"gdn d_g": 0.004}, fla_kda={"gdn d_g": 0.004})
    monkeypatch.setattr(ops, "describe", lambda way: f"described {way}")
    assert chosen("cuda") == "described fla" and ops._way == "fla"
    assert chosen("cuda", model, "kernels=fla-kda") == "described fla-kda" and ops._way == "fla-kda"
    assert chosen("cuda", model.replace(mixers="FS")) == "described torch" and ops._way == "torch"
    with pytest.raises(ValueError, match="kernels is 'cuda': choose from auto, torch, numba, fla, fla-kda"):
        config("kernels=cuda")


def test_a_new_placement_compiles_nothing_and_the_numbers_stay():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Supernet(SupernetConfig(layers=4, hidden=16, ffn=16, heads=2, kv_heads=1, head_dim=8, vocab=11, window=4))
    names, tokens = list(model.state_dict()), torch.arange(10)[None]
    expected = [model(tokens, placement) for placement in ("FSKG", "GGFF", "KKSS")]
    torch._dynamo.reset()
    counter = CompileCounter()
    kernels.compile_shared(model, counter)
    for placement, right in zip(("FSKG", "GGFF", "KKSS"), expected, strict=True):
        torch.testing.assert_close(model(tokens, placement), right)
        assert counter.frame_count == 2  # a norm and an MLP, for all layers
    with torch.no_grad():
        model(tokens, "GKSF")
    assert counter.frame_count == 4  # once more for the teacher's pass
    for length in (9, 8, 7, 6):
        model(tokens[:, :length], "FSKG")
    assert counter.frame_count <= 6 and list(model.state_dict()) == names
