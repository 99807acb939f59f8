"""``make monitoring``: writes the generated files anew."""

from __future__ import annotations

import sys
from pathlib import Path

from alexnet_server.monitoring.generated import files


def main(deploy: Path) -> None:
    for name, content in files(deploy).items():
        path = deploy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
