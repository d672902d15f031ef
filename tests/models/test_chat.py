"""Conversations as prompts: what transformers' apply_chat_template writes, to the character and to the token."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.errors import ArtifactError, InputError
from models.lm.chat import ChatTemplate, find_template, special_tokens
from models.lm.tokenizer import Tokenizer

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools\\n' }}\n{%- else %}\n"
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>system\\nYou are Qwen, a helpful assistant.<|im_end|>\\n' }}\n"
    "    {%- endif %}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first)'
    ' or (message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n"
    "{%- for message in loop_messages %}\n"
    "    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}\n"
    "        {{- raise_exception('conversation roles must alternate user/assistant/user/assistant/...') }}\n"
    "    {%- endif %}\n    {%- set ns.index = ns.index + 1 %}\n{%- endfor %}\n"
    "{{- bos_token }}\n"
    "{%- for message in loop_messages %}\n"
    "    {%- if message['role'] == 'user' %}\n"
    "        {%- if loop.last and system_message is defined %}\n"
    "            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}\n"
    "        {%- else %}\n            {{- '[INST] ' + message['content'] + '[/INST]' }}\n        {%- endif %}\n"
    "    {%- else %}\n        {{- ' ' + message['content'] | trim + eos_token }}\n    {%- endif %}\n{%- endfor %}\n"
)
# Loop controls, JSON, generation marks, line blocks: what newer templates use.
MODERN = (
    "{{ bos_token }}{{ messages | tojson(indent=1) }}\n"
    "{% for message in messages %}\n"
    "    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
    "    {% if message.role == 'assistant' %}\n"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\n"
    "    {% else %}\n<{{ message.role }}>{{ message.content }}\n    {% endif %}\n"
    "{% endfor %}"
)
TEMPLATES = {"llama-3": LLAMA_3, "chatml": CHATML, "mistral": MISTRAL, "modern": MODERN}
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>"]
SYSTEM = {"role": "system", "content": 'Answer <briefly> & "well".'}
TURNS = [
    {"role": "user", "content": "  What is 4821+977?\n"},
    {"role": "assistant", "content": " 5798 "},
    {"role": "user", "content": "Und 2\u00d73? \U0001f642 <|im_end|>"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a byte-level tokenizer that puts its first token before plain texts."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([*TEMPLATES.values(), "What is the answer to a question?"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("has_system", [False, True])
@pytest.mark.parametrize("num_turns", [1, 2, 3])
def test_prompt_is_what_transformers_writes(name: str, has_system: bool, num_turns: int, folder: Path) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [*([SYSTEM] if has_system else []), *TURNS[:num_turns]]
    template = ChatTemplate(TEMPLATES[name], special_tokens(folder))
    for adds in (True, False):
        options = {"chat_template": TEMPLATES[name], "add_generation_prompt": adds}
        rendered = template.render(messages, adds)
        assert rendered == reference.apply_chat_template(messages, tokenize=False, **options)
        ids = Tokenizer(folder / "tokenizer.json").encode(rendered, has_special_tokens=True)
        assert list(ids) == reference.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def test_special_tokens_are_put_around_plain_texts_only(folder: Path) -> None:
    tokenizer = Tokenizer(folder / "tokenizer.json")
    assert tokenizer.encode("4821") == (0, *tokenizer.encode("4821", has_special_tokens=True))


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (MISTRAL, "must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_told(source: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        ChatTemplate(source, {"bos_token": "<s>"}).render([TURNS[1]])


def test_template_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no Jinja template"):
        ChatTemplate("{% for %}", {})


def test_today_is_told() -> None:
    (year,) = {ChatTemplate("{{ strftime_now('%Y') }}", {}).render([])}
    assert int(year) >= 2026


@pytest.mark.parametrize(
    "config", [None, {}, {"chat_template": None}, {"chat_template": [{"name": "a", "template": ""}]}]
)
def test_checkpoint_without_a_template_has_none(config: Any, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert find_template(tmp_path) is None
