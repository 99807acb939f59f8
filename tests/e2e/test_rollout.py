"""Releases change under load on the real server: none is lost, what is worse is not put to service, and going back works."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from alexnet_client import Client, RetryOptions
from alexnet_export.publish import publish
from alexnet_server.__main__ import app
from alexnet_server.rollout.pins import pin

MODEL = "alexnet"
IMAGE = np.zeros((1, 224, 224, 3), np.uint8)
PHOTO = Path(__file__).parents[1] / "golden/photo.jpg"


@dataclass
class Shop:
    """A repository of its own, images, and the cheap release's weights to make others of."""

    repository: Path
    images: Path
    labels: list[str]

    def publish(self, change) -> int:
        """The next version: the first one's with other weights."""
        network = onnx.load(self.repository / MODEL / "1/model.onnx")
        (weights,) = [each for each in network.graph.initializer if each.name == "weights"]
        weights.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights)), "weights"))
        file = self.repository.parent / "next.onnx"
        onnx.save(network, file)
        facts = {"precision": "fp32", "max_batch_size": 64}
        return publish(self.repository, {"model.onnx": file}, self.labels, facts).version

    def configs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.repository / MODEL).rglob("*.pbtxt")))


@pytest.fixture
def shop(cheap, digits, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(cheap.repository, repository)
    images = tmp_path / "images"
    images.mkdir()
    dice = np.random.default_rng(7)
    for number in range(12):
        pixels = dice.integers(0, 256, (8, 8, 3), np.uint8).repeat(28, 0).repeat(28, 1)
        Image.fromarray(pixels).save(images / f"{number}.png")
    return Shop(repository, images, list(digits.labels))


@dataclass
class Asked:
    """What callers were told meanwhile."""

    versions: list[int] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)


@asynccontextmanager
async def asking(target: str):
    """Callers of pixels and of files, whose clients never ask twice: a request that is lost is seen."""
    asked, ended, once = Asked(), asyncio.Event(), RetryOptions(max_attempts=1)
    photo = np.array([[PHOTO.read_bytes()]], object)
    async with (
        Client(target, timeout_s=10, retries=once) as pixels,
        Client(target, model="alexnet_encoded", timeout_s=10, retries=once) as files,
    ):

        async def ask(client: Client, image: np.ndarray) -> None:
            while not ended.is_set():
                try:
                    answer = await client.infer(image)
                except Exception as error:  # noqa: BLE001  any would be too many
                    asked.failed.append(error)
                    continue
                if client is pixels:  # an ensemble has a version of its own
                    asked.versions.append(int(answer.model_version))

        callers = [asyncio.create_task(ask(client, image)) for client, image in ((pixels, IMAGE), (files, photo)) * 2]
        try:
            yield asked
        finally:
            await asyncio.sleep(3)  # what the launcher takes for a lost backend process, it takes so within a second
            ended.set()
            await asyncio.gather(*callers)


async def command(name: str, server, shop: Shop, *options: str) -> tuple[int, str, dict]:
    line = (name, "--repository", shop.repository, "--target", server.target, *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alexnet_server", *map(str, line), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = (part.decode() for part in await process.communicate())
    assert "Traceback" not in err
    return process.returncode, out + err, json.loads(out.splitlines()[-1]) if process.returncode == 0 else {}


async def test_a_release_is_rolled_out_and_back_under_load_without_a_lost_request(own_server, shop):
    with own_server("--rollouts", repository=shop.repository) as server:
        assert shop.publish(lambda weights: weights * np.float32(1.01)) == 2
        async with asking(server.target) as asked:
            code, said, done = await command("rollout", server, shop, "--images", str(shop.images), "--slower", "50")
            assert code == 0, said
            assert (done["served"], done["serves"]) == (1, 2)
            assert done["comparison"]["agreement"] == 1
            assert 0 < done["comparison"]["largest_difference"] < 0.1
        assert asked.failed == []
        assert asked.versions == sorted(asked.versions)
        assert set(asked.versions) == {1, 2}
        assert shop.configs().count("versions: [2]") == 4

        # A server that is started again takes the release that was put to service, not one that was only published.
        assert shop.publish(lambda weights: -weights) == 3
        server.triton().send_signal(signal.SIGKILL)
        await asyncio.to_thread(restarted, server)
        async with Client(server.target) as client:
            assert (await client.infer(IMAGE)).model_version == "2"

        async with asking(server.target) as asked:
            code, said, done = await command("rollback", server, shop)
            assert code == 0, said
            assert (done["served"], done["serves"]) == (2, 1)
        assert asked.failed == []
        assert set(asked.versions) == {2, 1}
        assert server.health()[1]["restarts"] == 1  # the one above: what was unloaded is not missed


def restarted(server) -> None:
    line = server.process.stdout.readline()
    assert "Serving again" in line, line


async def test_a_release_that_answers_otherwise_or_was_altered_is_not_put_to_service(own_server, shop):
    with own_server("--rollouts", repository=shop.repository) as server:
        shop.publish(lambda weights: -weights)
        before = shop.configs()
        async with asking(server.target) as asked:
            code, said, _ = await command("rollout", server, shop, "--images", str(shop.images), "--slower", "50")
            assert code == 1
            assert re.search(r"version 2 is not put to service, version 1 goes on: [\d.]+% of its answers", said)
            (shop.repository / MODEL / "2/model.onnx").write_bytes(b"something else")
            code, said, _ = await command("rollout", server, shop, "--without-comparison")
            assert code == 1
            assert "is not the file that was published" in said
        assert asked.failed == []
        assert set(asked.versions) == {1}
        assert shop.configs() == before
        assert server.health()[1]["restarts"] == 0


async def test_a_release_that_cannot_be_loaded_leaves_the_old_one_serving_and_the_configuration_as_it_was(
    own_server, shop
):
    with own_server("--rollouts", repository=shop.repository) as server:
        broken = shop.repository.parent / "broken.onnx"
        broken.write_bytes(b"no network")
        publish(shop.repository, {"model.onnx": broken}, shop.labels, {"precision": "fp32", "max_batch_size": 64})
        before = shop.configs()
        async with asking(server.target) as asked:
            code, said, _ = await command("rollout", server, shop, "--without-comparison")
            assert code == 1
            assert "version 2 cannot be served" in said
            assert "version 1 serves again" in said
        assert asked.failed == []
        assert set(asked.versions) == {1}
        assert shop.configs() == before
        assert server.health()[1]["restarts"] == 0  # version 1 was loaded again, so its first process ended


async def test_a_rollout_that_is_broken_off_leaves_server_and_configuration_agreeing(own_server, shop):
    with own_server("--rollouts", repository=shop.repository) as server:
        shop.publish(lambda weights: weights * np.float32(1.01))
        before = shop.configs()
        line = ("rollout", "--repository", shop.repository, "--target", server.target, "--images", shop.images)
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "alexnet_server", *map(str, (*line, "--requests", "100000")),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            while b"is loaded beside" not in await process.stdout.readline():
                assert process.returncode is None
            again, said, _ = await command("rollback", server, shop)
            assert again == 1
            assert "another rollout or rollback is under way" in said
            process.send_signal(number)
            _, err = await process.communicate()
            assert process.returncode == (1 if number == signal.SIGTERM else -signal.SIGKILL)
            assert b"Traceback" not in err
            assert shop.configs() == before
        code, said, done = await command("rollout", server, shop, "--images", str(shop.images), "--slower", "50")
        assert code == 0, said
        assert done["serves"] == 2
        assert server.health()[1]["restarts"] == 0


async def test_mistakes_are_told_with_what_to_do(own_server, shop):
    with own_server(repository=shop.repository) as server:
        shop.publish(lambda weights: weights)
        code, said, _ = await command("rollout", server, shop, "--images", str(shop.images))
        assert code == 1
        assert "alexnet-server serve --rollouts" in said
        for name, more in (("rollout", ["--without-comparison"]), ("rollback", [])):
            code, said, _ = await command(name, server, shop, *more)
            assert code == 1
            assert "alexnet-server serve --rollouts" in said
        code, said, _ = await command("rollout", server, shop)
        assert code == 1
        assert "--images" in said
    with own_server("--rollouts", repository=shop.repository) as server:
        code, said, _ = await command("rollout", server, shop, "--to", "9", "--without-comparison")
        assert code == 1
        assert "has no version 9, only 1, 2" in said
        code, said, _ = await command("rollback", server, replace(shop, repository=shop.images))
        assert code == 1
        assert "no published release is there" in said


def test_a_pin_is_told_and_taken_away_again(shop, free_port):
    shop.publish(lambda weights: weights)
    pin(shop.repository / MODEL, 1)
    model = ("--repository", shop.repository)
    ports = ("--grpc-port", free_port(), "--metrics-port", free_port(), "--health-port", 0)
    line = (sys.executable, "-m", "alexnet_server", "serve", *model, *ports, "--", "true")
    served = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=60, check=True)
    assert "version 1 is pinned, version 2 is the newest" in served.stderr
    done = CliRunner().invoke(app, ["unpin", *map(str, model)])
    assert done.exit_code == 0
    assert "serves version 2, the newest" in done.stdout
    assert "specific" not in shop.configs()
