"""Which version of a model serves, written into its configurations: a server that is started again takes that one too.

Everything else in a configuration is the user's and stays as it is, comments included.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_server.errors import LaunchError

_BLOCK = re.compile(r"^version_policy\s*:?\s*\{(?:[^{}]|\{[^{}]*\})*\}[ \t]*\n?", re.MULTILINE)
_PINNED = "version_policy {{\n  specific {{\n    versions: [{version}]\n  }}\n}}\n"


def pinned(config: Path) -> int | None:
    """The one version that a configuration serves by name; None if it takes the newest, or several.

    Raises:
        LaunchError: it cannot be read.
    """
    versions = list(_parse(config, _read(config)).version_policy.specific.versions)
    return versions[0] if len(versions) == 1 else None


def with_pin(text: str, version: int) -> str:
    """A configuration that serves one version; the policy takes the place of the old one, or the end."""
    block = _PINNED.format(version=version)
    replaced, count = _BLOCK.subn(block, text, count=1)
    return replaced if count else f"{text.rstrip()}\n\n{block}"


def configurations(model: Path) -> list[Path]:
    """All of a model's: config.pbtxt and those that can be chosen by name."""
    return [model / "config.pbtxt", *sorted((model / "configs").glob("*.pbtxt"))]


def pin(model: Path, version: int) -> None:
    """Have all configurations of a model serve one version. Each file is replaced whole, or not at all.

    Raises:
        LaunchError: one cannot be read or written, or is not one of Triton's; then none was changed.
    """
    changed = {}
    for config in configurations(model):
        changed[config] = with_pin(_read(config), version)
        _parse(config, changed[config])
    with _told(model):
        for config, text in changed.items():
            _replace(config, text)


@contextmanager
def kept_on_failure(model: Path) -> Iterator[None]:
    """If the block fails, the configurations are again what they were.

    Raises:
        LaunchError: they cannot be read.
    """
    before = {config: _read(config) for config in configurations(model)}
    try:
        yield
    except BaseException:
        with _told(model):
            for config, text in before.items():
                _replace(config, text)
        raise


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".pinning-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(config: Path) -> str:
    with _told(config):
        return config.read_text()


def _parse(config: Path, text: str) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise LaunchError(f"{config}: not a configuration of Triton's ({error}); mend it") from None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise LaunchError(f"{where}: {(error.strerror or str(error)).lower()}; check --repository") from None
