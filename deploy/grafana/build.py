"""Writes the dashboards: ``python deploy/grafana/build.py``; a test compares them with what lies there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from serving import SERVING
from speculation import SPECULATION


def main(folder: Path) -> None:
    """Into ``folder``, one file each."""
    for name, board in (("serving", SERVING), ("speculation", SPECULATION)):
        (folder / f"{name}.json").write_text(json.dumps(board, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
