"""What is minimised; B batch, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.records import Preprocess
from vitdeploy.training.options import Distillation

Outputs = Tensor | tuple[Tensor, Tensor]


class Teacher:
    """A trained model that takes the student's batches, whatever normalisation it was trained with itself."""

    def __init__(self, module: nn.Module, preprocess: Preprocess, student: Preprocess) -> None:
        """Fold the step from one normalisation to the other into one factor and one offset per channel.

        x · std_s + mean_s is in 0…1, so the teacher's input is x · std_s / std_t + (mean_s − mean_t) / std_t, with
        means and deviations for pixels in 0…1.
        """
        self.module = module.eval().requires_grad_(False)
        self.reversed = student.channel_order != preprocess.channel_order
        per_channel = (student.unit_mean, student.unit_std, preprocess.unit_mean, preprocess.unit_std)
        pairs = zip(*(preprocess.network_order(values) for values in per_channel), strict=True)
        rows = [(std / its_std, (mean - its_mean) / its_std) for mean, std, its_mean, its_std in pairs]
        factor, offset = torch.tensor(rows).T
        self.factor, self.offset = factor.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)

    def to(self, device: torch.device) -> Teacher:
        """Move to a device, and return self."""
        self.module.to(device)
        self.factor, self.offset = self.factor.to(device), self.offset.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Map the student's inputs [B, C, H, W] to logits [B, K]."""
        images = images.flip(1) if self.reversed else images
        logits: Tensor = self.module(images * self.factor + self.offset)
        return logits


@dataclass(frozen=True)
class Criterion:
    """Cross-entropy with smoothed labels, or with the distributions that mixing gives; with a teacher, distillation.

    A model may answer with one tensor of logits, or in training with two: of the class head and of a distillation head.
    Without a teacher both learn the labels.
    """

    label_smoothing: float
    distillation: Distillation | None = None

    def __call__(self, outputs: Outputs, targets: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        """Return the mean loss; targets are labels [B] or distributions [B, K]."""
        heads = (outputs,) if isinstance(outputs, Tensor) else outputs
        if self.distillation is None or teacher_logits is None:
            return torch.stack([self._supervised(head.float(), targets) for head in heads]).mean()
        weight = self.distillation.weight
        supervised = self._supervised(heads[0].float(), targets)
        return (1 - weight) * supervised + weight * self._distilled(heads[-1].float(), teacher_logits.float())

    def _supervised(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Mixing has already smoothed the distributions.
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _distilled(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss against the teacher (arXiv:2012.12877, equations 2 and 3).

        soft: τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), mean over images. hard: cross-entropy with the
        teacher's answer.
        """
        assert self.distillation is not None
        if self.distillation.kind == "hard":
            return F.cross_entropy(logits, teacher_logits.argmax(dim=1))
        tau = self.distillation.temperature
        divergence = F.kl_div(
            F.log_softmax(logits / tau, dim=1),
            F.log_softmax(teacher_logits / tau, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * tau**2
