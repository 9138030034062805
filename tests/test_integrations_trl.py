"""TRL's own trainers, on a processor and with a tiny random model, paid by `ValueReward`."""

import inspect
import json
import math
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from valuegraph import Episode, EpisodeError, Step
from valuegraph.conversations import split_steps
from valuegraph.integrations import _rollouts, trl
from valuegraph.integrations._tokens import (
    process_advantages,
    step_spans,
    step_token_rewards,
    token_offsets,
    token_steps,
)
from valuegraph.integrations.trl import ValueReward, step_reward_trainer, value_reward

pytestmark = [
    # the hosts' own deprecations are not ours to fix
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "rm"
    small_model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def solved(heldout_episodes):
    """A success whose text fits the encoder's window, and its goal."""
    return next(e for e in heldout_episodes if e.outcome == 1.0 and len(e.steps) > 2)


def as_messages(episode):
    """The episode as a chat with tool calls and tool results."""
    messages = []
    for step in episode.steps:
        call = {"type": "function", "function": {"name": "act", "arguments": {"command": step.action}}}
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "name": "act", "content": step.observation},
        ]
    return messages


# ------------------------------------------------------------------- one row at a time


def test_prompts_and_completions_of_every_shape_make_the_same_episode():
    text = "1. open the door\n2. go in"
    chat = [{"role": "assistant", "content": text}]
    history = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "get in"},
    ]
    expected = Episode("r", (Step("", "1. open the door"), Step("", "2. go in")), goal="get in")
    for prompt in ("get in", history):
        for completion in (text, chat):
            assert _rollouts.row_episode(completion, prompt, name="r") == expected


def test_tool_calls_are_actions_and_tool_results_their_observations(solved):
    episode = _rollouts.row_episode([*as_messages(solved), {"role": "assistant", "content": "Done."}], "x")
    first, last = episode.steps[0], episode.steps[-1]
    assert first.action == f'act(command="{solved.steps[0].action}")'
    assert first.observation == solved.steps[0].observation
    assert last == Step("", "Done.")


@pytest.mark.parametrize(
    ("completion", "goal"),
    [
        *((blank, "a goal") for blank in ("", "  \n", [], [{"role": "assistant", "content": ""}], None)),
        *(("go in", goal) for goal in (None, "", " ", [], [{"role": "system", "content": "be brief"}])),
    ],
)
def test_nothing_done_or_no_goal_is_no_episode(completion, goal):
    assert _rollouts.row_episode(completion, goal) is None


def test_evidence_drops_what_it_does_not_see(solved):
    messages = [*as_messages(solved), {"role": "assistant", "content": "The task is complete."}]
    seen = _rollouts.row_episode(messages, solved.goal, evidence="observation")
    assert [s.observation for s in seen.steps] == [s.observation for s in solved.steps]
    assert all(step.action is None for step in seen.steps)
    said = _rollouts.row_episode(messages, solved.goal, evidence="action")
    assert all(step.observation == "" for step in said.steps)
    assert len(said.steps) == len(seen.steps) + 1
    assert _rollouts.row_episode("The task is complete.", solved.goal, evidence="observation") is None


def test_malformed_messages_name_their_row(small_model):
    reward = ValueReward(small_model)
    with pytest.raises(EpisodeError, match=r"completion 1: \[0\].role"):
        reward(prompts=["x", "x"], completions=["go", [{"role": "nobody", "content": "go"}]])


def test_a_lone_surrogate_is_scored(small_model):
    assert math.isfinite(ValueReward(small_model)(["open \ud800"], ["go \udfff north"])[0])


# ----------------------------------------------------------------- the reward function


def test_contract_rewards_are_finite_numbers_or_none(small_model, solved):
    reward = ValueReward(small_model)
    parameters = inspect.signature(reward).parameters
    assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    spoken = [
        message
        for step in solved.steps
        for message in (
            {"role": "assistant", "content": step.action},
            {"role": "tool", "content": step.observation},
        )
    ]
    called, silent = as_messages(solved), [{"role": "assistant", "content": ""}]
    completions = ["", spoken, "look around", "x" * 5000, silent, called]
    values = reward(
        prompts=[solved.goal] * 6,
        completions=completions,
        completion_ids=[[1]] * 6,
        trainer_state=object(),
        unknown_column=[None] * 6,
    )
    assert [value is None for value in values] == [True, False, False, False, True, False]
    assert all(isinstance(v, float) and 0.0 <= v <= 1.0 for v in values if v is not None)
    assert values[1] > 2.0 * max(values[2], values[3])
    assert not hasattr(reward, "parameters")  # TRL takes any nn.Module for a sequence classifier


def test_scores_are_those_of_the_model_itself(small_model, solved):
    direct = small_model.score([_rollouts.row_episode(as_messages(solved), solved.goal)])
    prompts, completions = [solved.goal], [as_messages(solved)]
    for output in ("total", "terminal", "instrumental", "support"):
        reward = ValueReward(small_model, output=output)
        assert reward(prompts, completions) == [getattr(direct, output)[0]]
    rows = ValueReward(small_model).score(prompts, completions)
    assert rows.step_rewards == [direct.step_rewards[0].tolist()]


def test_goal_column(small_model, solved):
    reward = ValueReward(small_model, goal_column="task")
    completions = [as_messages(solved)] * 2
    by_column = reward(["?", "?"], completions, task=[solved.goal, None])
    assert by_column == [*ValueReward(small_model)([solved.goal], completions[:1]), None]
    with pytest.raises(EpisodeError, match="'task' is missing; found: other"):
        reward(["?", "?"], completions, other=[1, 2])


def test_logs_every_other_score_beside_the_reward(small_model, solved):
    columns, metrics = {}, {}
    reward = ValueReward(small_model, name="vg")
    rewards = reward(
        [solved.goal] * 2,
        [as_messages(solved), ""],
        log_extra=columns.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert set(columns) == {"vg/terminal", "vg/instrumental", "vg/support"}
    assert all(len(values) == 2 and values[1] is None for values in columns.values())
    assert metrics == {"vg/total": rewards[0]} | {name: values[0] for name, values in columns.items()}
    metrics.clear()
    assert reward([solved.goal], [""], log_metric=metrics.__setitem__) == [None]
    assert metrics == {}  # no row, no mean; not a mean of 0


def test_bad_settings_are_refused(small_model):
    with pytest.raises(ValueError, match="output='best'"):
        ValueReward(small_model, output="best")
    with pytest.raises(ValueError, match="evidence='all'"):
        ValueReward(small_model, evidence="all")


def test_pickles_with_its_model_or_with_its_path(small_model, folder, solved):
    prompts, completions = [solved.goal], [as_messages(solved)]
    expected = ValueReward(small_model)(prompts, completions)
    by_path = pickle.dumps(ValueReward(folder, name="from_path"))
    assert len(by_path) < 1000
    assert pickle.loads(by_path).model is ValueReward(folder).model  # read once  # noqa: S301
    whole = pickle.dumps(ValueReward(small_model, goal_column="task", output="support", evidence="action"))
    copy = pickle.loads(whole)  # noqa: S301
    assert copy.model is not small_model
    assert (copy.__name__, copy.goal_column, copy.output, copy.evidence) == (
        *("valuegraph", "task", "support", "action"),
    )
    for text in (by_path, pickle.dumps(ValueReward(small_model))):
        assert pickle.loads(text)(prompts, completions) == expected  # noqa: S301


def test_a_newer_version_in_the_folder_is_read(small_model, solved, tmp_path):
    small_model.save_pretrained(tmp_path / "rm")
    before = ValueReward(tmp_path / "rm").model
    assert ValueReward(tmp_path / "rm").model is before
    from valuegraph import RewardModel

    with RewardModel.load(tmp_path / "rm") as writer:
        writer.update([solved])
    after = ValueReward(tmp_path / "rm").model
    assert after is not before
    assert after.summary()["episodes"] == before.summary()["episodes"] + 1


def test_threads_and_instances_agree(small_model, folder, heldout_episodes):
    some = heldout_episodes[:6]
    prompts, completions = [e.goal for e in some], [as_messages(e) for e in some]
    one, two = ValueReward(folder, name="one"), ValueReward(small_model, name="two", output="support")
    expected = one(prompts, completions), two(prompts, completions)
    results = [None] * 8

    def work(i):
        results[i] = one(prompts, completions), two(prompts, completions)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * len(results)
    assert one.__name__ != two.__name__


def test_value_reward_reads_the_environment(folder, solved, monkeypatch):
    monkeypatch.delenv("VALUEGRAPH_MODEL", raising=False)
    with pytest.raises(EpisodeError, match="VALUEGRAPH_MODEL is not set"):
        value_reward([solved.goal], ["look"])
    monkeypatch.setenv("VALUEGRAPH_MODEL", str(folder))
    expected = ValueReward(folder)([solved.goal], [as_messages(solved)])
    assert value_reward([solved.goal], [as_messages(solved)]) == expected
    monkeypatch.setenv("VALUEGRAPH_GOAL_COLUMN", "task")
    assert value_reward(["?"], [as_messages(solved)], task=[solved.goal]) == expected


# --------------------------------------------------------------------- the real trainers


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # a policy of commands reads no roles


def wrapped(raw):
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", chat_template=CHAT, **special)


@pytest.fixture(scope="module")
def tokenizer(small_episodes):
    """A token is a whole command on a paragraph of its own: whatever a policy writes is a list of steps."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    commands = sorted({f"{step.action}\n\n" for episode in small_episodes for step in episode.steps})
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *commands])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[^\n]+\n\n"), "isolated")
    raw.decoder = decoders.Fuse()
    return wrapped(raw)


@pytest.fixture(scope="module")
def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return wrapped(raw)


@pytest.fixture
def policy(tokenizer):
    """Two layers, 32 wide, random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def settings(kind, folder, **changes):
    usual = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "log_completions": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**(usual | changes))


def rows(conversational, goals):
    from datasets import Dataset

    prompts = [[{"role": "user", "content": goal}] if conversational else goal for goal in goals]
    return Dataset.from_dict({"prompt": prompts, "task": [f"do: {goal}" for goal in goals]})


def completions_table(folder):
    import pyarrow.parquet

    [first, *_] = sorted(Path(folder, "completions").glob("*.parquet"))
    return pyarrow.parquet.read_table(first).to_pydict()


@pytest.mark.parametrize(
    ("kind", "conversational"), [("GRPO", False), ("GRPO", True), ("RLOO", False)], ids=str
)
def test_contract_trains_in_trl(kind, conversational, small_model, policy, tokenizer, tmp_path):
    import trl as host

    policy.save_pretrained(tmp_path / "policy")  # RLOO reads its reference model from there
    trainer = getattr(host, f"{kind}Trainer")(
        str(tmp_path / "policy"),
        reward_funcs=[
            ValueReward(small_model, name="value"),
            ValueReward(small_model, name="support", goal_column="task", output="support"),
        ],
        args=settings(getattr(host, f"{kind}Config"), tmp_path, model_init_kwargs={"dtype": "float32"}),
        train_dataset=rows(conversational, ["take the key", "go north", "open the door", "eat the meal"]),
        processing_class=tokenizer,
    )
    trainer.train()
    before = dict(policy.named_parameters())
    assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert 0.0 <= entry["rewards/value/mean"] <= 1.0
        assert 0.0 < entry["rewards/support/mean"] <= 1.0
        assert {"value/total", "value/terminal", "value/instrumental", "value/support"} <= set(entry)
    if kind == "GRPO":
        table = completions_table(tmp_path)
    else:  # RLOO sends its table to trackers only
        logs = trainer._logs
        prompts, completions = list(logs["prompt"]), list(logs["completion"])
        table = {"prompt": prompts, "completion": completions, **logs["rewards"], **logs["extra"]}
    assert {"value", "support", "value/terminal", "value/instrumental", "value/support"} <= set(table)
    rescored = ValueReward(small_model)(table["prompt"], table["completion"])
    assert np.allclose(np.array(rescored, float), np.array(table["value"], float), equal_nan=True, atol=1e-6)


def test_trl_command_takes_the_dotted_path(folder, policy, tokenizer, tmp_path, monkeypatch):
    from trl.scripts.grpo import main, make_parser

    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"prompt": goal}) for goal in ("take the key", "go north")]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("VALUEGRAPH_MODEL", str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(os.getcwd())  # the command puts it there itself; this takes it out again
    words = settings(dict, tmp_path / "out", max_steps=1)
    flags = [text for key, value in words.items() for text in (f"--{key}", str(value))]
    parser = make_parser()
    arguments = parser.parse_args_and_config(
        [
            *("--model_name_or_path", str(tmp_path / "policy"), "--dataset_name", str(tmp_path / "data")),
            *("--reward_funcs", f"{trl.__name__}.value_reward", "--dtype", "float32"),
            *flags,
        ],
        fail_with_unknown_args=False,
    )[:4]
    main(*arguments)
    assert {"value_reward", "value_reward/support"} <= set(completions_table(tmp_path / "out"))


# ------------------------------------------------------------------ step rewards on tokens


def test_steps_of_tokens():
    text = "  1. go\n\n2. é, eat "
    assert [text[a:b] for a, b in step_spans(text)] == split_steps(text) == ["1. go", "2. é, eat"]
    offsets = [(i, i + 1) for i in range(len(text))]
    owner = token_steps(text, offsets)
    assert owner.tolist() == [-1, -1, *[0] * 7, *[1] * 10]
    assert token_steps("", []).tolist() == []
    assert token_steps("  ", [(0, 2)]).tolist() == [-1]


def test_repeated_steps_are_told_apart():
    text = "go\n\ngo\n\ngo"
    assert step_spans(text) == [(0, 2), (4, 6), (8, 10)]


def test_tokens_of_a_step_share_its_reward():
    rewards = step_token_rewards([0.5, -0.25], np.array([-1, 0, 0, 1, 1, 1, 1]))
    assert rewards.tolist() == [0.0, 0.25, 0.25, *[-0.0625] * 4]
    assert rewards.sum() == 0.25


def test_offsets_of_generated_tokens(byte_tokenizer):
    tokenizer = byte_tokenizer
    text = "1. go ü\n2. 🙂"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    decoded, offsets = token_offsets(tokenizer, ids)
    assert decoded == text
    assert len(offsets) == len(ids) == len(text.encode()) + 1
    assert "".join(text[a:b] for a, b in offsets) == text
    assert offsets[-1] == (len(text), len(text))


def test_process_advantages_closed_form():
    first, second, nothing = process_advantages([[1.0, 0.0], [0.0], None], group_size=3)
    mean, spread = 1 / 3, math.sqrt(2) / 3 + 1e-4
    up, down = (1 - mean) / spread, -mean / spread
    assert np.allclose(first, [up + down, down])
    assert np.allclose(second, [down])
    assert nothing is None
    # each group by itself
    assert np.allclose(process_advantages([[1.0], [0.0], [5.0], [5.0]], 2)[2], 0.0)


def test_step_reward_trainer_pays_tokens_by_their_step(small_model, policy, tokenizer, tmp_path):
    from trl import GRPOConfig

    seen = []
    reward = ValueReward(small_model)

    class Watched(step_reward_trainer(reward)):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            seen.append(batch)
            return batch

    trainer = Watched(
        policy,
        reward_funcs=[reward],
        args=settings(GRPOConfig, tmp_path, max_steps=1, temperature=2.0, max_completion_length=24),
        train_dataset=rows(False, ["take the key"]),
        processing_class=tokenizer,
    )
    trainer.train()
    [batch] = seen
    advantages, masks = batch["advantages"], batch["completion_mask"].bool()
    assert advantages.shape == batch["completion_ids"].shape
    texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    scores = reward.score(["take the key"] * 4, texts)
    dense = process_advantages(scores.step_rewards, group_size=4)
    for i, scalar in enumerate(trainer._logs["advantages"]):
        commands = batch["completion_ids"][i] >= 3  # the others are special; and a command is a step
        assert commands.sum() == len(split_steps(texts[i]))
        paid = advantages[i][commands]
        assert np.allclose(paid, scalar + dense[i], atol=1e-5)
        assert not np.allclose(paid, scalar, atol=1e-3)
        assert np.allclose(advantages[i][~masks[i]], scalar, atol=1e-5)
    assert math.isfinite(trainer.state.log_history[0]["grad_norm"])
