"""A Prometheus for this machine, with an Alertmanager if there is one: started, waited for, ended. For ``make monitor``."""

from __future__ import annotations

import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alexnet_server.checks import check_port
from alexnet_server.child import Companion
from alexnet_server.errors import LaunchError
from alexnet_server.monitoring.status_page import status_page

RETENTION = "31d"
"""The budgets of errors are for 30 days."""
START_S = 30.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class MonitorOptions:
    """How to watch.

    Attributes:
        configuration: directory with prometheus.yml, rules/, targets/ and alertmanager.yml.
        data: directory for what is recorded; made if it is not there.
        port: of Prometheus, on 127.0.0.1.
        alertmanager_port: of the Alertmanager, on 127.0.0.1.
    """

    configuration: Path
    data: Path
    port: int = 9090
    alertmanager_port: int = 9093

    @property
    def url(self) -> str:
        """Prometheus' own address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def status_url(self) -> str:
        """The page with the main graphs."""
        return f"{self.url}/consoles/status.html"


@contextmanager
def monitoring(options: MonitorOptions) -> Iterator[tuple[Companion, bool]]:
    """Prometheus while the block runs, and whether an Alertmanager runs beside it.

    Raises:
        LaunchError: it is not installed, cannot listen, or refuses its configuration.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise LaunchError(
            "prometheus: no such program. On Debian or Ubuntu: apt-get install --no-install-recommends prometheus "
            "prometheus-alertmanager; elsewhere take it from prometheus.io/download and put it into the PATH"
        )
    if not (options.configuration / "prometheus.yml").is_file():
        raise LaunchError(
            f"{options.configuration}/prometheus.yml: no such file; name its directory with --configuration"
        )
    _check_port(options.port, "Prometheus", "--port")
    consoles = options.data / "consoles"
    log = options.data / "prometheus.log"
    try:
        consoles.mkdir(parents=True, exist_ok=True)
        (consoles / "status.html").write_text(status_page())
    except OSError as error:
        raise LaunchError(
            f"{options.data}: cannot be written ({error.strerror}); name another place with --data"
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
        alerting = _alertmanager(options, stack)
        prometheus = stack.enter_context(companion(command, log))
        _wait(f"{options.url}/-/ready", lambda: prometheus.exit_code is None, log)
        yield prometheus, alerting


def _check_port(port: int, purpose: str, option: str) -> None:
    found = check_port("127.0.0.1", port, purpose)
    if not found.ok:
        raise LaunchError(
            f"{found.name}: {found.found}; end it (if it is the package's own service: "
            f"systemctl disable --now prometheus prometheus-alertmanager) or choose another with {option}"
        )


@contextmanager
def companion(command: list[str], log: Path) -> Iterator[Companion]:
    """A program while the block runs, its lines in a file."""
    with log.open("wb") as output:
        started = Companion(command, output=output.fileno())
    try:
        yield started
    finally:
        started.end()


def _alertmanager(options: MonitorOptions, stack: ExitStack) -> bool:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        return False
    _check_port(options.alertmanager_port, "Alertmanager", "--alertmanager-port")
    command = [
        program,
        f"--config.file={options.configuration}/alertmanager.yml",
        f"--storage.path={options.data}/alertmanager",
        f"--web.listen-address=127.0.0.1:{options.alertmanager_port}",
        "--cluster.listen-address=",  # one alone, which listens to no others
    ]
    log = options.data / "alertmanager.log"
    started = stack.enter_context(companion(command, log))
    _wait(f"http://127.0.0.1:{options.alertmanager_port}/-/ready", lambda: started.exit_code is None, log)
    return True


def _wait(url: str, alive: Callable[[], bool], log: Path) -> None:
    give_up_s = time.monotonic() + START_S
    while time.monotonic() < give_up_s:
        if not alive():
            break
        try:
            with urllib.request.urlopen(url, timeout=START_S):  # noqa: S310  our own, on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(LOOK_EVERY_S)
    words = [line for line in log.read_text(errors="replace").splitlines() if "level=error" in line or "err=" in line]
    said = "".join(f"\n  {line}" for line in words[-3:])
    raise LaunchError(f"{url}: no answer{said}\n  the whole log: {log}")
