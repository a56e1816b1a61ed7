"""A room's template as a page: the shared look around it, and nothing outside it needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deconattn.pages.charts import Series, colour, key


@dataclass(frozen=True)
class Picture:
    """A chart with its caption and legend, pairs of a look and its name."""

    chart: Markup
    caption: str
    legend: list[tuple[Markup, str]]


def legend_of(lines: Sequence[Series]) -> list[tuple[Markup, str]]:
    """Return the looks and names of the lines that have points."""
    return [(key(line.variant, line.look), line.label) for line in lines if line.points]


def drawn(pictures: Sequence[Picture]) -> list[Picture]:
    """Return the pictures whose charts have points."""
    return [picture for picture in pictures if picture.chart]


def render(package: str, template: str, **context: Any) -> str:
    """Return the page that a package's template makes; it extends `page.html.j2`, which asks for `title` and `lede`.

    Whatever is no Markup is escaped, and a name that the context lacks is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("deconattn.pages", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["colour"] = colour
    return environment.get_template(template).render(**context)
