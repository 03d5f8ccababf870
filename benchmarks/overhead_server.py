"""The real server over the engine of overhead_worker.py: ``python -m redraft.benchmarks.overhead_server PORT FOLDER``.

It says ``ready`` on stdout; logs go to stderr, as ``redraft serve`` has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

from redraft.server.app import create_app
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.remote import RemoteEngine
from redraft.server.serve import run
from redraft.server.settings import ServerSettings
from redraft.server.text import TextTokenizer


def main() -> None:
    """Serve until told to stop."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    settings = ServerSettings("fake", port=port)
    engine = RemoteEngine(EngineConfig(str(folder), "fake", ""), "redraft.benchmarks.overhead_worker")
    app = create_app(engine, TextTokenizer.from_folder(folder), settings)
    run(app, settings, lambda info, port: print("ready", flush=True))


if __name__ == "__main__":
    main()
