"""``alexnet-client``: classify images from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from alexnet_client.client import DEFAULT_TARGET, Client
from alexnet_client.compare import compare
from alexnet_client.connection import Connection
from alexnet_client.errors import ClientError, ImageError
from alexnet_client.evaluate import EvaluatedImage, Evaluation, evaluate_folder
from alexnet_client.files import check_writable
from alexnet_client.logs import EventLog, configure_logs
from alexnet_client.results import Classification
from alexnet_client.terminal import EXIT_CODES, FAILED, complain, console, errors_reported, print_json

PROGRAM = "alexnet-client"
app = typer.Typer(add_completion=False, no_args_is_help=True)
app.command(epilog=EXIT_CODES)(compare)

Target = Annotated[
    str,
    typer.Option("--target", "-t", help="gRPC endpoint, host:port; several separated by commas, or dns:///name:port"),
]
Model = Annotated[str, typer.Option("--model", "-m", help="name of the model on the server")]
Timeout = Annotated[float, typer.Option("--timeout", help="deadline of each call, seconds")]
TlsDirectory = Annotated[
    Path | None, typer.Option("--tls", help="mutual TLS with ca.crt, tls.crt and tls.key from this directory")
]
TlsName = Annotated[str, typer.Option(help="name in the server's certificate, if it differs from the host")]
Json = Annotated[bool, typer.Option("--json", help="print only the JSON line")]


@app.callback(epilog=EXIT_CODES)
def configure() -> None:
    """Classify images on a Triton server."""
    configure_logs(PROGRAM)


@app.command(epilog=EXIT_CODES)
def classify(
    files: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files", metavar="FILE...")],
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 10.0,
    top: Annotated[int, typer.Option(min=1, help="number of classes to print per image")] = 5,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Classify images and print the most probable classes of each.

    The exit code is 1 if an image cannot be read; the other images are classified.
    """

    async def run() -> tuple[list[tuple[Path, Classification]], list[str]]:
        results, unreadable = [], []
        async with _client(target, model, timeout, tls, tls_name) as client:
            stream = client.classify_many(files, top=top, return_errors=True)
            hidden = as_json or not console.is_terminal or len(files) < 100
            for file in track(files, "Classifying", disable=hidden, console=console):
                result = await anext(stream)
                if isinstance(result, Classification):
                    results.append((file, result))
                elif isinstance(result, ImageError):
                    unreadable.append(str(result))
                else:
                    raise result
        return results, unreadable

    results, unreadable = _run(run())
    if not as_json and results:
        console.print(_classification_table(results))
    for line in unreadable:
        complain(PROGRAM, line)
    print_json({"images": [_image_json(file, result) for file, result in results], "unreadable": unreadable})
    raise typer.Exit(FAILED if unreadable else 0)


@app.command(epilog=EXIT_CODES)
def evaluate(
    folder: Annotated[Path, typer.Argument(help="directory with one subdirectory of images per class")],
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 10.0,
    rows: Annotated[int, typer.Option(min=0, help="number of images in the table, errors first")] = 12,
    sheet: Annotated[
        Path | None, typer.Option(help="write a contact sheet of all images and results to this PNG file")
    ] = None,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Classify a folder of labelled images, one request at a time, and print the accuracy.

    Unreadable images are reported and skipped.
    """

    async def run() -> Evaluation:
        if sheet is not None:
            check_writable(sheet)
        async with _client(target, model, timeout, tls, tls_name) as client:
            evaluation = await evaluate_folder(client, folder, show_progress=not as_json and console.is_terminal)
        if sheet is not None:
            from alexnet_client.contact_sheet import draw_contact_sheet

            draw_contact_sheet(evaluation.images, sheet)
        return evaluation

    evaluation = _run(run())
    if not as_json:
        console.print(_evaluation_table(evaluation.images, rows))
        console.print(f"{evaluation.correct} of {len(evaluation.images)} images correct. Images: {folder}")
        if sheet is not None:
            console.print(f"Contact sheet: {sheet}")
    for line in evaluation.unreadable:
        complain(PROGRAM, line)
    print_json(evaluation.summary())


@app.command(epilog=EXIT_CODES)
def health(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 5.0,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Check that the server and the model are ready, including a test inference; the exit code is 1 if not."""

    async def run() -> bool:
        async with _client(target, model, timeout, tls, tls_name) as client:
            return await client.ready()

    ready = _run(run())
    if not as_json:
        console.print(f"{target}: {model} is {'ready' if ready else 'NOT ready'}")
    print_json({"target": target, "model": model, "ready": ready})
    raise typer.Exit(0 if ready else FAILED)


@app.command(epilog=EXIT_CODES)
def metadata(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 5.0,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Print the Triton version, and the versions, input, classes and batch size of the model."""

    async def run() -> dict[str, Any]:
        async with _client(target, model, timeout, tls, tls_name) as client:
            signature = await client.signature()
            return {
                "triton_version": await client.server_version(),
                "model": model,
                "versions": list(signature.versions),
                "input": {signature.input_name: list(signature.input_shape)},
                "classes": signature.classes,
                "max_batch_size": signature.max_batch_size,
                "labels": list(await client.labels()),
            }

    found = _run(run())
    table = Table("property", "value", show_header=False)
    for key, value in found.items():
        text = f"{', '.join(value[:10])}{', …' if len(value) > 10 else ''}" if isinstance(value, list) else str(value)
        table.add_row(key, Text(text))
    if not as_json:
        console.print(table)
    print_json(found)


def main() -> None:
    """Entry point."""
    app()


def _client(target: str, model: str, timeout: float, tls: Path | None, tls_name: str) -> Client:
    connection = Connection.secured(tls, tls_name)
    return Client(target, model=model, timeout_s=timeout, connection=connection, listeners=[EventLog()])


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with errors_reported(PROGRAM, ClientError):
        return asyncio.run(work)


def _printable(path: Path) -> str:
    """The name of a file, with question marks for bytes that are not UTF-8."""
    return path.name.encode("utf-8", "replace").decode()


def _classification_table(results: list[tuple[Path, Classification]]) -> Table:
    table = Table("image", "label", "probability")
    for file, result in results:
        for place, prediction in enumerate(result.top):
            table.add_row("" if place else _printable(file), prediction.label, f"{prediction.probability:.2%}")
        table.add_section()
    return table


def _image_json(file: Path, result: Classification) -> dict[str, Any]:
    return {
        "image": str(file),
        "model_version": result.model_version,
        "top": [{"label": each.label, "probability": round(each.probability, 6)} for each in result.top],
    }


def _evaluation_table(images: list[EvaluatedImage], rows: int) -> Table:
    """A table of at most ``rows`` images: errors first, then evenly spaced correct ones."""
    wrong = [each for each in images if not each.correct][:rows]
    correct = [each for each in images if each.correct]
    space = min(rows - len(wrong), len(correct))
    shown = wrong + [correct[place * len(correct) // space] for place in range(space)]
    title = f"{len(shown)} of {len(images)} images, errors first"
    table = Table("image", "truth", "label", "probability", "latency", title=title)
    for each in shown:
        label = Text(each.result.label, style="" if each.correct else "red")
        probability, latency = f"{each.result.probability:.2%}", f"{each.latency_s * 1000:.1f} ms"
        table.add_row(_printable(each.path), each.truth, label, probability, latency)
    return table


if __name__ == "__main__":
    main()
