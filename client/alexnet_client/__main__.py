"""``alexnet-client``: ask a running server from the terminal. The only module here that prints or configures logging."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from alexnet_client.answers import Classification
from alexnet_client.client import DEFAULT_TARGET, Client
from alexnet_client.compare import compare
from alexnet_client.connection import Connection
from alexnet_client.errors import ClientError, ImageError
from alexnet_client.evaluate import Answered, Evaluation, evaluate_folder
from alexnet_client.logs import EventLog, configure_logs
from alexnet_client.terminal import EXIT_CODES

app = typer.Typer(add_completion=False, no_args_is_help=True)
app.command(epilog=EXIT_CODES)(compare)
console = Console(markup=False, highlight=False)  # names of files and classes may hold brackets

Target = Annotated[
    str, typer.Option("--target", "-t", help="host:port of a server's gRPC endpoint; several with commas between")
]
Model = Annotated[str, typer.Option("--model", "-m", help="name of the model on the server")]
Timeout = Annotated[float, typer.Option("--timeout", help="deadline of each call, seconds")]
TlsDirectory = Annotated[
    Path | None, typer.Option("--tls", help="mutual TLS with the files ca.crt, tls.crt and tls.key of this directory")
]
TlsName = Annotated[str, typer.Option(help="the name in the server's certificate, if it is not the address's")]
Json = Annotated[bool, typer.Option("--json", help="print the JSON line only")]


@app.callback()
def begin() -> None:
    """Classify images on a Triton server."""
    configure_logs("alexnet-client")


@app.command()
def classify(
    files: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files", metavar="FILE...")],
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 10.0,
    top: Annotated[int, typer.Option(min=1, help="how many labels to name")] = 5,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Print the top labels of each image, many at a time; exits 1 if one of them could not be read."""

    async def run() -> tuple[list[tuple[Path, Classification]], list[str]]:
        answers, broken = [], []
        async with _client(target, model, timeout, tls, tls_name) as client:
            answered = client.classify_many(files, top=top, return_errors=True)
            hidden = as_json or not console.is_terminal or len(files) < 100
            for file in track(files, "Classifying", disable=hidden, console=console):
                answer = await anext(answered)
                if isinstance(answer, Classification):
                    answers.append((file, answer))
                elif isinstance(answer, ImageError):
                    broken.append(str(answer))
                else:
                    raise answer
        return answers, broken

    answers, broken = _run(run())
    if not as_json:
        table = Table("image", "label", "probability")
        for file, answer in answers:
            for guess in answer.top:
                first = guess is answer.top[0]
                table.add_row(
                    _printable(file) if first else "", guess.label, f"{guess.probability:.2%}", end_section=False
                )
            table.add_section()
        if answers:
            console.print(table)
    for line in broken:
        _complain(line)
    _print_json({"answers": [_answer_json(file, answer) for file, answer in answers], "unreadable": broken})
    raise typer.Exit(1 if broken else 0)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="a directory with one subdirectory of images a class")],
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 10.0,
    rows: Annotated[int, typer.Option(min=0, help="answers to show in the table, mistakes first")] = 12,
    sheet: Annotated[Path | None, typer.Option(help="write a picture of all images and answers there")] = None,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Classify a folder of images whose truth is known, one request at a time, and count what was right."""

    async def run() -> Evaluation:
        async with _client(target, model, timeout, tls, tls_name) as client:
            return await evaluate_folder(client, folder, show_progress=not as_json and console.is_terminal)

    evaluation = _run(run())
    if sheet is not None:
        from alexnet_client.sheet import draw_sheet

        try:
            draw_sheet(evaluation.answered, sheet)
        except ClientError as error:
            _complain(str(error))
            sheet = None
    if not as_json:
        console.print(_evaluation_table(evaluation.answered, rows))
        console.print(f"{evaluation.right} of {len(evaluation.answered)} right. Images: {folder}")
        if sheet is not None:
            console.print(f"All of them in one picture: {sheet}")
    for line in evaluation.unreadable:
        _complain(line)
    _print_json(evaluation.summary())


@app.command()
def health(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 5.0,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Say whether the server and the model are ready; exits 1 if they are not."""

    async def run() -> bool:
        async with _client(target, model, timeout, tls, tls_name) as client:
            return await client.ready()

    ready = _run(run())
    if not as_json:
        console.print(f"{target}: {model} is {'ready' if ready else 'NOT ready'}")
    _print_json({"target": target, "model": model, "ready": ready})
    raise typer.Exit(0 if ready else 1)


@app.command()
def metadata(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    timeout: Timeout = 5.0,
    tls: TlsDirectory = None,
    tls_name: TlsName = "",
    as_json: Json = False,
) -> None:
    """Print what the server says of itself and of the model."""

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
        names = isinstance(value, list)
        table.add_row(key, f"{', '.join(value[:10])}{', …' if len(value) > 10 else ''}" if names else str(value))
    if not as_json:
        console.print(table)
    _print_json(found)


def main() -> None:
    """Entry point."""
    app()


def _client(target: str, model: str, timeout: float, tls: Path | None, tls_name: str) -> Client:
    connection = Connection.secured(tls, tls_name)
    return Client(target, model=model, timeout_s=timeout, connection=connection, listeners=[EventLog()])


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except ClientError as error:
        _complain(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _printable(path: Path) -> str:
    """The file's name; bytes that are no UTF-8 become question marks."""
    return path.name.encode("utf-8", "replace").decode()


def _complain(text: str) -> None:
    print(f"alexnet-client: {text}", file=sys.stderr)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _answer_json(file: Path, answer: Classification) -> dict[str, Any]:
    return {
        "image": str(file),
        "model_version": answer.model_version,
        "top": [{"label": guess.label, "probability": round(guess.probability, 6)} for guess in answer.top],
    }


def _evaluation_table(answered: list[Answered], rows: int) -> Table:
    wrong = [one for one in answered if not one.right][:rows]
    right = [one for one in answered if one.right]
    room = min(rows - len(wrong), len(right))
    shown = wrong + [right[place * len(right) // room] for place in range(room)]
    table = Table(
        "image", "truth", "label", "probability", "latency", title=f"{len(shown)} of {len(answered)}, mistakes first"
    )
    for one in shown:
        label = Text(one.answer.label, style="" if one.right else "red")
        table.add_row(
            _printable(one.path), one.truth, label, f"{one.answer.probability:.2%}", f"{one.latency_s * 1000:.1f} ms"
        )
    return table


if __name__ == "__main__":
    main()
