from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitdeploy.records import Preprocess
from vitdeploy.training.loss import Criterion, Teacher
from vitdeploy.training.options import Distillation


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    student, head, teacher = torch.randn(3, 6, 4, generator=generator)
    return student, head, teacher, torch.tensor([0, 1, 2, 3, 0, 1])


def test_labels_are_smoothed_and_distributions_are_not(drawn) -> None:
    student, _, _, labels = drawn
    one_hot = F.one_hot(labels, 4).float()
    loss = Criterion(label_smoothing=0.2)
    smoothed = 0.8 * one_hot + 0.2 / 4
    expected = -(smoothed * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(student, labels), expected)
    torch.testing.assert_close(loss(student, smoothed), expected)


def test_without_a_teacher_both_heads_learn_the_labels(drawn) -> None:
    student, head, _, labels = drawn
    expected = (F.cross_entropy(student, labels) + F.cross_entropy(head, labels)) / 2
    torch.testing.assert_close(Criterion(0.0)((student, head), labels), expected)


def test_hard_distillation_takes_the_teachers_answers_as_labels(drawn) -> None:
    student, head, teacher, labels = drawn
    loss = Criterion(0.0, Distillation("t", kind="hard", weight=0.25))((student, head), labels, teacher)
    expected = 0.75 * F.cross_entropy(student, labels) + 0.25 * F.cross_entropy(head, teacher.argmax(1))
    torch.testing.assert_close(loss, expected)


def test_soft_distillation_is_the_divergence_at_the_temperature_times_its_square(drawn) -> None:
    student, head, teacher, labels = drawn
    options = Distillation("t", kind="soft", weight=0.5, temperature=3.0)
    loss = Criterion(0.0, options)((student, head), labels, teacher)
    truth, belief = (teacher / 3).softmax(1), (head / 3).softmax(1)
    divergence = (truth * (truth / belief).log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(student, labels) + 0.5 * 9 * divergence)


def test_a_model_with_one_head_is_distilled_through_it(drawn) -> None:
    student, _, teacher, labels = drawn
    loss = Criterion(0.0, Distillation("t", weight=1.0))(student, labels, teacher)
    torch.testing.assert_close(loss, F.cross_entropy(student, teacher.argmax(1)))


def test_a_teacher_sees_the_pixels_in_its_own_normalisation() -> None:
    student = Preprocess(size=(1, 1), channels=3, resize="none", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    teacher = Preprocess(size=(1, 1), channels=3, resize="none", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = torch.rand(2, 3, 1, 1)

    def normalised(spec: Preprocess) -> torch.Tensor:
        return (pixels - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)

    module = nn.Flatten()
    torch.testing.assert_close(Teacher(module, teacher, student)(normalised(student)), normalised(teacher).flatten(1))
