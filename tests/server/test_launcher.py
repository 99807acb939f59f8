"""What the launcher knows about the processes of a Triton."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from alexnet_server import launcher
from alexnet_server.launcher import STUB, Server


class Child:
    def __init__(self, pid, *command, error=None):
        self.pid, self._command, self._error = pid, list(command), error

    def cmdline(self):
        if self._error is not None:
            raise self._error
        return self._command


@pytest.fixture
def server(monkeypatch):
    """A Triton of one model whose children a test sets."""
    children = []
    triton = SimpleNamespace(children=lambda recursive: children)
    monkeypatch.setattr(
        launcher, "psutil", SimpleNamespace(Process=lambda pid: triton, NoSuchProcess=psutil.NoSuchProcess)
    )
    monkeypatch.setattr(launcher, "models", lambda repository: [SimpleNamespace(name="alexnet")])
    monkeypatch.setattr(launcher, "_runs", lambda pid: pid in {child.pid for child in children})
    made = Server(SimpleNamespace(pid=1), SimpleNamespace(repository=None), None, "")
    return SimpleNamespace(watched=made, children=children)


def stub(pid, version, model="alexnet"):
    return Child(pid, f"/opt/{STUB}", f"/models/{model}/{version}/model.py", "more")


def test_processes_that_are_ending_or_are_none_of_ours_are_no_backends(server):
    """One that has given its memory back and is not reaped yet has an empty command line."""
    others = [
        Child(2),
        Child(3, "sh"),
        Child(4, f"/opt/{STUB}"),
        Child(5, error=psutil.ZombieProcess(5)),
        stub(6, 1, "other"),
    ]
    server.children += [*others, stub(7, 1)]
    server.watched.note_backends()
    server.children.clear()
    assert [str(each) for each in server.watched.lost_backends()] == ["backend process 7 of alexnet"]


def test_a_version_that_was_loaded_again_has_as_many_processes_as_before(server):
    server.children += [stub(7, 1), stub(8, 1)]
    server.watched.note_backends()
    server.children[:] = [stub(9, 1)]
    server.watched.note_backends()
    (lost, _) = server.watched.lost_backends()
    assert not server.watched.replaced(lost)
    server.children.append(stub(10, 1))
    server.watched.note_backends()
    assert server.watched.replaced(lost)
    server.watched.forget(lost)
    assert [each.pid for each in server.watched.lost_backends()] == [8]
