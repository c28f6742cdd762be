"""Fine-tuning: its loss around the common step, the placements it draws from, and its start from a distillation."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from experiments.data.items import read_items
from experiments.run import Run
from experiments.runs.kept import restore
from experiments.runs.records import read_json
from experiments.runs.steps import checkpoint_dir, state_path
from experiments.training.build import supernet_to_load
from experiments.training.loop import Batch, Training, fit, frozen_dtype, recorded
from experiments.training.parallel import mean_over_ranks
from experiments.training.strategy import checkpoint_steps
from supernet.checkpoint import load_trained
from supernet.ops.losses import next_token_sum
from supernet.placement import Placement
from supernet.teacher import load_teacher


class FineTuning(Training):
    """Next-token loss in nats per token of the answers; prompts are read, not learned. Only mixers are trained."""

    def losses(self, batch: Batch, placement: Placement) -> dict[str, Tensor]:
        tokens, _, answer = batch
        targets = answer[:, 1:].sum().float()  # a sequence's first token is not predicted
        hidden = self.student.features(tokens, placement, self.run.trainer.recompute)[0]
        return {"loss": next_token_sum(hidden, self.student.head, tokens, answer) / mean_over_ranks(targets)}


def train(run: Run) -> None:
    """From the state to resume from, or from the distillation's checkpoint, to the last checkpoint of the second stage."""
    distilled = run.distilled
    step = run.sft.init_step if run.sft.init_step >= 0 else checkpoint_steps(run.distill)[-1]
    start = checkpoint_dir(distilled.folder, step)
    if not (start / "meta.json").exists():
        raise ValueError(f"no checkpoint of step {step} in {distilled.folder}: run python -m experiments.distill with the same options")
    chosen = presets(run, distilled.folder)
    restore(run)
    teacher = load_teacher(run.teacher_dir, torch.float32)
    items = read_items(run.sequences("train"), run.data.train)
    with recorded(run, sft={"run": distilled.id, "step": step, "presets": chosen}):
        student = supernet_to_load(run, teacher)
        if not state_path(run.folder).exists():
            load_trained(student, start)
        teacher.cast(frozen_dtype(run.distill.precision))  # the student's frozen modules are the same tensors
        del teacher  # what it does not share with the student is not needed
        fit(FineTuning(run, replace(run.sft, presets=chosen), student), items)


def presets(run: Run, distilled: Path) -> list[str]:
    """The placements to draw from: those of the options, or those that the distilled run's presets.yaml had when this stage began, with
    all-FA. Raises ValueError where they are needed and there are none."""
    if run.sft.sampler not in ("targeted", "hybrid") or run.sft.presets:
        return run.sft.presets
    if begun := read_json(run.folder / "manifest.json").get("sft"):
        return begun["presets"]
    path = distilled / "presets.yaml"
    try:
        found = [preset["placement"] for preset in yaml.safe_load(path.read_text())["presets"].values()]
    except FileNotFoundError:
        raise ValueError(f"no presets in {distilled}: make them with make presets, or give sft.presets=[...]") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold presets ({type(error).__name__}): delete it and run make presets") from None
    model = run.model
    return list(dict.fromkeys(Placement(p, model.layers, model.mixers) for p in ["F" * model.layers, *found]))
