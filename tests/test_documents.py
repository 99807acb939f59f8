"""The documents: their commands exist and have the options that they are given, their links and the named files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from alexnet_client.__main__ import app as client
from alexnet_export.__main__ import app as export
from alexnet_load.cli import app as load
from alexnet_server.__main__ import app as server

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "*/README.md", "deploy/*.md", "tests/benchmarks/README.md")
DOCUMENTS = {path.relative_to(ROOT): path.read_text() for name in NAMES for path in sorted(ROOT.glob(name))}
DEPLOY = DOCUMENTS[Path("deploy/README.md")]
BLOCKS = [block for text in DOCUMENTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
INDENTED = [
    line.strip()
    for text in DOCUMENTS.values()
    for line in re.findall(r"^    (?:make|alexnet-\w+|\.venv/bin/alexnet-\w+) .*", text, re.MULTILINE)
]
COMMANDS = [line for block in BLOCKS if "curl" not in block for line in block.splitlines() if line]
COMMANDS = sorted({*COMMANDS, *INDENTED})
"""Without the blocks for HTTP, which tests/e2e/test_http.py runs."""
APPS = {"alexnet-client": client, "alexnet-export": export, "alexnet-load": load, "alexnet-server": server}
KUBECTL = {("apply",), ("label", "namespace"), ("rollout", "status"), ("rollout", "undo")}
COMPOSE = yaml.safe_load((ROOT / "deploy/compose/compose.yml").read_text())["services"]


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_is_valid_shell(block):
    assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_valid(command):
    words = shlex.split(re.sub(r"^until (.*); do sleep 1; done$", r"\1", command).removesuffix(" &"), comments=True)
    name = Path(words[0]).name
    checks = {"docker": docker, "docker-compose": compose, "kubectl": kubectl, "make": make, "haproxy": haproxy}
    if name in APPS:
        parse(APPS[name], words[1:])
    elif name == "cd":
        assert words[1] == "../../../.." or (ROOT / words[1]).is_dir()
    elif name == "kustomize":
        assert re.fullmatch(r"edit set image alexnet-(server|model)=registry\S+@sha256:DIGEST", " ".join(words[1:]))
    else:
        checks[name](words)


def parse(app, words):
    """Parse a command line without running it; invalid ones raise an exception."""
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("x", [], resilient_parsing=True), words)
    with command.make_context(name, rest) as context:
        assert context.params


def make(words):
    words = [word for word in words if not word.startswith("DATA_DIR=")]  # the directory need not exist
    planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    options = next((word.partition("=")[2] for word in words if word.startswith("SERVE_OPTIONS=")), "")
    parse(server, ["serve", *shlex.split(options)])


def docker(words):
    if words[1] == "push":
        built = [shlex.split(line) for line in COMMANDS if line.startswith("docker build")]
        assert words[2] in {each[each.index("--tag") + 1] for each in built}
        return
    assert (words[1], words[-1]) == ("build", ".")
    dockerfile = (ROOT / words[words.index("--file") + 1]).read_text()
    arguments = [words[place + 1].partition("=")[0] for place, word in enumerate(words) if word == "--build-arg"]
    assert all(f"ARG {each}=" in dockerfile for each in arguments)


def compose(words):
    assert (ROOT / words[words.index("--file") + 1]).is_file()
    profile, *rest = words[words.index("--profile") + 1 :]
    assert profile in {each for service in COMPOSE.values() for each in service["profiles"]}
    assert [word for word in rest if not word.startswith("-")] in (["up"], ["ps"], ["down"], ["run", "load"])


def kubectl(words):
    verbs = tuple(word for word in words[1:] if re.fullmatch("[a-z]+", word))
    assert any(verbs[: len(known)] == known for known in KUBECTL), verbs
    if "--kustomize" in words:
        assert (ROOT / words[words.index("--kustomize") + 1] / "kustomization.yaml").is_file()


def haproxy(words):
    assert (ROOT / words[words.index("-f") + 1]).is_file()
    if shutil.which("haproxy"):
        assert subprocess.run([*words, "-c"], cwd=ROOT, capture_output=True, check=False).returncode == 0


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
    from alexnet_server.command import BULLETINS, VULNERABILITIES

    section = DEPLOY.split("## Security warning")[1].split("\n## ")[0]
    assert set(re.findall(r"\b20\d\d/\d{4}\b", section)) == set(BULLETINS)
    assert re.findall(r"(\d+) vulnerabilities since, (\d+) of them critical", section) == [("57", "6")]
    assert VULNERABILITIES.startswith("Triton 2.51 has 57 published vulnerabilities, 6 of them critical")
    assert len(set(re.findall(r"CVE-20\d\d-\d+", section))) == 6
