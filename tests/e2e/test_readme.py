"""The Python examples of the documents run against the real Triton."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import alexnet_client

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
