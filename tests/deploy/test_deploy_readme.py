"""Each command of deploy/README.md exists, has these options, and names what is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from alexnet_client.__main__ import app as client
from alexnet_load.__main__ import app as load
from alexnet_server.__main__ import app as server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy/README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
OURS = {"alexnet-client": client, "alexnet-load": load, "alexnet-server": server}
KUBECTL = {("apply",), ("label", "namespace"), ("rollout", "status"), ("rollout", "undo")}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_shells(block):
    assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_given(command):
    words = shlex.split(command.removesuffix(" &"))
    if words[0] == "until":
        assert command.endswith("; do sleep 1; done")
        words = shlex.split(command.removeprefix("until ").removesuffix("; do sleep 1; done"))
    while re.fullmatch(r"[A-Z]+=\S+", words[0]):
        words.pop(0)
    name = Path(words[0]).name
    checks = {"docker": docker, "docker-compose": compose, "kubectl": kubectl, "make": make, "haproxy": haproxy}
    if name in OURS:
        ours(OURS[name], words[1:])
    elif name == "cd":
        assert words[1] == "../../../.." or (ROOT / words[1]).is_dir()
    elif name == "kustomize":
        assert words[1:4] == ["edit", "set", "image"]
        assert re.fullmatch(r"alexnet-(server|model)=registry\.example\.com/\S+@sha256:DIGEST", words[4])
    else:
        checks[name](words)


def ours(app, words):
    """Parsed as the command line would be; nothing is carried out."""
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("x", [], resilient_parsing=True), words)
    with command.make_context(name, rest) as context:
        assert context.params


def make(words):
    planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    options = next((word.partition("=")[2] for word in words if word.startswith("SERVE_OPTIONS=")), "")
    ours(server, ["serve", *shlex.split(options)])


def docker(words):
    if words[1] == "push":
        built = [shlex.split(line) for line in COMMANDS if line.startswith("docker build")]
        assert words[2] in {each[each.index("--tag") + 1] for each in built}
        return
    assert words[1] == "build"
    assert words[-1] == "."
    recipe = (ROOT / words[words.index("--file") + 1]).read_text()
    for place, word in enumerate(words):
        if word == "--build-arg":
            assert f"ARG {words[place + 1].partition('=')[0]}=" in recipe


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed (apt-get install)")
def test_compose_knows_every_profile_and_service_that_is_named():
    named = {
        word for line in COMMANDS if line.startswith("docker-compose") for word in re.findall(r"--profile (\w+)", line)
    }
    for profile in named:
        listed = subprocess.run(
            ["docker-compose", "--file", "deploy/compose/compose.yml", "--profile", profile, "config", "--services"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert {"cpu": "triton", "load": "load"}[profile] in listed.stdout.split()


def compose(words):
    assert (ROOT / words[words.index("--file") + 1]).is_file()
    rest = [word for word in words[words.index("--profile") + 2 :] if not word.startswith("-")]
    assert rest in (["up"], ["ps"], ["down"], ["run", "load"])


def kubectl(words):
    verbs = tuple(word for word in words[1:] if re.fullmatch("[a-z]+", word))
    assert any(verbs[: len(known)] == known for known in KUBECTL), verbs
    if "--kustomize" in words:
        assert (ROOT / words[words.index("--kustomize") + 1] / "kustomization.yaml").is_file()


def haproxy(words):
    assert (ROOT / words[words.index("-f") + 1]).is_file()
    if shutil.which("haproxy"):
        assert subprocess.run([*words, "-c"], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_every_file_that_is_named_is_there():
    for name in re.findall(r"`((?:deploy|tests|build/digits|overlays)/[\w./-]+)`", TEXT):
        path = f"deploy/kubernetes/{name}" if name.startswith("overlays") else name
        assert name.startswith("build") or (ROOT / path).exists(), name


def test_the_advisories_are_those_that_the_command_line_names():
    from alexnet_server.command import BULLETINS, VULNERABILITIES

    section = re.sub(r"\s+", " ", TEXT.split("## Which advisories decide")[1])
    years = dict(re.findall(r"bulletins ((?:\d{4}, )*\d{4}) \((\d{4})\)", section)) | dict(
        re.findall(r"and ((?:\d{4}, )*\d{4}) \((\d{4})\)", section)
    )
    assert {f"{year}/{number}" for numbers, year in years.items() for number in numbers.split(", ")} == set(BULLETINS)
    assert "57 vulnerabilities" in section
    assert VULNERABILITIES.startswith("Triton 2.51 has 57 published vulnerabilities, 6 of them critical")
    assert len(set(re.findall(r"CVE-2025-23\d+|-23\d{3}\b|CVE-2026-\d+", section)) - {"-23310", "-23316"}) == 6
