"""The door of a server without Ray: in this process, on a thread, in front of whatever answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from launch.serving.door import Door
from launch.serving.limits import Limits

TOKEN = "a token of this test"


class Handle:
    """What Ray Serve gives for a deployment: each method has `remote`.

    Args:
        methods: name -> what is called.
    """

    def __init__(self, methods: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        for name, method in methods.items():
            setattr(self, name, _Remote(method))


class _Remote:
    def __init__(self, method: Callable[..., Awaitable[Any]]) -> None:
        self.remote = method


@contextlib.contextmanager
def door_at(handle: Any, limits: Limits | None = None) -> Iterator[str]:
    """A URL where a door answers, over HTTP."""
    import uvicorn
    from starlette.requests import Request

    door = Door(handle, TOKEN, limits or Limits())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            answer = await door(Request(scope, receive))
            await answer(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the door does not open"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
