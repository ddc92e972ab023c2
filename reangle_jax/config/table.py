"""The settings as text: for ``--help``, and ``python -m reangle_jax.config.table > docs/settings.md``."""

import textwrap
from typing import Any

from reangle_jax.config.defaults import get_tiny
from reangle_jax.config.reading import KINDS, leaves

INTRODUCTION = """\
# Settings

Written by `make docs` from `reangle_jax/config/settings.py`. Set them in a file of `configs/`, or on the command line
as `--config.KEY=VALUE`.

| key | default | what it may be | meaning |
|---|---|---|---|
"""
TINY = """
`reangle_jax.config.get_tiny()`, which the small models' configs start from, differs in these:

| key | value |
|---|---|
"""


def help_lines() -> list[str]:
    """Every setting with its default, its bound and its meaning."""
    lines = []
    for key, field in leaves():
        rule = field.metadata["rule"]
        words = f"{field.metadata['meaning']} ({rule.words})" if rule else field.metadata["meaning"]
        lines.append(f"  config.{key}={_spelt(field.default)}")
        lines += textwrap.wrap(words, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def markdown() -> str:
    """docs/settings.md."""
    rows, changed = [], []
    for key, field in leaves():
        rule, kind = field.metadata["rule"], KINDS[field.type].partition(",")[0]
        allowed = f"{kind}: {rule.words}" if rule and kind not in rule.words else rule.words if rule else kind
        default = f"`{_spelt(field.default)}`" if _spelt(field.default) else ""
        rows.append(f"| `{key}` | {default} | {allowed} | {field.metadata['meaning']} |")
    for key, field in leaves():
        value: Any = get_tiny().to_dict()
        for name in key.split("."):
            value = value[name]
        if value != field.default:
            changed.append(f"| `{key}` | `{_spelt(value)}` |")
    return "\n".join([INTRODUCTION + "\n".join(rows), TINY + "\n".join(changed), ""])


def _spelt(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(markdown(), end="")
