"""The training loop, on Lightning Fabric.

``fit`` runs in every process; process 0 alone shows progress and writes files.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vitdeploy.artifacts import write_checkpoint
from vitdeploy.datasets import Dataset
from vitdeploy.errors import DataError, TrainingError, UsageError
from vitdeploy.progress import SILENT, Progress, Task
from vitdeploy.records import Manifest
from vitdeploy.training.augment import Mixing
from vitdeploy.training.estimate import FORWARD_SHARE, loading_seconds, seconds_per_image
from vitdeploy.training.evaluation import Evaluation, Score
from vitdeploy.training.groups import freeze, parameter_groups
from vitdeploy.training.identity import Identity
from vitdeploy.training.interrupts import Interrupt, deferred_interrupts
from vitdeploy.training.journal import Journal
from vitdeploy.training.loss import Criterion, Teacher
from vitdeploy.training.options import MEMORY_PIXELS, TrainOptions
from vitdeploy.training.paths import last_path, state_path
from vitdeploy.training.samples import Batch, Plan, open_samples, worker_failure
from vitdeploy.training.schedule import Schedule, seed_of
from vitdeploy.training.state import Best, State, read_state, write_state
from vitdeploy.wording import duration_text

SMALL_MODEL = 1_000_000  # parameters below which one thread trains small images as fast as several
CHECK_EVERY = 10  # updates between which several processes agree on stopping and saving


@dataclass(frozen=True)
class Job:
    """All that one training is, apart from where it runs; it can be pickled for other processes.

    ``manifest`` is that of the finished checkpoint without metrics: its ``model`` says what is trained, its
    ``preprocess`` how images become inputs, its ``key`` which state belongs to this job. ``module`` has the initial
    weights. ``test`` is looked at once, at the end.
    """

    module: nn.Module
    manifest: Manifest
    options: TrainOptions
    output: Path
    train: Dataset
    validation: Dataset
    test: Dataset | None = None
    teacher: Teacher | None = None
    resume: bool = False


def fit(fabric: Fabric, job: Job, progress: Progress = SILENT) -> None:
    """Train, keep the weights that are best on validation, and write them as a checkpoint.

    Raises:
        TrainingError: The loss is not a number; or with ``resume``, there is no state that fits.
        KeyboardInterrupt: Asked to stop; the state and the best weights so far are written.
    """
    if not fabric.is_global_zero:
        progress = SILENT
    failure = ""
    with _kept_generators(fabric.device), _threads_for(job), deferred_interrupts() as interrupt:
        try:
            Trainer(fabric, job, progress).run(interrupt)
        except RuntimeError as error:  # torch reports a killed worker in the middle of anything
            failure = worker_failure(error)
            if not failure:
                raise
    if failure:
        raise TrainingError(f"{failure}; resume from the last saved state")


class Trainer:
    """One process's part of a training."""

    def __init__(self, fabric: Fabric, job: Job, progress: Progress) -> None:
        options = job.options
        preprocess = job.manifest.preprocess
        assert preprocess is not None
        self.fabric, self.job, self.options, self.progress = fabric, job, options, progress
        self.input_shape = (preprocess.channels, *preprocess.size)
        self.plan = Plan(
            len(job.train),
            options.batch,
            options.accumulate,
            options.seed,
            fabric.global_rank,
            fabric.world_size,
            options.repeats,
        )
        self.total = self.plan.updates_per_epoch * options.epochs
        self.schedule = Schedule(
            options.learning_rate,
            options.final_learning_rate,
            options.warmup * self.plan.updates_per_epoch,
            self.total,
        )
        self.samples = open_samples(job.train, preprocess, options, self.plan, fabric.device, progress)
        self.validation = Evaluation(job.validation, preprocess, fabric)
        # opened now, for what fits the memory, so that a damaged image shows before the training and not after it
        self.test = None if job.test is None else Evaluation(job.test, preprocess, fabric)
        self.criterion = Criterion(options.label_smoothing, options.distillation)
        self.teacher = None if job.teacher is None else job.teacher.to(fabric.device)
        self.mixing = self._make_mixing()
        self.module = job.module
        both_heads = getattr(self.module, "set_distilled_training", None)
        if self.teacher is not None and callable(both_heads):
            both_heads(True)  # timm's models with a distillation head then return the logits of both in training
        freeze(self.module, options.freeze)
        groups = parameter_groups(self.module, weight_decay=options.weight_decay, layer_decay=options.layer_decay)
        # A gradient scaler must unscale before clipping, which the fused optimizer would do by itself.
        fused = options.hardware.precision != "16-mixed" and fabric.device.type in {"cpu", "cuda"}
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=fused)
        self.model, self.optimizer = fabric.setup(self.module, optimizer)
        self.average = copy.deepcopy(self.module) if options.ema_decay is not None else None
        self.state = State()
        if job.resume:
            self._restore()
        self.loss_sum = torch.tensor(self.state.loss_sum, dtype=torch.float64, device=fabric.device)
        self.saved_at = time.monotonic()

    def _make_mixing(self) -> Mixing | None:
        """Return mixup and cutmix where they are on.

        Raises:
            UsageError: A pass has an odd number of images, which cannot be mixed in pairs.
        """
        augmentation = self.options.augmentation
        if not augmentation.mixes:
            return None
        share = self.plan.batch // (self.plan.accumulate * self.plan.world)
        if share % 2:
            raise UsageError(
                f"mixup and cutmix need an even number of images, and a pass of one process has {share}: "
                f"choose a batch that is a multiple of {2 * self.plan.accumulate * self.plan.world}"
            )
        classes = len(self.job.manifest.model.classes)
        return Mixing(augmentation, classes=classes, label_smoothing=self.options.label_smoothing)

    # the run

    def run(self, interrupt: Interrupt) -> None:
        """Go on from the state to the last update, then evaluate and write the best weights."""
        description = f"training {self.job.manifest.model.name}"
        with (
            self._journal() as journal,
            self.progress.task(description, total=self.total) as task,
        ):
            task.advance(self.state.update)
            self.progress.note(self._estimate())
            if self._needs_evaluation():
                self._end_epoch(journal)
            if not self._has_stopped():
                with closing(self._passes()) as updates:
                    for passes in updates:
                        self._update(passes)
                        task.advance()
                        self._describe(task)
                        if self._needs_evaluation():
                            self._end_epoch(journal)
                            self._describe(task)
                        self._save_or_stop(interrupt)
                        if self._has_stopped():
                            break
        self._finish()

    def _estimate(self) -> str:
        """Return what is going to be done and about how long that takes, from a few passes of a copy of the model."""
        options, plan, validation = self.options, self.plan, len(self.job.validation)
        images = f"{_counted(plan.count, 'image')} at {self._size()}, {validation} for validation"
        updates = _counted(plan.updates_per_epoch, "update")
        work = f"{_counted(options.epochs, 'epoch')} of {updates} with {_counted(plan.batch, 'image')}"
        left = self.total - self.state.update
        if left == 0:
            return f"{images}; {work}"
        share = plan.batch // (plan.accumulate * plan.world)
        batch = torch.zeros(share, *self.input_shape, device=self.fabric.device)
        labels = torch.zeros(share, dtype=torch.int64, device=self.fabric.device)
        computing = seconds_per_image(self.fabric, self.module, batch, labels, self.criterion, self.teacher)
        loading = loading_seconds(self.samples, self.job.train)
        per_update = max(computing, loading) * plan.batch / plan.world
        per_epoch = max(computing * FORWARD_SHARE, loading) * validation / plan.world
        seconds = left * per_update + left / plan.updates_per_epoch * per_epoch
        return f"{images}; {work}: about {duration_text(seconds)}, judged by a few images"

    def _size(self) -> str:
        return "×".join(map(str, self.input_shape[1:]))

    def _passes(self) -> Generator[list[Batch], None, None]:
        """Yield this process's images of each update that is left."""
        with self._kept_state("resume with skip_unreadable=True goes on without such images"):
            yield from self.samples.updates(self.state.update, self.total)

    @contextmanager
    def _kept_state(self, advice: str) -> Iterator[None]:
        """Save the state before an error about an image or a worker process leaves the block, and add ``advice``.

        Such an error comes between two updates, so the state is whole.
        """
        try:
            yield
        except (DataError, TrainingError) as error:
            if self.fabric.world_size > 1:  # the processes agree on a state only where all of them save
                raise
            self.state.loss_sum = float(self.loss_sum)
            self._save()
            done = f"the state after {self.state.update} of {self.total} updates is kept"
            raise type(error)(f"{error}; {done}: {advice}") from error

    def _update(self, passes: list[Batch]) -> None:
        """Make one update of the weights from this process's share of its images."""
        update = self.state.update
        rate = self.schedule.learning_rate(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.model.train()
        for part, (images, labels) in enumerate(passes):
            seed = seed_of(self.options.seed, "pass", update, part, self.fabric.global_rank)
            _seed_generators(seed, self.fabric.device)
            with self.fabric.no_backward_sync(self.model, enabled=part < len(passes) - 1):
                loss = self._loss(images, labels, seed) / len(passes)
                self.fabric.backward(loss)
            self.loss_sum += loss.detach()
        if self.options.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.options.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.update = update + 1
        if self.average is not None:
            self._average_weights(self.average)

    def _loss(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        targets = labels
        if self.mixing is not None:
            images, targets = self.mixing(images, labels, seed)
        teacher_logits = None
        if self.teacher is not None:
            with self.fabric.autocast():
                teacher_logits = self.teacher(images)
        return self.criterion(self.model(images), targets, teacher_logits)

    @torch.no_grad()
    def _average_weights(self, average: nn.Module) -> None:
        """Move the average towards the weights; early on faster, or it would remember the initial ones."""
        assert self.options.ema_decay is not None
        decay = min(self.options.ema_decay, (1 + self.state.update) / (10 + self.state.update))
        ours: list[Tensor] = list(average.parameters())
        theirs: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for buffer, source in zip(average.buffers(), self.module.buffers(), strict=True):
            buffer.copy_(source)

    def _end_epoch(self, journal: Journal | None) -> None:
        """Evaluate on validation, remember the best weights, and write the metrics."""
        epoch = self.state.update // self.plan.updates_per_epoch
        loss = self._agreed_loss_sum() / self.plan.updates_per_epoch
        self._refuse_not_a_number(loss, epoch)
        with self._kept_state("resume goes on from there once the same file is readable"):
            score = self._evaluate(self.validation)
        self._refuse_not_a_number(score.loss, epoch)
        if self.state.is_best(score):
            self.state.best = Best(epoch, score.top1, score.loss, _weights(self.average or self.module))
        row = {
            "epoch": epoch,
            "updates": self.state.update,
            "learning_rate": self.schedule.learning_rate(self.state.update - 1),
            "loss": loss,
            "validation_loss": score.loss,
            "validation_top1": score.top1,
        }
        self.state.history.append(row)
        self.loss_sum.zero_()
        if journal is not None:
            journal.add(row)

    def _evaluate(self, evaluation: Evaluation) -> Score:
        module = self.average or self.module
        if self.fabric.world_size > 1:
            for buffer in module.buffers():  # statistics of batch norms differ between processes
                buffer.copy_(self.fabric.broadcast(buffer))
        return evaluation.score(module)

    def _needs_evaluation(self) -> bool:
        """Return whether an epoch is complete and not evaluated yet."""
        complete, rest = divmod(self.state.update, self.plan.updates_per_epoch)
        return rest == 0 and len(self.state.history) < complete

    def _has_stopped(self) -> bool:
        """Return whether all updates are done, or validation has not become better for ``patience`` epochs."""
        if self.state.update >= self.total:
            return True
        patience, best = self.options.patience, self.state.best
        return patience is not None and best is not None and len(self.state.history) - best.epoch >= patience

    def _finish(self) -> None:
        """Write the best weights with their scores, and remove the state."""
        best = self.state.best
        assert best is not None
        last_weights = _weights(self.average or self.module) if self.options.keep_last else None
        metrics = self._metrics()
        if self.test is not None:
            (self.average or self.module).load_state_dict(best.weights)
            score = self._evaluate(self.test)
            metrics |= {"test_top1": score.top1, "test_loss": score.loss, "test_images": score.images}
        if self.fabric.is_global_zero:
            if last_weights is not None:
                row = self.state.history[-1]
                last = {name: row[name] for name in ("validation_top1", "validation_loss")}
                self._write(last_path(self.job.output), last_weights, {"epochs": row["epoch"], **last}, key="")
            self._write(self.job.output, best.weights, metrics, key=self.job.manifest.key)
            state_path(self.job.output).unlink(missing_ok=True)
        self.fabric.barrier()

    # stopping, saving, restoring

    def _save_or_stop(self, interrupt: Interrupt) -> None:
        """Save the state when it is time, or when asked to stop.

        Raises:
            KeyboardInterrupt: Asked to stop, in all processes at the same update.
        """
        alone = self.fabric.world_size == 1
        if not alone and self.state.update % CHECK_EVERY and self.state.update % self.plan.updates_per_epoch:
            return
        due = time.monotonic() - self.saved_at >= self.options.save_every_s
        wanted = torch.tensor([float(interrupt.requested), float(due)], device=self.fabric.device)
        stop, save = (wanted if alone else self.fabric.all_reduce(wanted, reduce_op="sum")).bool().tolist()
        if stop or save:
            self.state.loss_sum = self._agreed_loss_sum()
            self._refuse_not_a_number(self.state.loss_sum, self._epoch())
            if self.fabric.is_global_zero:
                self._save()
            self.saved_at = time.monotonic()
        if stop:
            self._leave_usable_checkpoint()
            self.fabric.barrier()  # a process that ends early has the others terminated
            raise KeyboardInterrupt

    def _save(self) -> None:
        parts: dict[str, Any] = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        parts["scaler"] = self.fabric.strategy.precision.state_dict()
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        write_state(state_path(self.job.output), Identity.of(self.job.manifest), self.state, parts)

    def _restore(self) -> None:
        """Take up the state that an interrupted training left."""
        self.state, parts = read_state(state_path(self.job.output), Identity.of(self.job.manifest))
        self.module.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.fabric.strategy.precision.load_state_dict(parts["scaler"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        epoch, left = divmod(self.state.update, self.plan.updates_per_epoch)
        within = f", update {left} of {self.plan.updates_per_epoch}" if left else ""
        self.progress.note(f"resuming after epoch {epoch} of {self.options.epochs}{within}")

    def _leave_usable_checkpoint(self) -> None:
        """Write the best weights so far; without a key, so that no pipeline takes them for the finished ones."""
        if not self.fabric.is_global_zero:
            return
        best = self.state.best
        weights = _weights(self.average or self.module) if best is None else best.weights
        self._write(self.job.output, weights, self._metrics(), key="")
        done, epochs = len(self.state.history), self.options.epochs
        self.progress.note(
            f"stopped after {done} of {epochs} epochs: {str(self.job.output)!r} has the best weights so far; "
            "vd.run() goes on from here, and vd.train(..., resume=True)"
        )

    def _write(self, path: Path, weights: dict[str, Tensor], metrics: dict[str, float], *, key: str) -> None:
        manifest = self.job.manifest.model_copy(update={"key": key, "metrics": metrics})
        write_checkpoint(path, {name: _array(value) for name, value in weights.items()}, manifest)

    def _metrics(self) -> dict[str, float]:
        """Return what the manifest says of the training so far."""
        metrics: dict[str, float] = {"epochs": len(self.state.history)}
        if self.state.best is not None:
            best = self.state.best
            metrics |= {"best_epoch": best.epoch, "validation_top1": best.top1, "validation_loss": best.loss}
        return metrics

    # losses

    def _agreed_loss_sum(self) -> float:
        """Return the sum of losses in this epoch, the mean over processes; all of them go on with that."""
        if self.fabric.world_size > 1:
            self.loss_sum = self.fabric.all_reduce(self.loss_sum, reduce_op="mean")
        return float(self.loss_sum)

    def _refuse_not_a_number(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch} of {self.options.epochs}: lower the learning rate "
                f"{self.options.learning_rate!r}, set clip_norm (now {self.options.clip_norm!r}), or use precision "
                f"'bf16-mixed' or '32-true' (now {self.options.hardware.precision!r})"
            )

    def _epoch(self) -> int:
        """Return the number of the epoch in work, from 1."""
        return (self.state.update - 1) // self.plan.updates_per_epoch + 1

    def _describe(self, task: Task) -> None:
        done = self.state.update % self.plan.updates_per_epoch
        if self.fabric.device.type != "cpu" and done % CHECK_EVERY:
            return  # reading the loss waits for the device
        parts = [f"epoch {self._epoch()}/{self.options.epochs}"]
        if done:
            loss = float(self.loss_sum) / done
            self._refuse_not_a_number(loss, self._epoch())
            parts.append(f"loss {loss:.3f}")
        elif self.state.history:
            parts.append(f"loss {self.state.history[-1]['loss']:.3f}")
        if self.state.history:
            parts.append(f"val top-1 {100 * self.state.history[-1]['validation_top1']:.1f} %")
        task.describe("  ".join(parts))

    def _journal(self) -> AbstractContextManager[Journal | None]:
        if not self.fabric.is_global_zero:
            return nullcontext()
        return Journal(self.job.output, self.state.history, tensorboard=self.options.tensorboard)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _array(value: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    return (value.float() if value.is_floating_point() else value).numpy()


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed drop path and dropout; each pass has a seed of its own, so that no generator's state need be saved."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _threads_for(job: Job) -> Iterator[None]:
    """Use the processor threads asked for; by default one for a small model on small images, else all.

    The operators of such a model take microseconds, so that threads mostly wait for each other: on a machine that does
    something else besides, two were ten times slower than one. One also gives the same sums on any machine.
    """
    before = torch.get_num_threads()
    assert job.manifest.preprocess is not None
    small_images = math.prod(job.manifest.preprocess.size) <= MEMORY_PIXELS
    small = small_images and sum(value.numel() for value in job.module.parameters()) < SMALL_MODEL
    torch.set_num_threads(job.options.hardware.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _kept_generators(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators to the caller as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
