"""The commands of the documents and of the compose file are valid; the links and the named files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from manifest_checks import parsed

from alexnet_client.__main__ import app as client
from alexnet_export.__main__ import app as export
from alexnet_load.cli import app as load
from alexnet_server.__main__ import app as server
from alexnet_server.command import BULLETINS, VULNERABILITIES

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "*/README.md", "deploy/*.md", "tests/benchmarks/README.md")
DOCUMENTS = {path.relative_to(ROOT): path.read_text() for name in NAMES for path in sorted(ROOT.glob(name))}
BLOCKS = [block for text in DOCUMENTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
INDENTED = re.findall(r"^    ((?:make|\S*alexnet-\w+) .*)", "\n".join(DOCUMENTS.values()), re.MULTILINE)
IN_BLOCKS = [line for block in BLOCKS if "curl" not in block for line in block.splitlines() if line]
"""Without the blocks for HTTP, which tests/e2e/test_readme.py runs."""
APPS = {"alexnet-client": client, "alexnet-export": export, "alexnet-load": load, "alexnet-server": server}
PROGRAMS = {"cd", "docker", "docker-compose", "haproxy", "kubectl", "kustomize"}
COMPOSE = yaml.safe_load((ROOT / "deploy/compose/compose.yml").read_text())["services"]
IN_COMPOSE = [shlex.join(service["command"]) for service in COMPOSE.values() if service.get("command", [""])[0] in APPS]
COMMANDS = sorted({*IN_BLOCKS, *INDENTED, *IN_COMPOSE})


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_is_valid_shell(block):
    assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_valid(command):
    words = shlex.split(re.sub(r"^until (.*); do sleep 1; done$", r"\1", command).removesuffix(" &"), comments=True)
    name = Path(words[0]).name
    if name in APPS:
        parsed(APPS[name], words[1:])
    elif name == "make":
        make(words)
    else:
        assert name in PROGRAMS
        named = [value for option, value in pairwise(words) if option in {"cd", "--file", "--kustomize", "-f"}]
        assert {each for each in named if not (ROOT / each).exists()} - {"../../../.."} == set()
        profiles = {value for option, value in pairwise(words) if option == "--profile"}
        assert profiles <= {each for service in COMPOSE.values() for each in service["profiles"]}


def make(words):
    words = [word for word in words if not word.startswith("DATA_DIR=")]  # the directory need not exist
    planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    options = next((word.partition("=")[2] for word in words if word.startswith("SERVE_OPTIONS=")), "")
    parsed(server, ["serve", *shlex.split(options)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_each_link_and_each_named_file_exists(document):
    text, folder = DOCUMENTS[document], (ROOT / document).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert {link for link in links if not (folder / link).exists()} == set()
    names = re.findall(r"`((?:deploy|tests|export|client|configs|overlays)/[\w./-]+)`", text)
    parents = {"configs": "model_repository/alexnet/", "overlays": "deploy/kubernetes/"}
    paths = {parents.get(name.split("/")[0], "") + name for name in names}
    assert {path for path in paths if not any(ROOT.glob(path))} == set()


def test_the_readme_is_short():
    assert len(DOCUMENTS[Path("README.md")].splitlines()) <= 160


def test_the_security_warning_names_the_vulnerabilities_of_the_command_line():
    section = DOCUMENTS[Path("deploy/README.md")].split("## Security warning")[1].split("\n## ")[0]
    assert set(re.findall(r"\b20\d\d/\d{4}\b", section)) == set(BULLETINS)
    assert re.findall(r"(\d+) vulnerabilities since, (\d+) of them critical", section) == [("57", "6")]
    assert VULNERABILITIES.startswith("Triton 2.51 has 57 published vulnerabilities, 6 of them critical")
    assert len(set(re.findall(r"CVE-20\d\d-\d+", section))) == 6
