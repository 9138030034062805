"""Saved models in the conventions of the Hugging Face Hub: a folder with a model card, pushed and fetched.

Everything but `push_to_hub`, and `fetch` of a name that is no folder, works without a network.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valuegraph.persistence import write_folder

__all__ = ["fetch", "model_card", "push_to_hub", "save_pretrained"]

CARD = "README.md"
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LOCAL = ["writer.lock", ".*"]  # of this machine alone
_METADATA = """\
---
library_name: valuegraph
pipeline_tag: reinforcement-learning
tags:
- valuegraph
- reward-model
- credit-assignment
---
"""


def save_pretrained(
    folder: str | os.PathLike[str],
    state: Mapping[str, Any],
    summary: Mapping[str, Any],
    name: str | None = None,
) -> None:
    """Write the parts of a model, and a model card unless there is one, to a folder.

    state: what `persistence.write_folder` takes. Raises as that does.
    """
    folder = Path(folder)
    write_folder(folder, **state)
    add_card(folder, state["config"], summary, name)


def add_card(
    folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], name: str | None = None
) -> None:
    """Add a model card to a saved model; one that is already there, perhaps edited, stays."""
    if not (folder / CARD).exists():
        (folder / CARD).write_text(model_card(config, summary, name or folder.resolve().name), "utf-8")


def fetch(name_or_path: str | os.PathLike[str], **options: Any) -> Path:
    """The folder of a saved model: the one given, or a download of `owner/name` from the Hub.

    options: of `huggingface_hub.snapshot_download` (`revision`, `cache_dir`, `token`, `local_files_only`).
    Raises `FileNotFoundError` for what is neither a folder nor a name, and the Hub's own errors.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if not isinstance(name_or_path, str) or not _NAME.fullmatch(name_or_path):
        raise FileNotFoundError(f"{name_or_path}: no such folder, and not a name of the form owner/name")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name_or_path, **options))


def push_to_hub(
    repo_id: str,
    state: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    private: bool | None = None,
    commit_message: str = "Push a reward model",
    token: str | bool | None = None,
    **options: Any,
) -> str:
    """Upload the parts of a model, and a card unless the repository has one; returns the commit's address.

    options: of `HfApi.upload_folder` (`revision`, `create_pr`, ...). Raises the Hub's own errors, and
    `ValueError` for an encoder of a folder on this machine, which nobody else could load.
    """
    from huggingface_hub import HfApi

    encoder = str(state["config"]["encoder"].get("id", ""))
    if Path(encoder).is_absolute():
        raise ValueError(
            f"the encoder is the folder {encoder}; push it to the Hub and fit with its name there"
        )

    api = HfApi(token=token, library_name="valuegraph")
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, state, summary, repo.rpartition("/")[2])
        ignore = [*_LOCAL, CARD] if api.file_exists(repo, CARD) else _LOCAL
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=commit_message, ignore_patterns=ignore, **options
        )
    return str(commit.commit_url)


def model_card(config: Mapping[str, Any], summary: Mapping[str, Any], name: str) -> str:
    """The model card, in Markdown with the Hub's metadata on top."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in summary.items())
    settings = json.dumps(config["fit"], indent=2)
    return f"""{_METADATA}
# {name}

A reward model of `valuegraph`: it scores rollouts, per step and as a whole, by how they ended and by how they
got there. It was learned from whole episodes and their outcome alone.

```python
import valuegraph as vg

rm = vg.RewardModel.from_pretrained("owner/{name}")   # or a folder
scores = rm.score(vg.read_episodes("rollouts.jsonl"))  # .total, .terminal, .instrumental, .step_rewards
```

## What it remembers

| | |
|---|---|
{rows}

## How it was fitted

```json
{settings}
```

## Intended use and limits

- A reward for reinforcement learning, and a score for logs of agents. It says how near a rollout is to what
  led to success before; it is not a judge of correctness in general.
- Scores far from the episodes it was fitted on are guesses; `support` says how far.
- A policy that recites the landmarks of success in text it writes itself cannot be told from one that reached
  them. Where there is an environment, judge by what it said: `evidence="observation"`.
- A better way that no episode took is paid too little until an episode shows that it works.
- The folder holds texts of the episodes it was fitted on. Do not publish what they must not tell.
"""
