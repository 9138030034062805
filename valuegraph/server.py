"""A reward model over HTTP: `valuegraph serve DIR`. Needs the extra `valuegraph[server]`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from valuegraph.admission import Limits, is_loopback
from valuegraph.array_encoder import ArrayEncoder
from valuegraph.episodes import Episode, Step
from valuegraph.reward_model import RewardModel

if TYPE_CHECKING:
    from os import PathLike

    from fastapi import FastAPI

__all__ = ["Limits", "create_app", "serve"]

TOKEN_VARIABLE = "VALUEGRAPH_TOKEN"

_GRACE = 30  # seconds for what has been begun, after which a shutdown lets go of it


def create_app(
    rm: RewardModel, *, token: str | None = None, limits: Limits | None = None, name: str = "valuegraph"
) -> FastAPI:
    """A FastAPI app around a model.

    `/score` takes episodes and `/update` remembers more of them; `/get_reward` talks as OpenRLHF expects it,
    `/v1/score` and `/classify` as clients of vLLM do; `/healthz`, `/metrics` and `/docs` are for people.
    Requests that arrive together are scored in one call, with the scores they would have alone. Updates are
    answered when they are on disk, for a model bound to a folder (`durable` in the answer says so).

    token: what clients send as `Authorization: Bearer ...`, but for `/healthz` and `/docs`, which are open;
        without one, only requests that name a local host are answered.
    name: of the model, in answers that have a place for it.

    Raises `ImportError` naming the extra where FastAPI is missing.
    """
    _check_token(token)
    try:
        from valuegraph.http_app import build_app
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return build_app(rm, token, limits or Limits(), name)


def serve(
    model_dir: str | PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    log_level: str = "info",
) -> None:
    """Serve a saved model until SIGTERM or SIGINT, then finish what has been begun and return.

    token: also from the environment variable VALUEGRAPH_TOKEN, out of sight of `ps`. Any host but a loopback
        one demands it: raises `ValueError` without. port: 0 takes a free one; the log says which. Raises
        `OSError` where nobody may listen there.

    One process serves a folder for writing; a second one may score, and its updates are refused.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    limits = limits or Limits()
    if token is None and not is_loopback(host):
        raise ValueError(
            f"host {host!r} can be reached from other machines; give a token (or set {TOKEN_VARIABLE})"
        )
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    with RewardModel.load(model_dir, device=device) as rm:
        _check_address(host, port)
        app = create_app(rm, token=token, limits=limits, name=Path(model_dir).resolve().name)
        _warm_up(rm)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level=log_level,
            access_log=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=_GRACE,
        )
        with _obeyed_once():
            uvicorn.Server(config).run()


@contextmanager
def _obeyed_once() -> Iterator[None]:
    """Signals that uvicorn has obeyed it raises again; here they would kill us half-way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warm_up(rm: RewardModel) -> None:
    """Load the encoder and compile the kernels now, so that the first client does not wait for it."""
    width = getattr(rm.encoder, "width", None)
    observation = "ready" if width is None else (0.0,) * width
    rm.score([Episode("warm-up", (Step(observation, "ready"),), goal="ready")])
    scratch = RewardModel.create(ArrayEncoder(1, features=8), rm.config)
    scratch.update([Episode("warm-up", (Step((0.0,)), Step((1.0,))), outcome=1.0)])


def _check_address(host: str, port: int) -> None:
    """Raise `OSError` with a sentence, where uvicorn would log and exit."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from error


def _check_token(token: str | None) -> None:
    if token is not None and (not token.strip() or not token.isascii()):
        raise ValueError("token: must be ASCII text, and not blank")


def _missing(error: ModuleNotFoundError) -> ImportError:
    return ImportError(f"the server needs {error.name}: pip install 'valuegraph[server]'", name=error.name)
