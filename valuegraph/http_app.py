"""The HTTP face of a reward model: routes and metrics. Imports FastAPI; `server.create_app` is the way in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.requests import ClientDisconnect

from valuegraph import __version__, payloads
from valuegraph.admission import Gate, Limits
from valuegraph.batching import Batcher, QueueClosed, QueueFull
from valuegraph.episodes import Episode, EpisodeError
from valuegraph.http_schemas import ABOUT, SCHEMAS
from valuegraph.records import KnownEpisodeError
from valuegraph.reward_model import RewardModel, UpdateReport
from valuegraph.scores import Scores

__all__ = ["build_app"]

T = TypeVar("T")

_LARGE = 64 * 1024  # bytes; a larger body is parsed in a thread, so that others are not kept waiting
_RETRY = {"Retry-After": "1"}


def build_app(rm: RewardModel, token: str | None, limits: Limits, name: str) -> FastAPI:
    """The app; see `server.create_app`."""
    metrics = _Metrics(rm)
    # one thread each: more would only take the interpreter from one another
    scoring, updating = (ThreadPoolExecutor(1, f"valuegraph-{what}") for what in ("score", "update"))
    scorer = Batcher(partial(_score, rm, metrics), scoring, limits.batch, limits.queue)
    updater = Batcher(partial(_update, rm, metrics), updating, 1, limits.queue)
    metrics.watch(scorer, updater)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(scorer.close(), updater.close())
        scoring.shutdown()
        updating.shutdown()

    app = FastAPI(title="valuegraph", version=__version__, description=ABOUT, lifespan=lifespan)
    app.add_middleware(Gate, token=token)

    @app.exception_handler(EpisodeError)
    async def unprocessable(request: Request, error: EpisodeError) -> Response:
        return _json({"detail": str(error)}, 422)

    def post(path: str, answer: Callable[[Any], Awaitable[Any]]) -> None:
        async def handle(request: Request) -> Response:
            start, status = perf_counter(), 500
            try:
                reply = await answer(await _body(request, limits))
                status = 200
                return _json(reply)
            except (HTTPException, EpisodeError) as error:
                status = getattr(error, "status_code", 422)
                raise
            finally:
                metrics.seen(path, status, perf_counter() - start)

        app.post(path, summary=SCHEMAS[path]["summary"], openapi_extra=SCHEMAS[path]["openapi"])(handle)

    def scoring_route(read: Callable[[Any], list[Episode]], write: Callable[[Scores], Any]) -> Any:
        async def answer(body: bytes) -> Any:
            return write(await _result(scorer, await _parsed(body, read), limits))

        return answer

    async def get_reward(body: bytes) -> Any:
        rows = await _parsed(body, payloads.openrlhf_episodes)
        episodes = [row for row in rows if row is not None]
        scores = await _result(scorer, episodes, limits) if episodes else None
        return payloads.openrlhf_rewards(scores, [row is not None for row in rows])

    async def update(body: bytes) -> Any:
        episodes = await _parsed(body, payloads.native_episodes)
        report: UpdateReport = await _result(updater, episodes, limits, finish=True)
        return {
            "episodes": report.episodes,
            "new_nodes": report.new_nodes,
            "new_edges": report.new_edges,
            "durable": report.durable,
        }

    post("/score", scoring_route(payloads.native_episodes, payloads.score_records))
    post("/get_reward", get_reward)
    post("/v1/score", scoring_route(payloads.pairs_to_score, partial(payloads.pair_scores, model=name)))
    classify = scoring_route(payloads.conversations_to_classify, partial(payloads.classification, model=name))
    post("/classify", classify)
    post("/v1/classify", classify)
    post("/update", update)

    @app.get("/healthz", summary="Whether it is up, and what it serves")
    async def healthz() -> Response:
        return _json({"status": "ok", "version": __version__, "model": name, **rm.summary()})

    @app.get("/metrics", summary="Prometheus metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if token is not None:  # the page at /docs asks for it, and sends it with what is tried out there
        described = app.openapi()
        described.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"}
        }
        described["security"] = [{"token": []}]
    return app


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, as far as it is allowed; raises `HTTPException` 408, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # any page in a browser may send other types here unasked
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.body_bytes:
                    chunks.append(chunk)
                elif size > 4 * limits.body_bytes:
                    break  # until here it is read and dropped: who is still sending does not see an answer
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None
    if size > limits.body_bytes:
        raise HTTPException(413, f"the body is larger than {limits.body_bytes} bytes; send fewer episodes")
    return b"".join(chunks)


async def _parsed(body: bytes, read: Callable[[Any], T]) -> T:
    def parse() -> T:
        try:
            return read(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise EpisodeError(f"the body is not JSON: {error}") from None

    return await asyncio.to_thread(parse) if len(body) > _LARGE else parse()


async def _result(
    batcher: Batcher[Episode], episodes: list[Episode], limits: Limits, *, finish: bool = False
) -> Any:
    """What the batcher makes of the episodes; with `finish`, work that has begun is waited for to its end."""
    if len(episodes) > batcher.queue:
        raise HTTPException(413, f"{len(episodes)} episodes in one request; send at most {batcher.queue}")
    try:
        future = batcher.submit(episodes)
        done, _ = await asyncio.wait((future,), timeout=limits.seconds)
        if not done:
            if batcher.withdraw(future):
                raise HTTPException(503, "too busy: nothing was begun; try again", _RETRY)
            if not finish:
                future.cancel()
                raise HTTPException(504, f"not ready after {limits.seconds:g} s; send fewer episodes")
        return await future
    except QueueFull:
        raise HTTPException(429, "too many episodes are waiting; try again", _RETRY) from None
    except QueueClosed:
        raise HTTPException(503, "shutting down", _RETRY) from None


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _score(rm: RewardModel, metrics: _Metrics, groups: list[Sequence[Episode]]) -> list[Any]:
    """The scores of each group, all from one call; where that fails, only the groups at fault do."""
    try:
        scores = rm.score([episode for group in groups for episode in group])
    except EpisodeError:
        return [_score_alone(rm, group) for group in groups]
    metrics.scored(len(scores))
    ends = [0]
    for group in groups:
        ends.append(ends[-1] + len(group))
    return [_rows(scores, slice(a, b)) for a, b in pairwise(ends)]


def _rows(scores: Scores, rows: slice) -> Scores:
    return Scores(
        scores.episode_ids[rows],
        scores.total[rows],
        scores.terminal[rows],
        scores.instrumental[rows],
        scores.support[rows],
        scores.potentials[rows],
        scores.step_rewards[rows],
    )


def _score_alone(rm: RewardModel, group: Sequence[Episode]) -> Scores | EpisodeError:
    for i, episode in enumerate(group):
        try:
            rm.score([episode])
        except EpisodeError as error:
            return EpisodeError(f"episodes[{i}]: {error}")
    return rm.score(group)


def _update(rm: RewardModel, metrics: _Metrics, groups: list[Sequence[Episode]]) -> list[Any]:
    results: list[Any] = []
    for group in groups:
        try:
            results.append(rm.update(group))
            metrics.remembered.inc(len(group))
        except KnownEpisodeError as error:
            results.append(HTTPException(409, str(error)))
        except EpisodeError as error:
            results.append(error)
        except (ValueError, OSError) as error:  # the folder: in use by another process, full, gone
            results.append(HTTPException(503, f"nothing was written: {error}"))
    return results


class _Metrics:
    """What `/metrics` shows; a registry of its own, since a process may hold several apps."""

    def __init__(self, rm: RewardModel) -> None:
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry, "namespace": "valuegraph"}
        self._requests = Counter("requests", "Requests answered", ["path", "status"], **new)
        self._seconds = Histogram("request_seconds", "From first byte to answer", ["path"], **new)
        self._batch = Histogram("batch_episodes", "In one call", buckets=[2**i for i in range(11)], **new)
        self._scored = Counter("episodes_scored", "Episodes scored", **new)
        self.remembered = Counter("episodes_remembered", "Episodes written by updates, durably", **new)
        for size in ("episodes", "nodes", "edges"):
            gauge = Gauge(f"memory_{size}", f"{size.capitalize()} in memory", **new)
            gauge.set_function(partial(_size, rm, size))
        self._waiting = Gauge("waiting_episodes", "In a queue", ["queue"], **new)

    def watch(self, scorer: Batcher[Episode], updater: Batcher[Episode]) -> None:
        for name, batcher in (("score", scorer), ("update", updater)):
            self._waiting.labels(name).set_function(partial(getattr, batcher, "waiting"))

    def seen(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, episodes: int) -> None:
        self._scored.inc(episodes)
        self._batch.observe(episodes)


def _size(rm: RewardModel, name: str) -> float:
    return float(rm.summary()[name])
