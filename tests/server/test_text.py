"""Tokenizer and chat template from a checkpoint's folder."""

from __future__ import annotations

import json

import pytest

from redraft.server.chat_template import ChatTemplate, ChatTemplateError, RenderOptions
from redraft.server.engine.types import RedraftError
from redraft.server.text import TextTokenizer

TURNS = [{"role": "user", "content": "{{ 7 * 7 }}<b>&"}]


def test_content_is_not_a_template(tokenizer):
    assert tokenizer.chat_template.render(TURNS) == "<user>{{ 7 * 7 }}<b>&\n<assistant>"


def test_what_the_template_refuses_is_said(tokenizer):
    with pytest.raises(ChatTemplateError, match="unknown role"):
        tokenizer.chat_template.render([{"role": "wizard", "content": ""}])


def test_template_cannot_leave_the_sandbox():
    template = ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(ChatTemplateError):
        template.render(TURNS)


def test_what_templates_on_the_hub_use():
    source = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}"
        "{% endfor %}{% set ns = namespace(seen=true) %}{% if ns.seen and add_generation_prompt %}!{% endif %}"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(TURNS) == f"<s>{json.dumps(TURNS[0])}!"


def test_a_broken_template_is_the_operators_to_mend():
    with pytest.raises(RedraftError, match="chat template is broken"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        pytest.param("{{ eos_token }}", "<|end|>", id="text"),
        pytest.param(
            [{"name": "rag", "template": "t"}, {"name": "default", "template": "d"}], "d", id="named-templates"
        ),
    ],
)
def test_template_inside_the_config(tokenizer_folder, tmp_path, stored, expected):
    (tmp_path / "tokenizer.json").write_text((tokenizer_folder / "tokenizer.json").read_text())
    config = {"chat_template": stored, "eos_token": {"content": "<|end|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextTokenizer.from_folder(tmp_path).chat_template.render(TURNS) == expected


def test_a_template_of_its_own_for_tools(tokenizer_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text((tokenizer_folder / "tokenizer.json").read_text())
    tools = "\n{%- set start = '<t>' %}\n{{ start }}{{ tools | length }}<tool_call>\n"
    named = {"default": "\n{{ messages[0].role }}\n", "tool_use": tools}
    stored = [{"name": name, "template": template} for name, template in named.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    template = TextTokenizer.from_folder(tmp_path).chat_template
    for name, options in (("default", RenderOptions()), ("tool_use", RenderOptions(tools=[{"type": "function"}]))):
        assert template.render(TURNS, options) == ChatTemplate(named[name], {}).render(TURNS, options)
    assert template.knows_tools


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools %}x{% endif %}",
        "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{{ tools }}",
        "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}{{ tools }}",
        "{% macro m(tools) %}{{ tools }}{% endmacro %}{{ m(tools) }}",
    ],
)
def test_templates_that_know_tools(source):
    assert ChatTemplate(source, {}).knows_tools


@pytest.mark.parametrize(
    "source",
    ["tools", "{{ 'tools' }}", "{% macro m(tools) %}{{ tools }}{% endmacro %}", "{% set tools = 1 %}{{ tools }}"],
)
def test_templates_that_do_not_know_tools(source):
    assert not ChatTemplate(source, {}).knows_tools


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(RedraftError, match=r"has no tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_special_tokens_are_read_and_not_shown(tokenizer):
    (end,) = tokenizer.encode("<|end|>")
    assert tokenizer.decode([*tokenizer.encode("hi"), end]) == "hi"


CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{
'<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']
+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TRIMMED = """{%- set ns = namespace(last=none) %}
{%- for message in messages %}
    {%- set ns.last = message.role %}
    {%- generation %}
{{- eos_token }}{{ message.content | trim }} {{ message | tojson(indent=2) }}
    {%- endgeneration %}

{% endfor %}
{%- if ns.last == "user" and tools is not defined %}
    {{- bos_token | default("none") }}
{% endif %}
"""


@pytest.mark.parametrize("source", [CHATML, TRIMMED], ids=["chatml", "trimmed"])
def test_templates_render_as_in_transformers(tokenizer_folder, source):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_folder / "tokenizer.json"), eos_token="<|end|>", chat_template=source
    )
    turns = [
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": "é<"},
        {"role": "user", "content": "?"},
    ]
    expected = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, {"eos_token": "<|end|>"}).render(turns) == expected
