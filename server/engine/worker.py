"""The engine's process: takes messages from the socket it was given, steps while there is work, sends what came of it.

Started by ``RemoteEngine`` as ``python -m redraft.server.engine.worker FD``.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import traceback

from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import EngineStats, FinishReason, RedraftError, RoundOutput, StepOutput
from redraft.server.engine.wire import (
    HEADER,
    Cancel,
    Failed,
    FromEngine,
    Ready,
    Start,
    Stepped,
    Submit,
    ToEngine,
    frame,
    read_to_engine,
)


class Connection:
    """Blocking frames over a socket; a thread reads them into a queue."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.stream = sock.makefile("rb")

    def read(self) -> ToEngine:
        """The next message; raises ``EOFError`` when the server is gone."""
        header = self.stream.read(HEADER.size)
        if len(header) < HEADER.size:
            raise EOFError
        return read_to_engine(self.stream.read(HEADER.unpack(header)[0]))

    def send(self, message: FromEngine) -> None:
        self.sock.sendall(frame(message))

    def listen(self) -> None:
        """Fill the inbox until the server goes away; then there is nobody to work for, so end the process."""
        try:
            while True:
                self.inbox.put(self.read())
        except (EOFError, OSError):
            os._exit(0)


def serve(engine: Engine, connection: Connection) -> None:
    """Step while there is work, wait for messages while there is none."""
    told = EngineStats()
    while True:
        while not engine.busy or not connection.inbox.empty():
            _take(engine, connection)
        output = engine.step()
        if output.outputs or output.stats != told:
            connection.send(Stepped(output))
            told = output.stats


def _take(engine: Engine, connection: Connection) -> None:
    match connection.inbox.get():
        case Submit(request):
            try:
                engine.submit(request)
            except RedraftError as error:
                refused = RoundOutput(request.request_id, finish_reason=FinishReason.ERROR, error=str(error))
                connection.send(Stepped(StepOutput((refused,), engine.scheduler.stats())))
        case Cancel(request_id):
            engine.cancel(request_id)
            if not engine.busy:
                connection.send(Stepped(StepOutput((), engine.scheduler.stats())))
        case Start():
            raise RuntimeError("the engine is started already")


def main() -> None:
    """Load, say so, serve until the server goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole group; the server decides
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    start = connection.read()
    if not isinstance(start, Start):
        raise TypeError(f"expected Start, got {type(start).__name__}")
    threading.Thread(target=connection.listen, daemon=True).start()
    try:
        engine = build_engine(start.config)
        connection.send(Ready(engine.info))
        serve(engine, connection)
    except RedraftError as error:
        connection.send(Failed(str(error)))
    except BaseException as error:
        traceback.print_exc()
        connection.send(Failed(f"{type(error).__name__}: {error}"))
        raise


if __name__ == "__main__":
    main()
