"""Train a tiny language model with TRL's GRPOTrainer, paid by a reward model and by nothing else.

    pip install 'valuegraph[trl]'
    python examples/trl_grpo.py             # about a minute on two cores
    python examples/trl_grpo.py --dense     # step rewards on the tokens of their step (experimental)

The reward model is fitted on packaged episodes of text games, on what the players did and how it ended. The
policy is a Llama of two layers with random weights, whose tokens are the games' commands: asked for a goal it
writes a plan, one command a paragraph. Nobody shows it a plan. What it learns, it learns from `ValueReward`.

No model or dataset is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

import valuegraph as vg
from valuegraph.demo import demo_episodes
from valuegraph.integrations.trl import ValueReward, step_reward_trainer

GAMES = ("treasure_hunter/23-123", "coin_collector/4-204")


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Returns the mean reward of every training step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of the policy's optimiser (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of the reward model's fit (%(default)s)")
    parser.add_argument("--dense", action="store_true", help="step rewards on the tokens of their step")
    parser.add_argument("--out", help="where TRL writes its log; by default nowhere")
    args = parser.parse_args(arguments)

    episodes = [episode for episode in demo_episodes()[0] if episode.metadata["task"] in GAMES]
    config = vg.FitConfig(evidence="action", epochs=args.epochs)
    reward = ValueReward(vg.RewardModel.fit(episodes, config=config, progress=False))

    goals = sorted({str(episode.goal) for episode in episodes})
    tokenizer = command_tokenizer(episodes, goals)
    trainer_class = step_reward_trainer(reward) if args.dense else GRPOTrainer
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_class(
            tiny_policy(tokenizer),
            reward_funcs=[reward],
            args=GRPOConfig(
                output_dir=args.out or scratch,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                max_steps=args.steps,
                per_device_train_batch_size=16 * len(goals),
                num_generations=16,
                max_completion_length=10,
                generation_kwargs={"min_new_tokens": 1},
                learning_rate=5e-3,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                gradient_checkpointing=False,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": goals}),
            processing_class=tokenizer,
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        before = plans(trainer.model, tokenizer, goals)
        trainer.train()
        after = plans(trainer.model, tokenizer, goals)
    for goal in goals:
        print(f"\n{goal}")
        for when, plan in (("before", before[goal]), ("after", after[goal])):
            [score] = reward([goal], [plan])
            print(f"  {when}: {', '.join(plan.split(chr(10) * 2))}  -> {score:.2f}")
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    tenth = max(1, len(rewards) // 10)
    first, last = (sum(part) / tenth for part in (rewards[:tenth], rewards[-tenth:]))
    print(f"\nmean reward: {first:.3f} in the first tenth of the training, {last:.3f} in the last")
    return rewards


class Progress(TrainerCallback):
    """A line now and then, where TRL's own log is a page each step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs and state.global_step % 20 == 0:
            print(f"step {state.global_step:4d}: mean reward {logs['reward']:.3f}")


def command_tokenizer(episodes: Sequence[vg.Episode], goals: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token is a whole command on a paragraph of its own, or a whole goal."""
    commands = sorted({f"{step.action}\n\n" for episode in episodes for step in episode.steps})
    words = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *commands, *goals])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[^\n]+\n\n"), "isolated")
    raw.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **special)


def tiny_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def plans(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, goals: Sequence[str]
) -> dict[str, str]:
    """One plan for every goal."""
    torch.manual_seed(1)
    policy.eval()
    written = {}
    for goal in goals:
        prompt = tokenizer(goal, return_tensors="pt").to(policy.device)
        ids = policy.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            min_new_tokens=1,
            max_new_tokens=10,
            do_sample=True,
        )
        written[goal] = tokenizer.decode(
            ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        ).strip()
    return written


if __name__ == "__main__":
    main()
