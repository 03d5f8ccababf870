"""Every bound on what a client may send, in one place; docs/limits.md says what happens beyond each.

Each is checked before anything of the request reaches the engine, so that no request can cost more than its share of
memory or time.  What depends on the model (context length, vocabulary) is checked in intake.py.
"""

from __future__ import annotations

from typing import Final

from redraft.server.engine import types

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
BODY_SECONDS: Final = 30.0
"""A body that has not arrived by then is answered with 408."""
MAX_HEAD_BYTES: Final = 16 * 1024
"""Request line and headers."""
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 15.0
"""A connection whose next request has not begun with a whole head by then is closed, with 408 if part of it came."""
KEEP_ALIVE_SECONDS: Final = 5
"""An idle connection is closed after so long."""
LINGER_SECONDS: Final = 2.0
"""How long a body that nobody wants is still read, so that its sender gets to read the answer."""
MAX_DEPTH: Final = 201
"""Nesting of a body's JSON, itself included; the parser's own bound."""
MAX_FIELDS: Final = 128
"""Keys of the request object, known or not."""

MAX_CHOICES: Final = 128
"""n times the number of prompts."""
MAX_MESSAGES: Final = 4096
MAX_PARTS: Final = 1024
"""Content parts of one message."""
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_STOP_TOKENS: Final = types.MAX_STOP_TOKENS
MAX_LOGIT_BIAS: Final = types.MAX_LOGIT_BIAS
MAX_LOGPROBS: Final = types.MAX_LOGPROBS
MAX_PROMPT_SCORES: Final = 2**19
"""Log-probabilities of prompts in one reply: tokens of all prompts, times choices, times 1 + the likeliest named."""
MAX_TOOLS: Final = 128
"""Tools of a request, and tool calls of one message."""
MAX_NAME_CHARS: Final = 64
"""Of a tool's name."""
MAX_ID_CHARS: Final = 256
"""Of a tool call's id."""
MAX_USER_CHARS: Final = 512
MAX_HELD_CALL: Final = 65_536
"""Characters kept back while they may be a tool call; more are text."""
MAX_SALT_CHARS: Final = 256
MAX_DRAFTED: Final = 63
"""Drafted nodes of a request in a round: what the kernels take, the root not counted."""
MAX_REQUEST_ID_CHARS: Final = 128
"""Of X-Request-Id; what is longer is cut."""
MAX_LOGGED_CHARS: Final = 8192
"""Of a prompt in the log, where prompts are logged at all."""
MAX_KEY_BYTES: Final = 4096
"""A longer API key is wrong without being looked at."""
MAX_RENDERED_CHARS: Final = 2 * MAX_BODY_BYTES
"""What a chat template may make of a conversation."""
TEMPLATE_SECONDS: Final = 10.0
"""How long a chat template may take."""
TEMPLATE_BYTES: Final = 1024 * 1024 * 1024
"""Address space of the process that renders chat templates."""
MAX_HELD_SPACES: Final = 1024
"""Spaces and line breaks kept back while they may stand next to a tag or a tool call; more are text."""
MAX_TOKENIZED: Final = 1024 * 1024
"""Characters of a text, and token ids of a list, that `/tokenize` and `/detokenize` take."""

MAX_MESSAGE_CHARS: Final = 1000
"""Of an error's message; the whole error body stays far below 16 KB."""
MAX_QUOTE_CHARS: Final = 100
"""Of any piece of the request quoted in an error."""

THREAD_CHARS: Final = 8192
"""Longer texts are tokenised in a thread, so that they do not hold up the streams of others."""
THREAD_SCORES: Final = 2048
"""Replies that tell of more tokens are written in a thread, for the same reason."""
MAX_PENDING_DELTAS: Final = 4096
"""Pieces of a stream that may wait for a client that does not read; with more, it is given less time."""
FULL_READER_SECONDS: Final = 5.0
"""That time: far longer than a lost packet holds up a client that reads."""
SLOW_READER_SECONDS: Final = 30.0
"""A client that has read nothing of its stream for so long is cut off, and its request cancelled."""
UNACKNOWLEDGED_SECONDS: Final = 60
"""Any connection whose client takes nothing of what it was sent for so long is dropped, by the kernel."""
READER_CHECK_SECONDS: Final = 1.0
"""How often it is looked whether a client reads."""
FLUSH_SECONDS: Final = 5
"""How long a server that has drained waits for its last answers to be read."""
PING_SECONDS: Final = 15.0
"""A silent stream sends a comment this often, so that proxies keep it open."""
RETRY_AFTER_SECONDS: Final = 5
"""What a client is told to wait when the server cannot take requests yet."""

MAX_GRAMMAR_CHARS: Final = 128 * 1024
"""Of a schema, regular expression or grammar; 100,000 characters of schema took 0.4 s to compile."""
MAX_ALTERNATIVES: Final = 1024
"""Texts of a `choice`."""
MAX_FORMAT_NAME_CHARS: Final = 64
