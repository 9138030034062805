"""Episodes: what is accepted, what is refused and in which words, and files that come back as they went."""

import gzip
import json
import math
import pickle
import tracemalloc
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings

from valuegraph.episodes import (
    Episode,
    EpisodeError,
    Step,
    check_episodes,
    iter_episodes,
    read_episodes,
    write_episodes,
)
from valuegraph.testing import episode_lists, episodes

GOOD = {"episode_id": "a", "goal": "open the door", "steps": [{"observation": "A hall.", "action": "look"}]}


def lines(path, *records):
    """Write records (or raw text) as JSON lines."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def changed(**fields):
    return {**GOOD, **fields}


def test_canonical_record():
    record = {
        **changed(outcome=1, terminated=True, truncated=True, metadata={"task": "t", "n": [1, None]}),
        "steps": [{"observation": "A hall.", "action": "look", "reward": 1}, {"observation": "A door."}],
    }
    episode = Episode.from_dict(record)
    assert episode == Episode(
        "a",
        (Step("A hall.", "look", 1.0), Step("A door.")),
        goal="open the door",
        outcome=1.0,
        terminated=True,
        truncated=True,
        metadata={"task": "t", "n": [1, None]},
    )
    assert type(episode.outcome) is float
    assert type(episode.steps[0].reward) is float
    assert episode.observation_kind == "text"


def test_vectors_become_tuples_of_floats():
    step = Step(np.array([1, 2], dtype=np.float32))
    assert step.observation == (1.0, 2.0)
    assert all(type(x) is float for x in step.observation)
    assert Episode("v", (step, Step([0, 0.5]))).observation_kind == "vector"


def test_none_is_not_zero():
    episode = Episode.from_dict(GOOD)
    assert episode.outcome is None
    assert episode.steps[0].reward is None
    assert Episode.from_dict(changed(outcome=0)).outcome == 0.0
    assert Episode.from_dict(changed(outcome=0)) != episode


@pytest.mark.parametrize(("success", "outcome"), [(True, 1.0), (False, 0.0), (None, None)])
def test_success_stands_in_for_outcome(success, outcome):
    assert Episode.from_dict(changed(success=success)).outcome == outcome
    assert Episode.from_dict(changed(success=success, outcome=None)).outcome == outcome
    assert Episode.from_dict(changed(success=success, outcome=0.25)).outcome == 0.25


def test_unknown_fields_leave_no_trace():
    noisy = changed(truth={"final": 1.0}, extra=math.nan)
    noisy["steps"] = [{**GOOD["steps"][0], "truth": 1, "hidden": "answer"}]
    assert Episode.from_dict(noisy) == Episode.from_dict(GOOD)
    assert "truth" not in json.dumps(Episode.from_dict(noisy).to_dict())


def test_blank_goal_is_no_goal_and_a_silent_environment_is_allowed():
    assert Episode.from_dict(changed(goal=" \n")).goal is None
    assert Step("", "wait").observation == ""


def test_frozen_hashable_and_picklable():
    episode = Episode("a", (Step("x"),), metadata={"k": [1]})
    with pytest.raises(FrozenInstanceError):
        episode.goal = "other"
    assert pickle.loads(pickle.dumps(episode)) == episode  # noqa: S301 (spawned workers do this)
    assert hash(episode) == hash(Episode("a", (Step("x"),)))


def test_metadata_is_a_private_copy():
    metadata = {"k": [1]}
    episode = Episode("a", (Step("x"),), metadata=metadata)
    metadata["k"].append(2)
    assert episode.metadata == {"k": [1]}


# What is wrong with a record, and what the message must say
BAD = [
    ({k: v for k, v in GOOD.items() if k != "steps"}, "episode 'a': steps: missing"),
    ({k: v for k, v in GOOD.items() if k != "episode_id"}, "episode_id: missing"),
    (changed(episode_id=""), "episode_id: must be a non-empty string"),
    (changed(episode_id=7), "episode_id: must be a non-empty string, not 7"),
    (changed(steps=[]), "episode 'a': steps: empty"),
    (changed(steps={}), "steps: must be a list"),
    (changed(steps=["look"]), r"steps\[0\]: must be a JSON object"),
    (changed(steps=[{"action": "x"}]), r"steps\[0\].observation: missing"),
    (changed(steps=[{"observation": None}]), r"steps\[0\].observation: must be text or a non-empty list"),
    (changed(steps=[{"observation": 3}]), r"steps\[0\].observation: must be text"),
    (changed(steps=[{"observation": []}]), r"steps\[0\].observation: must be text or a non-empty list"),
    (
        changed(steps=[{"observation": [1, math.nan]}]),
        r"steps\[0\].observation\[1\]: must be a finite number, not nan",
    ),
    (changed(steps=[{"observation": [math.inf]}]), r"observation\[0\]: must be a finite number, not inf"),
    (changed(steps=[{"observation": [1, True]}]), r"observation\[1\]: must be a number, not True"),
    (changed(steps=[{"observation": [1, "2"]}]), r"observation\[1\]: must be a number, not '2'"),
    (changed(steps=[{"observation": [[1]]}]), r"observation\[0\]: must be a number"),
    (changed(steps=[{"observation": [10**400]}]), r"observation\[0\]: must be a finite number"),
    (
        changed(steps=[{"observation": "x"}, {"observation": [1]}]),
        r"steps\[1\].observation: a vector of 1 numbers, but",
    ),
    (
        changed(steps=[{"observation": [1]}, {"observation": [1, 2]}]),
        r"steps\[1\].observation: a vector of 2 numbers",
    ),
    (changed(steps=[{"observation": "x", "action": 3}]), r"steps\[0\].action: must be text or null, not 3"),
    (changed(steps=[{"observation": "x", "reward": "1"}]), r"steps\[0\].reward: must be a number, not '1'"),
    (
        changed(steps=[{"observation": "x", "reward": False}]),
        r"steps\[0\].reward: must be a number, not False",
    ),
    (
        changed(steps=[{"observation": "x", "reward": math.nan}]),
        r"steps\[0\].reward: must be a finite number",
    ),
    (changed(goal=["x"]), "goal: must be text or null"),
    (changed(goal="\ud800"), "goal: not valid Unicode"),
    (changed(outcome=1.5), r"episode 'a': outcome: must be in \[0, 1\], not 1.5"),
    (changed(outcome=-1), r"outcome: must be in \[0, 1\], not -1"),
    (changed(outcome=math.nan), "outcome: must be a finite number"),
    (changed(outcome=True), "outcome: must be a number, not True"),
    (changed(outcome="1"), "outcome: must be a number, not '1'"),
    (changed(success=1), "success: must be true or false, not 1"),
    (changed(terminated=1), "terminated: must be true or false, not 1"),
    (changed(truncated=None), "truncated: must be true or false, not None"),
    (changed(metadata=[1]), "metadata: must be a JSON object"),
    (changed(metadata={"x": math.inf}), "metadata: not representable as JSON"),
    ([GOOD], "an episode must be a JSON object"),
    ("{broken", "not valid JSON"),
    ('{"episode_id": "a", "goal": "cut of', "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_record_is_refused_by_file_line_and_field(tmp_path, record, message, suffix):
    path = lines(tmp_path / "bad.jsonl", changed(episode_id="first"), "", record)
    if suffix == ".jsonl.gz":
        path = tmp_path / "bad.jsonl.gz"
        path.write_bytes(gzip.compress((tmp_path / "bad.jsonl").read_bytes()))
    with pytest.raises(EpisodeError, match=message) as error:
        read_episodes(path)
    assert str(error.value).startswith(f"{path}, line 3: ")


def test_control_the_same_file_without_the_bad_record_is_read(tmp_path):
    assert len(read_episodes(lines(tmp_path / "good.jsonl", changed(episode_id="first"), "", GOOD))) == 2


def test_duplicate_id_names_both_places(tmp_path):
    path = lines(tmp_path / "twice.jsonl", GOOD, changed(episode_id="b"), GOOD)
    with pytest.raises(
        EpisodeError, match=r"line 3: episode_id: 'a' was already used at .*twice.jsonl, line 1"
    ):
        read_episodes(path)
    one, two = lines(tmp_path / "one.jsonl", GOOD), lines(tmp_path / "two.jsonl", GOOD)
    with pytest.raises(EpisodeError, match=r"two.jsonl, line 1: .*'a'.*one.jsonl, line 1"):
        read_episodes(one, two)


@pytest.mark.parametrize("other", [[1.0], [1.0, 2.0, 3.0]])
def test_kinds_and_widths_may_not_mix_across_files(tmp_path, other):
    one = lines(tmp_path / "one.jsonl", changed(steps=[{"observation": [1.0, 2.0]}]))
    two = lines(tmp_path / "two.jsonl", changed(episode_id="b", steps=[{"observation": other}]))
    text = lines(tmp_path / "text.jsonl", changed(episode_id="b"))
    with pytest.raises(
        EpisodeError, match=f"two.jsonl, line 1.*{len(other)} numbers.*one.jsonl, line 1.*2 numbers"
    ):
        read_episodes(one, two)
    with pytest.raises(EpisodeError, match=r"text.jsonl, line 1.*: text, but .*one.jsonl, line 1"):
        read_episodes(one, text)


def test_check_episodes_in_memory():
    twins = [Episode("a", (Step("x"),)), Episode("a", (Step("y"),))]
    with pytest.raises(
        EpisodeError, match=r"rollouts\[1\]: episode_id: 'a' was already used at rollouts\[0\]"
    ):
        check_episodes(twins, "rollouts")
    check_episodes(twins[:1])


def test_unreadable_files(tmp_path):
    with pytest.raises(EpisodeError, match=r"none.jsonl: cannot be read: No such file"):
        read_episodes(tmp_path / "none.jsonl")
    for name in ("empty.jsonl", "blank.jsonl"):
        with pytest.raises(EpisodeError, match=rf"{name}: holds no episode"):
            read_episodes(lines(tmp_path / name, *([""] if name == "blank.jsonl" else [])))
    with pytest.raises(EpisodeError, match="not a kind of file that is read here"):
        read_episodes(lines(tmp_path / "episodes.txt", GOOD))
    with pytest.raises(EpisodeError, match=r"fake.jsonl.gz: cannot be read: Not a gzipped file"):
        read_episodes(lines(tmp_path / "fake.jsonl.gz", GOOD))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(EpisodeError, match=r"cannot be read: Is a directory"):
        read_episodes(tmp_path / "folder.jsonl")
    spread = json.dumps(GOOD, indent=1)
    (tmp_path / "spread.json").write_text(spread)
    assert len(read_episodes(tmp_path / "spread.json")) == 1
    with pytest.raises(EpisodeError, match=r"spread.jsonl, line 1: .*ends too early; .jsonl holds a rec"):
        read_episodes(lines(tmp_path / "spread.jsonl", spread))
    (tmp_path / "latin.jsonl").write_bytes('{"episode_id": "é"}'.encode("latin-1"))
    with pytest.raises(EpisodeError, match=r"latin.jsonl, line 1: not valid JSON: 'utf-8' codec"):
        read_episodes(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (None, "not None$"),
        (3, "not 3$"),
        (b"a.jsonl", r"not b'a.jsonl'$"),
        (["a.jsonl", "b.jsonl"], "several are passed one by one"),
        ([GOOD], "import_episodes` reads records and datasets"),
        (GOOD, "import_episodes` reads"),
    ],
)
def test_what_is_no_path_is_named(tmp_path, path, hint):
    wanted = f"path: must be the path of a file or folder, .*{hint}"
    good = lines(tmp_path / "good.jsonl", GOOD)
    for use in (
        lambda: read_episodes(path),
        lambda: read_episodes(good, path),
        lambda: read_episodes(path, goal_column="goal"),
        lambda: write_episodes(read_episodes(good), path),
    ):
        with pytest.raises(EpisodeError, match=wanted):
            use()


@pytest.mark.parametrize("wrong", [None, "x", [None], [Episode("a", (Step("x"),)), {}]])
def test_what_is_no_episode_is_not_written(tmp_path, wrong):
    with pytest.raises(EpisodeError, match=r"episodes(\[\d\])?: "):
        write_episodes(wrong, tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_truncated_gzip_says_how_far_it_got(tmp_path):
    rng = np.random.default_rng(0)
    whole = [Episode(f"e{i}", (Step(rng.bytes(200).hex()),)) for i in range(200)]
    path = tmp_path / "cut.jsonl.gz"
    write_episodes(whole, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(EpisodeError, match=r"cut.jsonl.gz: cannot be read after line 1\d\d: .*end-of-stream"):
        read_episodes(path)


def test_byte_order_mark_and_other_line_separators(tmp_path):
    record = changed(steps=[{"observation": "one\u2028two\x0bthree"}])
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record, ensure_ascii=False).encode() + b"\r\n")
    assert read_episodes(path)[0].steps[0].observation == "one\u2028two\x0bthree"


@settings(max_examples=25, deadline=None)
@given(episode_lists())
def test_round_trip_is_identical_and_bytes_repeat(tmp_path_factory, batch):
    folder = tmp_path_factory.mktemp("trip")
    for name in ("a.jsonl", "a.jsonl.gz"):
        write_episodes(batch, folder / name)
        assert read_episodes(folder / name) == batch
        write_episodes(read_episodes(folder / name), folder / f"b{name[1:]}")
        assert (folder / name).read_bytes() == (folder / f"b{name[1:]}").read_bytes()
    assert len(list(folder.iterdir())) == 4


@given(episodes())
def test_dict_round_trip(episode):
    assert Episode.from_dict(episode.to_dict()) == episode
    assert Episode.from_dict(json.loads(json.dumps(episode.to_dict()))) == episode


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "kept.jsonl"
    write_episodes([Episode("old", (Step("x"),))], path)
    before = path.read_bytes()

    def breaks():
        yield Episode("new", (Step("x"),))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_episodes(breaks(), path)
    with pytest.raises(EpisodeError, match=r"line 2: episode_id: 'a' was already used"):
        write_episodes([Episode("a", (Step("x"),))] * 2, path)
    with pytest.raises(EpisodeError, match="no episode to write"):
        write_episodes([], path)
    with pytest.raises(EpisodeError, match=r"written to .jsonl or .jsonl.gz"):
        write_episodes([Episode("a", (Step("x"),))], tmp_path / "x.parquet")
    with pytest.raises(EpisodeError, match="cannot be written: No such file"):
        write_episodes([Episode("a", (Step("x"),))], tmp_path / "missing" / "x.jsonl")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_large_files_stream(tmp_path):
    """Reading one by one holds one episode, not the file."""
    path = tmp_path / "large.jsonl"
    write_episodes((Episode(f"e{i}", (Step("x" * 50_000),)) for i in range(200)), path)

    def peak(read):
        tracemalloc.start()
        count = sum(1 for _ in read(path))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 200
        return size

    assert peak(iter_episodes) < 1_000_000
    assert peak(read_episodes) > 10_000_000  # control: the list does hold all of it
