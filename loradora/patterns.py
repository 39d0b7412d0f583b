r"""Regular expressions for the paths of modules, bounded before they run.

A pattern may come from a stranger's file, and :mod:`re` tries every way in which it can match.  For
``(.|.)*!`` the ways double with each letter of a path, and nothing else runs while they are tried.  So a
pattern is parsed first, and its tries are counted as if each piece of it matched everywhere.  On a path
of n letters there are at most

    piece               ways to match               tries
    letters, a set      1                           1, for a set as many as it has items
    p q                 ways(p) ways(q)             tries(p) + ways(p) tries(q)
    p|q                 ways(p) + ways(q)           tries(p) + tries(q)
    p{k,l}, l ≤ n       Σ ways(p)ⁱ, i = k … l       tries(p) Σ ways(p)ⁱ, i = 0 … l
    (?=p), (?!p)        1                           tries(p)

So ``.*`` has n + 1 ways.  Two of them share the letters and have (n + 1)(n + 2)/2, and so on: the j-th
such repeat multiplies the ways by (n + j)/j.  Of words like ``q_proj|k_proj``, none of which is the
beginning of another, only one matches.  ``(.|.)*`` has more than 2ⁿ ways, and is refused.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

from loradora.nn import short

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

#: The most tries on a path of 100 letters; the most of all patterns of an option on all paths; and how
#: many parts such a path has.  A thousand tries take 5 µs, or less.
MOST_TRIES, MOST_TRIES_IN_ALL, PARTS = 5e7, 4e8, 10

#: The most patterns of one option and groups in them, their most letters, and the most groups in one.
MOST_PATTERNS, MOST_LETTERS, MOST_GROUPS = 2_000, 50_000, 100


class _Unknown(Exception):
    """Why it is unknown how long it could take to compile or to search."""


#: What stands before trailing parts of a path, and before a part that a number follows, and after that.
#: Where a part begins, the pattern is tried.
TRAILING, LEADING, NUMBER = r"(?:.*\.)?", r"(?:^|.*?\.)", r"\.(?P<number>\d+)\."
#: A number after any part but the first.
ANY_NUMBER = re.compile(rf".*?\.[^.]*{NUMBER}")


class PatternError(ValueError):
    """A text that is not a regular expression, or an expression whose search could take long.

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


def compiled(
    option: str, patterns: Collection[str], before: str = "", after: str = ""
) -> list[re.Pattern[str]]:
    """Return the compiled expressions of an option of a config, with a text before and after each.

    Raises
    ------
    PatternError
        For an expression that is refused, and for too many of them, naming the option.
    """
    letters, groups = sum(map(len, patterns)), sum(p.count("(") for p in patterns)
    if len(patterns) > MOST_PATTERNS or letters > MOST_LETTERS or groups > MOST_PATTERNS:
        raise PatternError(
            option,
            f"it holds {len(patterns):,} patterns with {letters:,} letters and {groups:,} groups; at "
            f"most {MOST_PATTERNS:,}, {MOST_LETTERS:,} and {MOST_PATTERNS:,} are read",
        )
    return [_compiled(option, pattern, before, after) for pattern in patterns]


@lru_cache(maxsize=2 * MOST_PATTERNS)
def _compiled(option: str, pattern: str, before: str, after: str) -> re.Pattern[str]:
    try:
        tries(pattern, 100)  # alone first, because "a)|(b" would pass in parentheses
        meant = f"(?:{pattern}){after}" if before or after else pattern
        if not tries(meant, 100) * (PARTS if before else 1) <= MOST_TRIES:  # NaN fails as well
            reason = "a search could take too long: use fewer repeats, none of a group, or list the names"
            raise PatternError(option, f"{short(pattern)} is refused, because {reason}")
        return re.compile(before + meant)
    except PatternError:
        raise
    except _Unknown as error:
        raise PatternError(option, f"{short(pattern)} is refused, because {error}") from error
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        reason = f"is no regular expression: {str(error)[:80]}"
        raise PatternError(option, f"{short(pattern)} {reason}") from error


def check_time(
    option: str, expressions: Sequence[re.Pattern[str]], paths: Collection[str], before: str = ""
) -> None:
    """Raise PatternError if it could take long to search all the paths."""
    letters = max(map(len, paths), default=0)
    parts = max((path.count(".") + 1 for path in paths), default=0) if before else 1
    meant = (e.pattern.removeprefix(before) for e in expressions)
    total = len(paths) * parts * sum(tries(pattern, letters) for pattern in meant)
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


# ----------------------------------------------------------------------------- how many tries


@lru_cache(maxsize=2 * MOST_PATTERNS)
def tries(pattern: str, letters: int) -> float:
    """Return how many tries a search takes at most on a path of this many letters; see above.

    Raises
    ------
    re.error, RecursionError, OverflowError
        If it is not a regular expression.
    _Unknown
        If the tries cannot be counted, or if it could take long to compile the pattern.
    """
    tree = _parser.parse(pattern)
    if tree.state.groups > MOST_GROUPS:  # all are copied at every branch
        raise _Unknown(f"it has more than {MOST_GROUPS} groups")
    return _of_sequence(tree, letters)[1]


def _of_sequence(pieces: Sequence[Any], n: int) -> tuple[float, float]:
    """Return ways and tries of pieces one after the other."""
    ways, total, before, repeats = 1.0, 1.0, "", 0
    for kind, value in pieces:
        if kind.name == before == "LITERAL":  # letters in a row are compared in one go
            continue
        w, t = _of_piece(kind.name, value, n)
        single = kind.name.endswith("REPEAT") and [k.name for k, _ in value[2]] in _SINGLE
        if single and w >= n:  # such repeats share the letters
            repeats += 1
            w = min(w, (n + repeats) / repeats)
            t = min(t, 2 * w + 1)
        ways, total, before = ways * w, total + ways * t, kind.name
    return ways, total


_SINGLE = ["LITERAL"], ["NOT_LITERAL"], ["ANY"], ["IN"]


def _of_piece(kind: str, value: Any, n: int) -> tuple[float, float]:
    """Return ways and tries of one piece, by its name in Python's parser."""
    match kind:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "AT" | "FAILURE":
            return 1, 1
        case "IN":
            if any(k.name == "RANGE" and v[1] - v[0] > 255 for k, v in value):
                raise _Unknown("it has a range of more than 256 letters")
            return 1, len(value)
        case "SUBPATTERN" | "ATOMIC_GROUP":
            return _of_sequence(value[-1] if kind == "SUBPATTERN" else value, n)
        case "ASSERT" | "ASSERT_NOT":
            return 1, _of_sequence(value[1], n)[1]
        case "BRANCH":
            branches = [_of_sequence(pieces, n) for pieces in value[1]]
            all_ways = [w for w, _ in branches]
            ways = max(all_ways) if _exclusive(value[1]) else sum(all_ways)
            return ways, sum(t for _, t in branches)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, pieces = value
            ways, total = _of_sequence(pieces, n)
            if most is _parser.MAXREPEAT or pieces.getwidth()[0] > 0:
                # each takes a letter, or Python stops at the first that does not
                most = min(most, n)
            elif most > 1000:
                raise _Unknown("it repeats what may be nothing more than 1000 times")
            return _powers(ways, min(least, most), most), total * _powers(ways, 0, most)
    raise _Unknown("it refers back to what a group has matched")


def _exclusive(branches: Sequence[Any]) -> bool:
    """Whether these are few words, none of which is the beginning of another."""
    plain = len(branches) <= 30 and all(k.name == "LITERAL" for items in branches for k, _ in items)
    words = sorted("".join(chr(c) for _, c in items).lower() for items in branches) if plain else []
    return plain and not any(b.startswith(a) for a, b in itertools.pairwise(words))


def _powers(w: float, k: int, m: int) -> float:
    """Return Σ wⁱ over i = k … m."""
    try:
        return m - k + 1 if w == 1 else (w ** (m + 1) - w**k) / (w - 1)
    except OverflowError:
        return math.inf
