"""Set before anything heavy is imported: one thread per process, and no model hub. And what tests share."""

import os
import warnings
from pathlib import Path

import pytest

# Two OpenMP runtimes (torch's, FAISS's) oversubscribe a small machine; a fixed count makes sums repeatable.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# Ray reads both when it is imported, which other packages do too; the second keeps its servers on 127.0.0.1.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# Six games of four families: two of the cooking games share one goal, the others have one each.
SMALL_TASKS = {
    *("treasure_hunter/4-104", "treasure_hunter/23-123", "coin_collector/4-204"),
    *("simple/401", "cooking/1-301", "cooking/2-303"),
}


def turns(episode):
    """An episode as messages: what was done, and what the world answered."""
    return [
        message
        for step in episode.steps
        for message in (
            {"role": "assistant", "content": step.action},
            {"role": "tool", "content": step.observation},
        )
    ]


def _packaged(name):
    import valuegraph
    from valuegraph import read_episodes

    return read_episodes(Path(valuegraph.__file__).parent / "data" / f"textworld_{name}.jsonl.gz")


@pytest.fixture(scope="session")
def small_episodes():
    """96 packaged episodes of six TextWorld games, players good, bad and random."""
    return [episode for episode in _packaged("train") if episode.metadata["task"] in SMALL_TASKS]


@pytest.fixture(scope="session")
def heldout_episodes():
    """48 packaged episodes of the same six games, none of which `small_model` has seen."""
    return [episode for episode in _packaged("heldout") if episode.metadata["task"] in SMALL_TASKS]


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory):
    """The packaged sentence model; what it has embedded once is kept for the session."""
    from valuegraph import TextEncoder
    from valuegraph.encoders import TruncationWarning

    encoder = TextEncoder(cache_dir=tmp_path_factory.mktemp("embeddings"))
    with warnings.catch_warnings():  # said once per encoder, so said here
        warnings.simplefilter("ignore", TruncationWarning)
        encoder.encode_goals(["a very long goal " * 100])
    return encoder


@pytest.fixture(scope="session")
def small_model(small_episodes, text_encoder):
    """A reward model of the six games, trained briefly. Shared: do not update it, save and load a copy."""
    from valuegraph import FitConfig, RewardModel

    return RewardModel.fit(small_episodes, text_encoder, FitConfig(epochs=2), progress=False)
