"""HTML whose text is escaped where it is put in: what is not `Markup` already is text."""

import base64
import html
from typing import Any

VOID = ("br", "img", "input", "line", "circle", "path", "rect", "polyline")


class Markup(str):
    """HTML, as against text that may hold anything."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element. Children are `Markup` as it is, anything else as text; None is left out, lists are opened.

    Of the attributes ``class_`` and ``data_x`` stand for ``class`` and ``data-x``; True gives the name alone, None and
    False leave it out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    if name in VOID:
        return Markup(f"<{' '.join(words)}/>")
    return Markup(f"<{' '.join(words)}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Elements and texts one after the other, as children of `tag`."""
    found = []
    for child in children:
        if isinstance(child, list | tuple):
            found.append(join(*child))
        elif isinstance(child, Markup):
            found.append(child)
        elif child is not None:
            found.append(html.escape(str(child)))
    return Markup("".join(found))


def section(name: str, title: str, *children: Any) -> Markup:
    """A section of the page, by whose name it is linked."""
    return tag("section", tag("h2", title), *children, id=name, aria_label=title)


def table(heads: list[Any], rows: list[list[Any]], label: str) -> Markup:
    """A table that scrolls sideways where it is wider than the page; the first cell of a row is its head."""
    of_text = [index for index in range(len(heads)) if rows and 'class="text' in _cell(rows[0][index])[:20]]
    kinds = ["text" if index in of_text else None for index in range(len(heads))]
    cells = [tag("th", cell, scope="col", class_=kind) for cell, kind in zip(heads, kinds, strict=True)]
    head = tag("thead", tag("tr", cells))
    body = [tag("tr", tag("th", row[0], scope="row"), [_cell(cell) for cell in row[1:]]) for row in rows]
    whole = tag("table", head, tag("tbody", body))
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=label)


def _cell(cell: Any) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell)


def number(value: float | None, digits: int, unit: str = "") -> str:
    """A number in words; an en dash where it is not known."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def packed(content: bytes) -> str:
    """Content as text that needs no escaping."""
    return base64.b64encode(content).decode("ascii")
