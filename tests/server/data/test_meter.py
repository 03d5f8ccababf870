"""Progress: speed, and how seldom a log hears of it."""

from __future__ import annotations

import io
import sys

from redraft.server.data.meter import INTERVAL, Meter, metered, plain_lines


def test_plain_lines_come_now_and_then(capsys):
    now = 0.0
    meter = Meter(total=1000, done=100, show=plain_lines("Answering"), clock=lambda: now)
    for second in range(1, 201):
        now = float(second)
        meter.add_tokens(50)
        meter.add_rows(2)
    lines = capsys.readouterr().err.splitlines()
    # the tokens of a second are counted before its rows
    assert lines == [
        f"Answering: {100 + 2 * (second - 1)} of 1000, 50 tokens/s" for second in range(30, 200, int(INTERVAL))
    ]
    assert (meter.done, meter.tokens, meter.seconds, meter.rate) == (500, 10_000, 200.0, 50.0)


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with metered("Answering", 8, 3) as meter:
        meter.add_tokens(10)
        meter.add_rows()
    assert "Answering" in screen.getvalue()
    assert "4/8" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()
