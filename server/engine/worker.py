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
from dataclasses import replace

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
        return read_to_engine(self._exactly(HEADER.unpack(self._exactly(HEADER.size))[0]))

    def _exactly(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def send(self, message: FromEngine) -> None:
        self.sock.sendall(frame(message))

    def listen(self) -> None:
        """Fill the inbox until the server goes away; then there is nobody to work for, so end the process."""
        try:
            while True:
                self.inbox.put(self.read())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def serve(engine: Engine, connection: Connection) -> None:
    """Step while there is work, wait for messages while there is none."""
    told = EngineStats()
    output = StepOutput()
    while True:
        if output.outputs or output.stats != told:
            connection.send(Stepped(output))
            told = output.stats
        refused: list[RoundOutput] = []
        while not connection.inbox.empty() or not (engine.busy or refused or engine.scheduler.stats() != told):
            refused += _take(engine, connection.inbox.get())
        output = engine.step() if engine.busy else StepOutput(stats=engine.scheduler.stats())
        output = replace(output, outputs=(*refused, *output.outputs))


def _take(engine: Engine, message: ToEngine) -> list[RoundOutput]:
    """Act on a message; what it answers at once."""
    match message:
        case Submit(request):
            try:
                engine.submit(request)
            except RedraftError as error:
                return [RoundOutput(request.request_id, finish_reason=FinishReason.ERROR, error=str(error))]
            except Exception as error:
                # nothing about one request may end those of others
                traceback.print_exc()
                reason = f"the request could not be taken ({type(error).__name__})"
                return [RoundOutput(request.request_id, finish_reason=FinishReason.ERROR, error=reason)]
        case Cancel(request_id):
            engine.cancel(request_id)
        case Start():
            raise RuntimeError("the engine is started already")
    return []


def main() -> None:
    """Load, say so, serve until the server goes away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # they reach the whole group; the server decides, and EOF ends this process
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    start = connection.read()
    if not isinstance(start, Start):
        raise TypeError(f"expected Start, got {type(start).__name__}")
    threading.Thread(target=connection.listen, daemon=True).start()
    try:
        engine = build_engine(start.config)
        engine.grammars.prepare()  # or the first structured request would hold up everybody's rounds for it
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
