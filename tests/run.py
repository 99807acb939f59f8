"""`make test`: all tests, in two processes, so that two processors have something to do while tests wait for servers.

Tests in which time matters go first in line for a processor; those that compute, and others that have patience, take what is
left. A test that measures comes last and alone. Options are pytest's, for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENT = (
    "tests/export",
    *(f"tests/e2e/test_{name}.py" for name in ("make", "rollout", "container", "lifecycle", "hostile", "hardening")),
    *(f"tests/e2e/test_{name}.py" for name in ("encoded", "verify")),
    "tests/client/test_package.py",
)
MEASURING = ("tests/e2e/test_fleet_of_three.py",)
LOG = ROOT / "build/tests-patient.txt"
NONE_CHOSEN = 5
"""pytest's exit code where options choose no test."""


def main(options: Sequence[str]) -> int:
    LOG.parent.mkdir(exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", *options]
    # One thread: of several, each waits for the slowest, and spins while it does.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with LOG.open("wb") as output:
        patient = subprocess.Popen(
            ["nice", "-n", "19", *pytest, "-p", "no:cacheprovider", *PATIENT],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=alone,
        )
    try:
        elsewhere = [f"--ignore={path}" for path in (*PATIENT, *MEASURING)]
        others = subprocess.run([*pytest, *elsewhere], cwd=ROOT, check=False).returncode
        print(f"Waiting for the patient ones: {', '.join(PATIENT)}", flush=True)
        codes = [others, patient.wait()]
    finally:
        patient.terminate()
    print(LOG.read_text(), flush=True)
    codes.append(subprocess.run([*pytest, "-p", "no:cacheprovider", *MEASURING], cwd=ROOT, check=False).returncode)
    chosen = [code for code in codes if not (options and code == NONE_CHOSEN)]
    return max(chosen, default=NONE_CHOSEN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
