"""Run the gates again on a published release, in this process or through a running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_client.manifest import find_mismatch
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Pixels
from alexnet_export.gates import check_loss, check_parity, compare
from alexnet_export.image_sets import MAXIMUM_IMAGES, MINIMUM_IMAGES, gate_images
from alexnet_export.releases import MODEL, releases
from alexnet_export.runners import answers, onnx_runner, served_runner, torch_runner
from alexnet_export.triton_config import ONNXRUNTIME
from alexnet_export.variants import Variant


def verify_release(
    checkpoint: Checkpoint,
    dataset: DataSet,
    repository: Path,
    *,
    served: str | None = None,
    minimum_images: int = MINIMUM_IMAGES,
    maximum_images: int = MAXIMUM_IMAGES,
    on_images: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Validate the newest release, or the one that a server answers with.

    Args:
        checkpoint: the source of the release.
        dataset: images for the gate.
        repository: the Triton model repository.
        served: host:port of a Triton server; None runs ONNX Runtime in this process.
        minimum_images: smallest number of images for the gate.
        maximum_images: largest number of test images for the gate.
        on_images: called with the number of images of each batch.

    Returns:
        The version, what answered, and a row as in ``variants`` of the manifest.

    Raises:
        GateFailed: the answers fail the gate.
        BadInput: a file differs from the manifest, or the release was created from another checkpoint.
        ClientError: the server is unavailable or rejects a request.
    """
    published = {release.version: release for release in releases(repository)}
    if not published:
        raise BadInput(f"{repository}: no release of {MODEL}; publish one with `make export`")
    images = gate_images(dataset, checkpoint.labels, minimum=minimum_images, maximum=maximum_images)
    if served is None:
        release, logits = published[max(published)], None
    else:
        version, logits = _served_answers(served, images.pixels, on_images)
        if version not in published:
            raise BadInput(f"{served}: serves version {version}, which is not in {repository}")
        release = published[version]
    if problem := find_mismatch(release.directory):
        raise BadInput(f"{problem}; publish again, or roll back with alexnet-export rollback")
    manifest = release.manifest
    if manifest.get("checkpoint", {}).get("sha256") != checkpoint.sha256:
        raise BadInput(f"{release.directory}: was created from another checkpoint; pass that one with --checkpoint")
    path, engine = release.directory / "model.onnx", str(manifest.get("engine", ONNXRUNTIME))
    if logits is None:
        logits = answers(onnx_runner(path, engine=engine), images.pixels, on_images=on_images)
    comparison = compare(answers(torch_runner(checkpoint), images.pixels), logits, images.labels)
    precision = str(manifest.get("precision"))
    (check_parity if precision == "fp32" else check_loss)(comparison)
    row = Variant(precision, engine, path, path.stat().st_size, comparison).row(published=False)
    return {"version": release.version, "answered_by": served or f"{engine} in this process", **row}


def _served_answers(
    served: str, pixels: Pixels, on_images: Callable[[int], None]
) -> tuple[int, npt.NDArray[np.float32]]:
    with served_runner(served, MODEL) as (run, versions):
        logits = answers(run, pixels, on_images=on_images)
    if len(versions) != 1:
        raise BadInput(
            f"{served}: different versions answered ({', '.join(sorted(versions))}); try again when only one is loaded"
        )
    return int(versions.pop()), logits
