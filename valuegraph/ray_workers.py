"""Objects that live in Ray actors and are asked all at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["WorkerLostError", "Workers", "connect", "load_ray"]

PATIENCE: Final = 300.0
"""Seconds that workers have to find a place in the cluster and start."""


class WorkerLostError(RuntimeError):
    """A worker has died, and what it held with it."""


def load_ray() -> Any:
    """The library; the error names the extra where it is missing."""
    # Ray reports its use to its makers unless told otherwise; whoever wants that sets it to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("work on a Ray cluster needs ray: pip install 'valuegraph[ray]'") from error
    return ray


def connect(address: str | None = None) -> Any:
    """Ray, connected: as it is where the program has connected already, else to the cluster at `address` or
    the variable RAY_ADDRESS ("auto": the one that runs on this machine), else on this machine alone.
    """
    ray = load_ray()
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS")
        alone: dict[str, Any] = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, **alone)
    return ray


class Workers:
    """One actor for each tuple of arguments of a class, spread over the nodes of the cluster.

    kind: the class.
    arguments: of its constructor, a tuple for each actor.
    num_cpus: what Ray reserves for each.
    restarts: how often an actor that died is made anew from its arguments and asked again. That forgets what
        it was told since, so it suits workers whose answers depend on arguments alone. With none, whoever
        asks a dead worker gets `WorkerLostError`, never the answers of the others alone.
    patience: seconds to wait for all of them to start.

    Raises `TimeoutError`, and gives up the places taken, where the cluster has too few.
    """

    def __init__(
        self,
        kind: type,
        arguments: Sequence[tuple[Any, ...]],
        *,
        num_cpus: float = 1.0,
        restarts: int = 0,
        patience: float = PATIENCE,
    ) -> None:
        self._ray = connect()
        actor = self._ray.remote(
            num_cpus=num_cpus, scheduling_strategy="SPREAD", max_restarts=restarts, max_task_retries=restarts
        )(kind)
        # Held on to where they may be needed again.
        given = [tuple(map(self._ray.put, each)) if restarts else each for each in arguments]
        self._arguments = given if restarts else []
        self._actors = [actor.remote(*each) for each in given]
        started = [actor.__ray_ready__.remote() for actor in self._actors]
        late = self._ray.wait(started, num_returns=len(started), timeout=patience)[1]
        if late:
            self.close()
            there = self._ray.cluster_resources().get("CPU", 0.0)
            raise TimeoutError(
                f"{len(late)} of {len(started)} workers found no place within {patience:g} seconds: each "
                f"needs {num_cpus:g} CPUs, and the cluster has {there:g}, perhaps taken by others"
            )
        self._get(started)  # a constructor that failed says so here

    def __len__(self) -> int:
        return len(self._actors)

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What every worker answers to its own arguments, in order."""
        calls = [
            getattr(actor, method).remote(*own) for actor, own in zip(self._actors, arguments, strict=True)
        ]
        return self._get(calls)

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """What every worker answers to the same arguments, which travel once to each node."""
        shared = tuple(map(self._ray.put, arguments))
        return self.each(method, [shared] * len(self))

    def close(self) -> None:
        """End the actors and give up what they hold."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._arguments = [], []

    def _get(self, calls: list[Any]) -> list[Any]:
        from ray.exceptions import RayActorError

        try:
            return self._ray.get(calls)
        except RayActorError as error:
            raise WorkerLostError(
                f"one of {len(calls)} workers has died, and what it held with it: {error}"
            ) from error
