r"""Regular expressions for the paths of modules, bounded before they run.

A pattern may come from a stranger's file, and :mod:`re` tries every way in which it can match.  For
``(.|.)*!`` the ways double with each letter of a path, and while they are tried nothing else runs.  So a
pattern is parsed first, and its tries are counted as if each piece of it matched everywhere.  On a path
of n letters these are at most

    piece               ways to match               tries
    letters, a set      1                           1
    p q                 ways(p) ways(q)             tries(p) + ways(p) tries(q)
    p|q                 ways(p) + ways(q)           tries(p) + tries(q)
    p{k,l}, l ≤ n       Σ ways(p)ⁱ, i = k … l       tries(p) Σ ways(p)ⁱ, i = 0 … l
    (?=p), (?!p)        1                           tries(p)

Hence ``.*`` has n + 1 ways, and two of them (n + 1)².  ``(.|.)*`` has more than 2ⁿ, and is refused.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

from loradora.nn import short

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

#: The most tries on a path of 100 letters, and of all patterns of an option on all paths.  A thousand of
#: them take 5 to 20 µs.
MOST_TRIES, MOST_TRIES_IN_ALL = 1e7, 2e8

#: The most patterns of one option and groups in them, their most letters, and the most groups in one.
MOST_PATTERNS, MOST_LETTERS, MOST_GROUPS = 2_000, 50_000, 100


class _Unknown(Exception):
    """Why nobody knows how long it could take to compile or to search."""


#: What follows the part of a path that ``layers_pattern`` names; and after any part but the first.
NUMBER = r"\.(?P<number>\d+)\."
ANY_NUMBER = re.compile(rf".*?\.[^.]*{NUMBER}")


class PatternError(ValueError):
    """A text that is no regular expression, or one whose search could take long.

    Attributes
    ----------
    option
        The option of a config that holds it.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(option, reason)
        self.option = option

    def __str__(self) -> str:
        return ": ".join(self.args)


def compiled(option: str, patterns: Collection[str], after: str = "") -> list[re.Pattern[str]]:
    """Return the expressions of an option of a config, each with the expression ``after`` it.

    Raises
    ------
    PatternError
        For one that is refused, and for too many, naming the option.
    """
    letters, groups = sum(map(len, patterns)), sum(p.count("(") for p in patterns)
    if len(patterns) > MOST_PATTERNS or letters > MOST_LETTERS or groups > MOST_PATTERNS:
        raise PatternError(
            option,
            f"it holds {len(patterns):,} patterns with {letters:,} letters and {groups:,} groups; at "
            f"most {MOST_PATTERNS:,}, {MOST_LETTERS:,} and {MOST_PATTERNS:,} are read",
        )
    return [_compiled(option, pattern, after) for pattern in patterns]


@lru_cache(maxsize=2 * MOST_PATTERNS)
def _compiled(option: str, pattern: str, after: str) -> re.Pattern[str]:
    try:
        tries(pattern, 100)  # it must be one alone, because "a)|(b" would pass in parentheses
        meant = f"(?:{pattern}){after}" if after else pattern
        if not tries(meant, 100) <= MOST_TRIES:  # NaN is none, either
            reason = "a search could take too long: use fewer repeats, none of a group, or list the names"
            raise PatternError(option, f"{short(pattern)} is refused, because {reason}")
        return re.compile(meant)
    except PatternError:
        raise
    except _Unknown as error:
        raise PatternError(option, f"{short(pattern)} is refused, because {error}") from error
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        reason = f"is no regular expression: {str(error)[:80]}"
        raise PatternError(option, f"{short(pattern)} {reason}") from error


def check_time(
    option: str, expressions: Sequence[re.Pattern[str]], paths: Collection[str], starts: int = 1
) -> None:
    """Raise PatternError if it could take long to search all the paths, from so many places in each."""
    letters = max(map(len, paths), default=0)
    total = len(paths) * starts * sum(tries(e.pattern, letters) for e in expressions)
    if not total <= MOST_TRIES_IN_ALL:
        raise PatternError(
            option,
            f"it holds {len(expressions):,} patterns, and to search {len(paths):,} paths for them could "
            "take too long: use fewer or simpler ones",
        )


def starts(path: str) -> Iterator[int]:
    """Yield where a part of a path begins."""
    yield 0
    yield from (i + 1 for i, letter in enumerate(path) if letter == ".")


def ends(path: str, expression: re.Pattern[str]) -> bool:
    """Whether an expression matches whole trailing parts of a path."""
    return any(expression.fullmatch(path, i) for i in starts(path))


# ----------------------------------------------------------------------------- how many tries


@lru_cache(maxsize=2 * MOST_PATTERNS)
def tries(pattern: str, letters: int) -> float:
    """Return how many tries a search takes at most on a path of so many letters; see above.

    Raises
    ------
    re.error, RecursionError, OverflowError
        For what is no regular expression.
    _Unknown
        If the tries cannot be counted, or if it could take long to compile the pattern.
    """
    tree = _parser.parse(pattern)
    if tree.state.groups > MOST_GROUPS:  # all are copied at every branch
        raise _Unknown(f"it has more than {MOST_GROUPS} groups")
    return _of_sequence(tree, letters)[1]


def _of_sequence(pieces: Sequence[Any], n: int) -> tuple[float, float]:
    """Return ways and tries of pieces one after the other."""
    ways, total, before = 1.0, 1.0, ""
    for kind, value in pieces:
        if not kind.name == before == "LITERAL":  # letters in a row are compared at one go
            w, t = _of_piece(kind.name, value, n)
            ways, total = ways * w, total + ways * t
        before = kind.name
    return ways, total


def _of_piece(kind: str, value: Any, n: int) -> tuple[float, float]:
    """Return ways and tries of one piece, by its name in Python's parser."""
    match kind:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "AT" | "FAILURE":
            return 1, 1
        case "IN":
            if any(k.name == "RANGE" and v[1] - v[0] > 1000 for k, v in value):
                raise _Unknown("it has a range of more than 1000 letters")
            return 1, 1
        case "SUBPATTERN":
            return _of_sequence(value[-1], n)
        case "ATOMIC_GROUP":
            return _of_sequence(value, n)
        case "ASSERT" | "ASSERT_NOT":
            return 1, _of_sequence(value[1], n)[1]
        case "BRANCH":
            branches = [_of_sequence(pieces, n) for pieces in value[1]]
            return sum(ways for ways, _ in branches), sum(total for _, total in branches)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, pieces = value
            ways, total = _of_sequence(pieces, n)
            if pieces.getwidth()[0] > 0 or most is _parser.MAXREPEAT:
                most = min(
                    most, n
                )  # each takes a letter, or Python stops at the first that does not
            return _powers(ways, min(least, most), most), total * _powers(ways, 0, most)
    raise _Unknown("it refers back to what a group has matched")


def _powers(w: float, k: int, m: int) -> float:
    """Return Σ wⁱ over i = k … m."""
    try:
        return m - k + 1 if w == 1 else (w ** (m + 1) - w**k) / (w - 1)
    except OverflowError:
        return math.inf
