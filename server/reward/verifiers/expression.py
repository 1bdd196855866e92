"""Arithmetic as people write it: parsed, evaluated exactly, and put into a canonical form.

Numbers are whole and below a billion; operators are + - * / (also the typographic ones) and
parentheses, with a sign where a number may stand. A text may end in `= NUMBER`. Length,
nesting and operands are bounded, so that hostile text costs nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MAX_CHARACTERS = 256
MAX_DEPTH = 32  # of parentheses and signs
MAX_OPERANDS = 32

Operator = Literal["+", "-", "*", "/"]
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})(?![0-9])|([-+*/()]))")
_TYPOGRAPHY = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-"})


class NotArithmetic(ValueError):
    """The text is no expression, or one beyond the bounds."""


@dataclass(frozen=True, slots=True)
class Number:
    value: int


@dataclass(frozen=True, slots=True)
class Negation:
    inner: Expression


@dataclass(frozen=True, slots=True)
class Binary:
    operator: Operator
    left: Expression
    right: Expression


Expression = Number | Negation | Binary


def parse(text: str) -> Expression:
    """The expression in `text`. Raises `NotArithmetic`."""
    if len(text) > MAX_CHARACTERS:
        raise NotArithmetic(f"longer than {MAX_CHARACTERS} characters")
    text, equals, result = text.translate(_TYPOGRAPHY).partition("=")
    expression = _Parser(text).whole()
    if equals and evaluate(expression) != evaluate(_Parser(result).whole()):
        raise NotArithmetic("the two sides of = differ")
    return expression


def evaluate(expression: Expression) -> Fraction:
    """Its exact value. Raises `NotArithmetic` for a division by zero."""
    if isinstance(expression, Number):
        return Fraction(expression.value)
    if isinstance(expression, Negation):
        return -evaluate(expression.inner)
    return _apply(expression.operator, evaluate(expression.left), evaluate(expression.right))


def operands(expression: Expression) -> list[int]:
    """The numbers in it, in order."""
    if isinstance(expression, Number):
        return [expression.value]
    if isinstance(expression, Negation):
        return operands(expression.inner)
    return operands(expression.left) + operands(expression.right)


def expression_key(text: str) -> str | None:
    """A key that is equal for expressions that differ only in order, grouping or signs.

    Sums (with differences) and products (with quotients) are flattened and sorted, and signs
    are moved outwards: `(4-10)*(9-13)` and `(13-9)*(10-4)` are the same. None if `text` is no
    expression or divides by zero.
    """
    try:
        expression = parse(text)
        evaluate(expression)
    except NotArithmetic:
        return None
    return str(_canonical(expression))


def _apply(operator: Operator, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise NotArithmetic("division by zero")
    return left / right


class _Parser:
    """Recursive descent: sum = product {(+|-) product}; product = atom {(*|/) atom}."""

    def __init__(self, text: str):
        self.tokens = self._split(text)
        self.at = 0
        if sum(t.isdigit() for t in self.tokens) > MAX_OPERANDS:
            raise NotArithmetic(f"more than {MAX_OPERANDS} numbers")

    @staticmethod
    def _split(text: str) -> list[str]:
        tokens, end, text = [], 0, text.strip()
        while end < len(text):
            match = _TOKEN.match(text, end)
            if match is None:
                raise NotArithmetic(f"neither number nor operator at character {end}")
            tokens.append(match[1] or match[2])
            end = match.end()
        return tokens

    def whole(self) -> Expression:
        expression = self._sum(0)
        if self.at < len(self.tokens):
            raise NotArithmetic(f"{self.tokens[self.at]!r} after the end")
        return expression

    def _take(self, *wanted: str) -> str | None:
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token not in wanted:
            return None
        self.at += 1
        return token

    def _sum(self, depth: int) -> Expression:
        left = self._product(depth)
        while operator := self._take("+", "-"):
            left = Binary("+" if operator == "+" else "-", left, self._product(depth))
        return left

    def _product(self, depth: int) -> Expression:
        left = self._atom(depth)
        while operator := self._take("*", "/"):
            left = Binary("*" if operator == "*" else "/", left, self._atom(depth))
        return left

    def _atom(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise NotArithmetic(f"nested more than {MAX_DEPTH} deep")
        if self._take("+"):
            return self._atom(depth + 1)
        if self._take("-"):
            return Negation(self._atom(depth + 1))
        if self._take("("):
            inner = self._sum(depth + 1)
            if self._take(")") is None:
                raise NotArithmetic("a parenthesis is not closed")
            return inner
        if self.at == len(self.tokens) or not self.tokens[self.at].isdigit():
            raise NotArithmetic("a number is missing")
        self.at += 1
        return Number(int(self.tokens[self.at - 1]))


@dataclass(frozen=True, slots=True)
class _Form:
    """A canonical form: a sign, and a number or the sorted parts of a sum or a product."""

    sign: int  # 1 or -1
    body: str  # all but the sign
    parts: tuple[_Part, ...]  # () for a number
    odd: bool  # its negative is another form: not so for 0, a-a, (a-a)*b; their sign is 1

    def __str__(self) -> str:
        return ("-" if self.sign < 0 else "") + self.body

    def times(self, sign: int) -> _Form:
        return _Form(self.sign * sign, self.body, self.parts, True) if self.odd else self


@dataclass(frozen=True, slots=True)
class _Part:
    """A term (added or subtracted) or a factor (multiplied or divided by)."""

    sense: int  # 1 or -1
    form: _Form  # its sign is 1

    @property
    def order(self) -> tuple[str, int]:
        return self.form.body, -self.sense


def _canonical(expression: Expression) -> _Form:
    if isinstance(expression, Number):
        return _Form(1, str(expression.value), (), expression.value != 0)
    if isinstance(expression, Negation):
        return _canonical(expression.inner).times(-1)
    left, right = _canonical(expression.left), _canonical(expression.right)
    sense = 1 if expression.operator in "+*" else -1
    if expression.operator in "+-":
        return _sum_form(_parts(left, "+", left.sign) + _parts(right, "+", right.sign * sense))
    parts = _parts(left, "*", 1) + _parts(right, "*", sense)
    return _product_form(parts, left.sign * right.sign)


def _parts(form: _Form, kind: str, sense: int) -> list[_Part]:
    """The parts of a sum (or product) inside another, each sense times `sense`; else itself."""
    inner = form.parts if form.body.startswith(f"[{kind}") else (_Part(1, form.times(form.sign)),)
    return [_Part(part.sense * sense, part.form) for part in inner]


def _sum_form(terms: list[_Part]) -> _Form:
    """Sorted; of the first term whose occurrences do not cancel out, more are added."""
    terms = sorted((t if t.form.odd else _Part(1, t.form) for t in terms), key=lambda t: t.order)
    balance = Counter[str]()
    for term in terms:
        balance[term.form.body] += term.sense if term.form.odd else 0
    if next((balance[t.form.body] for t in terms if balance[t.form.body]), 1) < 0:
        return _sum_form([_Part(-t.sense, t.form) for t in terms]).times(-1)
    return _Form(1, _spell("+", "-", terms), tuple(terms), any(balance.values()))


def _product_form(factors: list[_Part], sign: int) -> _Form:
    """Sorted, all signs taken out."""
    factors = sorted(factors, key=lambda factor: factor.order)
    odd = all(factor.form.odd for factor in factors)
    return _Form(1, _spell("*", "/", factors), tuple(factors), odd).times(sign)


def _spell(direct: str, inverse: str, parts: list[_Part]) -> str:
    senses = "".join((direct if p.sense > 0 else inverse) + p.form.body for p in parts)
    return f"[{direct}{senses}]"
