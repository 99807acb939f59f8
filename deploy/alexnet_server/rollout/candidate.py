"""A release under another name, beside the one that serves: nobody is answered by it who does not ask for it.

It lies in a repository of its own that belongs to the launcher, so that a server that is started again loads none.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexnet_client.admin import key_file
from alexnet_client.registration import check_local
from alexnet_server.checks import UNFIT, models
from alexnet_server.errors import LaunchError
from alexnet_server.rollout.pins import configurations, pin_what_serves, with_pin

SUFFIX = "_candidate"


def staging(target: str) -> Path:
    """The launcher's own model repository for the server at ``target`` (host:port); there while that serves.

    Raises:
        BadInput: the target may be another machine's.
    """
    return key_file(check_local(target)).with_suffix(".staging")


@contextmanager
def taking_releases(repository: Path, target: str) -> Iterator[None]:
    """A staging repository while the block runs; what the models of ``repository`` serve now is pinned.

    Raises:
        LaunchError: one of both cannot be written, or a model serves several versions.
    """
    directory = staging(target)
    if re.search(UNFIT, str(directory)):
        raise LaunchError(
            f"{directory}: spaces or other special characters in its path, which Triton 2.51 hands through a shell; set "
            "XDG_RUNTIME_DIR to another place"
        )
    try:
        shutil.rmtree(directory, ignore_errors=True)  # left over from a launcher that was killed
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise LaunchError(
            f"{directory}: cannot be made ({error.strerror}); set XDG_RUNTIME_DIR to another place"
        ) from None
    try:
        for model in models(repository):
            pin_what_serves(model)
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def alone(target: str) -> Iterator[None]:
    """While the block runs, nobody else changes what the server at ``target`` serves.

    Raises:
        LaunchError: its launcher takes no releases, or somebody is at it.
    """
    try:
        descriptor = os.open(staging(target), os.O_RDONLY)
    except FileNotFoundError:
        raise LaunchError(
            f"{target}: its server takes no new releases while it serves; start it with: alexnet-server serve --rollouts"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LaunchError(f"{target}: another rollout or rollback is under way; wait for its end") from None
    finally:
        os.close(descriptor)


@contextmanager
def staged(model: Path, version: int, target: str) -> Iterator[str]:
    """A version of a model as a model of its own, while the block runs; gives its name.

    Args:
        model: its directory in the repository.
        version: a release in it.
        target: host:port of the server.
    """
    name = candidate_of(model)
    directory = staging(target) / name
    shutil.rmtree(directory, ignore_errors=True)  # left over from a rollout that was killed
    directory.mkdir(mode=0o700)
    try:
        _fill(directory, model, version)
        yield name
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def candidate_of(model: Path) -> str:
    """The name under which a candidate for a model is loaded."""
    return f"{model.name}{SUFFIX}"


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
