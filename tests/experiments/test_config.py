from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from language import SYMBOLS, write_folder

from experiments.config import DistillConfig, check, not_default
from experiments.overview.state import read_config
from experiments.run import Run
from supernet.size import count_parameters

CONF = Path(__file__).resolve().parents[2] / "conf"
RESULTS = CONF.parent / "results"


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("config", list(overrides)))


@pytest.mark.parametrize("scale", sorted(p.stem for p in (CONF / "scale").glob("*.yaml")))
def test_every_shipped_scale_composes_and_its_model_counts(scale):
    shipped = config(f"scale={scale}")
    assert scale.startswith(shipped.scale)
    teacher = {"135m": 134_515_008, "0.5b": 494_032_768, "15b": 14_428_902_400}
    if shipped.scale in teacher:
        assert count_parameters(Run.of(shipped).model, "F") == teacher[shipped.scale]


def test_run_id_depends_on_what_determines_the_checkpoints_alone():
    base = Run.of(config()).id
    for same in ("placements=local", "memory_gib=1", "results=/x", "items=5", "trainer.save_seconds=1"):
        assert Run.of(config(same, "num_placements=5")).id == base
    for other in ("seed=1", "distill.lr=1e-3", "data.items=65", "teacher.steps=10", "model.window=8"):
        assert Run.of(config(other)).id != base


@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/*/config.yaml")), ids=lambda p: p.name)
def test_shipped_runs_keep_their_names(folder):
    assert Run.of(read_config(folder)).id == folder.name


def test_options_at_their_defaults_are_not_part_of_an_id():
    """Or every option that is ever added would rename every run there is."""
    assert not_default(DistillConfig()) == {}
    assert not_default(DistillConfig(lr=1.0, presets=["FF"])) == {"lr": 1.0, "presets": ["FF"]}
    shapes = not_default(Run.of(config()).model)
    assert shapes["layers"] == 5 and "gdn_key_heads" not in shapes and "tied" not in shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs pip install .[llm]")
    return write_folder(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("scale", ["tiny", "135m", "0.5b", "15b"])
def test_shapes_come_from_the_teachers_folder(folder, scale):
    few = ["data.length=40", "data.prompt=20", "data.kind=prompts", "data.path=x.jsonl", "data.tasks=[]"]
    with_folder = [f"scale={scale}", "teacher.source=huggingface", f"teacher.path={folder}", *few]
    if scale == "tiny":  # its yaml gives the shapes of the teacher that it trains
        with pytest.raises(ValueError, match=r"model.layers=5 \(teacher: 2\), .*: leave them out") as caught:
            config(*with_folder)
        assert folder in str(caught.value) and "\n" not in str(caught.value)
        return
    model = Run.of(config(*with_folder, "model.window=10")).model
    assert (model.layers, model.hidden, model.kv_heads, model.vocab, model.tied, model.qkv_bias) == (2, 32, 2, len(SYMBOLS), False, False)
    assert model.window == 10 and model.mixers == "FSKG"
    with pytest.raises(ValueError, match=r"model.hidden=64 \(teacher: 32\)"):
        config(*with_folder, "model.hidden=64", "model.window=10")


def test_a_window_that_nobody_gives_is_a_quarter_of_the_sequences(folder):
    own = ["scale=0.5b", f"teacher.path={folder}", "model.window=null", "data.length=80", "data.prompt=40"]
    assert Run.of(config(*own)).model.window == 20


def test_every_model_key_can_be_given_as_it_is():
    assert Run.of(config("model.qk_norm=true", "model.kda_gate=sigmoid", "model.rope_theta=1e6")).model.rope_theta == 1e6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["teacher.path=/somewhere"], "teacher.path=/somewhere is not used with teacher.source=trained: add teacher.source=huggingface"),
        (["teacher.gguf=x.gguf"], "teacher.gguf=x.gguf is not used"),
        (["scale=135m", "teacher.path=/somewhere"], "is not used with teacher.source=smollm2"),
        (["model.window=64"], "model.window=64 is no shorter than data.length=64, so that S would be F"),
        (["scale=0.5b", "model.window=4096"], "set model.window below it"),
    ],
)
def test_what_would_change_nothing_or_everything_in_silence_is_refused(given, words):
    with pytest.raises(ValueError) as caught:
        config(*given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "said"), [
    ("roofline:h1@4096", "no device 'h1': choose from h100"),
    ("roofline:h100", "at which context"),
    ("measured:nowhere.csv", "no measured costs at nowhere.csv"),
    ("cheap", "give published, measured:FILE"),
])  # fmt: skip
def test_costs_are_checked_before_anything_runs(given, said):
    with pytest.raises(ValueError, match=said):
        config("scale=tiny", f"cost={given}")


def test_costs_rename_no_run():
    assert Run.of(config("scale=tiny", "cost=roofline:h100@4096")).id == Run.of(config("scale=tiny")).id
