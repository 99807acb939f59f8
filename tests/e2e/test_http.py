"""HTTP, when it is asked for: JSON and binary requests as the README shows them, and label names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alexnet_client import Client

ROOT = Path(__file__).parent.parent.parent
PHOTO = ROOT / "tests/golden/photo.jpg"


@pytest.fixture(scope="module")
def http(repository, tmp_path_factory, free_port, launch):
    port = free_port()
    with launch(repository, tmp_path_factory.mktemp("http"), free_port, "--http-port", str(port)) as server:
        yield server, port


def readme_commands() -> list[str]:
    """The shell blocks of the README that speak HTTP."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block for block in blocks if "8000" in block]


async def test_the_readmes_curl_commands_answer_what_grpc_answers(http, tmp_path):
    server, port = http
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    async with Client(server.target) as client:
        by_file = await client.classify(PHOTO, top=3)
        by_grey = await client.infer(np.full((1, 224, 224, 3), 128, np.uint8))
    named, plain = readme_commands()

    def answer(block: str) -> dict:
        script = block.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        done = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True, cwd=tmp_path)
        return {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}

    labels = [entry.split(":")[2] for entry in answer(named)["probabilities"]]
    assert labels == [guess.label for guess in by_file.top]
    assert np.allclose(answer(plain)["logits"], by_grey.logits[0], atol=1e-4)


def test_a_broken_image_is_the_callers_mistake(http, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    url = f"http://127.0.0.1:{http[1]}/v2/models/alexnet_encoded/infer"
    command = ["curl", "-s", "-w", "\n%{http_code}", "-H", "Inference-Header-Content-Length: 0"]
    done = subprocess.run(
        [*command, "--data-binary", f"@{tmp_path / 'broken.jpg'}", url], check=True, capture_output=True, text=True
    )
    body, code = done.stdout.rsplit("\n", 1)
    assert code == "400"
    assert "not a JPEG, PNG or WebP image" in json.loads(body)["error"]
