"""The process that renders chat templates for the server: a job a line on stdin, its result a line on stdout.

The first line is the template, answered with an empty one.  Memory is limited once, processor time before each job, so
that the process ends by itself however a template runs away and whether or not the server still lives.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from redraft.server.chat_template import ChatTemplate, ChatTemplateError, RenderOptions
from redraft.server.limits import TEMPLATE_BYTES, TEMPLATE_SECONDS


def main() -> None:
    """Render until stdin ends."""
    # an interrupt is the server's to handle; it ends this process by closing stdin
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_AS, TEMPLATE_BYTES)
    first = json.loads(sys.stdin.readline())
    template = ChatTemplate(first["source"], first["special_tokens"])
    print(flush=True)  # noqa: T201 (ready: what comes before does not count as the template's time)
    for line in sys.stdin:
        print(json.dumps(_result(template, line)), flush=True)  # noqa: T201 (the result's way out)


def _limit(what: int, most: int) -> None:
    """Allow this process ``most`` of ``what``, or what it was allowed anyway if that is less."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _result(template: ChatTemplate, line: str) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + TEMPLATE_SECONDS + 1
    _limit(resource.RLIMIT_CPU, int(seconds) + 1)
    job = json.loads(line)
    try:
        return {"text": template.render(job["messages"], RenderOptions(**job["options"]))}
    except ChatTemplateError as error:
        return {"error": str(error)[:10_000]}


if __name__ == "__main__":
    main()
