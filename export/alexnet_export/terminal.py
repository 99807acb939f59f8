"""What a person sees of a run: progress bars with the time left, a line for each finding, complaints on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:  # the heavy modules are imported by the commands that need them
    from alexnet_export.data import DataSet
    from alexnet_export.options import Event, TrainOptions

console = Console(markup=False, highlight=False)  # paths may hold brackets


def show_training(dataset: DataSet, options: TrainOptions, output: Path, **how: Any) -> dict[str, Any]:
    """Train with a progress bar, draw the curves, and say how good it is."""
    from alexnet_export.curves import draw_curves
    from alexnet_export.options import Evaluated
    from alexnet_export.train import HISTORY, train

    skipped: set[str] = set()
    with progress_bars() as progress:
        task = progress.add_task("Training", total=options.steps)

        def on_event(event: Event) -> None:
            skipped.update(event.unreadable)
            if isinstance(event, Evaluated):
                progress.console.print(
                    f"step {event.step:>5}: validation accuracy {event.accuracy:6.1%}, loss {event.loss:.3f}"
                    + (" (best)" if event.best else "")
                )
            else:
                progress.update(task, completed=event.step, description=f"Training, loss {event.loss:.2f}")

        made_by = train(dataset, options, output, on_event=on_event, **how).made_by
    picture = output / "curves.png"
    draw_curves(output / HISTORY, picture)
    for line in sorted(skipped):
        complain(f"skipped {line}")
    console.print(
        f"Test accuracy {made_by['test_accuracy']:.1%} on {made_by['test_images']} images, "
        f"{made_by['seconds']:.0f} s in {made_by['autocast']}. Curves: {picture}"
    )
    shown = ("test_accuracy", "test_images", "validation_accuracy", "seconds", "autocast")
    found = {key: made_by[key] for key in shown}
    return {"checkpoint": str(output), "steps": options.steps, "unreadable": len(skipped), **found}


def progress_bars() -> Progress:
    """Bars for the steps of a run; nothing where the output is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def complain(text: str) -> None:
    """Say on stderr what went wrong."""
    print(f"alexnet-export: {text}", file=sys.stderr)
