"""Who may talk to a server, and how much it takes in."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Gate", "Limits", "is_loopback"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes in; every one must be above 0."""

    body_bytes: int = 16 * 2**20
    """Size of a request; a larger one is answered 413."""
    queue: int = 4096
    """Episodes that may wait to be scored, and as many to be remembered; beyond them, 429."""
    batch: int = 64
    """Episodes that are scored in one call."""
    seconds: float = 120.0
    """For a request to arrive, and for it to be answered; beyond them, 408, 503 or 504."""
    connections: int = 1024
    """Clients connected at once; beyond them, 503."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}: must be above 0, got {getattr(self, field.name)!r}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", "example.org")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


OPEN = ("/healthz", "/docs", "/openapi.json")
"""What is answered without a token: whether it is up, and a description that is the same for every model."""


class Gate:
    """ASGI middleware: a bearer token for all that is not `OPEN`; without a token, local host names alone.

    A page in a browser can send requests to this machine under a name of its own that resolves to it; its
    Host header gives it away.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self.app = app
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 421."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if self._expected is None:
                if not is_loopback(_host_name(headers.get(b"host", b""))):
                    await _refuse(send, 421, "without a token this server answers to local host names alone")
                    return
            elif scope["path"] not in OPEN and not hmac.compare_digest(
                headers.get(b"authorization", b""), self._expected
            ):
                await _refuse(send, 401, "send the header Authorization: Bearer TOKEN")
                return
        await self.app(scope, receive, send)


def _host_name(header: bytes) -> str:
    name = header.decode("latin-1")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = b'{"detail":"%s"}' % detail.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
