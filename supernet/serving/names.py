"""Presets by name over HTTP: ``model="NAME:loglik-18"`` is NAME with the preset loglik-18. An ASGI middleware for vLLM's server."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from supernet.serving.placements import served

Receive, Send = Callable[[], Awaitable[dict[str, Any]]], Callable[[dict[str, Any]], Awaitable[None]]


class PresetNames:
    """Turns the preset in a model's name into the argument ``preset`` of the request."""

    def __init__(self, app: Callable[[dict[str, Any], Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the client has gone
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            body = with_preset(body)
        except ValueError as error:
            return await _refuse(send, str(error))
        headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
        scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        first = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return next(first, None) or await receive()

        return await self.app(scope, replay, send)


def with_preset(body: bytes) -> bytes:
    """A request's JSON, its model's ``:preset`` moved to ``vllm_xargs``. Raises ValueError in one sentence; what is no such JSON stays."""
    try:
        request = json.loads(body)
    except ValueError:
        return body
    if not isinstance(request, dict) or not isinstance(request.get("model"), str) or ":" not in request["model"]:
        return body
    name, _, preset = request["model"].rpartition(":")
    arguments = request.get("vllm_xargs") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"vllm_xargs is {arguments!r}: give an object such as {{'placement': 'FSKG'}}")
    if arguments.get("preset", preset) != preset:
        raise ValueError(f"model {request['model']!r} and preset {arguments['preset']!r} name two presets: give one of them")
    served().placement(arguments | {"preset": preset})
    return json.dumps(request | {"vllm_xargs": arguments | {"preset": preset}}).encode()


async def _refuse(send: Send, sentence: str) -> None:
    """HTTP 400 as OpenAI's clients read it."""
    error = {"message": sentence, "type": "BadRequestError", "param": "model", "code": 400}
    await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
