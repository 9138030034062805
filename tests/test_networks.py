"""The learner's network and losses: causal, blind to padding, and without leakage inside a group."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from valuegraph.networks import (
    FINAL_WEIGHT,
    InstrumentalNet,
    Reading,
    Sample,
    decomposition_loss,
    net_from_arrays,
    net_to_arrays,
    read_steps,
    retrieval_loss,
    sample_steps,
    value_loss,
)

WIDTH, HIDDEN, Z = 10, 12, 6


@pytest.fixture
def net() -> InstrumentalNet:
    torch.manual_seed(0)
    return InstrumentalNet(WIDTH, HIDDEN, Z).eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(random(*shape, seed=seed), dim=-1)


def bce(p: float, y: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


@pytest.mark.parametrize("t", range(6))
def test_a_reading_depends_on_what_came_before_it_only(net: InstrumentalNet, t: int) -> None:
    before = random(2, 7, WIDTH)
    after = before.clone()
    after[:, t + 1 :] += random(2, 6 - t, WIDTH, seed=1)
    for a, b in zip(net(before), net(after), strict=True):
        torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1], rtol=0.0, atol=1e-6)
        # Control: the changed steps themselves are read otherwise.
        assert (a[:, t + 1 :] - b[:, t + 1 :]).abs().max() > 1e-3


def test_the_recurrent_head_reads_the_prefix_and_the_local_head_does_not(net: InstrumentalNet) -> None:
    before = random(1, 5, WIDTH)
    after = before.clone()
    after[:, 0] += 1.0
    a, b = net(before), net(after)
    assert (a.recurrent[:, 1:] - b.recurrent[:, 1:]).abs().min() > 1e-6
    torch.testing.assert_close(a.local[:, 1:], b.local[:, 1:])
    torch.testing.assert_close(a.z[:, 1:], b.z[:, 1:])


def test_padding_and_the_rest_of_the_batch_do_not_matter(net: InstrumentalNet) -> None:
    episodes = [random(n, WIDTH, seed=n) for n in (3, 7, 1)]
    padded = torch.nn.utils.rnn.pad_sequence(episodes, batch_first=True, padding_value=99.0)
    together = net(padded)
    for b, episode in enumerate(episodes):
        for batched, alone in zip(together, net(episode[None]), strict=True):
            torch.testing.assert_close(batched[b, : len(episode)], alone[0], rtol=0.0, atol=1e-5)


def test_z_is_a_unit_vector(net: InstrumentalNet) -> None:
    z = net(random(2, 5, WIDTH)).z
    assert z.shape == (2, 5, Z)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 5))


def test_the_value_loss_is_the_cross_entropy_of_both_heads_with_more_weight_on_the_end() -> None:
    logits, other, credit = random(2, 3), random(2, 3, seed=1), torch.rand(2, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weights = {(0, 0): 1.0, (0, 1): FINAL_WEIGHT, (1, 0): FINAL_WEIGHT}
    expected = 0.0
    for head in (logits, other):
        terms = [w * bce(float(head[at].sigmoid()), float(credit[at])) for at, w in weights.items()]
        expected += sum(terms) / sum(weights.values())
    assert float(value_loss(Reading(unit(2, 3, Z), logits, other), credit, mask)) == pytest.approx(
        expected, rel=1e-5
    )


def test_padding_has_no_part_in_the_value_loss(net: InstrumentalNet) -> None:
    mask = torch.tensor([[True, True, True, False]])
    inputs, credit = random(1, 4, WIDTH).requires_grad_(), torch.tensor([[0.2, 0.5, 1.0, 0.0]])
    value_loss(net(inputs), credit, mask).backward()
    assert inputs.grad is not None
    assert not inputs.grad[0, 3].any()
    assert inputs.grad[0, :3].abs().sum(dim=-1).min() > 0.0
    changed = credit.clone()
    changed[0, 3] = 0.9
    assert value_loss(net(inputs), credit, mask) == value_loss(net(inputs), changed, mask)


def decomposition(gain: torch.Tensor, credit: torch.Tensor, mask: torch.Tensor, most: int | None) -> float:
    """The loss where the gain of a step is what it says."""
    sample = sample_steps(gain[:, :, None], credit, mask, torch.ones(len(mask), dtype=torch.bool), most)
    return float(decomposition_loss(sample.inputs[:, :, 0], sample))


def test_gains_of_all_steps_add_up_to_the_outcome() -> None:
    gain = torch.tensor([[0.1, 0.3, 0.2], [0.5, 0.1, 9.0]])
    credit = torch.tensor([[0.2, 0.5, 1.0], [0.3, 0.6, 7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = ((1.0 - 0.6) ** 2 + (0.6 - 0.6) ** 2) / 2
    for most in (None, 3, 8):
        assert decomposition(gain, credit, mask, most) == pytest.approx(expected)


def test_a_subset_of_the_gains_stands_for_all_of_them() -> None:
    torch.manual_seed(0)
    credit, mask = torch.full((1, 10), 0.7), torch.ones(1, 10, dtype=torch.bool)
    even = torch.full((1, 10), 0.05)
    assert decomposition(even, credit, mask, 3) == pytest.approx((0.7 - 0.5) ** 2)
    uneven = torch.tensor([[1.0, -1.0] * 5])
    assert decomposition(uneven, 0.0 * credit, mask, None) == pytest.approx(0.0, abs=1e-9)
    drawn = [decomposition(uneven, 0.0 * credit, mask, 3) for _ in range(4000)]
    # 100 times the variance of the mean of three draws without replacement.
    assert np.mean(drawn) == pytest.approx(100.0 * (10 / 9) / 3 * (1 - 3 / 10), rel=0.1)


def test_samples_are_of_an_episode_s_own_steps() -> None:
    """Each step at most once, padding never; what stands for all of them adds up to all of them."""
    torch.manual_seed(0)
    lengths = torch.tensor([1, 3, 20])
    mask = torch.arange(20)[None] < lengths[:, None]
    number = torch.where(mask, torch.arange(20.0), torch.nan)
    genuine = torch.tensor([True, False, True])
    sample = sample_steps(number[:, :, None], number, mask, genuine, 8)
    assert sample.genuine.tolist() == [True, False, True]
    assert sample.stands_for.sum(1).tolist() == pytest.approx([1.0, 3.0, 20.0])
    assert sample.outcome.tolist() == [0.0, 2.0, 19.0]
    for steps, share, length in zip(sample.inputs[:, :, 0], sample.stands_for, lengths.tolist(), strict=True):
        taken = steps[share > 0].tolist()
        assert len(set(taken)) == len(taken) == min(8, length)
        assert max(taken) < length


def test_padding_has_no_part_in_the_decomposition_loss() -> None:
    genuine = torch.ones(1, dtype=torch.bool)
    sample = Sample(torch.zeros(1, 3, 1), torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1), genuine)
    gain = torch.tensor([[0.2, 0.1, torch.nan]], requires_grad=True)
    loss = decomposition_loss(gain, sample)
    assert float(loss.detach()) == pytest.approx(0.7**2)
    loss.backward()
    assert gain.grad is not None
    assert gain.grad[0].tolist() == pytest.approx([-1.4, -1.4, 0.0], nan_ok=True)


def test_a_decomposition_is_averaged_over_the_episodes_it_is_asked_of() -> None:
    sample = Sample(torch.zeros(3, 1, 1), torch.ones(3, 1), torch.zeros(3), torch.tensor([True, False, True]))
    gain = torch.tensor([[0.1], [0.5], [0.3]], requires_grad=True)
    assert float(decomposition_loss(gain, sample).detach()) == pytest.approx((0.01 + 0.25 + 0.09) / 3)
    loss = decomposition_loss(gain, sample, sample.genuine)
    assert float(loss.detach()) == pytest.approx((0.01 + 0.09) / 2)
    (grad,) = torch.autograd.grad(loss, gain)
    assert grad[1] == 0.0 != grad[0]
    assert float(decomposition_loss(gain, sample, torch.zeros(3, dtype=torch.bool)).detach()) == 0.0


def test_one_reader_of_gains_sees_the_step_alone() -> None:
    torch.manual_seed(0)
    net = InstrumentalNet(WIDTH, HIDDEN, Z, own=4).eval()
    inputs, elsewhere, here = (random(5, WIDTH, seed=seed) for seed in range(3))
    elsewhere[:, :4], here[:, 4:] = inputs[:, :4], inputs[:, 4:]
    before, after = net.gains(inputs), net.gains(elsewhere)
    assert torch.equal(before.own, after.own)
    assert not torch.allclose(before.in_context, after.in_context)
    assert not torch.allclose(before.own, net.gains(here).own)  # the control
    again = net_from_arrays(net.shape, net_to_arrays(net))
    assert torch.equal(again.gains(inputs).own, before.own)


def test_two_groups_predict_each_other() -> None:
    """With one step each there is nothing to weigh: p_0 = y_1 and p_1 = y_0, whatever z is."""
    for seed in range(3):
        loss = retrieval_loss(unit(2, Z, seed=seed), torch.tensor([0.9, 0.2]), torch.tensor([0, 1]))
        assert float(loss) == pytest.approx((bce(0.2, 0.9) + bce(0.9, 0.2)) / 2, rel=1e-5)


def test_equal_embeddings_predict_the_mean_of_the_others() -> None:
    z, credit = unit(1, Z).expand(5, Z), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    group = torch.tensor([0, 0, 1, 1, 2])
    others = [float(credit[group != g].mean()) for g in group]
    expected = np.mean([bce(p, float(y)) for p, y in zip(others, credit, strict=True)])
    assert float(retrieval_loss(z, credit, group)) == pytest.approx(expected, rel=1e-5)


def test_a_cold_temperature_reads_the_nearest_neighbour() -> None:
    angle = torch.tensor([0.0, 0.1, 2.0, 2.2])
    z = torch.stack([angle.cos(), angle.sin()], dim=1)
    credit = torch.tensor([0.9, 0.8, 0.1, 0.3])
    nearest = [0.8, 0.9, 0.3, 0.1]
    expected = np.mean([bce(p, float(y)) for p, y in zip(nearest, credit, strict=True)])
    loss = retrieval_loss(z, credit, torch.arange(4), temperature=1e-5)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_what_is_masked_is_masked_by_minus_infinity() -> None:
    """Its own group is far nearer than any other, and still has no say; times zero, it would have all."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    credit, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 1])
    assert float(retrieval_loss(z, credit, group)) == pytest.approx(bce(0.0, 1.0), rel=1e-4)
    similarity = (z @ z.T / 0.1) * (group[:, None] != group[None])  # the control
    predicted = similarity.softmax(dim=1) @ credit
    assert float(functional.binary_cross_entropy(predicted, credit)) < 0.01


def test_no_gradient_flows_inside_a_group() -> None:
    """Steps of one group are neither pulled together nor apart: z_0 moves along the other groups only."""
    z = torch.eye(Z)[:4].requires_grad_()
    credit, group = torch.tensor([1.0, 0.0, 0.7, 0.2]), torch.tensor([0, 0, 1, 2])
    (grad,) = torch.autograd.grad(retrieval_loss(z, credit, group), z)
    assert grad[0, 1] == 0.0 == grad[1, 0]
    assert grad[0, 2].abs() > 1e-4
    # Control: in groups of their own they do.
    (grad,) = torch.autograd.grad(retrieval_loss(z, credit, torch.arange(4)), z)
    assert grad[0, 1].abs() > 1e-4


def test_the_retrieval_loss_is_its_formula() -> None:
    z, credit = unit(6, Z), torch.tensor([0.5, 0.4, 0.7, 0.2, 0.9, 0.1])
    group = [0, 0, 1, 1, 2, 0]
    expected = []
    for i in range(6):
        others = [j for j in range(6) if group[j] != group[i]]
        kernel = np.array([np.exp(float(z[i] @ z[j]) / 0.1) for j in others])
        p = float((kernel * [float(credit[j]) for j in others]).sum() / kernel.sum())
        expected.append(bce(p, float(credit[i])))
    loss = retrieval_loss(z, credit, torch.tensor(group), temperature=0.1)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_single_group_has_no_loss() -> None:
    z = unit(3, Z).requires_grad_()
    loss = retrieval_loss(z, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.long))
    assert loss.item() == 0.0
    (grad,) = torch.autograd.grad(loss, z)
    assert not grad.any()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_reading_an_episode_equals_the_forward_pass(net: InstrumentalNet, share: float) -> None:
    inputs = random(9, WIDTH).numpy()
    counted = np.random.default_rng(0).random(9) < share
    z, value, gain = read_steps(net, inputs, counted)
    x = torch.from_numpy(inputs)[None]
    whole, kept = net(x), net(x[:, np.flatnonzero(counted)]) if counted.any() else None
    np.testing.assert_allclose(z, whole.z[0].detach().numpy(), atol=1e-6)
    in_context, own = (g[0].detach().numpy() for g in net.gains(x))
    np.testing.assert_allclose(gain, (in_context + own) / 2, atol=1e-6)
    nothing = net.recurrent_value(torch.zeros(HIDDEN)).item()
    for t in range(9):
        read = int(counted[: t + 1].sum())
        opinion = kept.recurrent[0, read - 1].item() if kept is not None and read else nothing
        heads = torch.tensor([opinion, whole.local[0, t].item()]).sigmoid()
        assert value[t] == pytest.approx(float(heads.prod().sqrt()), abs=1e-6)


def test_several_episodes_are_read_apart(net: InstrumentalNet) -> None:
    inputs, starts = random(14, WIDTH).numpy(), np.array([0, 5, 6, 6, 14])
    counted = np.random.default_rng(1).random(14) < 0.6
    counted[5] = False  # an episode of which nothing counts
    z, value, gain = read_steps(net, inputs, counted, starts)
    for start, stop in pairwise(starts.tolist()):
        alone = read_steps(net, inputs[start:stop], counted[start:stop])
        np.testing.assert_allclose(z[start:stop], alone.z, atol=1e-6)
        np.testing.assert_allclose(value[start:stop], alone.value, atol=1e-6)
        np.testing.assert_allclose(gain[start:stop], alone.gain, atol=1e-6)
    assert not np.allclose(value, read_steps(net, inputs, counted).value, atol=1e-4)  # control: all as one


def test_a_step_that_does_not_count_does_not_change_what_is_read_later(net: InstrumentalNet) -> None:
    inputs, counted = random(6, WIDTH).numpy(), np.array([True, True, False, True, False, True])
    changed = inputs.copy()
    changed[~counted] += 1.0
    values = [read_steps(net, x, counted).value for x in (inputs, changed)]
    assert np.array_equal(values[0][counted], values[1][counted])
    values = [read_steps(net, x, np.ones(6, np.bool_)).value for x in (inputs, changed)]  # the control
    assert not np.allclose(values[0][counted], values[1][counted])


def test_the_weights_survive_arrays(net: InstrumentalNet) -> None:
    again = net_from_arrays(net.shape, net_to_arrays(net))
    assert not again.training
    inputs = random(2, 4, WIDTH)
    for a, b in zip(net(inputs), again(inputs), strict=True):
        assert torch.equal(a, b)


def test_weights_of_another_shape_are_refused(net: InstrumentalNet) -> None:
    with pytest.raises(ValueError, match="do not fit its shape"):
        net_from_arrays({**net.shape, "hidden": HIDDEN + 1}, net_to_arrays(net))
    arrays = net_to_arrays(net)
    del arrays["embed.bias"]
    with pytest.raises(ValueError, match=r"embed\.bias"):
        net_from_arrays(net.shape, arrays)
