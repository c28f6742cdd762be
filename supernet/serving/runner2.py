"""Placements for vLLM's second model runner, which a GPU gets: what ``rows.py`` is for the first. Needs Triton."""

from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from supernet.placement import Placement
from supernet.serving.rows import of_request, set_rows


class PlacementState(DefaultModelState):
    """Knows the placement of every request by its slot, and before a forward pass tells which slots are the rows."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.slots: dict[int, Placement] = {}

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        self.slots[req_index] = of_request(new_req_data.sampling_params)

    def prepare_attn(self, input_batch: InputBatch, *args: Any, **kwargs: Any) -> dict[str, Any]:
        slots = input_batch.idx_mapping_np.tolist()
        set_rows({row: self.slots[slot] for row, slot in enumerate(slots) if slot in self.slots})
        return super().prepare_attn(input_batch, *args, **kwargs)
