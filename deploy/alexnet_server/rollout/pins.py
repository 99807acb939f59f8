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
from alexnet_server.manifest import published, served

_BLOCK = re.compile(r"^version_policy\s*:?\s*\{(?:[^{}]|\{[^{}]*\})*\}[ \t]*\n?", re.MULTILINE)
_LATEST = "version_policy {\n  latest {\n    num_versions: 1\n  }\n}\n"
_PINNED = "version_policy {{\n  specific {{\n    versions: [{version}]\n  }}\n}}\n"


def pinned(config: Path) -> int | None:
    """The one version that a configuration serves by name; None if it takes the newest.

    Raises:
        LaunchError: it cannot be read, or serves several versions.
    """
    policy = _parse(config, _read(config)).version_policy
    versions = list(policy.specific.versions)
    if len(versions) > 1 or policy.HasField("all") or policy.latest.num_versions > 1:
        raise LaunchError(
            f"{config}: its version_policy serves several versions, and a rollout replaces one; serve without --rollouts"
        )
    return versions[0] if versions else None


def with_pin(text: str, version: int | None) -> str:
    """A configuration that serves one version, or the newest (None); the policy takes the place of the old one, or the end."""
    block = _LATEST if version is None else _PINNED.format(version=version)
    replaced, count = _BLOCK.subn(block, text, count=1)
    return replaced if count else f"{text.rstrip()}\n\n{block}"


def behind(repository: Path) -> Iterator[str]:
    """A line for each model whose newest release does not serve because another one is pinned."""
    for config in sorted(repository.glob("*/config.pbtxt")):
        newest = published(config.parent)[-1:]
        for version in served(config.parent, config) if newest else ():
            if version not in newest:
                yield (
                    f"{config.parent.name}: version {version.name} is pinned, version {newest[0].name} is the newest; "
                    "`alexnet-server unpin` lets that serve"
                )


def configurations(model: Path) -> list[Path]:
    """All of a model's: config.pbtxt and those that can be chosen by name."""
    return [model / "config.pbtxt", *sorted((model / "configs").glob("*.pbtxt"))]


def pin_what_serves(model: Path) -> None:
    """Pin the version of a model that serves, in all its configurations, if this project published it.

    Raises:
        LaunchError: a configuration cannot be read or written, serves several versions, or another one than the next.
    """
    releases = published(model)
    if not releases:
        return
    named = {pinned(config) for config in configurations(model)} - {None}
    if len(named) > 1:
        raise LaunchError(f"{model}: its configurations pin different versions; let one of them stand")
    pin(model, named.pop() if named else int(releases[-1].name))


def pin(model: Path, version: int | None) -> None:
    """Have all configurations of a model serve one version, or the newest (None). Each file is replaced whole, or not at all.

    Raises:
        LaunchError: one cannot be read or written, or is not one of Triton's; then none was changed.
    """
    changed = {}
    for config in configurations(model):
        changed[config] = with_pin(_read(config), version)
        _parse(config, changed[config])
    with _told(model):
        for config, text in changed.items():
            if text != _read(config):
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
                if text != _read(config):
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
