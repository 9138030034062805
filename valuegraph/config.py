"""Every choice of a fit in one flat, validated record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["FitConfig"]

_UNIT = ("gamma", "trace", "forgetting", "merge", "validation")
_POSITIVE = ("z_dim", "hidden", "epochs", "batch_size", "learning_rate", "patience", "paths_per_goal")
_CHOICES = {
    "evidence": ("step", "observation", "action"),
    "propagation": ("first_hit", "max_product"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a reward model is fitted; the defaults work for text and for vectors.

    Raises `ValueError` naming the field for a value of the wrong type or out of range.
    """

    seed: int = 0
    """Of the split, the initial weights and the order of the batches."""
    evidence: str = "step"
    """What a step is judged by: "step" (action and observation), "observation", or "action"."""
    gamma: float = 0.97
    """Discount per step, of credit and of values on the graph, in [0, 1]."""
    propagation: str = "first_hit"
    """Values on the graph: "first_hit" (probability of success) or "max_product" (best known way)."""
    trace: float = 0.0
    """Decay lambda of the Hebbian eligibility trace; 0 links only steps that follow each other."""
    surprise: float = 0.0
    """Weight kappa of the surprise |y - predicted| in Hebb's rule."""
    forgetting: float = 0.0
    """Decay eta of an edge each time it is used; 0 counts transitions."""
    unseen: float = 0.1
    """Pseudo-count kappa0 of transitions not seen yet, which lead nowhere."""
    merge: float = 0.999
    """Similarity of keys from which two steps are one memory, in [0, 1]; 1 keeps apart all that differ."""
    paths_per_goal: int = 256
    """Successful ways remembered for one goal."""
    z_dim: int = 128
    """Width of an instrumental value embedding."""
    hidden: int = 192
    """Width of the learner's hidden layers."""
    epochs: int = 15
    """Passes over the training episodes, at most; more where they make fewer than four batches."""
    patience: int = 5
    """Epochs without a better held-out loss after which training stops."""
    batch_size: int = 32
    """Episodes in a batch."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    validation: float = 0.1
    """Share of the episodes held out for early stopping and calibration, in [0, 1]; none of fewer than 50."""
    device: str = "auto"
    """"auto", "cpu" or "cuda": where the learner trains and the index is searched."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(default, str):
                valid = isinstance(value, str)
            elif isinstance(default, int):
                valid = number and value % 1 == 0
            else:
                valid = number and value == value and abs(value) != float("inf")
            if not valid:
                raise ValueError(f"{field.name}: expected {type(default).__name__}, got {value!r}")
            if isinstance(default, int):
                object.__setattr__(self, field.name, int(value))  # 3.0 epochs are 3
        for name in _UNIT:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)!r}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)!r}")
        for name in ("surprise", "unseen", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "config") -> FitConfig:
        """From a mapping of field names; raises `ValueError` naming an unknown or invalid field."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"{where}: unknown field {unknown[0]!r}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> FitConfig:
        """From a YAML file of field names and values."""
        import yaml

        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not YAML: {error}") from None
        if not isinstance(values, Mapping):
            raise ValueError(f"{path}: expected field names and values")
        return cls.from_dict(values, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)
