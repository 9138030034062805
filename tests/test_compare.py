"""The comparison from files to report, on the packaged games."""

import argparse
import gzip
import json
from functools import partial
from pathlib import Path

import pytest

import valuegraph
from benchmarks import pressure
from benchmarks.compare import Recorder, problem, run
from benchmarks.report import BEGIN, END, write
from benchmarks.rivals import ours
from benchmarks.run import ALONE, DOCS, STORE, commands, keep, store_folder
from benchmarks.store_report import collect
from tests.conftest import SMALL_TASKS
from valuegraph import FitConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """textworld/{train,dev}.jsonl.gz with truth: four games to learn from, two held out."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "textworld").mkdir()
    packaged = Path(valuegraph.__file__).parent / "data"
    lines = []
    for name in ("train", "heldout"):
        with gzip.open(packaged / f"textworld_{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines += file.readlines()
    held = {"treasure_hunter/4-104", "simple/401"}
    for split, tasks in (("train", SMALL_TASKS - held), ("dev", held)):
        kept = [line for line in lines if json.loads(line)["metadata"]["task"] in tasks]
        with gzip.open(folder / "textworld" / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(kept)
    return folder


def options(data, **changed):
    fixed = {"data": data, "environments": ["textworld"], "protocols": ["memory"], "held_out": "dev"}
    return argparse.Namespace(**fixed, **{"seeds": [0], "parts": ["table"], "extra": [], **changed})


def test_protocols_hold_out_what_they_say(data):
    memory, unseen = (problem(data / "textworld", name, "dev") for name in ("memory", "unseen"))
    for task, shared in ((memory, True), (unseen, False)):
        assert not {e.episode_id for e in task.fit} & {e.episode_id for e in task.rollouts}
        known = {e.metadata["task"] for e in task.fit}
        assert all((e.metadata["task"] in known) == shared for e in task.rollouts)
        assert {hack.base_id for hack in task.hacks} <= {e.episode_id for e in task.rollouts}
    assert len(memory.fit) + len(memory.rollouts) == len(unseen.fit) + len(unseen.rollouts)


def test_from_files_to_report(data, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "FitConfig", partial(FitConfig, epochs=4))
    out, chosen = tmp_path / "compare.json", ["ours", "RUDDER", "goal cosine, last"]
    about = {"version": "0", "held_out": "dev", "seeds": [0]}
    run(options(data), text_encoder, Recorder(out, about, chosen))
    rows = {row["scorer"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(chosen)
    for row in rows.values():
        assert all(
            0.0 <= row["measures"][m][0] <= 1.0 for m in ("auc", "credit", "epic", "brier", "worst_win")
        )
        assert len(row["attacks"]) >= 12
    # Better than what only reads the goal's words, or there would be no point.
    assert rows["ours"]["measures"]["step"][0] > rows["goal cosine, last"]["measures"]["step"][0]
    assert (
        rows["ours"]["measures"]["unearned_pay"][0]
        < 0.2
        < rows["goal cosine, last"]["measures"]["unearned_pay"][0]
    )

    run(options(data), text_encoder, Recorder(out, about, ["goal cosine, last"]))  # replaces its row only
    again = {row["scorer"]: row for row in json.loads(out.read_text())["rows"]}
    assert again["ours"] == rows["ours"]
    assert again["goal cosine, last"]["measures"] == rows["goal cosine, last"]["measures"]
    with pytest.raises(ValueError, match="made on 'dev', not on 'test'"):
        Recorder(out, {**about, "held_out": "test"})

    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    write(out, tmp_path, readme)
    assert "| ours |" in readme.read_text()


def test_a_fast_run_leaves_the_published_results_alone():
    fast, full = commands(fast=True), commands(fast=False)
    assert "--readme" in full["report"]
    assert "--readme" not in fast["report"]
    assert not any(str(DOCS) in word for command in fast.values() for word in command)
    assert fast.keys() == full.keys() >= set(ALONE)
    assert fast["compare"][fast["compare"].index("--held-out") + 1] == "dev"


@pytest.mark.parametrize("fast", [True, False])
def test_the_store_is_reported_from_what_a_run_measured(fast):
    asked = commands(fast)
    assert set(STORE) <= set(asked)
    assert list(asked)[-1] == "store_report"  # nothing that it reads comes later
    assert str(store_folder(fast)) in asked["store_report"]
    assert all("--json" in asked[name] for name in STORE if name != "faults")  # which prints nothing else
    assert store_folder(True) != store_folder(False)


def test_what_was_not_measured_stays_as_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.run.DOCS", tmp_path)
    (tmp_path / "store.json").write_text(
        json.dumps({"chroma": {"rate": 2.0}, "gpu": {"old": 1}, "index": {}})
    )
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "gpu.txt").write_text('{"new": 1}')
    keep(("chroma", "gpu", "scaling"), tmp_path / "now")
    assert collect(tmp_path / "now") == {"chroma": {"rate": 2.0}, "gpu": {"new": 1}}
    assert capsys.readouterr().out.splitlines() == ["== chroma: not measured here, as published before"]


def test_the_published_page_has_its_marks():
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for begin, end in ((BEGIN, END), (pressure.BEGIN, pressure.END)):
        assert page.count(begin) == page.count(end) == 1
        assert page.index(begin) < page.index(end)
