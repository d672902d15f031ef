"""A conversation written as one prompt, by the Jinja template that comes with a tokenizer. Knows no token ids.

Templates are code of whoever published the model: they run in Jinja's sandbox, with what transformers gives them.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import ArtifactError, InputError

# Files in which checkpoints keep their template; the first that has one wins, as in transformers.
TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_DEFAULT = "default"


class ChatTemplate:
    """The template of one model. Raises ArtifactError if it is none."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _as_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ArtifactError(
                f"the chat template is no Jinja template: {error}; save the checkpoint again"
            ) from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt, up to where the model's answer begins. Raises InputError for what the template refuses."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template can fail as any program can
            raise InputError(
                f"the model's chat template takes no such conversation: {error}; send messages in the order it expects"
            ) from error


class _Generation(Extension):
    """`{% generation %}` marks what training learns from; for a prompt it is what it surrounds."""

    tags = {"generation"}  # noqa: RUF012, as the class above declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def find_template(checkpoint: Path) -> str | None:
    """The source of a checkpoint's template, or None. Raises ArtifactError for files that cannot be read."""
    if (checkpoint / TEMPLATE).is_file():
        return (checkpoint / TEMPLATE).read_text()
    found = _config(checkpoint).get("chat_template")
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == _DEFAULT), None)
    return found


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """The texts of a checkpoint's special tokens that templates may name, such as `bos_token`."""
    config = {name: value for name, value in _config(checkpoint).items() if name.endswith("_token")}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in config.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON: {error}; save the checkpoint again") from error
    return config


def _as_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
