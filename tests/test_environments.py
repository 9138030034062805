"""The benchmarks' environments: symbolic models against the real thing, and recordings that repeat."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.environments import SPLITS, ensure, record_split
from benchmarks.hacks import read_with_truth

pytest.importorskip("minigrid")

from benchmarks.environments import minigrid_text as mg
from benchmarks.environments.minigrid_maze import Item, Maze, State

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("env_id", [*mg.ENV_IDS, "MiniGrid-Unlock-v0", "MiniGrid-ObstructedMaze-2Dlhb-v1"])
def test_the_oracles_plan_and_random_commands_do_the_same_in_the_real_environment(env_id):
    for layout in (0, 7):
        env = mg.TextMiniGrid(env_id, layout)
        plan = env.plan()
        assert plan
        assert env.replay(plan)
        rng = random.Random(layout)
        commands = []
        while not env.won and len(commands) < 25:
            commands.append(rng.choice(env.admissible()))
            env.step(commands[-1])
        assert env.replay(commands) == env.won


def test_replay_notices_a_model_that_is_wrong(monkeypatch):
    env = mg.TextMiniGrid("MiniGrid-DoorKey-6x6-v0", 0)
    honest = Maze.apply

    def unlocks_without_a_key(maze, state, command):
        effect = honest(maze, state, command)
        if not command.startswith("open"):
            return effect
        doors = tuple(item._replace(state="open") if item.kind == "door" else item for item in state.items)
        return effect._replace(state=maze._settle(state.region, state.carrying, doors))

    monkeypatch.setattr(Maze, "apply", unlocks_without_a_key)
    with pytest.raises(AssertionError, match="open the yellow door"):
        env.replay(["open the yellow door"])


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-6x6-v0", "MiniGrid-BlockedUnlockPickup-v0"])
def test_no_shorter_way_exists(env_id):
    """Every shorter sequence of commands, tried one by one, fails to win."""
    maze = mg.TextMiniGrid(env_id, 1).maze
    needed = len(maze.plan(maze.start))
    states = {maze.start}
    for _ in range(needed - 1):
        effects = [maze.apply(state, command) for state in states for command in maze.commands(state)]
        assert not any(effect.won for effect in effects)
        states = {effect.state for effect in effects}
    assert any(maze.apply(state, command).won for state in states for command in maze.commands(state))


def test_the_plan_shrinks_by_one_along_itself_and_by_at_most_one_anywhere():
    env = mg.TextMiniGrid("MiniGrid-ObstructedMaze-1Dlhb-v0", 2)
    for left in range(len(env.plan()), 0, -1):
        assert len(env.plan()) == left
        lengths = [env.maze.plan(env.maze.apply(env.state, c).state) for c in env.admissible() if left > 1]
        assert all(plan is None or len(plan) >= left - 1 for plan in lengths)
        env.step(env.plan()[0])
    assert env.won
    assert env.plan() == ()


def test_breaking_the_box_that_is_wanted_leaves_no_plan():
    env = mg.TextMiniGrid("MiniGrid-UnlockPickup-v0", 0)
    for command in env.plan()[:-1]:
        env.step(command)
    env.step(f"open the {env.maze.target}")
    assert env.plan() is None


def test_what_is_out_of_reach_is_not_seen_and_cannot_be_done():
    #   agent . door # ball      (one row; the door is locked, the ball beyond it)
    items = (Item("red ball", (4, 0)), Item("red door", (2, 0), "locked"))
    floor = frozenset({(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)})
    maze = Maze(State((0, 0), "", items), floor, None, "red ball", {}, "pick up the red ball")
    assert maze.describe(maze.start) == "You see a locked red door. You are carrying nothing."
    assert maze.apply(maze.start, "pick up the red ball").message == "You cannot do that here."
    assert maze.apply(maze.start, "open the red door") == (maze.start, "The red door is locked.", False, None)
    assert maze.plan(maze.start) is None  # there is no key
    unlocked = maze.start._replace(items=(items[0], items[1]._replace(state="closed")))
    assert maze.plan(unlocked) == ("open the red door", "pick up the red ball")


def test_a_gymnasium_environment_by_word_or_by_number():
    from gymnasium.utils.env_checker import check_env

    env = mg.TextMiniGrid("MiniGrid-DoorKey-6x6-v0", 3, max_steps=4)
    check_env(env, skip_render_check=True)
    env.reset()
    by_word = env.step("pick up the yellow key")
    env.reset()
    assert env.step(env.vocabulary.index("pick up the yellow key")) == by_word
    assert by_word[1:4] == (0.0, False, False)
    assert env.step("open the yellow door")[1:4] == (0.0, False, False)
    assert env.step("go to the green goal square")[1:4] == (1.0, True, False)
    env.reset()
    assert [env.step("look around")[3] for _ in range(4)] == [False, False, False, True]


def test_recordings_repeat_and_splits_share_no_task(tmp_path, monkeypatch):
    monkeypatch.setattr(mg, "ENV_IDS", mg.ENV_IDS[:2])
    tasks = []
    for split in SPLITS:
        for name in ("once", "twice"):
            record_split("minigrid", split, tmp_path / f"{split}-{name}.jsonl.gz")
        once, twice = (tmp_path / f"{split}-{name}.jsonl.gz" for name in ("once", "twice"))
        assert once.read_bytes() == twice.read_bytes()
        episodes, truths = read_with_truth(once)
        tasks.append({e.metadata["task"] for e in episodes})
        assert all(e.outcome == float(truths[e.episode_id].success) for e in episodes)
        assert {e.outcome for e in episodes} == {0.0, 1.0}
    assert len(set.union(*tasks)) == sum(map(len, tasks))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_recording_of_its_own_process_is_made_once(tmp_path):
    path = ensure("minigrid", "dev", tmp_path)
    record_split("minigrid", "dev", tmp_path / "here.jsonl.gz")
    assert path.read_bytes() == (tmp_path / "here.jsonl.gz").read_bytes()
    path.write_bytes(b"kept")
    assert ensure("minigrid", "dev", tmp_path).read_bytes() == b"kept"


# ---------------------------------------------------------------- Crafter


@pytest.fixture(scope="module")
def crafter_text():
    pytest.importorskip("crafter")
    from benchmarks.environments import crafter_text

    return crafter_text


@pytest.mark.parametrize(
    ("thing", "stock", "todo"),
    [
        ("table", {}, ["collect wood", "collect wood", "place table"]),
        ("wood_pickaxe", {"table": 1, "wood": 1}, ["make wood pickaxe"]),
        ("stone", {"wood_pickaxe": 1}, ["collect stone"]),
        (
            "stone_pickaxe",  # the first wood goes into the wooden pickaxe, so another is needed
            {"table": 1, "wood": 1},
            ["make wood pickaxe", "collect wood", "collect stone", "make stone pickaxe"],
        ),
        ("furnace", {"table": 1, "wood_pickaxe": 1, "stone": 3}, ["collect stone", "place furnace"]),
        ("furnace", {"wood": 2, "stone": 4}, ["place table", "place furnace"]),
    ],
)
def test_requirements_follow_the_games_own_tree(crafter_text, thing, stock, todo):
    found = crafter_text.requirements(thing, Counter(stock))
    assert Counter(found) == Counter(todo)
    assert found[-1] == todo[-1]


def test_the_requirements_are_what_it_takes_in_the_real_world(crafter_text):
    world = crafter_text.CrafterTask("make_stone_pickaxe", 1)
    needed = len(world.plan)
    for done in range(1, needed + 1):
        world.step(world.plan[0])
        assert world.progress == pytest.approx(done / needed)
    assert world.won
    assert world._player.achievements["make_stone_pickaxe"] == 1
    world.reset()
    assert "You need more wood" in world.step("place table")
    assert "You need a wood pickaxe" in world.step("collect stone")
    assert world.progress == 0.0


# ---------------------------------------------------------------- ScienceWorld


GOLD = """
from collections import Counter
from scienceworld import ScienceWorldEnv
from benchmarks.environments.scienceworld_tasks import ScienceWorldTask

env = ScienceWorldEnv("", envStepLimit=10**6)
world = ScienceWorldTask(env, "find-plant", 0)
assert world.goal.startswith("Your task is to find a(n) plant.")
assert world.plan[:2] == ["open door to greenhouse", "go to greenhouse"]
world.step("go to kitchen")
assert world.plan[0] == "go to hallway", "the way back first"
progress = [world.progress]
while world.plan:
    world.step(world.plan[0])
    progress.append(world.progress)
assert world.won and progress == sorted(progress) and progress[0] < progress[-1] == 1.0
verbs = Counter(command.split()[0] for command in world.admissible)
assert max(verbs.values()) == 3 and verbs["focus"] == 1
world.reset()
world.step("focus on agent")
assert (world.done, world.won, world.progress) == (True, False, 0.0)
env.close()
"""


def test_scienceworlds_gold_is_left_and_found_again():
    """In a process of its own: the package leaves the pipes to its Java server open."""
    pytest.importorskip("scienceworld")
    if not shutil.which("java"):
        pytest.skip("ScienceWorld needs a Java runtime")
    root = Path(__file__).parents[1]
    played = subprocess.run(
        [sys.executable, "-c", GOLD], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert played.returncode == 0, played.stderr
