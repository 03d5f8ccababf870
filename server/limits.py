"""Every bound on what a client may send, in one place.

Each is checked before anything of the request reaches the engine, so that no request can cost more than its share of
memory or time.  What depends on the model (context length, vocabulary) is checked in intake.py.
"""

from __future__ import annotations

from typing import Final

from redraft.server.engine import types

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
BODY_SECONDS: Final = 30.0
"""A body that has not arrived by then is answered with 408."""
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
MAX_USER_CHARS: Final = 512
MAX_SALT_CHARS: Final = 256
MAX_DRAFTED: Final = 63
"""Drafted nodes of a request in a round: what the kernels take, the root not counted."""
MAX_REQUEST_ID_CHARS: Final = 128
"""Of X-Request-Id; what is longer is cut."""
MAX_LOGGED_CHARS: Final = 8192
"""Of a prompt in the log, where prompts are logged at all."""
MAX_KEY_BYTES: Final = 4096
"""A longer API key is wrong without being looked at."""

MAX_MESSAGE_CHARS: Final = 1000
"""Of an error's message; the whole error body stays far below 16 KB."""
MAX_QUOTE_CHARS: Final = 100
"""Of any piece of the request quoted in an error."""

THREAD_CHARS: Final = 8192
"""Longer texts are tokenised in a thread, so that they do not hold up the streams of others."""
PING_SECONDS: Final = 15.0
"""A silent stream sends a comment this often, so that proxies keep it open."""
RETRY_AFTER_SECONDS: Final = 5
"""What a client is told to wait when the server cannot take requests yet."""

MAX_GRAMMAR_CHARS: Final = 128 * 1024
"""Of a schema, regular expression or grammar: what compiles in well under a tenth of a second."""
MAX_ALTERNATIVES: Final = 1024
"""Texts of a `choice`."""
MAX_FORMAT_NAME_CHARS: Final = 64
