r"""Regular expressions for the paths of modules, bounded before they run.

A pattern may come from a stranger's file, and :mod:`re` tries every way in which it can match.  For
``(.|.)*!`` the ways double with each letter of a path, and while they are tried nothing else runs.
So a pattern is parsed first, and the time of a search is bounded from above.  What could take long is
never compiled, nor run.

The bound is that of a search in which every letter of the path matches every piece of the pattern, so it
need not know the letters.  It knows only that a path has few dots, and that a word like "attn" begins at
most at every fourth of its letters.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.nn import short

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

#: The longest search that is let through: on one path, and of all patterns of an option on all paths.
#: Times are in nanoseconds, and those of the worst case; most searches take far less.
LONGEST, LONGEST_IN_ALL = 1e8, 2e9

#: Letters and dots in the path for which a pattern is bounded while there is no model yet.
LETTERS, DOTS = 100, 25

#: The largest pattern: its letters, its levels of groups, its groups, and its pieces, repeated ones anew.
MOST_LETTERS, MOST_LEVELS, MOST_GROUPS, MOST_PIECES = 10_000, 40, 100, 12_000

#: The most patterns of one option, and the most letters and pieces in them together.
MOST_PATTERNS, MOST_IN_ALL = 2_000, 100_000


class PatternError(ValueError):
    """A text that is no regular expression, or one whose search could take long."""


class Expression:
    """A regular expression that is safe to run on the path of a module.

    Parameters
    ----------
    given
        The pattern as it stands in a config.
    meant
        The expression that is run.
    fully
        Whether it has to match to the end of a path.

    Attributes
    ----------
    match
        Returns the match with a path, from its start, or None.
    size
        Its letters and pieces, which are what it costs to read it.

    Raises
    ------
    PatternError
        If it does not compile, is too large, or a search could take long.
    """

    match: Callable[[str], re.Match[str] | None]

    def __init__(self, given: str, meant: str, fully: bool = False) -> None:
        self._given, self._meant = given, meant
        if len(given) > MOST_LETTERS:
            raise self._error(f"has {len(given):,} letters, and at most {MOST_LETTERS:,} are read")
        try:
            _parser.parse(given)  # alone, because "a)|(b" would pass in parentheses
            bound = self._bound(LETTERS, DOTS)
            compiled = re.compile(meant)
        except PatternError:
            raise
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise self._error(f"is no regular expression: {str(error)[:80]}") from error
        self.match = compiled.fullmatch if fully else compiled.match
        self.size = len(given) + bound.pieces

    def time(self, letters: int, dots: int) -> float:
        """Return what a search takes at most on a path of so many letters and dots among them.

        Raises
        ------
        PatternError
            If that is too long.
        """
        return self._bound(letters, dots).time

    def _bound(self, letters: int, dots: int) -> _Bound:
        try:
            return _Bound(_parser.parse(self._meant), letters, dots)
        except _Unbounded as reason:
            raise self._error(f"is not run on paths of {letters} letters: {reason}") from None

    def _error(self, reason: str) -> PatternError:
        return PatternError(f"{short(self._given)} {reason}")


# ----------------------------------------------------------------------------- what a pattern means

#: As many as a config can hold: what is compiled once stays compiled while a model is matched.
_remembered = lru_cache(maxsize=2 * MOST_PATTERNS)


@_remembered
def whole(pattern: str) -> Expression:
    """Return the expression that matches a whole path."""
    return Expression(pattern, pattern, fully=True)


@_remembered
def trailing(pattern: str) -> Expression:
    """Return the expression that matches whole trailing parts of a path."""
    return Expression(pattern, rf"(.*\.)?({pattern})$")


@_remembered
def numbered(pattern: str | None) -> Expression:
    """Return the expression for a path in which a number follows a part that matches.

    The match has the number as its group "number".  None is any part but the first.
    """
    leading = r".*?\.[^.]*" if pattern is None else rf"(?:^|.*?\.)(?:{pattern})"
    return Expression(pattern or "", rf"{leading}\.(?P<number>\d+)\.")


def all_of(
    option: str, meant: Callable[[str], Expression], patterns: Collection[str]
) -> list[Expression]:
    """Return what all the patterns of an option mean.

    Raises
    ------
    PatternError
        For too many patterns, too large ones, or one that is refused, naming the option.
    """
    if len(patterns) > MOST_PATTERNS:
        raise PatternError(
            f"{option} holds {len(patterns):,} patterns, but at most {MOST_PATTERNS:,} are read"
        )
    found, size = [], 0
    for pattern in patterns:
        try:
            found.append(meant(pattern))
        except PatternError as error:
            raise PatternError(f"{option}: {error}") from error
        size += found[-1].size
        if size > MOST_IN_ALL:
            raise PatternError(f"the patterns of {option} are too large together")
    return found


def check_time(option: str, expressions: Sequence[Expression], paths: Collection[str]) -> None:
    """Raise PatternError if running all these expressions of an option on all paths could take long."""
    if not expressions:
        return
    letters = max(map(len, paths), default=0)
    dots = max((path.count(".") for path in paths), default=0)
    total = len(paths) * sum(expression.time(letters, dots) for expression in expressions)
    if total > LONGEST_IN_ALL:
        raise PatternError(
            f"{option} holds {len(expressions):,} patterns, and to search {len(paths):,} paths for them "
            f"could take {total / 1e9:,.0f} seconds: use fewer or simpler ones"
        )


# ----------------------------------------------------------------------------- how long a search takes

Times: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = tuple[str, ...]


class _Unbounded(Exception):
    """Why a pattern is not run."""


class _Bound:
    """The time of a search, added up from the last piece of a pattern to the first.

    Everywhere ``rest`` says how long the rest of the pattern can take, by the number of letters that are
    left, shape (letters + 1,).  A piece in front of it makes a new array of that shape.  The times of the
    pieces themselves were measured.
    """

    def __init__(self, tree: Any, letters: int, dots: int) -> None:
        self.letters, self.dots, self.pieces, self.depth = letters, dots, 0, 0
        self.after: Sequence[Any] = ()  # what follows the piece at hand
        if tree.state.groups > MOST_GROUPS:  # all are copied at every branch
            raise _Unbounded(f"it has more than {MOST_GROUPS} groups")
        self.time = float(self.sequence(tree, np.zeros(letters + 1)).max())

    def sequence(self, items: Sequence[Any], rest: Times) -> Times:
        self.depth += 1
        self.count(1 + len(items))
        if self.depth > MOST_LEVELS:
            raise _Unbounded(f"it nests more than {MOST_LEVELS} levels deep")
        for i in reversed(range(len(items))):
            kind, value = items[i]
            if kind.name not in _PIECES:
                raise _Unbounded("it refers back to what a group has matched")
            self.after = items[i + 1 :]
            rest = _PIECES[kind.name](self, value, rest)
        if rest.max() > LONGEST:
            raise _Unbounded(
                "a search could take too long, because of a repeated group or too many repeats"
            )
        self.depth -= 1
        return rest

    def count(self, pieces: int) -> None:
        self.pieces += pieces
        if self.pieces > MOST_PIECES:
            raise _Unbounded("it has too many pieces, with repeated ones and the letters in ranges")

    def letter(self, value: Any, rest: Times) -> Times:
        """Any letter: what is left after it is one letter less."""
        return 2 + np.concatenate(([0], rest[:-1]))

    def any_of(self, value: list[tuple[Any, Any]], rest: Times) -> Times:
        span = sum(v[1] - v[0] for kind, v in value if kind.name == "RANGE")
        self.count(span // 4)  # where case does not matter, compiling takes time for each letter
        return 4 * len(value) + self.letter(value, rest)

    def position(self, value: Any, rest: Times) -> Times:
        return 5 + rest

    def failure(self, value: Any, rest: Times) -> Times:
        return np.full_like(rest, 5)

    def group(self, items: Sequence[Any], rest: Times) -> Times:
        return 20 + self.sequence(items, rest)

    def branch(self, value: tuple[None, list[Any]], rest: Times) -> Times:
        times = np.array([15 + self.sequence(items, rest) for items in value[1]])
        words = _words_of_branches(value[1])
        if _distance(words, least=0) == 0:
            return np.asarray(times.sum(axis=0))
        return np.asarray(_failing(words) + times.max(axis=0))  # for one word excludes the others

    def look(self, value: tuple[int, Any], rest: Times) -> Times:
        """Look ahead or behind, once: what has succeeded is not tried anew if the rest fails."""
        return 30 + float(self.sequence(value[1], 0 * rest).max()) + rest

    def repeat(self, value: tuple[int, int, Any], rest: Times) -> Times:
        least, most, items = value
        follows = self.at_words(_first_words(self.after), rest)
        optional = min(most - least, self.letters)  # each takes a letter, or the search leaves it
        if optional == self.letters and len(items) == 1 and items[0][0].name in _SINGLE:
            own = 10 + self.sequence(items, 0 * rest)
            times = np.cumsum(own) + follows
        else:
            times = rest
            for _ in range(optional):
                times = 50 + rest + self.sequence(items, times)
        for _ in range(least):
            times = 50 + self.sequence(items, times)
        return times

    def at_words(self, words: Words, rest: Times) -> Times:
        """Return the rest tried after any number of letters, where it begins with one of these words.

        After one word, the next cannot begin at once, so the rest is reached only so often.  Everywhere
        else it fails at the words.
        """
        tries = np.arange(1.0, len(rest) + 1)
        failing, distance = _failing(words) * tries, _distance(words, least=1)
        times = np.maximum.accumulate(rest)
        if words and all(word[0] == "." for word in words):
            return np.asarray(failing + times * np.minimum(tries, self.dots))
        if distance == 1:
            return np.cumsum(rest)
        for m in range(distance, len(times)):
            times[m] += times[m - distance]
        return np.asarray(failing + times)


def _first_words(items: Sequence[Any]) -> Words:
    """Return words of which these pieces have to begin with one; none if that is not plain to see."""
    run = list(takewhile(lambda item: item[0].name == "LITERAL" and item[1] < 128, items[:8]))
    if run or not items:
        return ("".join(chr(value) for _, value in run).lower(),) if run else ()
    kind, value = items[0]
    if kind.name == "SUBPATTERN":
        return _first_words(value[-1])
    return _words_of_branches(value[1]) if kind.name == "BRANCH" else ()


def _words_of_branches(branches: Sequence[Any]) -> Words:
    found = [_first_words(items) for items in branches[:17]]
    words = tuple(word for words in found for word in words)
    return words if all(found) and len(words) <= 16 else ()  # to compare more would take long


@lru_cache
def _distance(words: Words, least: int) -> int:
    """Return how many letters, at least so many, lie between the beginnings of two of these words.

    It is 5 for "attn" after "self_attn", and 3 for "text" after "text", as in "textext".
    """
    if not words:
        return least
    return min(
        shift
        for i, one in enumerate(words)
        for j, other in enumerate(words)
        for shift in range(least or int(i == j), len(one) + 1)
        if one.startswith(other, shift) or other.startswith(one[shift:])
    )


def _failing(words: Words) -> int:
    """Return how long it takes at most to try all these words in vain."""
    return sum(15 + 2 * len(word) for word in words)


_SINGLE: dict[str, Callable[[_Bound, Any, Times], Times]] = {
    "ANY": _Bound.letter,
    "IN": _Bound.any_of,
    "LITERAL": _Bound.letter,
    "NOT_LITERAL": _Bound.letter,
}
_PIECES = _SINGLE | {
    "ASSERT": _Bound.look,
    "ASSERT_NOT": _Bound.look,
    "AT": _Bound.position,
    "ATOMIC_GROUP": _Bound.group,
    "BRANCH": _Bound.branch,
    "FAILURE": _Bound.failure,
    "MAX_REPEAT": _Bound.repeat,
    "MIN_REPEAT": _Bound.repeat,
    "POSSESSIVE_REPEAT": _Bound.repeat,
    "SUBPATTERN": lambda bound, value, rest: bound.group(value[-1], rest),
}
