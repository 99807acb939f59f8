"""Terminal output of the commands: progress bars, the table of variants, messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alexnet_client import terminal
from alexnet_client.terminal import console

if TYPE_CHECKING:  # the heavy modules are imported by the commands that need them
    from alexnet_export.data import DataSet
    from alexnet_export.options import Event, TrainOptions

PROGRAM = "alexnet-export"


def complain(text: str) -> None:
    """Print a warning to stderr."""
    terminal.complain(PROGRAM, text)


def progress_bars() -> Progress:
    """Progress bars for the steps of a run, on stderr; disabled if that is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    return Progress(*columns, console=errors, redirect_stdout=False, disable=not errors.is_terminal)


def show_training(dataset: DataSet, options: TrainOptions, output: Path, **how: Any) -> dict[str, Any]:
    """Train with a progress bar, draw the training chart, and return a summary."""
    from alexnet_export.curves import write_png
    from alexnet_export.options import Evaluated
    from alexnet_export.train import HISTORY, train

    skipped: set[str] = set()
    with progress_bars() as progress:
        task = progress.add_task("Training", total=options.steps)

        def on_event(event: Event) -> None:
            skipped.update(event.unreadable)
            if isinstance(event, Evaluated):
                console.print(
                    f"step {event.step:>5}: validation accuracy {event.accuracy:6.1%}, loss {event.loss:.3f}"
                    + (" (best)" if event.best else "")
                )
            else:
                progress.update(task, completed=event.step, description=f"Training, loss {event.loss:.2f}")

        made_by = train(dataset, options, output, on_event=on_event, **how).made_by
    picture = output / "curves.png"
    write_png(output / HISTORY, picture)
    for line in sorted(skipped):
        complain(f"skipped {line}")
    console.print(
        f"Test accuracy {made_by['test_accuracy']:.1%} on {made_by['test_images']} images after "
        f"{made_by['seconds']:.0f} s of training in {made_by['autocast']}. Chart: {picture}",
        soft_wrap=True,  # a path to copy
    )
    shown = ("test_accuracy", "test_images", "validation_accuracy", "seconds", "autocast")
    found = {key: made_by[key] for key in shown}
    return {"checkpoint": str(output), "steps": options.steps, "unreadable": len(skipped), **found}


def variants_table(rows: list[dict[str, Any]]) -> Table:
    """The variants side by side; ``rows`` are those of a manifest."""
    table = Table("variant", *(row["name"] for row in rows), highlight=False)
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("engine", lambda row: row["engine"]),
        ("file size", lambda row: f"{row['bytes'] / 1e6:.1f} MB"),
        ("top-1 accuracy", lambda row: f"{row['top1']:.2%} of {row['labelled']} images"),
        ("accuracy loss, points (95 %)", _loss),
        ("same best class as PyTorch", lambda row: f"{row['agreement']:.2%}"),
        ("RMS error of the logits", lambda row: f"{row['rms_error']:.1e} of their range"),
        ("latency, batch 1", lambda row: f"{row['batch1_ms']:.1f} ms"),
        ("throughput", lambda row: f"{row['images_per_second']:.0f} images/s at batch {row['best_batch']}"),
    ]
    for name, text in lines:
        table.add_row(name, *(_cell(text, row) for row in rows))
    gates = (
        (f"{row['gate']}, published" if row["published"] else row["gate"], row["gate"] == "passed") for row in rows
    )
    table.add_row("gate", *(Text(text, style="green" if passed else "red") for text, passed in gates))
    return table


def _loss(row: dict[str, Any]) -> str:
    loss = row["loss_points"]
    return f"{loss['estimate']:+.2f} ({loss['low']:+.2f} to {loss['high']:+.2f})"


def _cell(text: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
    try:
        return text(row)
    except TypeError:  # a failed variant has None in some fields
        return "-"
