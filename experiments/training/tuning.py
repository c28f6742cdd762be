"""Fine-tuning: its loss around the common step, the placements it draws from, and its start from a distillation."""

from dataclasses import replace

import torch
import yaml
from torch import Tensor

from experiments.config import Config, data_dir, model_config, run_dir
from experiments.data.items import read_items
from experiments.runs.kept import restore
from experiments.runs.records import read_json
from experiments.runs.steps import checkpoint_dir, state_path
from experiments.training.build import load_frozen, supernet_to_load
from experiments.training.loop import Batch, Training, fit, frozen_dtype, recorded
from experiments.training.parallel import mean_over_ranks
from experiments.training.strategy import checkpoint_steps
from supernet.checkpoint import load_trained
from supernet.ops.losses import next_token_sum
from supernet.placement import Placement


class FineTuning(Training):
    """Next-token loss in nats per token of the answers; prompts are read, not learned. Only mixers are trained."""

    def losses(self, batch: Batch, placement: Placement) -> dict[str, Tensor]:
        tokens, _, answer = batch
        targets = answer[:, 1:].sum().float()  # a sequence's first token is not predicted
        hidden = self.student.features(tokens, placement, self.config.trainer.recompute)[0]
        return {"loss": next_token_sum(hidden, self.student.head, tokens, answer) / mean_over_ranks(targets)}


def train(config: Config) -> None:
    """From the state to resume from, or from the distillation's checkpoint, to the last checkpoint of the second stage."""
    folder, distilled = run_dir(config), run_dir(replace(config, stage="distill"))
    step = config.sft.init_step if config.sft.init_step >= 0 else checkpoint_steps(config.distill)[-1]
    start = checkpoint_dir(distilled, step)
    if not (start / "meta.json").exists():
        raise ValueError(f"no checkpoint of step {step} in {distilled}: run python -m experiments.distill with the same options")
    chosen = presets(config)
    restore(config)
    teacher = load_frozen(config, torch.float32)
    items = read_items(data_dir(config) / "train.parquet", config.data.train)
    with recorded(config, sft={"run": distilled.name, "step": step, "presets": chosen}):
        student = supernet_to_load(config, teacher)
        if not state_path(folder).exists():
            load_trained(student, start)
        teacher.cast(frozen_dtype(config))  # the student's frozen modules are the same tensors
        del teacher  # what it does not share with the student is not needed
        fit(FineTuning(replace(config, sft=replace(config.sft, presets=chosen)), student), items, folder)


def presets(config: Config) -> list[str]:
    """The placements to draw from: those of the options, or those that the distilled run's presets.yaml had when this stage began, with
    all-FA. Raises ValueError where they are needed and there are none."""
    model, distilled = model_config(config), run_dir(replace(config, stage="distill"))
    if config.sft.sampler not in ("targeted", "hybrid") or config.sft.presets:
        return config.sft.presets
    if begun := read_json(run_dir(config) / "manifest.json").get("sft"):
        return begun["presets"]
    path = distilled / "presets.yaml"
    try:
        found = [preset["placement"] for preset in yaml.safe_load(path.read_text())["presets"].values()]
    except FileNotFoundError:
        raise ValueError(f"no presets in {distilled}: make them with make presets, or give sft.presets=[...]") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold presets ({type(error).__name__}): delete it and run make presets") from None
    return list(dict.fromkeys(Placement(p, model.layers, model.mixers) for p in ["F" * model.layers, *found]))
