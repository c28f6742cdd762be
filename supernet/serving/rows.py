"""Which placement each row of vLLM's batch has, and the check of a request where it arrives: what does not fit is answered with HTTP 400.

vLLM's first model runner, the one of a CPU, tells a logits processor before each forward pass what joins, leaves and moves. The second, the
one of a GPU, tells ``runner2.py``. Our logits processors change no logits.
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor

from supernet.placement import Placement
from supernet.serving.placements import served

_rows: dict[int, Placement] = {}  # row -> placement; in the process of the model runner


def placements_of(rows: int) -> list[Placement]:
    """The placements of the first ``rows`` rows; a row that vLLM made up (profiling, capture) has the default one."""
    default = None if all(row in _rows for row in range(rows)) else served().placement({})
    return [_rows.get(row, default) for row in range(rows)]


def set_rows(rows: dict[int, Placement]) -> None:
    """The whole batch at once."""
    _rows.clear()
    _rows.update(rows)


def of_request(params: SamplingParams | None) -> Placement:
    return served().placement(params.extra_args if params else None)


class Rows(LogitsProcessor):
    """Watches the batch of the first runner."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        of_request(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        _rows.clear()

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            _rows.pop(row, None)
        for row, params, *_ in batch_update.added:
            _rows[row] = of_request(params)
        for a, b, how in batch_update.moved:
            moved, other = _rows.pop(a, None), _rows.pop(b, None)
            if moved is not None:
                _rows[b] = moved
            if how == MoveDirectionality.SWAP and other is not None:
                _rows[a] = other


class Check(SecondLogitsProcessor):
    """For the second runner, which has another interface and other means to watch the batch."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        of_request(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        return False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        return logits
