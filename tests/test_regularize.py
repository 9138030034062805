"""Blended checkpoints and the KL between embeddings, against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from valuegraph.regularize import EmbeddingKL, blend_checkpoints


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_blend_lies_on_the_line_between_the_checkpoints():
    start, trained = net(0), net(1)
    trained[1].num_batches_tracked += 7
    half = blend_checkpoints(start, trained.state_dict(), 0.25)
    torch.testing.assert_close(half["0.weight"], 0.75 * start[0].weight + 0.25 * trained[0].weight)
    assert half["1.num_batches_tracked"] == 7
    net(2).load_state_dict(half)
    for weight, end in ((0.0, start), (1.0, trained)):
        assert torch.equal(blend_checkpoints(start, trained, weight)["0.bias"], end[0].bias)
    # Control: a blend is a copy.
    blend_checkpoints(start, trained, 0.0)["0.weight"].zero_()
    assert start[0].weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("other", "weight", "message"),
    [
        ({"w": torch.zeros(2)}, 1.5, "weight"),
        ({"v": torch.zeros(2)}, 0.5, r"\['v', 'w'\]"),
        ({"w": torch.zeros(3)}, 0.5, r"w: \(2,\)"),
        ({"w": torch.zeros(2, dtype=torch.float64)}, 0.5, "float64"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(other, weight, message):
    with pytest.raises(ValueError, match=message):
        blend_checkpoints({"w": torch.zeros(2)}, other, weight)


def gaussian_kl(shift, scale, d):
    """KL(N(shift, scale^2 I) || N(0, I)) with the shift along one axis."""
    return 0.5 * (d * scale**2 + shift**2 - d - 2 * d * np.log(scale))


@pytest.mark.parametrize("estimator", ["gaussian", "knn"])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.5), (1.0, 0.7)])
def test_closed_form_on_gaussians(estimator, shift, scale):
    rng, d = np.random.default_rng(0), 3
    reference, samples = rng.normal(size=(3000, d)), scale * rng.normal(size=(3000, d))
    samples[:, 0] += shift
    kl = EmbeddingKL(reference, estimator=estimator)
    assert kl(samples) == pytest.approx(
        gaussian_kl(shift, scale, d), abs=0.12
    )  # "knn" falls behind in the tails
    assert kl.penalty(samples).mean() == pytest.approx(kl(samples), abs=0.05)


def test_the_penalty_points_at_what_moved():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 4))
    samples[:40] += 6.0
    for estimator in ("gaussian", "knn"):
        paid = EmbeddingKL(rng.normal(size=(400, 4)), estimator=estimator).penalty(samples)
        assert paid[:40].mean() > paid[40:].mean() + 1.0


def test_more_dimensions_than_samples():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(4, 384))
    reference, same, moved = (rng.normal(size=(60, 4)) @ basis for _ in range(3))
    moved = moved + 3.0 * basis[0]
    kl = EmbeddingKL(reference, components=4)
    assert abs(kl(same)) < 0.5 < 2.0 < kl(moved)
    # Control: without the principal directions it stays finite all the same.
    assert np.isfinite(EmbeddingKL(reference)(moved))


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((1, 3)), np.full((9, 3), np.nan), np.zeros((9, 2))])
def test_embeddings_that_cannot_be_used_are_refused(bad):
    kl = EmbeddingKL(np.eye(3).repeat(3, axis=0))
    with pytest.raises(ValueError, match=r"need finite|dimensions"):
        kl(bad)
    with pytest.raises(ValueError, match="estimator"):
        EmbeddingKL(np.eye(3), estimator="mmd")
