"""What an expression says without being run, and expressions made of text."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from .project import SourceFile, dotted

_EMPTY = cst.Module([])


class Unclear(Exception):
    """The expression's value is known only when the program runs."""


WIDTH = 88
"""Characters of a call that is not spread over lines, without its indentation."""

_NEW_LINE = cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace("    "))


def code_of(node: cst.CSTNode) -> str:
    """Return a node's text."""
    return _EMPTY.code_for_node(node)


def value_of(node: cst.BaseExpression) -> Any:
    """Return the value of a literal.

    :raises Unclear: if it is none
    """
    try:
        return ast.literal_eval(code_of(node).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unclear from None


def is_plain(node: cst.BaseExpression) -> bool:
    """Return whether an expression may be written twice: a literal, or names that are looked up."""
    try:
        value_of(node)
    except Unclear:
        return dotted(node) is not None
    return True


def zone_name(source: SourceFile, node: cst.BaseExpression) -> str:
    """Return the name of the zone that an expression says, in one of the usual ways.

    :raises Unclear: if it says it in another way
    """
    if isinstance(node, (cst.SimpleString, cst.ConcatenatedString)):
        value = value_of(node)
        if isinstance(value, str):
            return value
    if source.origin(node) in ("pytz.utc", "pytz.UTC", "datetime.timezone.utc", "datetime.UTC"):
        return "UTC"
    makers = ("pytz.timezone", "zoneinfo.ZoneInfo", "backports.zoneinfo.ZoneInfo", "dateutil.tz.gettz")
    if isinstance(node, cst.Call) and source.origin(node.func) in makers and len(node.args) == 1:
        value = value_of(node.args[0].value)
        if isinstance(value, str):
            return value
    raise Unclear


def expression(text: str) -> cst.BaseExpression:
    """Return the expression of a text."""
    return cst.parse_expression(text)


def statement(text: str) -> cst.BaseStatement:
    """Return the one statement of a text."""
    made = cst.parse_statement(text)
    assert isinstance(made, cst.BaseStatement)  # noqa: S101 - a whole one
    return made


def argument(name: str, text: str | cst.BaseExpression) -> cst.Arg:
    """Return ``name=text``."""
    value = text if isinstance(text, cst.BaseExpression) else expression(text)
    bare = cst.SimpleWhitespace("")
    return cst.Arg(value, cst.Name(name), equal=cst.AssignEqual(bare, bare))


def call_of(func: str, arguments: list[cst.Arg], like: cst.Call | None = None) -> cst.Call:
    """Return a call, spread over lines as another one is."""
    whitespace = like.whitespace_before_args if like is not None else cst.SimpleWhitespace("")
    commas = [each.comma for each in like.args if isinstance(each.comma, cst.Comma)] if like is not None else []
    comma = commas[0] if commas else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    last: cst.Comma | cst.MaybeSentinel = cst.MaybeSentinel.DEFAULT
    final: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace("")
    if like is not None and like.args:
        last, final = like.args[-1].comma, like.args[-1].whitespace_after_arg
    if like is None or "\n" not in code_of(comma):
        text = f"{func}({', '.join(code_of(each.with_changes(comma=cst.MaybeSentinel.DEFAULT)) for each in arguments)})"
        if len(text) > WIDTH and len(arguments) > 1:
            whitespace = _NEW_LINE
            comma = cst.Comma(whitespace_after=_NEW_LINE)
            last, final = cst.Comma(), cst.ParenthesizedWhitespace(indent=True)
    placed = [
        each.with_changes(
            comma=comma if place < len(arguments) - 1 else last,
            whitespace_after_arg=cst.SimpleWhitespace("") if place < len(arguments) - 1 else final,
        )
        for place, each in enumerate(arguments)
    ]
    return cst.Call(expression(func), placed, whitespace_before_args=whitespace)
