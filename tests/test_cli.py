"""The command line, end to end: commands as processes, and every kind of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import valuegraph
from valuegraph.cli import main
from valuegraph.config import FitConfig
from valuegraph.demo import demo_episodes
from valuegraph.episodes import Episode, Step, write_episodes
from valuegraph.manifest import FORMAT_VERSION

ROOT = Path(valuegraph.__file__).parents[1]
CONFIGS = ROOT / "configs"


def run(*args, check=False, code=None, **env):
    how = ["-m", "valuegraph.cli"] if code is None else ["-c", code]
    command = [sys.executable, *how, *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env, timeout=300, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def files_of(folder):
    """Every file below a folder with its bytes, so that nothing can change unseen."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Two short text games: files to fit on, to update with, and to score."""
    folder = tmp_path_factory.mktemp("games")
    train, held_out = demo_episodes()
    goals = list(dict.fromkeys(e.goal for e in train))[:2]
    train = [e for e in train if e.goal in goals and len(e.steps) <= 5]
    write_episodes(train[:-3], folder / "train.jsonl.gz")
    write_episodes(train[-3:], folder / "more.jsonl")
    write_episodes([e for e in held_out if e.goal in goals and len(e.steps) <= 5], folder / "held_out.jsonl")
    (folder / "quick.yaml").write_text("epochs: 2\n")
    return folder


@pytest.fixture(scope="module")
def fitted(games):
    """A model, and what the process said that fitted it and then scored the rollouts, to `scores.jsonl`."""
    settings = ["--config", games / "quick.yaml", "--seed", 3]
    commands = (
        ["fit", games / "train.jsonl.gz", "--out", games / "rm", *settings],
        ["score", games / "rm", games / "held_out.jsonl", "--out", games / "scores.jsonl"],
    )
    code = f"from valuegraph.cli import main\nassert main({list(map(str, commands[0]))}) == 0\n"
    code += f"assert main({list(map(str, commands[1]))}) == 0"
    return games / "rm", run(code=code, check=True)


@pytest.fixture
def model(fitted, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(fitted[0], tmp_path / "rm"))


def walk(number, kind="vector", outcome=1.0):
    steps = [Step((float(t), float(number % 2)) if kind == "vector" else f"room {t}") for t in range(3)]
    return Episode(f"walk-{number}", tuple(steps), outcome=outcome * (number % 2), terminated=True)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A model of vectors of two numbers, fitted without a learning text encoder."""
    folder = tmp_path_factory.mktemp("vectors")
    write_episodes([walk(i) for i in range(24)], folder / "train.jsonl")
    (folder / "quick.yaml").write_text("epochs: 1\n")
    args = ["fit", folder / "train.jsonl", "--out", folder / "rm", "--config", folder / "quick.yaml"]
    assert main([str(arg) for arg in args]) == 0
    return folder


def refused(capsys, *args):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("valuegraph: error: ")
    assert err.count("\n") == 1
    assert not out
    return err


# ------------------------------------------------------------------------------ what commands do


def test_fit_says_what_it_understood_and_where_the_weights_come_from(fitted):
    _, done = fitted
    for said in ("train.jsonl.gz: episodes", "20 episodes", "weights from", "nodes", "saved to"):
        assert said in done.stdout
    assert "GPU available" not in done.stdout + done.stderr  # of Lightning's notices, none
    assert "litlogger" not in done.stdout + done.stderr


def test_score_gives_one_line_a_rollout(fitted, games, tmp_path, capsys):
    rm, held_out = fitted[0], games / "held_out.jsonl"
    assert main(["score", str(rm), str(held_out)]) == 0
    printed = capsys.readouterr().out
    assert main(["score", str(rm), str(held_out), "--out", str(tmp_path / "scores.jsonl")]) == 0
    assert (tmp_path / "scores.jsonl").read_text() == printed
    scores = lines_of(printed)
    rollouts = lines_of(held_out.read_text())
    assert [s["episode_id"] for s in scores] == [r["episode_id"] for r in rollouts]
    for score, rollout in zip(scores, rollouts, strict=True):
        assert all(0.0 <= score[name] <= 1.0 for name in ("total", "terminal", "instrumental", "support"))
        assert len(score["step_rewards"]) == len(rollout["steps"])
        assert sum(score["step_rewards"]) == pytest.approx(score["total"])
    by_outcome = {
        o: [s["total"] for s, r in zip(scores, rollouts, strict=True) if r["outcome"] == o] for o in (0, 1)
    }
    assert min(by_outcome[1]) > sum(by_outcome[0]) / len(by_outcome[0])


def test_same_seed_same_scores_in_two_processes(fitted, games, tmp_path, capsys):
    again, config = str(tmp_path / "again"), str(games / "quick.yaml")
    train, held_out = str(games / "train.jsonl.gz"), str(games / "held_out.jsonl")
    assert main(["fit", train, "--out", again, "--config", config, "--seed", "3"]) == 0
    capsys.readouterr()
    assert main(["score", again, held_out]) == 0
    assert capsys.readouterr().out == (games / "scores.jsonl").read_text()  # to the last digit


def test_control_another_seed_other_scores(vectors, tmp_path, capsys):
    said = []
    for seed in ("0", "0", "1"):
        rm, train = str(tmp_path / seed), str(vectors / "train.jsonl")
        assert main(["fit", train, "--out", rm, "--config", str(vectors / "quick.yaml"), "--seed", seed]) == 0
        capsys.readouterr()
        assert main(["score", rm, train]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_update_is_on_disk_when_it_returns(model, games, capsys):
    def sizes():
        capsys.readouterr()
        assert main(["inspect", str(model), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    before = sizes()
    assert before["recall_at_16"] == 1.0  # small memories are searched exactly
    assert before.keys() >= {"episodes", "nodes", "edges", "dim", "format_version"}
    assert (before["episodes"], before["dim"], before["format_version"]) == (20, 384, FORMAT_VERSION)
    assert main(["update", str(model), str(games / "more.jsonl")]) == 0
    assert "3 episodes written" in capsys.readouterr().out
    assert sizes()["episodes"] == 23
    untouched = files_of(model)
    assert "is already remembered" in refused(capsys, "update", model, games / "more.jsonl")
    assert files_of(model) == untouched
    assert main(["inspect", str(model), "--verify"]) == 0


def test_explain_and_recall_speak_english(fitted, games, capsys):
    rm, held_out = str(fitted[0]), games / "held_out.jsonl"
    rollout = lines_of(held_out.read_text())[0]
    assert main(["explain", rm, str(held_out), "--episode", rollout["episode_id"]]) == 0
    explained = capsys.readouterr().out
    assert f"Rollout {rollout['episode_id']} scores" in explained
    assert "What each step earned:" in explained
    step = rollout["steps"][0]
    assert (
        main(["recall", rm, step["observation"], "--goal", rollout["goal"], "--action", step["action"]]) == 0
    )
    assert "(reaches the goal)" in capsys.readouterr().out
    assert "no episode 'nobody' here" in refused(capsys, "explain", rm, held_out, "--episode", "nobody")
    assert "say which with --episode" in refused(capsys, "explain", rm, held_out)


def test_far_away_rollouts_score_low_and_are_pointed_out(fitted, tmp_path, capsys):
    shares = "Quarterly dividends were revised after the merger of two regional banks."
    far = Episode("far", (Step(shares, "sell everything"), Step(shares[::-1])), "zebra crossing timetable")
    write_episodes([far], tmp_path / "far.jsonl")
    assert main(["score", str(fitted[0]), str(tmp_path / "far.jsonl")]) == 0
    out, err = capsys.readouterr()
    (score,) = lines_of(out)
    assert score["support"] < 0.05
    assert score["total"] < 0.1
    assert "valuegraph: note: 1 of 1 rollouts are far from everything remembered" in err
    assert "far\n" in err


def test_a_goal_and_outcome_column(tmp_path, capsys):
    rows = [
        {"steps": [{"observation": [float(i), 1.0]}], "episode_id": f"e{i}", "wish": "up", "score": i % 2}
        for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "quick.yaml").write_text("epochs: 1")
    columns = ["--goal-column", "wish", "--outcome-column", "score", "--config", str(tmp_path / "quick.yaml")]
    assert main(["fit", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "rm"), *columns]) == 0
    said = capsys.readouterr().out
    assert "outcomes: 6 of 6, mean 0.500" in said
    assert "first goal: up" in said


def test_recall_of_vectors_takes_a_json_list(vectors, capsys):
    assert main(["recall", str(vectors / "rm"), "[0.0, 1.0]"]) == 0
    assert capsys.readouterr().out
    assert "OBSERVATION" in refused(capsys, "recall", vectors / "rm", "[0.0, true]")
    assert "OBSERVATION" in refused(capsys, "recall", vectors / "rm", "here")


def test_help_comes_at_once_and_loads_nothing_heavy():
    def seconds():  # of the processor: a busy machine is no fault of ours
        usage = os.times()
        return usage.children_user + usage.children_system

    started = seconds()
    listed = run("--help", check=True).stdout
    assert seconds() - started < 1.0
    for command in ("fit", "score", "update", "explain", "inspect", "consolidate", "recall", "serve", "demo"):
        assert re.search(rf"^    {command}\s", listed, re.MULTILINE)
    assert all(
        kind in run("fit", "--help", check=True).stdout for kind in (".arrow", "save_to_disk", "Minari")
    )
    loaded = "import sys, valuegraph.cli; print({'torch', 'faiss', 'rich'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_load(path):
    assert FitConfig.from_file(path)


def test_the_default_config_lists_every_setting_at_its_default():
    import yaml

    written = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    assert written == FitConfig().to_dict()


# ------------------------------------------------------------------------------ bad input

GOOD = {"episode_id": "a", "goal": "g", "steps": [{"observation": "x"}], "outcome": 1.0}
BAD_FILES = {
    "broken JSON": ('{"episode_id": "a", "steps": [', "bad.jsonl, line 2: not valid JSON"),
    "missing steps": (json.dumps({"episode_id": "b"}), "bad.jsonl, line 2: episode 'b': steps: missing"),
    "empty steps": (json.dumps(GOOD | {"episode_id": "b", "steps": []}), "line 2: episode 'b': steps: empty"),
    "NaN": (
        json.dumps(GOOD | {"episode_id": "b", "outcome": float("nan")}),
        "line 2: episode 'b': outcome: must be a finite",
    ),
    "infinite": (
        json.dumps(GOOD | {"episode_id": "b", "steps": [{"observation": "x", "reward": float("inf")}]}),
        "line 2: episode 'b': steps[0].reward: must be a finite",
    ),
    "outcome of 2": (
        json.dumps(GOOD | {"episode_id": "b", "outcome": 2}),
        "line 2: episode 'b': outcome: must be in [0, 1]",
    ),
    "mixed kinds": (
        json.dumps(GOOD | {"episode_id": "b", "steps": [{"observation": [1.0]}]}),
        "line 2: episode 'b': steps[0].observation: a vector of 1 numbers, but",
    ),
    "duplicate id": (json.dumps(GOOD), "line 2: episode_id: 'a' was already used at"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_episodes_are_refused_with_file_line_and_field(case, model, tmp_path, capsys):
    line, message = BAD_FILES[case]
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out"
    bad.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    untouched = files_of(tmp_path)
    for args in (
        ("fit", bad, "--out", out),
        ("score", model, bad, "--out", out),
        ("update", model, bad),
        ("explain", model, bad, "--episode", "a"),
    ):
        error = refused(capsys, *args)
        assert message in error
        assert str(bad) in error
    assert files_of(tmp_path) == untouched
    assert not out.exists()


def test_bad_episodes_as_a_process(tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(GOOD) + "\n{")
    done = run("fit", tmp_path / "bad.jsonl", "--out", tmp_path / "rm")
    assert done.returncode == 2
    assert done.stderr.startswith("valuegraph: error: ")
    assert "bad.jsonl, line 2: not valid JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "rm").exists()
    # The traceback is there for whoever asks for it.
    assert "Traceback" in run("--debug", "fit", tmp_path / "bad.jsonl", "--out", tmp_path / "rm").stderr


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_episodes(content, fitted, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text(content)
    assert f"{empty}: holds no episode" in refused(capsys, "score", fitted[0], empty)
    assert "No such file" in refused(capsys, "score", fitted[0], tmp_path / "absent.jsonl")


def test_observations_the_model_cannot_read(vectors, fitted, tmp_path, capsys):
    wide = Episode("wide", (Step((1.0, 2.0, 3.0)),))
    write_episodes([wide], tmp_path / "wide.jsonl")
    write_episodes([Episode("words", (Step("hello"),))], tmp_path / "words.jsonl")
    shutil.copytree(vectors / "rm", tmp_path / "rm")
    untouched = files_of(tmp_path)
    for command in ("score", "update", "explain"):
        error = refused(capsys, command, tmp_path / "rm", tmp_path / "wide.jsonl")
        assert (
            f"{tmp_path / 'wide.jsonl'}: episode 'wide': step 0: the observation has width 3, expected 2"
            in error
        )
        assert "episode 'words'" in refused(capsys, command, tmp_path / "rm", tmp_path / "words.jsonl")
        assert "episode 'wide'" in refused(capsys, command, fitted[0], tmp_path / "wide.jsonl")
    assert files_of(tmp_path) == untouched


def test_neither_outcome_nor_goal(tmp_path, capsys):
    write_episodes([Episode("a", (Step((1.0, 2.0)),))], tmp_path / "a.jsonl")
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "rm")]) == 2
    assert f"{tmp_path / 'a.jsonl'}: episode 'a': neither outcome nor goal" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


def test_a_model_folder_that_misses_a_file(model, games, capsys):
    for path in sorted(model.iterdir()):
        kept = path.read_bytes()
        path.unlink()
        untouched = files_of(model)
        for args in (
            ("inspect", model),
            ("score", model, games / "held_out.jsonl"),
            ("update", model, games / "more.jsonl"),
        ):
            assert str(path) in refused(capsys, *args) or path.name == "manifest.json"
        assert files_of(model) == untouched
        path.write_bytes(kept)
    assert main(["inspect", str(model)]) == 0


def test_a_model_folder_with_a_flipped_byte(model, games, capsys):
    names = [path for path in sorted(model.iterdir()) if path.stat().st_size]
    for path in names:
        kept = path.read_bytes()
        at = len(kept) // 2
        path.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
        assert path.name in refused(capsys, "score", model, games / "held_out.jsonl")
        assert path.name in refused(capsys, "inspect", model, "--verify")
        path.write_bytes(kept)
    assert main(["inspect", str(model), "--verify"]) == 0


def test_a_model_folder_of_a_newer_format(model, games, capsys):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1}))
    error = refused(capsys, "score", model, games / "held_out.jsonl")
    assert "config.json" in error
    assert "newer valuegraph" in error


def test_no_model_is_where_none_is(tmp_path, games, capsys):
    assert "no such folder" in refused(capsys, "score", tmp_path / "nowhere", games / "held_out.jsonl")
    assert "not a model folder" in refused(capsys, "inspect", tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_fit_writes_over_a_model_and_over_nothing_else(vectors, tmp_path, capsys):
    data, quick = vectors / "train.jsonl", vectors / "quick.yaml"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("ten years of work")
    untouched = files_of(tmp_path)
    assert "not a model folder" in refused(capsys, "fit", data, "--out", thesis, "--config", quick)
    assert "is a file" in refused(capsys, "fit", data, "--out", thesis / "chapter1.tex", "--config", quick)
    assert files_of(tmp_path) == untouched
    for _ in range(2):
        assert main(["fit", str(data), "--out", str(tmp_path / "rm"), "--config", str(quick)]) == 0
    assert main(["inspect", str(tmp_path / "rm"), "--verify"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: 0", "epochs: must be above 0"),
        ("epoch: 3", "unknown field 'epoch'"),
        ("gamma: 1.5", "gamma: must be in [0, 1]"),
        ("[", "not YAML"),
    ],
)
def test_a_config_that_is_wrong(content, message, vectors, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(content)
    error = refused(capsys, "fit", vectors / "train.jsonl", "--out", tmp_path / "rm", "--config", config)
    assert f"{config}: {message}" in error
    assert not (tmp_path / "rm").exists()


def test_an_encoder_that_is_nowhere(games, tmp_path, capsys):
    args = [
        "fit",
        str(games / "train.jsonl.gz"),
        "--out",
        str(tmp_path / "rm"),
        "--encoder",
        str(tmp_path / "no"),
    ]
    capsys.readouterr()
    assert main(args) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


def test_scores_that_cannot_be_written(vectors, tmp_path, capsys):
    error = refused(
        capsys, "score", vectors / "rm", vectors / "train.jsonl", "--out", tmp_path / "no" / "s.jsonl"
    )
    assert "cannot be written" in error


# ------------------------------------------------------------- what else goes wrong at a desk


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("serve", "rm", "--port", "80000"), "--port: must be in [0, 65535], got 80000"),
        (("serve", "rm", "--port", "http"), "--port: must be a whole number, not 'http'"),
        (("consolidate", "rm", "--nodes", "0"), "--nodes: must be at least 1, got 0"),
        (("recall", "rm", "here", "--steps", "-3"), "--steps: must be at least 1, got -3"),
    ],
)
def test_numbers_out_of_range(args, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(list(args))
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_of_the_system_name_the_file_first(vectors, capsys):
    train = vectors / "train.jsonl"
    absent = vectors / "absent.yaml"
    error = refused(capsys, "fit", train, "--out", vectors / "no", "--config", absent)
    assert error == f"valuegraph: error: {absent}: No such file or directory\n"
    assert f"{train}: is a file, not a model folder" in refused(capsys, "score", train, train)
    # Where JSON ends badly, the line is that of the file.
    (vectors / "bad.jsonl").write_text(json.dumps(GOOD) + "\n{x")
    assert "line 2: not valid JSON" in refused(capsys, "score", vectors / "rm", vectors / "bad.jsonl")
    assert "line 1 " not in refused(capsys, "score", vectors / "rm", vectors / "bad.jsonl")


def test_where_a_model_cannot_be_saved_nothing_is_learned(vectors, tmp_path, monkeypatch, capsys):
    train = vectors / "train.jsonl"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "name a folder that is new, or empty" in refused(capsys, "fit", train, "--out", tmp_path / "full")
    below = train / "rm"
    assert f"{train} is not a folder that may be written in" in refused(capsys, "fit", train, "--out", below)
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != tmp_path
    )  # whoever is root may write anywhere
    error = refused(capsys, "fit", train, "--out", tmp_path / "deep" / "rm")
    assert f"{tmp_path / 'deep' / 'rm'}: cannot be written: {tmp_path} is not a folder" in error
    assert not (tmp_path / "deep").exists()


def test_a_save_that_did_not_get_through_is_no_obstacle(vectors, tmp_path, monkeypatch, capsys):
    from valuegraph.persistence import FolderWriter

    args = ["fit", vectors / "train.jsonl", "--out", tmp_path / "rm", "--config", vectors / "quick.yaml"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "snapshot", full)
        assert main(list(map(str, args))) == 2
    assert [file.name for file in (tmp_path / "rm").iterdir()] == ["updates.wal"]
    assert main(list(map(str, args))) == 0
    assert main(["inspect", str(tmp_path / "rm"), "--verify"]) == 0


def test_scores_that_cannot_be_written_name_their_file(vectors, tmp_path, monkeypatch, capsys):
    real = Path.open

    def read_only(self, mode="r", *args, **options):
        if "x" in mode:
            raise OSError(30, "Read-only file system", str(self))
        return real(self, mode, *args, **options)

    def refuse(self, **options):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", refuse)
    out = tmp_path / "scores.jsonl"
    error = refused(capsys, "score", vectors / "rm", vectors / "train.jsonl", "--out", out)
    assert error == f"valuegraph: error: {out}: cannot be written: Read-only file system\n"


def test_without_one_success_a_fit_says_so(tmp_path, capsys):
    for name, outcome in (("lost", 0.0), ("won", 1.0)):
        steps = (Step((0.0, 1.0)), Step((1.0, 0.0)))
        write_episodes(
            [Episode(str(i), steps, outcome=outcome) for i in range(4)], tmp_path / f"{name}.jsonl"
        )
        (tmp_path / "quick.yaml").write_text("epochs: 1\n")
        args = ["fit", tmp_path / f"{name}.jsonl", "--out", tmp_path / name]
        assert main([*map(str, args), "--config", str(tmp_path / "quick.yaml")]) == 0
        assert ("no successful way" in capsys.readouterr().err) == (name == "lost")
