"""Golden values of the distillation losses, by hand; gradient reversal; discriminators."""

import math

import pytest
import torch
from torch import nn

from models import (
    LEVELS,
    DeterministicAdaptiveMaxPool,
    Discriminator,
    build_discriminators,
    reverse_gradient,
)
from train_cmkd_adv import domain_bce
from train_cmkd_mse import feature_mse


def test_feature_mse_by_hand():
    student = {"0": torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "1": torch.tensor([[[[5.0]]]])}
    teacher = {"0": torch.tensor([[[[1.0, 0.0], [3.0, 0.0]]]]), "1": torch.tensor([[[[2.0]]]])}
    # level 0: (0 + 4 + 0 + 16) / 4 = 5; level 1: 9; mean 7
    assert feature_mse(student, teacher).item() == 7.0


def test_feature_mse_of_equal_features_is_zero():
    features = {level: torch.randn(2, 8, 4, 5) for level in LEVELS}
    assert feature_mse(features, features).item() == 0.0


def test_feature_mse_gradient_by_hand():
    student = {
        "0": torch.tensor([[[[3.0]]]], requires_grad=True),
        "1": torch.tensor([[[[0.0]]]], requires_grad=True),
    }
    feature_mse(
        student, {"0": torch.tensor([[[[1.0]]]]), "1": torch.tensor([[[[0.0]]]])}
    ).backward()
    assert student["0"].grad.item() == 2.0  # d/ds of ((s - 1)^2 + 0) / 2 at s = 3
    assert student["1"].grad.item() == 0.0


class Mean(nn.Module):
    """A discriminator with the logit mean(map) * weight, so the loss can be computed by hand."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, features):
        return self.weight * features.mean(dim=(1, 2, 3))[:, None]


def softplus(x):
    return math.log1p(math.exp(x))


def test_domain_bce_by_hand():
    discriminators = nn.ModuleDict({"0": Mean(1.0), "1": Mean(2.0)})
    student = {"0": torch.full((1, 1, 2, 2), 0.5), "1": torch.full((1, 1, 1, 1), -1.0)}
    teacher = {"0": torch.full((1, 1, 2, 2), 3.0), "1": torch.full((1, 1, 1, 1), 0.25)}
    # BCE with logit z: softplus(z) for target 0 (student), softplus(-z) for target 1 (teacher)
    level0 = (softplus(0.5) + softplus(-3.0)) / 2
    level1 = (softplus(-2.0) + softplus(-0.5)) / 2
    assert domain_bce(discriminators, student, teacher, 0.3).item() == pytest.approx(
        (level0 + level1) / 2, rel=1e-6
    )


def test_domain_bce_of_an_undecided_discriminator_is_log_2():
    features = {"0": torch.randn(3, 4, 2, 2)}
    assert domain_bce(
        nn.ModuleDict({"0": Mean(0.0)}), features, features, 0.3
    ).item() == pytest.approx(math.log(2))


def test_gradient_reversal_sign_and_weight():
    features = torch.tensor([1.0, -2.0], requires_grad=True)
    reversed_features = reverse_gradient(features, 0.3)
    assert torch.equal(reversed_features, features)
    (reversed_features * torch.tensor([10.0, 100.0])).sum().backward()
    torch.testing.assert_close(features.grad, torch.tensor([-3.0, -30.0]))


def test_student_and_discriminator_pull_against_each_other():
    student, teacher = (
        torch.full((1, 1, 1, 1), 0.5, requires_grad=True),
        torch.full((1, 1, 1, 1), 2.0),
    )
    discriminator = Mean(1.0)
    loss = domain_bce(nn.ModuleDict({"0": discriminator}), {"0": student}, {"0": teacher}, 0.3)
    loss.backward()
    sigmoid = torch.sigmoid(torch.tensor(0.5)).item()
    # dL/dz = sigmoid(z) / 2; the student gets it times the discriminator's weight and -0.3.
    assert student.grad.item() == pytest.approx(-0.3 * sigmoid / 2, rel=1e-6)
    expected = (sigmoid * 0.5 + (torch.sigmoid(torch.tensor(2.0)).item() - 1) * 2.0) / 2
    assert discriminator.weight.grad.item() == pytest.approx(
        expected, rel=1e-6
    )  # not reversed, not scaled


class PublishedDiscriminator(nn.Module):
    """The published network, written plainly for one input size: the reference of ours."""

    def __init__(self, pools, flattened):
        super().__init__()
        self.pools = pools
        self.conv1, self.conv2 = nn.Conv2d(256, 128, 1), nn.Conv2d(128, 1, 1)
        self.fc1, self.fc2 = nn.Linear(flattened, 108), nn.Linear(108, 1)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        if self.pools[0]:
            x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.conv2(x))
        if self.pools[1]:
            x = nn.functional.max_pool2d(x, 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.mark.parametrize(
    ("level", "stride", "pools", "flattened"),
    [
        ("0", 4, (True, True), 1728),
        ("1", 8, (True, True), 432),
        ("2", 16, (False, True), 432),
        ("3", 32, (False, False), 432),
    ],
)
def test_discriminators_equal_the_published_ones_at_the_published_size(
    level, stride, pools, flattened
):
    ours = build_discriminators()[level].eval()
    published = PublishedDiscriminator(pools, flattened)
    published.load_state_dict(
        dict(zip(published.state_dict(), ours.state_dict().values(), strict=True))
    )
    features = torch.randn(1, 256, 512 // stride, 864 // stride)
    torch.testing.assert_close(ours(features), published(features))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (31, 57), (128, 216)])
def test_discriminators_take_any_size(size):
    discriminators = build_discriminators()
    assert list(discriminators) == list(LEVELS)
    for discriminator in discriminators.values():
        assert isinstance(discriminator, Discriminator)
        logits = discriminator(torch.randn(2, 256, *size))
        assert logits.shape == (2, 1)
        assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (31, 57), (64, 108)])
def test_the_deterministic_pool_is_torchs(size):
    ours, torchs = DeterministicAdaptiveMaxPool((32, 54)), nn.AdaptiveMaxPool2d((32, 54))
    one = torch.randn(2, 1, *size, requires_grad=True)
    other = one.detach().clone().requires_grad_()
    weights = torch.randn(2, 1, 32, 54)
    assert torch.equal(ours(one), torchs(other))
    (ours(one) * weights).sum().backward()
    (torchs(other) * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
