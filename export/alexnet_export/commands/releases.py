"""``alexnet-export list``, ``rollback`` and ``prune``: the versions of a model repository."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from alexnet_export.commands.arguments import DEFAULT_REPOSITORY, Repository, print_json, run
from alexnet_export.errors import UserError
from alexnet_export.publish import prune as prune_releases
from alexnet_export.publish import roll_back
from alexnet_export.releases import Release, releases, rolled_back
from alexnet_export.terminal import console


def list_releases(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """List the versions: what each is, what it proved, and which one a server started now takes."""
    there = [*releases(repository), *rolled_back(repository)]
    newest = max((each.version for each in there if not each.rolled_back), default=None)
    rows = [_row(each, newest) for each in sorted(there, key=lambda release: release.version)]
    table = Table("version", "state", "created", "precision", "top-1", "images/s", "MB", "revision")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    if rows:
        console.print(table)
    else:
        console.print(f"{repository}: no releases; `make export` publishes one")
    print_json(rows)


def rollback(
    repository: Repository = DEFAULT_REPOSITORY,
    to: Annotated[
        int | None, typer.Option(min=1, help="go back to this version; the one before the newest if not given")
    ] = None,
) -> None:
    """Withdraw the newest version, so that a server started from now on takes the one before it."""
    withdrawn, target = run(lambda: roll_back(repository, to=to))
    console.print(
        f"Withdrawn: {', '.join(str(each.version) for each in withdrawn)}. Version {target.version} is the newest now; "
        "a running server keeps what it has loaded, start it again."
    )
    print_json({"withdrawn": [each.version for each in withdrawn], "newest": target.version})


def prune(
    repository: Repository = DEFAULT_REPOSITORY,
    keep: Annotated[int, typer.Option(help="how many of the newest versions stay")] = 3,
) -> None:
    """Delete old versions and those that were rolled back; a number is never given again."""
    deleted = run(lambda: prune_releases(repository, keep=keep))
    console.print(f"Deleted {len(deleted)} versions" + "".join(f", {each.version}" for each in deleted))
    print_json({"deleted": [each.version for each in deleted]})


def _row(release: Release, newest: int | None) -> dict[str, object]:
    state = "rolled back" if release.rolled_back else "newest" if release.version == newest else "older"
    found: dict[str, object] = {"version": release.version, "state": state}
    try:
        manifest = release.manifest
    except UserError:
        return {
            **found,
            "state": f"{state}, manifest damaged",
            **dict.fromkeys(("created", "precision", "top1", "images_per_second", "megabytes", "git_revision")),
        }
    published: dict[str, Any] = next((row for row in manifest.get("variants", []) if row.get("published")), {})
    size = sum(each.get("bytes", 0) for each in manifest.get("files", {}).values())
    top1, rate = published.get("top1"), published.get("images_per_second")
    return {
        **found,
        "created": manifest.get("created"),
        "precision": manifest.get("precision"),
        "top1": None if top1 is None else round(top1, 4),
        "images_per_second": None if rate is None else round(rate),
        "megabytes": round(size / 1e6, 1),
        "git_revision": manifest.get("git_revision"),
    }
