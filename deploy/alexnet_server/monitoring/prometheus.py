"""Prometheus on this machine for ``make monitor``, with an Alertmanager if one is installed, and its status page."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexnet_client.errors import BadInput
from alexnet_client.files import reason
from alexnet_server.child import ChildProcess
from alexnet_server.errors import LaunchError
from alexnet_server.monitoring.panels import ROWS
from alexnet_server.preflight import check_port

RETENTION = "31d"
"""The error budgets cover 30 days."""
START_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class MonitorOptions:
    """Directories and ports of Prometheus and the Alertmanager.

    Attributes:
        configuration: directory with prometheus.yml, rules/, targets/ and alertmanager.yml.
        data: directory for the recorded series and the logs; created if it does not exist.
        port: port of Prometheus on 127.0.0.1.
        alertmanager_port: port of the Alertmanager on 127.0.0.1.
    """

    configuration: Path
    data: Path
    port: int = 9090
    alertmanager_port: int = 9093

    @property
    def url(self) -> str:
        """Address of Prometheus."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def status_url(self) -> str:
        """Address of the status page."""
        return f"{self.url}/consoles/status.html"


@contextmanager
def monitoring(options: MonitorOptions) -> Iterator[tuple[ChildProcess, bool]]:
    """Run Prometheus during the block; yield its process, and whether an Alertmanager runs too.

    Raises:
        BadInput: Prometheus is not installed, a port is in use, or a directory cannot be used.
        LaunchError: Prometheus or the Alertmanager did not start, for example because its configuration is invalid.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise BadInput(
            "prometheus: command not found. On Debian or Ubuntu: apt-get install --no-install-recommends prometheus "
            "prometheus-alertmanager; on other systems download it from prometheus.io/download and add it to PATH"
        )
    if not (options.configuration / "prometheus.yml").is_file():
        raise BadInput(
            f"{options.configuration}/prometheus.yml: no such file; choose its directory with --configuration"
        )
    _check_port(options.port, "Prometheus", "--port")
    consoles = options.data / "consoles"
    try:
        consoles.mkdir(parents=True, exist_ok=True)
        (consoles / "status.html").write_text(status_page())
    except OSError as error:
        raise BadInput(
            f"{options.data}: cannot be written ({reason(error)}); choose another directory with --data"
        ) from None
    command = [
        program,
        f"--config.file={options.configuration}/prometheus.yml",
        f"--storage.tsdb.path={options.data}/series",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--web.listen-address=127.0.0.1:{options.port}",
        f"--web.console.templates={consoles}",
        f"--web.console.libraries={consoles}",
    ]
    with ExitStack() as stack:
        alerting = _start_alertmanager(options, stack)
        yield stack.enter_context(_running(command, options.data / "prometheus.log", options.url)), alerting


def status_page() -> str:
    """The status page: a Prometheus console template that needs no other files and no internet access."""
    panels = [asdict(panel) for panels in ROWS.values() for panel in panels if panel.main]
    environment = Environment(
        loader=PackageLoader("alexnet_server.monitoring", "."), autoescape=True, undefined=StrictUndefined
    )
    # Prometheus renders the page as a Go template, in which two braces start an action.
    content = Markup(json.dumps(panels).replace("<", "\\u003c").replace("{{", "\\u007b{"))  # noqa: S704  our own table
    page = environment.get_template("status.html.j2").render(panels=content)
    assert "{{" not in page
    return page


def _start_alertmanager(options: MonitorOptions, stack: ExitStack) -> bool:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        return False
    _check_port(options.alertmanager_port, "Alertmanager", "--alertmanager-port")
    command = [
        program,
        f"--config.file={options.configuration}/alertmanager.yml",
        f"--storage.path={options.data}/alertmanager",
        f"--web.listen-address=127.0.0.1:{options.alertmanager_port}",
        "--cluster.listen-address=",  # disables clustering
    ]
    stack.enter_context(
        _running(command, options.data / "alertmanager.log", f"http://127.0.0.1:{options.alertmanager_port}")
    )
    return True


def _check_port(port: int, purpose: str, option: str) -> None:
    check = check_port("127.0.0.1", port, purpose)
    if not check.ok:
        raise BadInput(
            f"{check.name}: {check.found}; stop that program (the service of the Debian package: "
            f"systemctl disable --now prometheus prometheus-alertmanager) or choose another port with {option}"
        )


@contextmanager
def _running(command: list[str], log: Path, url: str) -> Iterator[ChildProcess]:
    """Run a program during the block; its output is in ``log``, and it is ready when the block starts."""
    with log.open("wb") as output:
        process = ChildProcess(command, output=output.fileno())
    try:
        _wait_until_ready(process, f"{url}/-/ready", log)
        yield process
    finally:
        process.end()


def _wait_until_ready(process: ChildProcess, url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.exit_code is None:
        try:
            with urllib.request.urlopen(url, timeout=START_TIMEOUT_S):  # noqa: S310  loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_INTERVAL_S)
    errors = [line for line in log.read_text(errors="replace").splitlines() if "level=error" in line or "err=" in line]
    shown = "".join(f"\n  {line}" for line in errors[-3:])
    raise LaunchError(f"{url}: not ready{shown}\n  complete log: {log}")
