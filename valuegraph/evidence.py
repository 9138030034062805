"""What a step is judged by, and how much of it: the text an encoder reads."""

from __future__ import annotations

from valuegraph.episodes import EpisodeError, Step

EVIDENCE = ("step", "observation", "action")
"""What a step is judged by: action and observation, what the environment said, or what the agent did."""

OBSERVATION_CHARACTERS = 300
"""Where observations are cut. A short window keeps an embedding about *this* step: what came before is in the
causal context, and the unchanging end of a long room description would only pull all steps together. 300
characters are some 75 tokens, so that observation and action both fit an encoder's window of 128."""

ACTION_CHARACTERS = 150
"""Where an action is cut if its observation follows: what the agent writes must not push out the answer."""


def step_text(step: Step, evidence: str = "step") -> str:
    r"""The text a step is embedded as.

    >>> step_text(Step("It is open.", "open fridge"))
    '> open fridge\nIt is open.'
    >>> step_text(Step("A kitchen."))
    'A kitchen.'

    Observations are cut at `OBSERVATION_CHARACTERS`, actions before them at `ACTION_CHARACTERS`. Raises
    `EpisodeError` for a vector observation.
    """
    check_evidence(evidence)
    if not isinstance(step.observation, str):
        raise EpisodeError(
            "the observation is a vector, which a TextEncoder cannot read; use an ArrayEncoder"
        )
    if evidence == "action":
        return (step.action or "")[:OBSERVATION_CHARACTERS]
    observation = step.observation[:OBSERVATION_CHARACTERS]
    if evidence == "observation" or step.action is None:
        return observation
    return f"> {step.action[:ACTION_CHARACTERS]}\n{observation}"


def check_evidence(evidence: str) -> None:
    """Raise `ValueError` unless it is one of `EVIDENCE`."""
    if evidence not in EVIDENCE:
        raise ValueError(f"evidence={evidence!r}, expected one of {EVIDENCE}")


def is_cut(step: Step, evidence: str) -> bool:
    """Whether `step_text` leaves something of a text step out."""
    action = len(step.action or "")
    if evidence == "action":
        return action > OBSERVATION_CHARACTERS
    long_action = evidence == "step" and action > ACTION_CHARACTERS
    return long_action or len(step.observation) > OBSERVATION_CHARACTERS
