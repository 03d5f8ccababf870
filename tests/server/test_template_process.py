"""Templates that run away end, and the next conversation is rendered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from redraft.server import template_process, template_worker
from redraft.server.chat_template import ChatTemplate, ChatTemplateError, RenderOptions
from redraft.server.template_process import TemplateProcess

TURNS = [{"role": "user", "content": "hi"}]
AGAIN = [{"role": "user", "content": "still there?"}]
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{% for name, value in lipsum.__globals__.items() %}{{ value }}{% endfor %}",
    "{% set x = namespace(f=strftime_now) %}{{ x.f.__code__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_leaves_the_sandbox(source):
    turns = [dict(TURNS[0])]
    with contextlib.suppress(ChatTemplateError):
        # what the sandbox hides is undefined, and shows as nothing
        assert ChatTemplate(source, {}).render(turns) == ""
    assert turns == TURNS


def test_the_sandbox_is_jinjas_immutable_one():
    assert isinstance(ChatTemplate("", {})._environment, ImmutableSandboxedEnvironment)


def both(source):
    """What the first conversation is refused for, and how the process renders the next."""
    first = "{% if messages[0].content == 'hi' %}" + source + "{% else %}yes{% endif %}"

    async def run():
        renderer = TemplateProcess(ChatTemplate(first, {}))
        try:
            with pytest.raises(ChatTemplateError) as refused:
                await renderer.render(TURNS, RenderOptions())
            return str(refused.value), await renderer.render(AGAIN, RenderOptions())
        finally:
            await renderer.close()

    return asyncio.run(run())


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
POWER = "{% set n = messages | length + 9 %}{{ n ** (n ** 8) }}"
ENDLESS = "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "seconds", "reason"),
    [
        pytest.param(LOOP, 1.5, "took more than 1.5 s", id="time"),
        pytest.param(POWER, 1.5, "took more than 1.5 s", id="power"),
        pytest.param(DOUBLING, 60, "MemoryError", id="memory"),
        pytest.param("{{ messages[0].content * 9999999999 }}", 60, "MemoryError", id="one-huge-text"),
        pytest.param(ENDLESS, 60, "more than 16777216 characters", id="output"),
        pytest.param("{{ raise_exception('no') }}", 60, "no", id="refused"),
    ],
)
def test_runaway_templates_end(monkeypatch, source, seconds, reason):
    monkeypatch.setattr(template_process, "TEMPLATE_SECONDS", seconds)
    started = time.monotonic()
    refused, answer = both(source)
    assert reason in refused
    assert answer == "yes"
    assert time.monotonic() - started < 60


def test_a_cancelled_rendering_is_not_the_next_ones_answer():
    async def run():
        renderer = TemplateProcess(ChatTemplate("{{ messages[0].content }}", {}))
        try:
            assert await renderer.render(TURNS, RenderOptions()) == "hi"
            long = [{"role": "user", "content": "x" * 2_000_000}]
            task = asyncio.create_task(renderer.render(long, RenderOptions()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await renderer.render(AGAIN, RenderOptions())
        finally:
            await renderer.close()

    assert asyncio.run(run()) == "still there?"


def test_a_process_that_was_killed_fails_nobody():
    async def run():
        renderer = TemplateProcess(ChatTemplate("{{ messages[0].content }}", {}))
        try:
            await renderer.render(TURNS, RenderOptions())
            os.kill(renderer._process.pid, signal.SIGKILL)
            return await renderer.render(AGAIN, RenderOptions())
        finally:
            await renderer.close()

    assert asyncio.run(run()) == "still there?"


def test_the_process_ends_with_the_server_however_that_ends():
    code = (
        "import asyncio, os, signal\n"
        "from redraft.server.chat_template import ChatTemplate, RenderOptions\n"
        "from redraft.server.template_process import TemplateProcess\n"
        "async def run():\n"
        "    renderer = TemplateProcess(ChatTemplate('x', {}))\n"
        "    await renderer.render([], RenderOptions())\n"
        "    print(renderer._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(run())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{ended.stdout.strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_many_at_once_get_their_own_answers():
    async def run():
        renderer = TemplateProcess(ChatTemplate("{{ messages[0].content }}{{ flag }}", {}))
        turns = [[{"role": "user", "content": f"é\n{number}"}] for number in range(20)]
        try:
            options = RenderOptions(variables={"flag": True})
            return await asyncio.gather(*(renderer.render(turn, options) for turn in turns))
        finally:
            await renderer.close()

    assert asyncio.run(run()) == [f"é\n{number}True" for number in range(20)]


def test_a_limit_that_is_there_already_stays(monkeypatch):
    set_limits = []
    monkeypatch.setattr(template_worker.resource, "setrlimit", lambda what, value: set_limits.append(value))
    for hard in (500, template_worker.resource.RLIM_INFINITY):
        monkeypatch.setattr(template_worker.resource, "getrlimit", lambda what, hard=hard: (1, hard))
        template_worker._limit(template_worker.resource.RLIMIT_AS, 900)
    assert set_limits == [(500, 500), (900, template_worker.resource.RLIM_INFINITY)]


def test_the_process_limits_itself(monkeypatch):
    set_limits = {}
    monkeypatch.setattr(template_worker.resource, "setrlimit", lambda what, value: set_limits.update({what: value}))
    used = template_worker.resource.getrusage(template_worker.resource.RUSAGE_SELF)
    line = '{"messages": [{"role": "user", "content": "hi"}], "options": {}}'
    assert template_worker._result(ChatTemplate("{{ messages[0].content }}", {}), line) == {"text": "hi"}
    soft, _ = set_limits[template_worker.resource.RLIMIT_CPU]
    left = soft - used.ru_utime - used.ru_stime
    assert template_worker.TEMPLATE_SECONDS < left < template_worker.TEMPLATE_SECONDS + 10
