"""The training loop: plain, seeded, resumable. Owns no terminal: it hands frozen events to a callback.

A run is a pure function of its options (on a CPU, with the same count of threads): data order, augmentation,
dropout and the schedule are all derived from the seed and the step, so a killed run that is resumed from its last
evaluation ends with the same weights.
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from alexnet_export import checkpoint as checkpoints
from alexnet_export.atomic import replace_file, writing
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Split, evaluation_batches, training_batches
from alexnet_export.errors import UserError
from alexnet_export.model import UNIFORM, AlexNet, Normalization, initialize

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
RESUME = "resume.pt"
HISTORY = "history.jsonl"
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
_CHOICES = {"optimizer": get_args(Optimizer), "schedule": get_args(Schedule), "precision": get_args(Precision)}


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are those of the digits demo.

    ``optimizer`` "sgd" is the 2012 paper's: momentum 0.9 (section 5); its weight decay was 5e-4 and its rate 0.01.
    ``precision`` "auto" means bfloat16 autocast where the device has instructions for it, else float32.
    """

    steps: int = 300
    batch_size: int = 32
    optimizer: Optimizer = "adamw"
    learning_rate: float = 4e-4
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    label_smoothing: float = 0.0
    dropout: float = 0.2
    precision: Precision = "auto"
    evaluate_every: int = 75
    evaluation_limit: int | None = 270
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "evaluate_every"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: unknown; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class StepDone:
    """One optimizer step; ``loss`` is the mean cross-entropy of its batch, ``unreadable`` the files it had to skip."""

    step: int
    loss: float
    learning_rate: float
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """Validation after ``step`` steps; top-1 accuracy and mean cross-entropy over ``images`` images."""

    step: int
    accuracy: float
    loss: float
    images: int
    best: bool


Event = StepDone | Evaluated


def train(
    dataset: DataSet,
    options: TrainOptions,
    directory: Path,
    *,
    resume: bool = False,
    start_from: Checkpoint | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Checkpoint:
    """Train, keep the weights that validate best, test them, and save them into ``directory``.

    Args:
        dataset: what to learn.
        options: how.
        directory: receives the checkpoint, ``history.jsonl`` and, while it runs, ``resume.pt``.
        resume: continue an interrupted run from its last evaluation, if there was one.
        start_from: fine-tune these weights; the last layer is made anew if the classes are others.
        on_event: called with every step and every evaluation.

    Returns:
        The saved checkpoint, tested on the test split.

    Raises:
        UserError: the options contradict an interrupted run, a split holds nothing readable, or the disk is full.

    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    run = _Run(dataset, options, directory, start_from)
    if resume:
        run.restore()
    else:
        (directory / HISTORY).unlink(missing_ok=True)
    started = time.monotonic()
    with (directory / HISTORY).open("a") as history:
        for event in run.events():
            history.write(json.dumps(_record(event)) + "\n")
            on_event(event)
            if isinstance(event, Evaluated):
                history.flush()
                run.save_for_resume()
    best = run.finish(seconds=time.monotonic() - started)
    checkpoints.save(best, directory)
    with suppress(FileNotFoundError):
        (directory / RESUME).unlink()
    return checkpoints.load(directory)


class _Run:
    """A run in progress: network, optimizer, schedule, the step reached, and the best weights so far."""

    def __init__(self, dataset: DataSet, options: TrainOptions, directory: Path, start_from: Checkpoint | None) -> None:
        torch.manual_seed(options.seed)
        self.dataset, self.options, self.directory = dataset, options, directory
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16(self.device))
        self.normalization = start_from.normalization if start_from else UNIFORM
        network = AlexNet(len(dataset.labels), dropout=options.dropout)
        initialize(network)
        if start_from:
            _adopt(network, start_from.state_dict)
        # channels_last: convolutions run on the layout that oneDNN and cuDNN are fastest with.
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.network, options, fused=True)
        self.schedule = _schedule(self.optimizer, options)
        self.loss = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
        self.step, self.best_accuracy = 0, -1.0
        self.best: dict[str, Tensor] = {}

    def events(self) -> Iterator[Event]:
        options = self.options
        batches = training_batches(
            self.dataset.train,
            batch_size=options.batch_size,
            seed=options.seed,
            start=self.step,
            steps=options.steps,
            workers=options.workers,
        )
        for batch in batches:
            self.step += 1
            learning_rate = float(self.schedule.get_last_lr()[0])
            loss = self._learn(batch.images, batch.labels) if len(batch.labels) else math.nan
            yield StepDone(self.step, loss, learning_rate, batch.unreadable)
            if self.step % options.evaluate_every == 0 or self.step == options.steps:
                yield self._evaluate()

    def _learn(self, images: Tensor, labels: Tensor) -> float:
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.network(normalize(images.to(self.device), self.normalization))
            loss = self.loss(logits.float(), labels.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _evaluate(self) -> Evaluated:
        accuracy, loss, images = evaluate(
            self.network,
            self.dataset.validation,
            self.normalization,
            autocast=self.autocast,
            limit=self.options.evaluation_limit,
        )
        best = accuracy > self.best_accuracy
        if best:
            self.best_accuracy = accuracy
            self.best = {
                key: value.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
                for key, value in self.network.state_dict().items()
            }
        return Evaluated(self.step, accuracy, loss, images, best)

    def save_for_resume(self) -> None:
        if self.step == self.options.steps:
            return
        state = {
            "options": _identity(self.options),
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "best": self.best,
            "best_accuracy": self.best_accuracy,
        }
        with replace_file(self.directory / RESUME) as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        path = self.directory / RESUME
        if not path.exists():
            (self.directory / HISTORY).unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise UserError(f"{path}: damaged ({type(error).__name__}); delete it to start over") from error
        if state["options"] != _identity(self.options):
            raise UserError(f"{path}: was made with other options; repeat those, or delete it to start over")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        self.step, self.best_accuracy = state["step"], state["best_accuracy"]
        self.best = {key: value.cpu() for key, value in state["best"].items()}
        _cut_history(self.directory / HISTORY, self.step)

    def finish(self, *, seconds: float) -> Checkpoint:
        self.network.load_state_dict(self.best)
        accuracy, _, images = evaluate(self.network, self.dataset.test, self.normalization, autocast=self.autocast)
        made_by = {
            "data": self.dataset.name,
            "options": asdict(self.options),
            "autocast": "bf16" if self.autocast else "fp32",
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "seconds": round(seconds, 1),
            "validation_accuracy": self.best_accuracy,
            "test_accuracy": accuracy,
            "test_images": images,
        }
        return Checkpoint(self.best, self.dataset.labels, self.normalization, made_by)


def evaluate(
    network: nn.Module, split: Split, normalization: Normalization, *, autocast: bool, limit: int | None = None
) -> tuple[float, float, int]:
    """Top-1 accuracy, mean cross-entropy and the count of readable images of a split.

    Raises:
        UserError: not one image of the split could be read.

    """
    network.eval()
    device = next(network.parameters()).device
    right, loss, count = 0, 0.0, 0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in evaluation_batches(split, batch_size=90, limit=limit):
            if not len(batch.labels):
                continue
            labels = batch.labels.to(device)
            logits = network(normalize(batch.images.to(device), normalization)).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    if not count:
        raise UserError("not one image of the split could be read; are these JPEG, PNG or WebP files?")
    return right / count, loss / count, count


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [N, 224, 224, 3] to float32 [N, 3, 224, 224] in channels_last order, normalised."""
    mean = torch.tensor(normalization.mean, device=images.device)
    std = torch.tensor(normalization.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 runs on instructions of its own: any GPU since Ampere; AVX512-BF16 or AMX on a CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: a step frees and asks again for a gigabyte, and new pages cost a quarter of it.

    For whole processes that do nothing but train: measured 0.72 s a step before, 0.54 s after (2 cores, batch 32).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 512 * 2**20)):
        mallopt(parameter, value)


def _optimizer(network: nn.Module, options: TrainOptions, *, fused: bool) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay, fused=fused
        )
    return torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)


def _schedule(optimizer: torch.optim.Optimizer, options: TrainOptions) -> torch.optim.lr_scheduler.LRScheduler:
    if options.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=options.learning_rate, total_steps=options.steps + 1, cycle_momentum=False
        )
    if options.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _adopt(network: AlexNet, state_dict: Mapping[str, Tensor]) -> None:
    last = ("classifier.6.weight", "classifier.6.bias")
    same_classes = state_dict[last[1]].shape == network.state_dict()[last[1]].shape
    taken = {key: value for key, value in state_dict.items() if same_classes or key not in last}
    network.load_state_dict(taken, strict=False)


def _identity(options: TrainOptions) -> dict[str, Any]:
    """The options that decide the result; the count of worker processes does not."""
    return {key: value for key, value in asdict(options).items() if key != "workers"}


def _record(event: Event) -> dict[str, Any]:
    return {"event": type(event).__name__, **asdict(event)}


def _cut_history(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote after the step it can be resumed from."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept))
