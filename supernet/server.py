"""A server of ``supernet.serving`` as a process, and requests to it over HTTP. Needs no vLLM: the server has an environment of its own."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START = 900
"""Seconds that a server may take to start, and a request to be answered."""


@contextmanager
def running(python: Path | str, where: Path, log: Path, options: Mapping[str, object], patience: float = START) -> Iterator[str]:
    """The URL of a server of a run or folder on a free port of this machine, by the Python of vLLM's environment; it is stopped after.

    ``options``: of the command, without dashes; None for one without a value. What the server says goes to ``log``. Raises RuntimeError
    with the end of that when it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word for k, v in options.items() for word in ([f"--{k}"] if v is None else [f"--{k}", str(v)])]
    command = [str(python), "-m", "supernet.serving", str(where), "--host", "127.0.0.1", "--port", str(port), *words]
    root = Path(__file__).parents[1]
    with log.open("w") as said:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, env=environment)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + patience
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from None
                time.sleep(1)
        yield url
    finally:
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """The server and the processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def ask(url: str, model: str, prompt: list[int], new: int, arguments: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """The response to a prompt of token ids, which is to be read or closed: ``new`` likeliest tokens, beyond any end token.

    ``arguments``: of ours, such as ``{"placement": "FSKG"}``. ``more``: of OpenAI's completions. Raises urllib.error.HTTPError.
    """
    body = {"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **more}
    if arguments:
        body["vllm_xargs"] = dict(arguments)
    post = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(post, timeout=START)


def tokens_of(url: str, model: str, prompt: list[int], new: int, arguments: Mapping[str, Any] | None = None) -> list[int]:
    """The tokens that follow a prompt. Raises urllib.error.HTTPError."""
    with ask(url, model, prompt, new, arguments) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def models(url: str) -> list[str]:
    """The names that the server lists."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=START) as answer:
        return [model["id"] for model in json.load(answer)["data"]]
