"""`make test`: all tests, in three processes, so that two processors have something to do while tests wait for servers.

Tests in which time matters go first in line for a processor; those that compute, and others that have patience, take what is
left. Options are pytest's, for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPUTING = ("tests/export", "tests/e2e/test_make.py", "tests/load/test_page.py")
WAITING = (
    *(
        f"tests/e2e/test_{name}.py"
        for name in ("rollout", "container", "lifecycle", "hostile", "hardening", "encoded", "verify")
    ),
    "tests/client/test_package.py",
    "tests/deploy/test_deployment.py",
)
LOGS = ROOT / "build"
NONE_CHOSEN = 5
"""pytest's exit code where options choose no test."""


def main(options: Sequence[str]) -> int:
    LOGS.mkdir(exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", *options]
    with ExitStack() as ending:
        patient = {
            LOGS / f"tests-{name}.txt": paths for name, paths in (("computing", COMPUTING), ("waiting", WAITING))
        }
        running = {log: _start([*pytest, "-p", "no:cacheprovider", *paths], log) for log, paths in patient.items()}
        for each in running.values():
            ending.callback(each.terminate)
        elsewhere = [f"--ignore={path}" for paths in patient.values() for path in paths]
        codes = [subprocess.run([*pytest, *elsewhere], cwd=ROOT, check=False).returncode]
        for log, each in running.items():
            print(f"Waiting for {', '.join(patient[log])}", flush=True)
            codes.append(each.wait())
            print(log.read_text(), flush=True)
    chosen = [code for code in codes if not (options and code == NONE_CHOSEN)]
    return max(chosen, default=NONE_CHOSEN)


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The patient ones: last in line, and with one thread, since of several each waits for the slowest, and spins meanwhile."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(["nice", "-n", "19", *command], cwd=ROOT, stdout=output, stderr=output, env=alone)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
