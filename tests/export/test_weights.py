"""Import of torchvision weights, from a file and by download."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export.model import IMAGENET, AlexNet
from alexnet_export.weights import download_imagenet, import_state_dict, read_labels


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A state dict with torchvision's keys and 1,000 classes."""
    path = tmp_path_factory.mktemp("published") / "alexnet-owt-00000000.pth"
    torch.save({key: torch.zeros_like(value) for key, value in AlexNet(1000).state_dict().items()}, path)
    return path


@pytest.fixture
def file_server(tmp_path):
    """Directory and URL of a file server on this machine."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_torchvision_file_becomes_a_checkpoint_with_imagenets_labels_and_normalisation(published):
    checkpoint = import_state_dict(published)
    assert len(set(checkpoint.labels)) == 1000
    assert [checkpoint.labels[index] for index in (0, 1, 999)] == ["tench", "goldfish", "toilet tissue"]
    assert checkpoint.normalization == IMAGENET
    assert len(checkpoint.sha256) == 64
    assert sum(parameter.numel() for parameter in checkpoint.network().parameters()) == 61_100_840


def test_a_file_with_another_number_of_classes_needs_labels(published, tmp_path):
    state_dict = torch.load(published, weights_only=True)
    state_dict["classifier.6.weight"] = torch.zeros(7, 4096)
    state_dict["classifier.6.bias"] = torch.zeros(7)
    torch.save(state_dict, tmp_path / "seven.pth")
    with pytest.raises(BadInput, match=r"classifier\.6\.weight has shape \[7, \d+\].*set others with --labels FILE"):
        import_state_dict(tmp_path / "seven.pth")
    assert import_state_dict(tmp_path / "seven.pth", list("abcdefg")).labels == tuple("abcdefg")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(BadInput, match=r"features\.0\.weight is missing$"):
        import_state_dict(tmp_path / "resnet.pth")


def test_a_download_is_verified_by_its_hash_and_cached(file_server, tmp_path):
    served, address = file_server
    content, seen = b"weights" * 1000, []
    (served / "w.pth").write_bytes(content)
    with pytest.raises(BadInput, match=r"expected 7be5be79….*it was deleted"):
        download_imagenet(tmp_path / "cache", url=f"{address}/w.pth")
    assert not list((tmp_path / "cache").iterdir())
    source = {"url": f"{address}/w.pth", "sha256_prefix": hashlib.sha256(content).hexdigest()[:8]}
    path = download_imagenet(tmp_path / "cache", **source, on_bytes=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == content
    assert seen[-1] == (7000, 7000)
    (served / "w.pth").unlink()
    assert download_imagenet(tmp_path / "cache", **source) == path, "a cached file needs no server"


def test_a_failed_download_suggests_a_file(file_server, tmp_path, free_port):
    _, address = file_server
    for url in (f"{address}/w.pth", f"http://127.0.0.1:{free_port()}/w.pth"):
        with pytest.raises(BadInput, match=rf"{url}: download failed .*--weights FILE"):
            download_imagenet(tmp_path / "cache", url=url)


@pytest.mark.parametrize("text", ["", "only\n", "twice\ntwice\n"])
def test_an_invalid_list_of_labels_is_rejected(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(BadInput, match="at least two different class names"):
        read_labels(tmp_path / "labels.txt")
