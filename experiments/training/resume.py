"""The state to resume training from: when it is written, and the end of a training that was asked to stop."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L

from experiments.runs.stopping import Stopped, asked, raise_if_asked
from experiments.training.finite import NotFinite, first_not_finite
from experiments.training.parallel import on_any_rank


class ResumeState(L.Callback):
    """Everything needed to continue (trained tensors, optimizer, schedule, step), every ``seconds`` and when asked to stop.

    All processes take part, the first writes; the file is renamed into place.
    """

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds, self.last, self.stopped = path, seconds, time.monotonic(), False
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)  # Lightning has put its own in its place, which does not save
        raise_if_asked()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = trainer.is_global_zero and time.monotonic() - self.last >= self.seconds
        due, self.stopped = on_any_rank([due, asked()], module.device)
        if due or self.stopped:
            self.save(trainer)
        if self.stopped:
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """The weights before a step that was refused are still good."""
        if isinstance(exception, NotFinite):
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        bad = bool(first_not_finite(trainer.lightning_module.student))
        if any(on_any_rank([bad], trainer.lightning_module.device)):
            return  # the state before is the last good one
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")  # of one name in all processes and attempts: what a kill left is written over
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(self.path)
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)  # on a full disk its space is needed to say so in status.json
        self.last = time.monotonic()

    def raise_if_stopped(self) -> None:
        """In the first process of a training that ended early; the others end quietly."""
        if self.stopped:
            raise_if_asked()
            raise Stopped(signal.SIGTERM)  # another process was asked
