"""A release under another name, beside the one that serves: nobody is answered by it who does not ask for it.

It lies in a repository of its own that belongs to the launcher, so that a server that is started again loads none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexnet_client.admin import key_file
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import published
from alexnet_server.rollout.pins import configurations, pin, pinned, with_pin

SUFFIX = "_candidate"


def staging(target: str) -> Path:
    """The launcher's own model repository for the server at ``target`` (host:port); there while that serves."""
    return key_file(target).with_suffix(".staging")


@contextmanager
def taking_releases(repository: Path, target: str) -> Iterator[None]:
    """A staging repository while the block runs; what the models of ``repository`` serve now is pinned.

    Raises:
        LaunchError: one of both cannot be written.
    """
    directory = staging(target)
    try:
        shutil.rmtree(directory, ignore_errors=True)  # left over from a launcher that was killed
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise LaunchError(
            f"{directory}: cannot be made ({error.strerror}); set XDG_RUNTIME_DIR to another place"
        ) from None
    try:
        for model in repository.iterdir():
            if (releases := published(model)) and pinned(model / "config.pbtxt") is None:
                pin(model, int(releases[-1].name))
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def staged(model: Path, version: int, target: str) -> Iterator[str]:
    """A version of a model as a model of its own, while the block runs; gives its name.

    Args:
        model: its directory in the repository.
        version: a release in it.
        target: host:port of the server.

    Raises:
        LaunchError: the server at ``target`` takes no releases, or another rollout is under way.
    """
    repository, name = staging(target), f"{model.name}{SUFFIX}"
    directory = repository / name
    if not repository.is_dir():
        raise LaunchError(
            f"{target}: its server takes no new releases while it serves; start it with: alexnet-server serve --rollouts"
        )
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise LaunchError(
            f"{directory}: another rollout is under way; if it was killed, delete that directory"
        ) from None
    try:
        _fill(directory, model, version)
        yield name
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fill(directory: Path, model: Path, version: int) -> None:
    for config in configurations(model):
        text = re.sub(
            r'^name\s*:\s*"[^"]*"', f'name: "{directory.name}"', config.read_text(), count=1, flags=re.MULTILINE
        )
        there = directory / config.relative_to(model)
        there.parent.mkdir(exist_ok=True)
        there.write_text(with_pin(text, version))
    for labels in model.glob("*.txt"):
        shutil.copyfile(labels, directory / labels.name)
    (directory / str(version)).symlink_to((model / str(version)).resolve())  # as large as it is, it is there once
