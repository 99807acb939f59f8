"""HTTP, which is off by default: JSON and binary requests as the documents show them, and label names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alexnet_client import Client

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests/golden/photo.jpg"
pytestmark = pytest.mark.xdist_group("test_http")


@pytest.fixture(scope="module")
def http(cheap, tmp_path_factory, free_port, launch):
    port = free_port()
    with launch(cheap.repository, tmp_path_factory.mktemp("http"), free_port, "--http-port", str(port)) as server:
        yield server, port


def documented_commands() -> list[str]:
    """The shell blocks of the documents that send an HTTP request."""
    documents = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
    blocks = [block for each in documents for block in re.findall(r"```sh\n(.*?)```", each.read_text(), re.DOTALL)]
    return [block for block in blocks if "127.0.0.1:8000/v2/models/" in block]


async def test_the_documented_curl_commands_get_the_same_results_as_grpc(http, tmp_path):
    server, port = http
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    async with Client(server.target) as client:
        of_file = await client.classify(PHOTO, top=3)
        of_grey = await client.infer(np.full((1, 224, 224, 3), 128, np.uint8))

    def results(block: str) -> dict:
        script = block.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        done = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True, cwd=tmp_path)
        return {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}

    encoded, pixels = sorted(documented_commands(), key=lambda block: "alexnet_encoded" not in block)
    labels = [entry.split(":")[2] for entry in results(encoded)["probabilities"]]
    assert labels == [guess.label for guess in of_file.top]
    assert np.allclose(results(pixels)["logits"], of_grey.logits[0], atol=1e-4)


def test_a_broken_image_is_a_client_error(http, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    url = f"http://127.0.0.1:{http[1]}/v2/models/alexnet_encoded/infer"
    command = ["curl", "-s", "-w", "\n%{http_code}", "-H", "Inference-Header-Content-Length: 0", url]
    done = subprocess.run(
        [*command, "--data-binary", f"@{tmp_path / 'broken.jpg'}"], check=True, capture_output=True, text=True
    )
    body, code = done.stdout.rsplit("\n", 1)
    assert code == "400"
    assert "not a JPEG, PNG or WebP image" in json.loads(body)["error"]
