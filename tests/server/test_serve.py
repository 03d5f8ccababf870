"""Starting and stopping the whole process."""

from __future__ import annotations

import os
import signal
import socket
import threading

import httpx2
import pytest

from redraft.server.app import create_app
from redraft.server.engine.types import RedraftError
from redraft.server.serve import run
from redraft.server.settings import ServerSettings

GOOD = {"model": "toy", "prompt": "hi"}


def app_of(engine, tokenizer, **settings):
    chosen = ServerSettings("toy", port=0, **settings)
    return create_app(engine, tokenizer, chosen), chosen


def test_a_taken_port_is_said(canned, tokenizer):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings("toy", port=taken.getsockname()[1])
        with pytest.raises(RedraftError, match="choose another --host or --port"):
            run(create_app(canned.engine(), tokenizer, settings), settings)


def test_an_engine_that_cannot_start_ends_the_server(canned, tokenizer):
    engine = canned.engine()
    engine.info = None
    with pytest.raises(RedraftError, match="does not fit"):
        run(*app_of(engine, tokenizer))
    assert engine.closed


def test_a_signal_lets_running_requests_end(canned, tokenizer):
    engine = canned.engine("some text", pause=0.1)
    app, settings = app_of(engine, tokenizer)
    replies = []

    def client(port):
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            asking = threading.Thread(target=lambda: replies.append(http.post("/v1/completions", json=GOOD)))
            asking.start()
            assert engine.started.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
            asking.join(20)

    clients = []

    def on_ready(info, port):
        clients.append(threading.Thread(target=client, args=(port,)))
        clients[0].start()

    run(app, settings, on_ready)
    clients[0].join(20)
    assert replies[0].json()["choices"][0]["text"] == "some text"
    assert app.state.service.draining
    assert engine.closed
