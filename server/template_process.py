"""Chat templates rendered beside the server.

A template comes with a model that somebody published, and Jinja's sandbox bounds what it may touch, not how long it
runs or how much it makes.  A thread that runs away cannot be ended, a process can.  One does for all requests: a
template takes about a millisecond, and the server's own loop is free meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from redraft.server.chat_template import ChatTemplate, ChatTemplateError, Message, RenderOptions
from redraft.server.limits import MAX_RENDERED_CHARS, TEMPLATE_SECONDS

LINE_BYTES = 16 * MAX_RENDERED_CHARS
"""No result is as long: JSON writes a character in 12 bytes at most."""


class TemplateProcess:
    """Renders one template; the process starts with the first use, and again after one that had to be ended."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def render(self, messages: Sequence[Message], options: RenderOptions) -> str:
        """As ``ChatTemplate.render``; also a template that takes too long or too much is a ``ChatTemplateError``."""
        # not asdict: it would copy tools and variables, value by value
        told = {field.name: getattr(options, field.name) for field in fields(options)}
        job = json.dumps({"messages": list(messages), "options": told})
        async with self._turn:
            # a process that has ended since the last answer is not this job's fault; a fresh one that ends is
            answer = await self._try(job) or await self._try(job)
        if answer is None:
            raise ChatTemplateError("the chat template took more memory or time than it may")
        if "error" in answer:
            raise ChatTemplateError(answer["error"])
        return str(answer["text"])

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _try(self, job: str) -> dict[str, Any] | None:
        """The process's answer; None where it ended without one."""
        done = False
        try:
            # the limits are the template's: starting a process takes what it takes
            process = await self._start()
            async with asyncio.timeout(TEMPLATE_SECONDS):
                answer = await self._exchange(process, job)
            done = True
            return answer
        except TimeoutError:
            raise ChatTemplateError(f"the chat template took more than {TEMPLATE_SECONDS:g} s") from None
        except (OSError, ValueError):
            return None
        finally:
            # cancelled, too: what it still writes would be taken for the next answer
            if not done:
                await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            # -P: the working directory must not shadow installed packages
            words = [sys.executable, "-P", "-m", "redraft.server.template_worker"]
            self._process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, limit=LINE_BYTES)
            first = {"source": self.template.source, "special_tokens": self.template.special_tokens}
            await self._send(self._process, json.dumps(first))
            assert self._process.stdout is not None
            await self._process.stdout.readline()
        return self._process

    async def _exchange(self, process: asyncio.subprocess.Process, job: str) -> dict[str, Any]:
        await self._send(process, job)
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(await process.stdout.readline())
        return answer

    async def _send(self, process: asyncio.subprocess.Process, line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
