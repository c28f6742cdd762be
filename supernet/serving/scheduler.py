"""vLLM's schedulers, which tell the managers of pages what placement each request has (``pages.LayerManager``)."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from supernet.serving.pages import PLACEMENTS
from supernet.serving.rows import of_request


class _Placements:
    def add_request(self, request: Request) -> None:
        PLACEMENTS[request.request_id] = of_request(request.sampling_params)
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        freed = super()._free_request(request, *args, **kwargs)
        PLACEMENTS.pop(request.request_id, None)
        return freed


class PlacementScheduler(_Placements, Scheduler):
    pass


class AsyncPlacementScheduler(_Placements, AsyncScheduler):
    pass
