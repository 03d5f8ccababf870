"""Messages between the server's process and the engine's: msgpack frames over a socket pair, never pickle."""

from __future__ import annotations

import struct

import msgspec

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import EngineInfo, Request, StepOutput

HEADER = struct.Struct(">I")
"""Each frame is preceded by its length in bytes."""


class Start(msgspec.Struct, tag=True, frozen=True):
    """First message to the engine: load this."""

    config: EngineConfig


class Submit(msgspec.Struct, tag=True, frozen=True):
    request: Request


class Cancel(msgspec.Struct, tag=True, frozen=True):
    request_id: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The engine takes requests."""

    info: EngineInfo


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine could not load or cannot go on; its process ends after this."""

    message: str


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """What one step committed; at most one message a round."""

    output: StepOutput


ToEngine = Start | Submit | Cancel
FromEngine = Ready | Failed | Stepped

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """``message`` with its length in front."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def read_to_engine(body: bytes) -> ToEngine:
    message: ToEngine = _to_engine.decode(body)
    return message


def read_from_engine(body: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(body)
    return message
