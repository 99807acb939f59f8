"""`make test`: all tests, in three processes, so that two processors have something to do while tests wait for servers.

Tests in which time matters go first in line for a processor; what computes and waits for nobody takes what is left. Options
are pytest's, for all of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMED = (
    *(f"tests/e2e/test_{name}.py" for name in ("client", "faults", "fleet_of_three", "load", "monitoring", "traces")),
    "tests/load/test_conduct.py",
    "tests/client/test_package.py",
)
COMPUTED = ("tests/export", "tests/e2e/test_make.py")
NONE_CHOSEN = 5
"""pytest's exit code where options choose no test."""


def main(options: Sequence[str]) -> int:
    others = [f"--ignore={path}" for path in (*TIMED, *COMPUTED)]
    started = {
        "waiting": start([*others, *options], nice=10, log=ROOT / "build/tests-waiting.txt"),
        "computed": start([*COMPUTED, *options], nice=19, log=ROOT / "build/tests-computed.txt"),
    }
    try:
        codes = [start([*TIMED, *options]).wait()]
        for name, process in started.items():
            codes.append(process.wait())
            print((ROOT / f"build/tests-{name}.txt").read_text(), flush=True)
    finally:
        for process in started.values():
            process.terminate()
    chosen = [code for code in codes if not (options and code == NONE_CHOSEN)]
    return max(chosen, default=NONE_CHOSEN)


def start(arguments: Sequence[str], *, nice: int = 0, log: Path | None = None) -> subprocess.Popen[bytes]:
    """A pytest process, its lines in a file or on the terminal."""
    command = ["nice", "-n", str(nice), sys.executable, "-m", "pytest", *arguments]
    if log is None:
        return subprocess.Popen(command, cwd=ROOT)
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen([*command, "-p", "no:cacheprovider"], cwd=ROOT, stdout=output, stderr=output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
