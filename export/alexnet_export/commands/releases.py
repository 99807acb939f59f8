"""``alexnet-export list``, ``rollback`` and ``prune``: the versions of a model repository."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from alexnet_client.manifest import read_manifest
from alexnet_client.terminal import console, print_json
from alexnet_export.commands.arguments import DEFAULT_REPOSITORY, Repository, reported
from alexnet_export.publish import prune as prune_releases
from alexnet_export.publish import roll_back
from alexnet_export.releases import Release, releases, rolled_back

COLUMNS = (
    "version",
    "state",
    "created",
    "precision",
    "engine",
    "top1",
    "images_per_second",
    "megabytes",
    "git_revision",
)


def list_releases(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """List the versions with their state, precision, engine, accuracy and throughput."""
    found = sorted([*releases(repository), *rolled_back(repository)], key=lambda release: release.version)
    newest = max((each.version for each in found if not each.rolled_back), default=None)
    rows = [_row(each, newest) for each in found]
    table = Table(*("version", "state", "created", "precision", "engine", "top-1", "images/s", "MB", "revision"))
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    if rows:
        console.print(table)
    else:
        console.print(f"{repository}: no releases; publish one with `make export`")
    print_json({"releases": rows})


def rollback(
    repository: Repository = DEFAULT_REPOSITORY,
    to: Annotated[
        int | None, typer.Option(min=1, help="version to roll back to", show_default="the version before the newest")
    ] = None,
) -> None:
    """Withdraw the newest version; servers that are started afterwards serve the version before it."""
    with reported():
        withdrawn, target = roll_back(repository, to=to)
    console.print(
        f"Withdrawn: {', '.join(str(each.version) for each in withdrawn)}. The newest version is now {target.version}. "
        "Restart running servers."
    )
    print_json({"withdrawn": [each.version for each in withdrawn], "newest": target.version})


def prune(
    repository: Repository = DEFAULT_REPOSITORY,
    keep: Annotated[int, typer.Option(help="number of newest versions to keep")] = 3,
) -> None:
    """Delete old versions and versions that were rolled back. Version numbers are never used again."""
    with reported():
        deleted = prune_releases(repository, keep=keep)
    console.print(f"Deleted versions: {', '.join(str(each.version) for each in deleted) or 'none'}")
    print_json({"deleted": [each.version for each in deleted]})


def _row(release: Release, newest: int | None) -> dict[str, object]:
    state = "rolled back" if release.rolled_back else "newest" if release.version == newest else "older"
    row: dict[str, object] = dict.fromkeys(COLUMNS)
    manifest = read_manifest(release.directory)
    if manifest is None:
        return row | {"version": release.version, "state": f"{state}, manifest damaged"}
    published: dict[str, Any] = next((each for each in manifest.get("variants", []) if each.get("published")), {})
    size = sum(each.get("bytes", 0) for each in manifest.get("files", {}).values())
    top1, rate = published.get("top1"), published.get("images_per_second")
    return row | {
        "version": release.version,
        "state": state,
        "created": manifest.get("created"),
        "precision": manifest.get("precision"),
        "engine": manifest.get("engine"),
        "top1": None if top1 is None else round(top1, 4),
        "images_per_second": None if rate is None else round(rate),
        "megabytes": round(size / 1e6, 1),
        "git_revision": manifest.get("git_revision"),
    }
