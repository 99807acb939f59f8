"""What the README says can be done, can be done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"\bmake ([a-z-]+)((?: [A-Z_]+=\S+)*)", README)))


@pytest.mark.parametrize(("target", "variables"), COMMANDS)
def test_every_make_command_exists(target, variables):
    planned = subprocess.run(
        ["make", "-n", target, *variables.split(), "DATA_DIR="], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr


def test_every_file_in_the_tree_exists_and_none_is_left_out():
    tree = README.split("## What is where")[1].split("```")[1]
    named = set(re.findall(r"[a-z0-9_]+\.py", tree))
    for package in ("export/alexnet_export", "client/alexnet_client", "client/alexnet_load", "deploy/alexnet_server"):
        there = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py", "__main__.py"}
        if package == "deploy/alexnet_server":
            there -= {"errors.py"}
        assert there - named <= {"errors.py", "atomic.py"}, package
    every = {path.name for path in ROOT.glob("*/alexnet_*/**/*.py")}
    assert named <= every


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example, server, free_port):
    photo = ROOT / "tests/golden/photo.jpg"
    program = example.replace("127.0.0.1:8001", server.target).replace("photo.jpg", str(photo))
    program = program.replace("serve_metrics(8003)", f"serve_metrics({free_port()})")
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_first_python_example_names_the_best_labels(server, free_port):
    assert len(re.findall(r"^ *\d+\.\d%  \w+$", run(EXAMPLES[0], server, free_port), re.MULTILINE)) == 5


def test_the_second_python_example_batches_what_it_streams(server, free_port):
    before = [server.metric(f"nv_inference_{name}", "alexnet") for name in ("count", "request_success")]
    run(EXAMPLES[1].replace("* 500", "* 100"), server, free_port)
    images, requests = (
        server.metric(f"nv_inference_{name}", "alexnet") - earlier
        for name, earlier in zip(("count", "request_success"), before, strict=True)
    )
    assert images == 100 + 1, "and one for the labels"
    assert requests < 80, "the network is a small one here: its answers are soon there, so that batches are small"


def test_every_error_the_readme_names_can_be_imported():
    import alexnet_client

    section = README.split("## In Python")[1].split("\n## ")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", section))
    assert {"BadInput", "Overloaded", "ClientError"} <= named
    assert all(issubclass(getattr(alexnet_client, name), alexnet_client.ClientError) for name in named)
