"""Import of torchvision weights: a state dict in a file, or torchvision's published ImageNet weights."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from alexnet_client.errors import BadInput
from alexnet_client.files import replace_file, sha256_file, writing
from alexnet_export.checkpoint import Checkpoint, read_state_dict
from alexnet_export.data import check_labels
from alexnet_export.model import IMAGENET, check_state_dict

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet_Weights.IMAGENET1K_V1, 56.522 % top-1 according to its model card. The name contains the start
of the file's SHA-256."""
SHA256_PREFIX = "7be5be79"


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names, in the order of the logits of torchvision's weights."""
    return tuple((files("alexnet_export") / "imagenet_labels.txt").read_text().splitlines())


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line.

    Raises:
        BadInput: the file cannot be read, or the names are invalid.
    """
    try:
        labels = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as a list of class names ({error})") from None
    check_labels(labels, path)
    return labels


def import_state_dict(path: Path, labels: Sequence[str] | None = None, origin: str = "") -> Checkpoint:
    """Create a checkpoint from a torchvision AlexNet state dict, with ImageNet's normalisation.

    Args:
        path: of the file.
        labels: class names; by default the 1,000 of ImageNet.
        origin: source to record; by default the name of the file.

    Raises:
        BadInput: the file is missing, damaged, or of another network.
    """
    names = tuple(labels) if labels is not None else imagenet_labels()
    state_dict = read_state_dict(path)
    hint = "" if labels is not None else " (the default is ImageNet's 1,000 classes; set others with --labels FILE)"
    try:
        check_state_dict(state_dict, len(names), str(path))
    except BadInput as error:
        raise BadInput(f"{error}{hint if 'classifier.6' in str(error) else ''}") from None
    tensors = {key: value.float().contiguous() for key, value in state_dict.items()}
    return Checkpoint(tensors, names, IMAGENET, {"imported_from": origin or path.name}, sha256_file(path))


def download_imagenet(
    cache: Path,
    *,
    url: str = URL,
    sha256_prefix: str = SHA256_PREFIX,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Return the path of torchvision's published file; download it to ``cache`` if it is not there.

    Args:
        cache: directory for downloaded files.
        url: of the file.
        sha256_prefix: start of the expected hexadecimal SHA-256.
        on_bytes: called with the bytes received and the total (0 if unknown).

    Raises:
        BadInput: the download fails, or the server sends another file.
    """
    target = cache / url.rsplit("/", 1)[-1]
    if target.exists() and sha256_file(target).startswith(sha256_prefix):
        return target
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with replace_file(target) as temporary:
        try:
            # The URL is the constant above, or that of a test; the hash of the file is checked.
            with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file:  # noqa: S310
                total = int(response.headers.get("Content-Length") or 0)
                while block := response.read(1 << 20):
                    file.write(block)
                    on_bytes(file.tell(), total)
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
            cause = getattr(error, "reason", error)
            raise BadInput(
                f"{url}: download failed ({cause}); download it on another machine and pass it with --weights FILE"
            ) from None
        found = sha256_file(temporary)
        if not found.startswith(sha256_prefix):
            raise BadInput(
                f"{url}: the server sent a file with SHA-256 {found[:16]}…, expected {sha256_prefix}…; it was deleted"
            )
    return target
