"""Conversations as texts: through the tokenizer's chat template, each answer between two characters of our own.

The template writes each answer after its question as generation would have it: the text before is what it writes to ask
for one. The characters are noncharacters of Unicode, which stand in no text.
"""

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from deconattn.data.manifest import SETTINGS_NAME
from deconattn.errors import UserError
from deconattn.json_files import reason

BEGIN, END = "\ufdd0", "\ufdd1"
"""Characters before and after an answer."""
MESSAGES = "messages"
"""The field of a JSON line that holds a conversation."""
TEMPLATE = "chat_template.jinja"


class BadConversation(ValueError):
    """A conversation that cannot be packed; the message says why, in one line."""


class ChatTemplate:
    """Chat template of a tokenizer; workers get its source, which each compiles for itself.

    Args:
        source: in Jinja.
        tokens: the special tokens that it may ask for, such as `bos_token`.
    """

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        self.source, self._tokens = source, tokens

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_tokens": self._tokens}

    @cached_property
    def _template(self) -> Any:
        return _environment().from_string(self.source)

    def text(self, record: Any) -> str:
        """Return a conversation's text, each answer of the assistant between :data:`BEGIN` and :data:`END`.

        Args:
            record: {"messages": [{"role": .., "content": ..}, ..]}, as JSON has it.

        Raises:
            BadConversation: no such record, or one that the template refuses or does not write step by step.
        """
        messages = record.get(MESSAGES) if isinstance(record, dict) else None
        if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
            raise BadConversation(f"no field {MESSAGES!r} of messages with a role")
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise BadConversation("no answer of an assistant")
        whole = self._render(messages, False)
        if BEGIN in whole or END in whole:
            raise BadConversation("a noncharacter (U+FDD0 or U+FDD1), which marks answers here")
        parts, at = [], 0
        for place in answers:
            asked, answered = self._render(messages[:place], True), self._render(messages[: place + 1], False)
            if not (answered.startswith(asked) and whole.startswith(answered)):
                raise BadConversation(f"the chat template does not write message {place + 1} after those before it")
            parts += [whole[at : len(asked)], BEGIN, whole[len(asked) : len(answered)], END]
            at = len(answered)
        return "".join([*parts, whole[at:]])

    def _render(self, messages: list[Any], asks: bool) -> str:
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=asks, **self._tokens))
        except Exception as error:  # whatever a template comes up with
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadConversation(f"the chat template refuses it: {said}") from None


def _environment() -> Any:
    """Return what transformers has templates run in, a sandbox; `{% generation %}` blocks are what is in them."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance's)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)

    extensions = [Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda shape: datetime.now().strftime(shape)}
    return environment


def load_template(tokenizer: str) -> ChatTemplate:
    """Read the chat template beside a tokenizer: `chat_template.jinja`, or that of `tokenizer_config.json`.

    Args:
        tokenizer: its file, or the folder that holds it.

    Raises:
        UserError: there is none, or it is no template.
    """
    folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
    try:
        path = folder / SETTINGS_NAME
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path = folder / TEMPLATE
        source = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--chat: {path} cannot be read ({reason(error)}): restore it") from None
    if not isinstance(source, str):
        raise UserError(f"--chat: {folder} has no {TEMPLATE}, nor a chat_template in {SETTINGS_NAME}: put one there")
    given = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in given.items()}
    template = ChatTemplate(source, {name: value for name, value in tokens.items() if isinstance(value, str)})
    try:
        _ = template._template
    except Exception as error:
        raise UserError(f"--chat: the chat template of {folder} is none ({reason(error)}): correct it") from None
    return template
