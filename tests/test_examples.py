"""Every example runs the way its first lines say; what the README says is so."""

import json
import os
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest

from valuegraph.cli import main
from valuegraph.episodes import Episode
from valuegraph.reward_model import RewardModel

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text("utf-8")


pytestmark = pytest.mark.filterwarnings("ignore")  # of the hosts; a user sees them and goes on


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """An example as if from a shell, in a folder of its own; what it printed. A process for each would spend
    most of its time on imports."""

    def run(name, *args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with mock.patch.dict(os.environ):  # seeding a trainer leaves its seed there
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_explains_itself(path, tmp_path):
    lines = path.read_text("utf-8").splitlines()
    assert any(f"python examples/{path.name}" in line for line in lines[:12])


def test_custom_trainer(run, tmp_path):
    said = run("custom_trainer.py", "--goals", 2, "--epochs", 1)
    assert "held-out successes: mean total" in said
    model = RewardModel.load(tmp_path / "runs" / "custom" / "model")
    assert model.summary()["episodes"] == 32
    assert model.summary()["goals"] == 2
    (log,) = (tmp_path / "runs" / "custom" / "logs").rglob("metrics.csv")
    assert "train_loss" in log.read_text()


def test_online_from_scratch(run):
    assert "(reaches the goal)" in run("online_from_scratch.py")


@pytest.mark.parametrize("options", [[], ["--dense"]], ids=["scalar", "dense"])
def test_trl_grpo(run, options):
    pytest.importorskip("trl", reason="the example trains with TRL")
    said = run("trl_grpo.py", "--steps", 2, "--epochs", 1, *options)
    (first, last) = re.findall(r"mean reward: ([\d.]+) in the first .* ([\d.]+) in the last", said)[0]
    assert 0.0 < float(first) < 1.0
    assert 0.0 < float(last) < 1.0


def test_sb3_minigrid(run):
    pytest.importorskip("stable_baselines3", reason="the example trains with Stable-Baselines3")
    pytest.importorskip("minigrid", reason="the example plays MiniGrid")
    said = run("sb3_minigrid.py", "--steps", 1500)
    episodes, memories = re.search(r"(\d+) episodes make (\d+) memories", said).groups()
    assert int(episodes) > 1
    assert int(memories) > 1


def test_score_chat_logs(run, tmp_path):
    said = run("score_chat_logs.py", "--epochs", 1, "--tasks", 2, "--out", tmp_path / "rm")
    assert "chat messages" in said
    assert "a success outscores a failure" in said
    assert RewardModel.load(tmp_path / "rm").summary()["goals"] == 2
    gains = [float(gain) for gain in re.findall(r"^  ([+-][\d.]+) +\d+\. >", said, re.MULTILINE)]
    total = float(re.search(r"^  ([+-][\d.]+)  in all", said, re.MULTILINE)[1])
    assert len(gains) > 1
    assert sum(gains) == pytest.approx(total, abs=0.01)


def test_serve_and_score(run):
    pytest.importorskip("uvicorn", reason="the example starts a server")
    said = run("serve_and_score.py")
    good, poor, yes = (float(x) for x in re.findall(r"^([\d.]+) for '", said, re.MULTILINE))
    assert good > poor
    assert good > yes
    assert "on disk: True" in said


def test_the_readme_shows_a_valid_episode():
    (record,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert Episode.from_dict(json.loads(record)).outcome == 1.0


def test_the_readme_names_files_and_headings_that_are_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, heading = link.partition("#")
        target = ROOT / (file or "README.md")
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles], link


def test_the_readme_names_commands_and_options_that_exist(capsys):
    lines = [line for line in README.splitlines() if line.startswith("valuegraph ")]
    assert len(lines) == 9
    for line in lines:
        command = line.split()[1]
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        explained = capsys.readouterr().out
        assert all(option in explained for option in re.findall(r"--[a-z-]+", line))


def test_the_picture_is_what_its_script_draws():
    namespace = {"__name__": "drawing"}
    exec((ROOT / "docs" / "draw_how_it_works.py").read_text("utf-8"), namespace)
    assert (ROOT / "docs" / "how_it_works.svg").read_text("utf-8") == namespace["picture"]()
