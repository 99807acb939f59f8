"""The gates again on a published release: files against manifest, answers against PyTorch's, here or through a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import UserError
from alexnet_export.gates import check_loss, check_parity, judge
from alexnet_export.gateset import gate_images
from alexnet_export.releases import MODEL, check_files, releases
from alexnet_export.runners import Pixels, onnx_runner, served_runner, torch_runner
from alexnet_export.variants import Variant
from alexnet_export.verify import answers


def verify_release(
    checkpoint: Checkpoint,
    dataset: DataSet,
    repository: Path,
    *,
    served: str | None = None,
    model: str = MODEL,
    on_images: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Judge the newest release, or the one that a server answers with.

    Args:
        checkpoint: what the release was made of.
        dataset: the images to judge on.
        repository: the Triton model repository.
        served: host:port of a Triton to ask; None asks ONNX Runtime in this process.
        model: its name in the repository and on the server.
        on_images: called with the count of images done.

    Returns:
        The version, who answered, and a row as in the manifest's ``variants``.

    Raises:
        GateFailed: the answers are not good enough; the text says by how much.
        UserError: a file is not what the manifest says, the release is of another checkpoint, or the server fails.
    """
    there = {release.version: release for release in releases(repository, model)}
    if not there:
        raise UserError(f"{repository}: no release of {model}; `make export` publishes one")
    images = gate_images(dataset, checkpoint.labels)
    if served is None:
        release, logits = there[max(there)], None
    else:
        version, logits = _ask(served, model, images.pixels, on_images)
        if version not in there:
            raise UserError(f"{served}: answers with version {version}, which {repository} does not have")
        release = there[version]
    manifest = check_files(release)
    if manifest.get("checkpoint", {}).get("sha256") != checkpoint.sha256:
        raise UserError(f"{release.directory}: was made of another checkpoint; name that one with --checkpoint")
    path = release.directory / "model.onnx"
    if logits is None:
        logits = answers(onnx_runner(path), images.pixels, on_images=on_images)
    judgement = judge(answers(torch_runner(checkpoint), images.pixels), logits, images.labels)
    precision = str(manifest.get("precision"))
    (check_parity if precision == "fp32" else check_loss)(judgement)
    row = Variant(precision, path, path.stat().st_size, judgement).row(published=False)
    return {"version": release.version, "answered_by": served or "ONNX Runtime in this process", **row}


def _ask(
    served: str, model: str, pixels: Pixels, on_images: Callable[[int], None]
) -> tuple[int, npt.NDArray[np.float32]]:
    with served_runner(served, model) as (run, versions):
        logits = answers(run, pixels, on_images=on_images)
    if len(versions) != 1:
        raise UserError(
            f"{served}: versions {', '.join(sorted(versions))} answered by turns; try again when it settled"
        )
    return int(versions.pop()), logits
