"""The training loop: seeded and resumable. It reports progress as events to a callback and never writes to a terminal.

The result depends only on the data and the options (on a CPU, with the same number of threads): data order,
augmentation, dropout and schedule are derived from the seed and the step. A run that was killed and resumed from its
last evaluation therefore ends with the same weights.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_client.errors import BadInput
from alexnet_client.files import write_text, writing
from alexnet_export import checkpoint as checkpoints
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Split, evaluation_batches, training_batches
from alexnet_export.machine import has_fast_bf16
from alexnet_export.model import UNIFORM, AlexNet, Normalize, initialize
from alexnet_export.options import Evaluated, Event, StepDone, TrainOptions

RESUME = "resume.pt"
HISTORY = "history.jsonl"
EVALUATION_BATCH = 90


def train(
    dataset: DataSet,
    options: TrainOptions,
    directory: Path,
    *,
    resume: bool = False,
    start_from: Checkpoint | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Checkpoint:
    """Train, keep the weights with the best validation accuracy, test them, and save them to ``directory``.

    Args:
        dataset: images and labels.
        options: of the training.
        directory: receives the checkpoint, ``history.jsonl`` and, during the run, ``resume.pt``.
        resume: continue an interrupted run from its last evaluation, if there is one.
        start_from: weights to fine-tune; the last layer is initialised again if the number of classes differs.
        on_event: called after every step and every evaluation.

    Returns:
        The saved checkpoint with its accuracy on the test split.

    Raises:
        BadInput: the options differ from those of the interrupted run, a split has no readable image, or the disk is
            full.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    run = _Run(dataset, options, directory, start_from)
    if resume:
        run.restore()
    else:
        (directory / HISTORY).unlink(missing_ok=True)
    started = time.monotonic()
    with writing(directory / HISTORY), (directory / HISTORY).open("a") as history:
        for event in run.events():
            history.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")
            on_event(event)
            if isinstance(event, Evaluated):
                history.flush()
                run.save_for_resume()
    best = run.finish(seconds=time.monotonic() - started)
    checkpoints.save(best, directory)
    with suppress(FileNotFoundError):
        (directory / RESUME).unlink()
    return checkpoints.load(directory)


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy and mean cross-entropy over ``images`` images, and a line for each unreadable file."""

    accuracy: float
    loss: float
    images: int
    unreadable: tuple[str, ...]


def evaluate(
    network: nn.Module, split: Split, normalize: nn.Module, *, autocast: bool, limit: int | None = None
) -> Score:
    """Run the network on a split, or on ``limit`` of its images.

    Raises:
        BadInput: the split has no readable image.
    """
    network.eval()
    device = next(network.parameters()).device
    right, loss, count = 0, 0.0, 0
    unreadable: list[str] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in evaluation_batches(split, batch_size=EVALUATION_BATCH, limit=limit):
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            labels = batch.labels.to(device)
            logits = network(normalize(batch.images.to(device))).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    if not count:
        raise BadInput("the split has no readable image; supported formats are JPEG, PNG and WebP")
    return Score(right / count, loss / count, count, tuple(unreadable))


class _Run:
    """State of a run: network, optimizer, schedule, current step, and the best weights so far."""

    def __init__(self, dataset: DataSet, options: TrainOptions, directory: Path, start_from: Checkpoint | None) -> None:
        torch.manual_seed(options.seed)
        self.dataset, self.options, self.directory = dataset, options, directory
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16(self.device))
        self.normalization = start_from.normalization if start_from else UNIFORM
        self.normalize = Normalize(self.normalization).to(self.device)
        self.widths = start_from.widths if start_from else options.widths
        network = AlexNet(len(dataset.labels), dropout=options.dropout, widths=self.widths)
        initialize(network)
        if start_from:
            _load_matching_layers(network, start_from.state_dict)
        # channels_last is the layout with the fastest convolutions in oneDNN and cuDNN.
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # fused: one pass over the 57 million weights instead of several (2 CPUs, 16 images: 0.46 s a step, not 0.79 s).
        rate, decay = options.learning_rate, options.weight_decay
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=rate, total_steps=options.steps + 1, cycle_momentum=False
        )
        self.identity = _identity(dataset, options, start_from)
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
            logits = self.network(self.normalize(images.to(self.device)))
            loss = nn.functional.cross_entropy(logits.float(), labels.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _score(self, split: Split, limit: int | None = None) -> Score:
        return evaluate(self.network, split, self.normalize, autocast=self.autocast, limit=limit)

    def _evaluate(self) -> Evaluated:
        score = self._score(self.dataset.validation, self.options.evaluation_limit)
        best = score.accuracy > self.best_accuracy
        if best:
            self.best_accuracy = score.accuracy
            self.best = {
                key: value.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
                for key, value in self.network.state_dict().items()
            }
        return Evaluated(self.step, score.accuracy, score.loss, score.images, best, score.unreadable)

    def save_for_resume(self) -> None:
        if self.step == self.options.steps:
            return
        state = {
            "made_from": self.identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "best": self.best,
            "best_accuracy": self.best_accuracy,
        }
        checkpoints.write_tensors(state, self.directory / RESUME)

    def restore(self) -> None:
        path = self.directory / RESUME
        if not path.exists():
            (self.directory / HISTORY).unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise BadInput(f"{path}: damaged ({type(error).__name__}); delete it to start again") from error
        if state.get("made_from") != self.identity:
            raise BadInput(
                f"{path}: was written with other options or data; use the same ones, or delete it to start again"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        self.step, self.best_accuracy = state["step"], state["best_accuracy"]
        self.best = {key: value.cpu() for key, value in state["best"].items()}
        _truncate_history(self.directory / HISTORY, self.step)

    def finish(self, *, seconds: float) -> Checkpoint:
        self.network.load_state_dict(self.best)
        score = self._score(self.dataset.test)
        made_by = {
            "data": self.dataset.name,
            "options": {key: value for key, value in asdict(self.options).items() if key != "widths"},
            "autocast": "bf16" if self.autocast else "fp32",
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "seconds": round(seconds, 1),
            "validation_accuracy": self.best_accuracy,
            "test_accuracy": score.accuracy,
            "test_images": score.images,
            "test_unreadable": len(score.unreadable),
        }
        return Checkpoint(self.best, self.dataset.labels, self.normalization, made_by, widths=self.widths)


def _load_matching_layers(network: AlexNet, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights to fine-tune; without the last layer if the number of classes differs."""
    last = ("classifier.6.weight", "classifier.6.bias")
    same_classes = state_dict[last[1]].shape == network.state_dict()[last[1]].shape
    loaded = {key: value for key, value in state_dict.items() if same_classes or key not in last}
    network.load_state_dict(loaded, strict=False)


def _identity(dataset: DataSet, options: TrainOptions, start_from: Checkpoint | None) -> dict[str, Any]:
    """Everything that determines the result; the number of worker processes does not."""
    chosen = {key: value for key, value in asdict(options).items() if key != "workers"}
    sizes = [len(dataset.train), len(dataset.validation)]
    start = start_from.sha256 if start_from else ""
    return {**chosen, "data": dataset.name, "labels": list(dataset.labels), "sizes": sizes, "start_from": start}


def _truncate_history(path: Path, step: int) -> None:
    """Drop the records after the step that the run resumes from, and an incomplete last line."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_text(path, "".join(line + "\n" for line in kept))
