"""Weights from elsewhere: a torchvision state dict in a file, or torchvision's published ImageNet weights."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from alexnet_export.atomic import replace_file, sha256_file, writing
from alexnet_export.checkpoint import Checkpoint, read_state_dict
from alexnet_export.data import check_labels
from alexnet_export.errors import UserError
from alexnet_export.model import IMAGENET, check_state_dict

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet_Weights.IMAGENET1K_V1, 56.522 % top-1 by its own card. The name carries the start of the
file's SHA-256."""
SHA256_PREFIX = "7be5be79"


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names, in the order of the logits of torchvision's weights."""
    return tuple((files("alexnet_export") / "imagenet_labels.txt").read_text().splitlines())


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line.

    Raises:
        UserError: it is missing, or has fewer than two names or one twice.
    """
    try:
        labels = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of labels ({error})") from None
    check_labels(labels, path)
    return labels


def import_state_dict(path: Path, labels: Sequence[str] | None = None, origin: str = "") -> Checkpoint:
    """Make a checkpoint of a torchvision AlexNet state dict, with ImageNet's normalisation.

    Args:
        path: the file.
        labels: class names; the 1,000 of ImageNet if not given.
        origin: what to name as the source; the file's name if not given.

    Raises:
        UserError: the file is missing or damaged, or the first key that is not this network's.
    """
    names = tuple(labels) if labels is not None else imagenet_labels()
    state_dict = read_state_dict(path)
    hint = "" if labels is not None else " (ImageNet's 1,000 are assumed; --labels FILE names others)"
    try:
        check_state_dict(state_dict, len(names), str(path))
    except UserError as error:
        raise UserError(f"{error}{hint if 'classifier.6' in str(error) else ''}") from None
    tensors = {key: value.float().contiguous() for key, value in state_dict.items()}
    return Checkpoint(tensors, names, IMAGENET, {"imported_from": origin or path.name}, sha256_file(path))


def download_imagenet(
    cache: Path,
    *,
    url: str = URL,
    sha256_prefix: str = SHA256_PREFIX,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Return torchvision's published file, downloading it into ``cache`` unless it is there already.

    Args:
        cache: a directory.
        url: where from.
        sha256_prefix: start of the hexadecimal SHA-256 the file must have.
        on_bytes: called with bytes so far and in all (0 if unknown).

    Raises:
        UserError: the server does not answer, or sends another file.
    """
    target = cache / url.rsplit("/", 1)[-1]
    if target.exists() and sha256_file(target).startswith(sha256_prefix):
        return target
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with replace_file(target) as temporary:
        try:
            # The address is the constant above, or a test's; what comes is checked by its hash.
            with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file:  # noqa: S310
                total = int(response.headers.get("Content-Length") or 0)
                while block := response.read(1 << 20):
                    file.write(block)
                    on_bytes(file.tell(), total)
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{url}: cannot be downloaded ({reason}); fetch it elsewhere and give it as --weights FILE"
            ) from None
        found = sha256_file(temporary)
        if not found.startswith(sha256_prefix):
            raise UserError(
                f"{url}: sent a file with SHA-256 {found[:16]}…, expected {sha256_prefix}…; nothing is kept"
            )
    return target
