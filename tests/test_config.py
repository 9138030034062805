"""A config is valid or names the field that is not."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valuegraph.config import FitConfig


@given(
    st.builds(
        FitConfig,
        seed=st.integers(0, 2**31),
        evidence=st.sampled_from(("step", "observation", "action")),
        gamma=st.floats(0.0, 1.0),
        propagation=st.sampled_from(("first_hit", "max_product")),
        surprise=st.floats(0.0, 1e6),
        merge=st.floats(0.0, 1.0),
        epochs=st.integers(1, 100),
        learning_rate=st.floats(1e-9, 10.0),
    )
)
def test_a_config_survives_its_dictionary(config: FitConfig) -> None:
    assert FitConfig.from_dict(config.to_dict()) == config
    assert set(config.to_dict()) == {field.name for field in fields(FitConfig)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gamma": 1.5}, r"gamma: must be in \[0, 1\], got 1.5"),
        ({"gamma": -0.1}, "gamma: must be in"),
        ({"gamma": float("nan")}, "gamma: expected float, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate: expected float"),
        ({"gamma": True}, "gamma: expected float, got True"),
        ({"gamma": "0.9"}, "gamma: expected float, got '0.9'"),
        ({"epochs": 0}, "epochs: must be above 0"),
        ({"epochs": 1.5}, "epochs: expected int, got 1.5"),
        ({"epochs": float("inf")}, "epochs: expected int, got inf"),
        ({"seed": float("nan")}, "seed: expected int, got nan"),
        ({"epochs": None}, "epochs: expected int, got None"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"unseen": -0.5}, "unseen: must be at least 0"),
        ({"surprise": -1}, "surprise: must be at least 0"),
        ({"evidence": "thought"}, "evidence: must be one of step, observation, action, got 'thought'"),
        ({"evidence": 3}, "evidence: expected str"),
        ({"propagation": "magic"}, "propagation: must be one of"),
        ({"device": 0}, "device: expected str"),
        ({"device": "tpu"}, "device: must be one of auto, cpu, cuda"),
    ],
)
def test_a_field_out_of_range_is_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        FitConfig(**values)
    with pytest.raises(ValueError, match=f"^here: {message}"):
        FitConfig.from_dict(values, where="here")


def test_a_whole_number_is_an_int_where_one_is_expected() -> None:
    config = FitConfig.from_dict({"epochs": 3.0, "gamma": 1})
    assert (config.epochs, config.gamma) == (3, 1.0)
    assert isinstance(config.epochs, int)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="config: unknown field 'gama'"):
        FitConfig.from_dict({"gama": 0.9})


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        FitConfig().gamma = 0.5  # type: ignore[misc]


def test_a_file_holds_some_of_the_fields(tmp_path) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text("# quick\nepochs: 3\ngamma: 1\nevidence: observation\n", encoding="utf-8")
    assert FitConfig.from_file(file) == FitConfig(epochs=3, gamma=1.0, evidence="observation")
    file.write_text("", encoding="utf-8")
    assert FitConfig.from_file(file) == FitConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1\n", "not YAML"),
        ("- epochs\n", "expected field names and values"),
        ("epochs: many\n", "epochs: expected int, got 'many'"),
        ("epoch: 3\n", "unknown field 'epoch'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text: str, message: str) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        FitConfig.from_file(file)
    assert str(error.value).startswith(str(file))
