"""Griffe extension: docstrings write references as Sphinx does, the API reference shows them as code."""

import re
from typing import Any

import griffe


class DocstringRoles(griffe.Extension):
    """Turns :class:`~a.b.C` into `C` in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":[a-z]+:`(?:~[\w.]*?(?=\w+`))?\.?([^`]+)`", r"`\1`", obj.docstring.value)
