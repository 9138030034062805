"""Dense rewards from whole episodes and their outcome alone: credit, memory and a value graph in one model.

>>> import valuegraph as vg
>>> vg.Step(observation="a dark room", action="turn on the lamp").action
'turn on the lamp'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valuegraph.config import FitConfig
    from valuegraph.encoders import ArrayEncoder, TextEncoder
    from valuegraph.episodes import Episode, EpisodeError, Step, read_episodes, write_episodes
    from valuegraph.graph import ValueGraph
    from valuegraph.reward_model import RewardModel
    from valuegraph.scores import Scores

__version__ = "0.1.0"

__all__ = [
    "ArrayEncoder",
    "Episode",
    "EpisodeError",
    "FitConfig",
    "RewardModel",
    "Scores",
    "Step",
    "TextEncoder",
    "ValueGraph",
    "__version__",
    "read_episodes",
    "write_episodes",
]

# Where each public name lives; resolved on first use (PEP 562), so that reading episodes imports no torch.
_HOME = {
    "ArrayEncoder": "encoders",
    "Episode": "episodes",
    "EpisodeError": "episodes",
    "FitConfig": "config",
    "RewardModel": "reward_model",
    "Scores": "scores",
    "Step": "episodes",
    "TextEncoder": "encoders",
    "ValueGraph": "graph",
    "read_episodes": "episodes",
    "write_episodes": "episodes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next access skips this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
