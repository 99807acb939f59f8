"""The examples of the documents run against the real Triton: Python and HTTP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import alexnet_client
from alexnet_client import Client

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests/golden/photo.jpg"


def example(document: str) -> str:
    """The only Python block of a document."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return block


@pytest.fixture
def run(server, free_port):
    def run(program: str) -> str:
        program = program.replace("127.0.0.1:8001", server.target).replace("photo.jpg", str(PHOTO))
        program = program.replace("serve_metrics(8003)", f"serve_metrics({free_port()})")
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    return run


def test_the_example_of_the_readme_prints_the_five_best_labels(run):
    assert len(re.findall(r"^ *\d+\.\d%  \w+$", run(example("README.md")), re.MULTILINE)) == 5


def test_the_example_of_the_client_batches_a_stream_of_images(run, server):
    before = [server.metric(f"nv_inference_{name}", "alexnet") for name in ("count", "request_success")]
    run(example("client/README.md").replace("* 500", "* 100"))
    images, requests = (
        server.metric(f"nv_inference_{name}", "alexnet") - earlier
        for name, earlier in zip(("count", "request_success"), before, strict=True)
    )
    assert images == 100 + 1, "one more for the labels"
    assert requests < 80


def test_the_documented_errors_are_those_of_the_client():
    section = (ROOT / "client/README.md").read_text().split("### Errors")[1].split("\n### ")[0]
    documented = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    errors = {name for name in alexnet_client.__all__ if issubclass(getattr(alexnet_client, name), Exception)}
    assert documented == errors - {"ClientError"}


def http_commands() -> list[str]:
    """The shell blocks of the documents that send an HTTP request."""
    documents = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
    blocks = [block for each in documents for block in re.findall(r"```sh\n(.*?)```", each.read_text(), re.DOTALL)]
    return [block for block in blocks if "127.0.0.1:8000/v2/models/" in block]


async def test_the_documented_curl_commands_get_the_same_results_as_grpc(cheap_server, free_port, tmp_path):
    port = free_port()
    shutil.copy(PHOTO, tmp_path / "photo.jpg")

    def respond(block: str) -> dict:
        script = block.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        done = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True, cwd=tmp_path)
        return json.loads(done.stdout)

    def results(block: str) -> dict:
        return {output["name"]: output["data"] for output in respond(block)["outputs"]}

    encoded, pixels = sorted(http_commands(), key=lambda block: "alexnet_encoded" not in block)
    with cheap_server("--http-port", port) as server:
        async with Client(server.target) as client:
            of_file = await client.classify(PHOTO, top=3)
            of_grey = await client.infer(np.full((1, 224, 224, 3), 128, np.uint8))
        labels = [entry.split(":")[2] for entry in results(encoded)["probabilities"]]
        assert labels == [guess.label for guess in of_file.top]
        assert np.allclose(results(pixels)["logits"], of_grey.logits[0], atol=1e-4)
        (tmp_path / "photo.jpg").write_bytes(b"no image")
        assert "not a JPEG, PNG or WebP image" in respond(encoded)["error"]
        assert respond(encoded.replace("curl -s", "curl -s -o reply.json -w '%{http_code}'")) == 400
