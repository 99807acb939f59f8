"""``make capacity``: writes ``CAPACITY.md`` anew from ``capacity.json``, after a run of the bench was put into that."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alexnet_server.capacity.costs import read_inputs
from alexnet_server.capacity.measured import with_run
from alexnet_server.capacity.page import page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deploy", type=Path, help="directory of capacity.json and CAPACITY.md")
    parser.add_argument(
        "--bench", type=Path, help="bench.json of a run with the capacity part: its figures become inputs"
    )
    arguments = parser.parse_args()
    inputs, written = arguments.deploy / "capacity.json", arguments.deploy / "CAPACITY.md"
    if arguments.bench is not None:
        new = with_run(json.loads(inputs.read_text()), json.loads(arguments.bench.read_text()))
        inputs.write_text(json.dumps(new, indent=2) + "\n")
        print(inputs)
    written.write_text(page(read_inputs(inputs)))
    print(written)


if __name__ == "__main__":
    main()
