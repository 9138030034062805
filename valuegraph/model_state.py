"""What a reward model is made of, as a folder holds it and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from valuegraph.calibration import Calibration
from valuegraph.config import FitConfig
from valuegraph.encoders import Encoder, encoder_from_config
from valuegraph.graph import ValueGraph
from valuegraph.graph_state import graph_from_state, graph_state
from valuegraph.networks import InstrumentalNet, net_from_arrays, net_to_arrays
from valuegraph.persistence import Folder, ModelFolderError

__all__ = ["Parts", "packed", "unpacked"]


class Parts(NamedTuple):
    """Everything that a score depends on."""

    encoder: Encoder
    config: FitConfig
    graph: ValueGraph
    net: InstrumentalNet | None
    calibration: Calibration


def packed(parts: Parts, episodes: Sequence[str]) -> dict[str, Any]:
    """What `FolderWriter.snapshot` writes: configuration, tensors, blobs and documents."""
    encoder, config, graph, net, calibration = parts
    arrays, documents = graph_state(graph)
    tensors = {"graph": arrays}
    if net is not None:
        tensors["learner"] = net_to_arrays(net)
    return {
        "config": {
            "encoder": encoder.to_config(),
            "fit": config.to_dict(),
            "calibration": asdict(calibration),
            "dim": encoder.dim,
            "z_dim": graph.z_dim,
            "learner": None if net is None else net.shape,
        },
        "tensors": tensors,
        "blobs": {"index.faiss": graph.index.to_bytes()},
        "documents": {**documents, "episodes": list(episodes)},
    }


def unpacked(folder: Folder, path: Path, device: str, encoder: Encoder | None = None) -> Parts:
    """The inverse; `encoder` replaces the saved one.

    Raises `ModelFolderError` for another encoder than the one it was fitted with, and where `path` holds
    something else than a reward model.
    """
    config = folder.config
    try:
        if encoder is None:
            encoder = encoder_from_config(config["encoder"], device=device)
        elif encoder.fingerprint != config["encoder"]["fingerprint"]:
            raise ModelFolderError(f"{path}: was fitted with another encoder than {encoder.id}")
        fit = FitConfig.from_dict(config["fit"], where=str(path / "config.json"))
        graph = graph_from_state(
            config["dim"],
            config["z_dim"],
            fit,
            folder.tensors["graph"],
            folder.documents,
            folder.blobs["index.faiss"],
            device,
        )
        net = None
        if config["learner"] is not None:
            net = net_from_arrays(config["learner"], folder.tensors["learner"])
        return Parts(encoder, fit, graph, net, Calibration(**config["calibration"]))
    except (KeyError, TypeError) as error:
        raise ModelFolderError(f"{path / 'config.json'}: not a reward model's: {error!r}") from None
