"""``alexnet-export export``: create and validate the variants, and publish one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexnet_client.terminal import console, print_json
from alexnet_export.commands.arguments import (
    DEFAULT_REPOSITORY,
    CheckpointDir,
    Data,
    DataDir,
    Labels,
    Repository,
    Weights,
    read_source,
    reported,
)
from alexnet_export.errors import GateFailed
from alexnet_export.terminal import complain, progress_bars, variants_table

if TYPE_CHECKING:
    from alexnet_export.pipeline import Exported, Progress
    from alexnet_export.variants import Variant


def export(
    checkpoint: CheckpointDir = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Repository = DEFAULT_REPOSITORY,
    data: Data = "digits",
    data_dir: DataDir = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, int8, or auto: the fastest on this machine that passes its gate")
    ] = "auto",
    rounds: Annotated[
        int,
        typer.Option(min=1, help="measurement rounds for the speed of the variants; fewer rounds are less reliable"),
    ] = 7,
) -> None:
    """Export the network, compare its variants with PyTorch on real images, and publish one as the next version."""
    with reported():
        from alexnet_export.data import open_dataset
        from alexnet_export.pipeline import ExportOptions, export_release

        source = read_source(checkpoint, weights, labels)
        dataset = open_dataset(data, directory=data_dir)
        rows: list[dict[str, Any]] = []

        def on_variants(variants: list[Variant]) -> None:
            rows.extend(variant.row(published=False) for variant in variants)

        try:
            with progress_bars() as progress:
                tasks: dict[str, Any] = {}

                def on_progress(step: Progress) -> None:
                    if step.step not in tasks:
                        tasks[step.step] = progress.add_task(step.step, total=step.total)
                    progress.update(tasks[step.step], completed=step.done)

                exported = export_release(
                    source,
                    dataset,
                    repository,
                    precision=precision,  # type: ignore[arg-type]  # the pipeline checks it
                    options=ExportOptions(rounds=rounds),
                    on_progress=on_progress,
                    on_variants=on_variants,
                )
        except GateFailed as error:
            if rows:
                console.print(variants_table(rows))
            raise GateFailed(f"{error}; nothing was published") from None
        print_json(_show(exported))


def _show(exported: Exported) -> dict[str, Any]:
    for line in exported.unreadable:
        complain(f"skipped {line}")
    rows = [variant.row(published=variant is exported.winner) for variant in exported.variants]
    console.print(variants_table(rows))
    if exported.winner.name == "int8" and exported.quantized:
        layers, in_float = exported.quantized.layers, exported.quantized.float_layers
        kept = f"; in float: {', '.join(in_float)}" if in_float else ""
        console.print(f"{layers - len(in_float)} of {layers} layers run as integers{kept}.")
    if exported.without_openvino:
        console.print(f"Without OpenVINO: {exported.without_openvino}.")
    if exported.winner.name == "fp16":
        console.print("fp16 is for GPUs; serve it with --config-name gpu.")
    console.print(f"Published {exported.release.directory} ({exported.winner.title})", soft_wrap=True)  # a path to copy
    return {
        "version": exported.release.version,
        "directory": str(exported.release.directory),
        "precision": exported.winner.name,
        "engine": exported.winner.engine,
        "variants": rows,
    }
