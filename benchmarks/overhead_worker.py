"""An engine's process that computes nothing: it commits random tokens to every request at a given pace.

Run by ``RemoteEngine`` in place of the real worker, and paced by the environment: ``REDRAFT_FAKE_PACE`` has tokens per
second of all requests together, tokens a round, and how many requests share that speed.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator

from redraft.server.engine.types import EngineInfo, EngineStats, FinishReason, Request, RoundOutput, StepOutput
from redraft.server.engine.wire import Cancel, Ready, Start, Stepped, Submit
from redraft.server.engine.worker import Connection

PACE = "REDRAFT_FAKE_PACE"
VOCABULARY = 500
"""Ids of the tiny target that are text."""


def main() -> None:
    """Answer until the server goes away."""
    rate, width, streams = (int(part) for part in os.environ[PACE].split(","))
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    start = connection.read()
    if not isinstance(start, Start):
        raise TypeError(f"expected Start, got {type(start).__name__}")
    threading.Thread(target=connection.listen, daemon=True).start()
    connection.send(Ready(_info(start, streams)))
    running: dict[str, Iterator[RoundOutput]] = {}
    due = time.perf_counter()
    while True:
        while not (running and connection.inbox.empty()):
            match connection.inbox.get():
                case Submit(request):
                    running[request.request_id] = _rounds(request, width)
                case Cancel(request_id):
                    running.pop(request_id, None)
        outputs = tuple(next(rounds) for rounds in running.values())
        for output in outputs:
            if output.finish_reason is not None:
                del running[output.request_id]
        connection.send(Stepped(StepOutput(outputs, EngineStats(running=len(running)))))
        # a round takes what it would on a device that decodes all streams at the given speed
        due = max(due + width * streams / rate, time.perf_counter() - 0.05)
        time.sleep(max(0.0, due - time.perf_counter()))


def _rounds(request: Request, width: int) -> Iterator[RoundOutput]:
    source = random.Random(request.params.seed)
    left = request.params.max_tokens
    while left:
        size = min(width, left)
        left -= size
        tokens = tuple(source.choices(range(VOCABULARY), k=size))
        finish = None if left else FinishReason.LENGTH
        yield RoundOutput(request.request_id, tokens, size - 1, size, finish, prompt_seconds=0.0)


def _info(start: Start, streams: int) -> EngineInfo:
    return EngineInfo(
        target=start.config.target_name,
        draft="fake-1",
        device="none",
        dtype="none",
        vocab_size=512,
        max_model_len=1 << 20,
        max_num_seqs=streams,
        max_nodes=8,
        eos_token_ids=(511,),
        fingerprint="fp_fake",
    )


if __name__ == "__main__":
    main()
