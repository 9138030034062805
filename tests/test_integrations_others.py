"""One contract per trainer. verifiers and TorchRL run here; verl, OpenRLHF and imitation, which pin old
stacks, are called the way they call."""

import asyncio
import copy
import inspect
import pickle

import numpy as np
import pytest

from tests.conftest import turns
from valuegraph import ArrayEncoder, Episode, EpisodeError, RewardModel, Step
from valuegraph.integrations import imitation, openrlhf, verl
from valuegraph.integrations import verifiers as for_verifiers
from valuegraph.integrations._rollouts import row_episode


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "rm"
    small_model.save_pretrained(path)
    return path


@pytest.fixture
def model_variable(folder, monkeypatch):
    monkeypatch.setenv("VALUEGRAPH_MODEL", str(folder))
    monkeypatch.delenv("VALUEGRAPH_GOAL_COLUMN", raising=False)


@pytest.fixture(scope="module")
def solved(heldout_episodes):
    return next(e for e in heldout_episodes if e.outcome == 1.0 and len(e.steps) > 2)


def said(episode):
    """What a policy without an environment would write."""
    return "\n\n".join(step.action for step in episode.steps)


# ------------------------------------------------------------------------------- verl


def called_by_verl(function, reward_kwargs, **row):
    """verl wraps the function with its configured arguments, and calls it by name."""
    return function(**{**row, **reward_kwargs})


def test_contract_verl(small_model, folder, solved):
    first = list(inspect.signature(verl.compute_score).parameters)[:4]
    assert first == ["data_source", "solution_str", "ground_truth", "extra_info"]
    row = {
        "data_source": "textworld",
        "solution_str": said(solved),
        "ground_truth": None,
        "extra_info": {
            "goal": solved.goal,
            "num_turns": None,
            "rollout_reward_scores": {},
            "truncated": False,
        },
        "reward_router_address": None,
    }
    result = called_by_verl(verl.compute_score, {"model": str(folder)}, **row)
    direct = small_model.score([row_episode(said(solved), solved.goal)])
    assert result == {
        "score": direct.total[0],
        "terminal": direct.terminal[0],
        "instrumental": direct.instrumental[0],
        "support": direct.support[0],
        "scored": 1.0,
    }
    assert all(type(value) is float for value in result.values())  # verl writes them to JSON


def test_verl_finds_the_goal_where_it_travels(model_variable, solved, monkeypatch):
    def score(extra_info, **options):
        return verl.compute_score("d", said(solved), None, extra_info, **options)

    expected = score({"goal": solved.goal})
    chat = [{"role": "user", "content": solved.goal}]
    assert score({"question": solved.goal}) == score({"prompt": chat}) == expected
    assert score({"goal": "", "prompt": np.array(chat + chat)}) == expected  # as pandas reads Parquet
    assert score({"goal": "?", "mine": solved.goal}, goal_key="mine") == expected
    monkeypatch.setenv("VALUEGRAPH_GOAL_COLUMN", "mine")
    assert score({"goal": "?", "mine": solved.goal}) == expected


def test_verl_has_no_none(model_variable, solved):
    assert verl.compute_score("d", said(solved), None) == dict.fromkeys(
        ("score", "terminal", "instrumental", "support", "scored"), 0.0
    )
    assert verl.compute_score("d", " ", None, {"goal": solved.goal})["scored"] == 0.0


def test_verl_rollouts_with_tools(model_variable, solved):
    info = {"goal": solved.goal}
    with_tools = verl.compute_score("d", "flat text", None, info | {"messages": turns(solved)})
    assert with_tools["score"] > verl.compute_score("d", "flat text", None, info)["score"]


# ---------------------------------------------------------------------------- OpenRLHF


def test_contract_openrlhf(model_variable, small_model, solved):
    import torch

    assert list(inspect.signature(openrlhf.reward_func).parameters)[:3] == ["queries", "prompts", "labels"]
    prompt = f"<|im_start|>user\n{solved.goal}<|im_end|>\n<|im_start|>assistant\n"
    queries = [f"{prompt}{said(solved)}<|im_end|>", f"{prompt}<|im_end|>"]
    # as its single-turn executor calls it: by position, one query at a time
    results = [openrlhf.reward_func([query], [prompt], ["label"]) for query in queries]
    expected = small_model.score([row_episode(said(solved), solved.goal)])
    for key in ("rewards", "scores"):
        assert results[0][key].shape == (1,)
        assert results[0][key].item() == pytest.approx(expected.total[0], abs=1e-7)
    logs = {key: value.item() for key, value in results[0]["extra_logs"].items()}
    assert set(logs) == {"terminal", "instrumental", "support", "scored"}
    assert logs["scored"] == 1.0
    assert results[1]["extra_logs"]["scored"].item() == results[1]["rewards"].item() == 0.0
    together = openrlhf.reward_func(queries, [prompt] * 2, None)
    assert torch.equal(together["rewards"], torch.cat([r["rewards"] for r in results]))


def test_openrlhf_goal_is_read_from_the_query_alone(model_variable, solved):
    query = f"<|im_start|>user\n{solved.goal}<|im_end|>\n<|im_start|>assistant\n{said(solved)}<|im_end|>"
    prompt = query.partition(said(solved))[0]
    [with_prompt, without] = [openrlhf.reward_func([query], p) for p in ([prompt], None)]
    assert with_prompt["rewards"].item() == without["rewards"].item()


# --------------------------------------------------------------------------- verifiers


def trace_of(solved, *, goal=..., closing="Done.", field=None):
    """A finished rollout, as verifiers' own objects record it."""
    import verifiers.v1 as vf
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, SystemMessage, ToolCall, ToolMessage, UserMessage

    class Data(vf.TaskData):
        mission: str | None = None

    data = Data(prompt=solved.goal if goal is ... else goal, mission=field)
    messages = [
        (SystemMessage(content="You play a text game."), False),
        (UserMessage(content=solved.goal if goal is ... else "begin"), False),
    ]
    for i, step in enumerate(solved.steps):
        call = ToolCall(id=str(i), name="act", arguments=f'{{"command": "{step.action}"}}')
        messages.append((AssistantMessage(tool_calls=[call]), True))
        messages.append((ToolMessage(tool_call_id=str(i), content=step.observation), False))
    messages.append((AssistantMessage(content=closing), True))
    nodes = [
        MessageNode(parent=i - 1 if i else None, message=message, sampled=sampled)
        for i, (message, sampled) in enumerate(messages)
    ]
    record = TraceTask(type="Game", data=data)
    return data, Trace(task=record, agent=AgentInfo(config=AgentConfig()), nodes=nodes)


def game(data, **config):
    import verifiers.v1 as vf

    class Game(vf.Task):
        pass

    return Game(data, vf.TaskConfig.model_validate(config))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_contract_verifiers(model_variable, small_model, solved):
    data, trace = trace_of(solved)
    module = "valuegraph.integrations.verifiers"
    task = game(
        data,
        rewards={"valuegraph": {"fn": f"{module}.value_reward", "weight": 2.0}},
        metrics={"parts": {"fn": f"{module}:value_metrics"}},
    )
    asyncio.run(task.score(trace))
    episode = for_verifiers.trace_episode(data, trace)
    assert episode.goal == solved.goal
    assert [step.observation for step in episode.steps[:-1]] == [s.observation for s in solved.steps]
    assert episode.steps[0].action == f'act(command="{solved.steps[0].action}")'
    direct = small_model.score([episode])
    assert trace.rewards["valuegraph"].score == direct.total[0]
    assert trace.reward == 2.0 * direct.total[0]
    assert trace.metrics == {
        "valuegraph/terminal": direct.terminal[0],
        "valuegraph/instrumental": direct.instrumental[0],
        "valuegraph/support": direct.support[0],
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_verifiers_goal_field_and_nothing_to_score(small_model, solved):
    import verifiers.v1 as vf

    data, trace = trace_of(solved, goal=None, field=solved.goal)

    valuegraph = for_verifiers.make_reward(small_model, goal_field="mission")

    class Game(vf.Task):
        @vf.reward
        async def value(self, trace):
            return await valuegraph(self.data, trace)

    asyncio.run(Game(data).score(trace))
    assert trace.reward > 0.0
    assert for_verifiers.trace_episode(data, trace).goal == "begin"  # the trace's first user message
    data, trace = trace_of(solved, goal=None, field=None)
    asyncio.run(Game(data).score(trace))
    assert trace.rewards == {}  # no goal: nothing is recorded, which is not a reward of 0


# -------------------------------------------------------------- imitation and TorchRL

LAST = 5


@pytest.fixture(scope="module")
def corridor():
    """Walks along a corridor of six places; those that reach the end succeed."""

    def walk(name, places, outcome):
        steps = tuple(Step((float(place), 1.0)) for place in places)
        return Episode(name, steps, outcome=outcome, terminated=outcome == 1.0, truncated=outcome == 0.0)

    walks = [walk(f"won {i}", range(1, LAST + 1), 1.0) for i in range(4)]
    walks += [walk(f"lost {i}", [1, 0, 1, 0], 0.0) for i in range(4)]
    model = RewardModel.create(ArrayEncoder.fit(walks))
    model.update(walks)
    return model


def states(*places):
    return np.array([[place, 1.0] for place in places], np.float32)


def test_the_corridor_is_worth_more_towards_its_end(corridor):
    psi = corridor.potential([(float(place), 1.0) for place in range(1, LAST + 1)])
    assert np.all(np.diff(psi) > 0.0)


def test_contract_imitation(corridor):
    fn = imitation.ValueRewardFn(corridor, gamma=0.9)
    assert list(inspect.signature(fn).parameters) == ["state", "action", "next_state", "done"]
    now, then = states(1, 2, 4, 3), states(2, 3, LAST, 3)
    done = np.array([False, False, True, False])
    rewards = fn(now, np.zeros(4, int), then, done)
    assert rewards.shape == (4,)
    assert rewards.dtype == np.float32
    psi = fn.potential
    expected = 0.9 * psi(then) * ~done - psi(now)
    assert np.allclose(rewards, expected, atol=1e-6)
    assert np.allclose(
        imitation.ValueRewardFn(corridor, mode="potential")(now, None, then, done), psi(then), atol=1e-6
    )
    assert fn(states(), None, states(), np.zeros(0, bool)).shape == (0,)


def test_imitation_describes_states_in_words(small_model, solved):
    texts = [step.observation for step in solved.steps]
    fn = imitation.ValueRewardFn(
        small_model, goal=solved.goal, mode="potential", describe=lambda state: texts[int(state[0])]
    )
    rewards = fn(None, None, np.arange(len(texts))[:, None], np.zeros(len(texts), bool))
    assert np.allclose(rewards, small_model.potential(texts, solved.goal), atol=1e-6)


def test_bad_settings_are_refused(corridor):
    with pytest.raises(ValueError, match="mode='other'"):
        imitation.ValueRewardFn(corridor, mode="other")
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        imitation.ValueRewardFn(corridor, gamma=1.5)
    with pytest.raises(EpisodeError, match="finite"):
        imitation.ValueRewardFn(corridor)(states(np.nan), None, states(1), np.zeros(1, bool))


def corridor_env(limit=8):
    """A step goes one place on (action 1) or back (0); reaching the last place ends it, or `limit`."""
    import torch
    from tensordict import TensorDict
    from torchrl.data import Binary, Bounded, Composite, Unbounded
    from torchrl.envs import EnvBase

    class Corridor(EnvBase):
        def __init__(self):
            super().__init__(batch_size=[])
            self.observation_spec = Composite(observation=Unbounded((2,)))
            self.action_spec = Binary(1)
            self.reward_spec = Bounded(0.0, 1.0, (1,))
            flags = {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
            self.full_done_spec = Composite(**flags)
            self.place = self.time = 0

        def _record(self):
            terminated, truncated = self.place == LAST, self.time >= limit
            flags = {"terminated": terminated, "truncated": truncated, "done": terminated or truncated}
            return {"observation": torch.tensor([float(self.place), 1.0])} | {
                key: torch.tensor([value]) for key, value in flags.items()
            }

        def _reset(self, tensordict, **_):
            self.place, self.time = 1, 0
            return TensorDict(self._record(), [])

        def _step(self, tensordict):
            self.place = max(0, self.place + (1 if tensordict["action"].item() else -1))
            self.time += 1
            reward = torch.tensor([float(self.place == LAST)])
            return TensorDict(self._record() | {"reward": reward}, [])

        def _set_seed(self, seed):
            pass

    return Corridor()


ignore_torchrl = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def always(action):
    import torch

    return lambda td: td.set("action", torch.full((*td.batch_size, 1), action, dtype=torch.int8))


class TestTorchRL:
    pytestmark = ignore_torchrl

    @pytest.fixture
    def shaped(self, corridor):
        from torchrl.envs import Compose, RewardSum, TransformedEnv

        from valuegraph.integrations.torchrl import ValueShaping

        return lambda **options: TransformedEnv(
            corridor_env(), Compose(RewardSum(), ValueShaping(corridor, gamma=0.9, **options))
        )

    def test_contract(self, shaped):
        from torchrl.envs.utils import check_env_specs

        check_env_specs(shaped())

    @pytest.mark.parametrize("mode", ["add", "replace"])
    def test_rewards_of_a_success(self, shaped, corridor, mode):
        walk = shaped(mode=mode).rollout(20, always(1))
        psi = corridor.potential([(float(place), 1.0) for place in range(1, LAST + 1)])
        after = np.append(psi[1:-1], 0.0)  # nothing is worth anything after the end
        expected = 0.9 * after - psi[:-1]
        if mode == "add":
            expected[-1] += 1.0
        assert np.allclose(walk["next", "reward"].flatten(), expected, atol=1e-6)
        assert walk["next", "episode_reward"][-1].item() == 1.0  # the environment's own

    def test_a_time_limit_keeps_the_potential(self, shaped, corridor):
        walk = shaped(mode="replace").rollout(20, always(0))
        assert walk["next", "truncated"][-1].item()
        place = float(walk["next", "observation"][-1, 0])
        psi = corridor.potential([(place, 1.0)])[0]
        assert psi > 0.0
        assert walk["next", "reward"][-1].item() == pytest.approx(0.9 * psi - psi, abs=1e-6)

    def test_batches_and_partial_resets(self, shaped):
        from torchrl.envs import SerialEnv

        alone = shaped().rollout(12, always(1), break_when_any_done=False)
        batch = SerialEnv(2, shaped).rollout(12, always(1), break_when_any_done=False)
        assert batch.batch_size == (2, 12)
        for row in batch:
            assert row["next", "reward"].allclose(alone["next", "reward"])

    def test_replay_buffer(self, shaped, corridor):
        from torchrl.data import LazyTensorStorage, ReplayBuffer

        from valuegraph.integrations.torchrl import ValueShaping

        plain = corridor_env().rollout(20, always(1))
        buffer = ReplayBuffer(
            storage=LazyTensorStorage(len(plain)), transform=ValueShaping(corridor, gamma=0.9), batch_size=4
        )
        buffer.extend(plain)
        sample = buffer.sample()
        online = shaped().rollout(20, always(1))["next", "reward"]
        places = sample["observation"][:, 0].long() - 1
        assert sample["next", "reward"].allclose(online[places])

    def test_text_observations(self, small_model, solved):
        import torch
        from tensordict import NonTensorStack, TensorDict

        from valuegraph.integrations.torchrl import ValueShaping

        texts = [step.observation for step in solved.steps[:3]]
        flags = {"terminated": torch.zeros(2, 1, dtype=torch.bool), "reward": torch.zeros(2, 1)}
        batch = TensorDict({"text": NonTensorStack(*texts[:2])}, [2])
        batch["next"] = TensorDict({"text": NonTensorStack(*texts[1:]), **flags}, [2])
        transform = ValueShaping(small_model, goal=solved.goal, observation_key="text", gamma=1.0)
        psi = small_model.potential([*texts[:2], *texts[1:]], solved.goal)
        rewards = copy.deepcopy(transform)(batch)["next", "reward"]
        assert np.allclose(rewards.flatten(), psi[2:] - psi[:2], atol=1e-6)

    def test_pickles(self, corridor):
        from valuegraph.integrations.torchrl import ValueShaping

        transform = ValueShaping(corridor)
        again = pickle.loads(pickle.dumps(transform))  # noqa: S301
        one, two = corridor_env().rollout(3, always(1)), corridor_env().rollout(3, always(1))
        assert transform(one)["next", "reward"].equal(again(two)["next", "reward"])

    def test_bad_settings_are_refused(self, corridor):
        from valuegraph.integrations.torchrl import ValueShaping

        with pytest.raises(ValueError, match="mode='shaping'"):
            ValueShaping(corridor, mode="shaping")
        with pytest.raises(ValueError, match="gamma=-1"):
            ValueShaping(corridor, gamma=-1)
