"""What a person sees while a run goes on: how far it is, how fast, how late, what failed. Nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from alexnet_load.conduct import Progress


@contextmanager
def live(console: Console, *, seconds: float, title: str) -> Iterator[Callable[[Progress], None]]:
    """A bar with live figures while the block runs; gives what is to be told of the progress.

    Args:
        console: where.
        seconds: how long the run is to take.
        title: what it is.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=seconds, figures="waiting for the senders")

        def show(progress: Progress) -> None:
            p99 = "-" if progress.p99_ms is None else f"{progress.p99_ms:.1f} ms"
            figures = f"{progress.rate:.0f} answers/s, p99 {p99}, {progress.failed:,} failed of {progress.ended:,}"
            bar.update(task, completed=min(seconds, progress.elapsed_s), figures=figures)

        yield show
