"""The packaged demo data: what it promises, and that the script which made it makes it again."""

import gzip
import json
import re
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from examples import make_demo_data as demo
from valuegraph.episodes import read_episodes

DATA = Path(str(files("valuegraph") / "data"))


def packaged(name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def training():
    return packaged(demo.FILES[0])


@pytest.fixture(scope="module")
def held_out():
    return packaged(demo.FILES[1])


def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DATA.glob("*.jsonl.gz")) < 400_000


def test_canonical_and_without_repeated_ids():
    episodes = read_episodes(*(DATA / name for name in demo.FILES))
    assert len(episodes) >= 500
    assert {e.observation_kind for e in episodes} == {"text"}
    assert all(e.goal and e.outcome in (0.0, 1.0) and e.terminated != e.truncated for e in episodes)


def test_truth_agrees_with_the_outcome(training, held_out):
    for record in training + held_out:
        progress, won = record["truth"]["progress"], record["truth"]["success"]
        assert len(progress) == len(record["steps"])
        assert all(0.0 <= p <= 1.0 for p in progress)
        assert record["truth"]["final"] == progress[-1]
        assert record["outcome"] == float(won) == float(progress[-1] == 1.0)


def test_observations_do_not_give_the_outcome_away(training, held_out):
    for record in training + held_out:
        for step in record["steps"]:
            text = step["observation"]
            assert not any(
                tell in text for tell in ("***", "Your score", "You scored", "$$", "-=", "RESTART")
            )
            assert not re.search(r"\d/\d", text)  # the status line: score, and commands so far
            assert text == " ".join(text.split())
            assert text


def test_what_is_held_out_is_held_out(training, held_out):
    known = {r["metadata"]["task"] for r in training}
    assert len(known) == len(demo.KNOWN_GAMES)
    new = {r["metadata"]["task"] for r in held_out if r["episode_id"].startswith("new-")}
    assert len(new) == len(demo.NEW_GAMES)
    assert not known & new
    families = {task.partition("/")[0] for task in known}
    assert families == {task.partition("/")[0] for task in new} == {g.family for g in demo.KNOWN_GAMES}


def test_every_game_is_won_and_failed(training, held_out):
    for records in (training, held_out):
        outcomes = defaultdict(set)
        for r in records:
            outcomes[r["metadata"]["task"]].add(r["outcome"])
        assert all(seen == {0.0, 1.0} for seen in outcomes.values())


def test_clean_keeps_what_happened_and_drops_banner_prompt_score_and_verdict():
    said = (
        "\n> \n-= Attic =-\nYou enter.\n\n\nThere is a\nkey.\n\nYour score has just gone up by one point.\n\n"
    )
    assert (
        demo.clean(said + "  *** The End ***\n\nYou scored 1 out of 1")
        == "[Attic] You enter. There is a key."
    )
    assert demo.clean("\nYou open the box.\n\n>      -= Attic =-0/7") == "You open the box."
    assert demo.clean("\n> *** You lost! ***\n") == "Nothing happens."


class Corridor:
    """Ten rooms in a row; the exit is at the far end."""

    goal = "walk to the end"

    def reset(self):
        self.at = 0
        return "start"

    def step(self, command):
        self.at = max(0, self.at + (1 if command == "on" else -1))
        return f"room {self.at}"

    admissible = ("back", "on")
    plan = property(lambda self: ["on"] * (10 - self.at))
    progress = property(lambda self: demo.part_done(self.plan, 10))
    won = done = property(lambda self: self.at == 10)


def test_players_differ_in_the_way_their_names_say():
    def final(name, player):
        return [
            truth["final"]
            for _, truth in demo.play_all(Corridor(), [(name, player)] * 40, prefix="p", task="t", env="e")
        ]

    by_name = {
        name: final(name, player) for name, player in demo.roster(expert=1, noisy=1, truncated=1, random=1)
    }
    assert set(by_name["expert"]) == {1.0}
    assert all(0.0 < p < 1.0 for p in by_name["truncated"])
    assert sum(by_name["random"]) < sum(by_name["noisy"])


def test_part_done():
    assert demo.part_done([], 4) == 1.0
    assert demo.part_done(["a"], 4) == 0.75
    assert demo.part_done(["a"] * 9, 4) == 0.0  # further off than the start
    assert demo.part_done(None, 4) == 0.0


def test_progress_falls_on_a_step_back():
    detour = lambda world, rng: iter(["on", "on", "back", "on"])  # noqa: E731
    episode, truth = demo.play(Corridor(), detour, None, episode_id="e", metadata={})
    assert truth == {"progress": [0.1, 0.2, 0.1, 0.2], "final": 0.2, "success": False}
    assert episode.truncated
    assert not episode.terminated


@pytest.mark.filterwarnings("ignore:Game .* is not fully supported")
@pytest.mark.parametrize("games", [(demo.KNOWN_GAMES[15],), (demo.NEW_GAMES[2],)], ids=["known", "new"])
def test_playing_the_games_again_gives_the_packaged_lines(games, training, held_out):
    """Compiled afresh in another folder and played again: the same lines, to the character."""
    textworld = pytest.importorskip("textworld")
    if textworld.__version__ != "1.7.0":
        pytest.skip(f"the data were made with textworld 1.7.0, this is {textworld.__version__}")
    tasks = {game.task for game in games}
    known = [game for game in games if game in demo.KNOWN_GAMES]
    again = demo.make(known, [game for game in games if game not in known])
    assert any(again)
    for fresh, shipped in zip(again, (training, held_out), strict=True):
        assert fresh == [r for r in shipped if r["metadata"]["task"] in tasks]
