"""Patterns mean what they mean to ``re``, and those whose search could take long are never run."""

import importlib
import re
import sys
import time

import numpy as np
import pytest

import loradora as ld
from loradora.matching import Rules, layer_options, match
from loradora.patterns import MOST_TRIES, TRAILING, PatternError, compiled, tries

LONG = "model.layers.10.self_attn.q_proj." * 3 + "q"

#: Patterns that people write.  Some are from the Hub.
WRITTEN = [
    "q_proj",
    r".*\.(q_proj|v_proj)$",
    r".*\.(q|k|v|o)_proj",
    r"model\.layers\.\d+\.self_attn\.(q|v)_proj",
    r"model\.layers\.([0-9]|1[0-9])\.mlp\..*",
    r"^(?!.*vision).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn)\.(?:(?:q_proj|k_proj)))",
    r".*layers.*(q|v).*",
    r".*\.layers\.\d+\..*\.(q_proj|k_proj|v_proj|o_proj)",
    r".*language_model.*layers.*(self_attn|mlp).*proj",
    r".*layers\.\d+.*(q|v)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)",
    r".*a.*b.*(c|d)",
    r"(?i).*\.Q_PROJ",
    r"(model\.)?layers\.[^.]+\.self_attn\.\w+",
    r"(?<!vision\.)model\..*(?=q_proj)q.*",
    "|".join(rf"model\.layers\.{i}\.self_attn\.q_proj" for i in range(200)),
]


@pytest.mark.parametrize("pattern", WRITTEN, ids=lambda p: p[:40])
def test_what_people_write_is_accepted_and_means_what_it_means_to_re(pattern):
    paths = [
        "q_proj",
        "a.q_proj",
        "model.layers.7.self_attn.q_proj",
        "vision.text.mlp.v_proj",
        LONG,
    ]
    paths += ["layers.1.self_attn.k", "model.layers.12.mlp.up", "abc", "cba"]
    (expression,) = compiled("target_modules", [pattern])
    found = [bool(expression.fullmatch(path)) for path in paths]
    assert found == [bool(re.fullmatch(pattern, path)) for path in paths]
    if (
        not pattern.startswith("(?i)") and pattern.count("*") < 4
    ):  # PEFT cannot do the first, either
        (expression,) = compiled("rank_pattern", [pattern], TRAILING)
        found = [bool(expression.fullmatch(path)) for path in paths]
        assert found == [bool(re.match(rf"(.*\.)?({pattern})$", path)) for path in paths]


@pytest.mark.parametrize(
    "pattern", ["^layers", r"\blayers\.1", r"(?<=a\.)layers", r"(?<!\.)q", "q$"]
)
def test_an_end_of_a_path_is_matched_within_the_path(pattern):
    (expression,) = compiled("rank_pattern", [pattern], TRAILING)
    for path in ("layers", "a.layers", "b.a.layers", "layers.1", "a.layers.1", "q", "a.q", "aq"):
        expected = re.match(rf"(.*\.)?({pattern})$", path) is not None
        assert (expression.fullmatch(path) is not None) is expected, path


#: Pattern → why it is not run.
REFUSED = {
    **dict.fromkeys(
        [
            "(.|.)*!",
            "(a?)*b",
            "(a*)*b",
            "(?:a|ab|b)+!",
            "((?:.?){4})*!",
            "(.+)+",
            r"(\w+\.)*q",
            "(?:(?:a|a(?:))(?:b|b(?:))){20}!",
            "(la|la)(ye|ye)" * 15,
            "(?:la|lay)" * 30,
            "(a?){30}b",
            ".*.*.*.*.*!",
            r"model\..*.*.*.*.*!",
            r"(?:.*\.){9}.*",
            ".*?a.*?a.*?a.*?a.*?a",
            ".?" * 15 + ".*.*.*!",
            "(?=(.|.)*!)q",
            "q(?<!(?:a|a(?:)){40})",
            "((a?){100}){100}",
            "(((a|b.)*)*c)*",
            # impossible to tell: both the ways and their number are infinite
            "(?:(?:(?:a+b?)+c?)+(?:d+e?)+){1,3}!",
        ],
        "a search could take too long",
    ),
    "a" * 100_001: r"patterns with 100,00\d letters",
    "(?:" * 2000 + "a" + ")" * 2000: "is no regular expression",
    "(?:(?:){10000}){10000}": "it repeats what may be nothing more than 1000 times",
    "(a)" * 101: "more than 100 groups|more than 101 groups",
    "[\\0-\U0010ffff]": "a range of more than 256 letters",
    "(?i:[a-\uffff])": "a range of more than 256 letters",
    "(.)x(?(1)a|b)": "refers back",
    r"(.*)\1": "refers back",
    "(": "is no regular expression: missing",
    "a)|(b": "is no regular expression",
    "(?P<" + "a" * 5000 + "-": "is no regular expression",
    "a{99999999999}": "is no regular expression",
    r"(?au)a": "is no regular expression",
}


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda p: p[:40])
def test_what_could_take_long_is_refused_by_name_at_once(pattern):
    options = [
        {"target_modules": pattern},
        {"target_modules": "all-linear", "exclude_modules": pattern},
        {"target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": ["h", pattern]},
        {"target_modules": "all-linear", "rank_pattern": {"q": 1, pattern: 2}},
        {"target_modules": "all-linear", "alpha_pattern": {"q": 1, pattern: 2}},
    ]
    for given in options:
        before = time.perf_counter()
        with pytest.raises(
            PatternError, match=f"{list(given)[-1]}:? .*({REFUSED[pattern]})"
        ) as error:
            ld.LoraConfig(**given)
        assert time.perf_counter() - before < 1
        assert len(str(error.value)) < 400


def test_a_pattern_with_a_group_of_our_own_name_is_refused_when_it_is_given():
    with pytest.raises(
        PatternError, match=r"layers_pattern: .*no regular expression: redefinition"
    ):
        ld.LoraConfig(target_modules=["q"], layers_to_transform=1, layers_pattern=r"(?P<number>h)")


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_so_are_more_patterns_than_can_be_read(option):
    ld.LoraConfig(**{option: {f"layers.{i}.q": 1 for i in range(2000)}})
    with pytest.raises(PatternError, match=f"{option}: it holds 2,001 patterns .* most 2,000,"):
        ld.LoraConfig(**{option: {f"layers.{i}.q": 1 for i in range(2001)}})
    with pytest.raises(PatternError, match=f"{option}: it holds 30 patterns with 150,050 letters"):
        ld.LoraConfig(**{option: {f"{i}" + "q" * 5000: 1 for i in range(30)}})


class Wide(ld.Module):
    """A model of many layers with long paths."""

    def __init__(self, layers, name="q_proj"):
        self.layers = [ld.Module() for _ in range(layers)]
        for layer in self.layers:
            setattr(layer, name, ld.Linear(1, 1))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("target_modules", {"target_modules": ".*.*.*.*!"}),
        ("exclude_modules", {"exclude_modules": ".*.*.*.*!"}),
        ("layers_pattern", {"layers_pattern": [".*.*!"] * 99, "layers_to_transform": 1}),
        ("rank_pattern", {"rank_pattern": {f".*.*!{i}": 1 for i in range(99)}}),
        ("alpha_pattern", {"alpha_pattern": {f".*.*!{i}": 1 for i in range(99)}}),
    ],
)
def test_what_would_add_up_on_a_large_model_is_refused_there(option, given):
    config = ld.LoraConfig(**{"target_modules": ["q" * 40]} | given)
    model = Wide(1000, "q" * 40)
    before = time.perf_counter()
    with pytest.raises(PatternError, match=f"{option}: it holds .* could take too long"):
        match(model, config)
    assert time.perf_counter() - before < 2


def test_a_path_that_is_longer_than_a_config_could_know_is_counted_at_its_length():
    assert tries(".*.*!", 400) > 12 * tries(".*.*!", 100)
    config = ld.LoraConfig(target_modules=".*.*.*!")
    with pytest.raises(PatternError, match="to search 2 paths for them could take too long"):
        match(Wide(1, "q" * 2000), config)


def test_many_patterns_for_many_layers_are_read_once():
    model = Wide(500)
    paths = [path for path, m in model.named_modules() if isinstance(m, ld.Linear)]
    pattern = {path: i + 1 for i, path in enumerate(paths)}
    before = time.perf_counter()
    config = ld.LoraConfig(target_modules="all-linear", rank_pattern=pattern, alpha_pattern=pattern)
    found = match(model, config)
    assert time.perf_counter() - before < 5  # 0.4 here; it was 15, when each was compiled anew
    assert {path: options["r"] for path, options in found.options.items()} == pattern


# ----------------------------------------------------------------------------- the bound is one

_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


def tried(pattern, path):
    """Return how many pieces a backtracking search tries if it has to go all ways."""
    count = 0

    def go(items, i, then, in_a_row=False):
        nonlocal count
        if not items:
            return then(i)
        (kind, value), after = items[0], items[1:]
        count += kind.name != "LITERAL" or not in_a_row

        def rest(j):
            return go(after, j, then, kind.name == "LITERAL")

        if kind.name == "SUBPATTERN":
            return go(list(value[-1]), i, rest)
        if kind.name == "BRANCH":
            return [go(list(items), i, rest) for items in value[1]]
        if kind.name in ("MAX_REPEAT", "MIN_REPEAT"):
            return again(*value, i, 0, rest)
        if kind.name in ("ASSERT", "ASSERT_NOT"):
            go(list(value[1]), i, lambda j: None)
            return rest(i)
        letter = path[i : i + 1]
        hit = {
            "LITERAL": lambda: letter == chr(value),
            "NOT_LITERAL": lambda: letter != chr(value),
            "ANY": lambda: True,
            "IN": lambda: any(letter == chr(v) for _, v in value),
        }
        return rest(i + 1) if letter and hit[kind.name]() else None

    def again(least, most, items, i, done, rest):
        if done < most:
            go(
                list(items),
                i,
                lambda j: (
                    again(least, most, items, j, done + 1, rest) if j > i or done < least else 0
                ),
            )
        if done >= least:
            rest(i)

    go(list(_parser.parse(pattern)), 0, lambda j: None)
    return count


def random_pattern(rng, depth=3):
    """Return a pattern of a few pieces, in which words, groups and repeats meet."""
    atoms = [".", "a", "b", "ab", "aba", "abb", "bab", "[ab]", "[^a]", r"\.", r"\.a", r"a\."]

    def piece(depth):
        if depth == 0 or rng.random() < 0.4:
            return rng.choice(atoms)
        inside = "|".join(sequence(depth - 1) for _ in range(rng.integers(1, 4)))
        return f"({rng.choice(['', '?:', '?:', '?=', '?!'])}{inside})"

    def sequence(depth):
        repeats = ["", "", "", "*", "+", "?", "*?", "{1,3}", "{2}"]
        return "".join(piece(depth) + rng.choice(repeats) for _ in range(rng.integers(1, 4)))

    return sequence(depth)


def accepted(seed, count, ending=""):
    rng = np.random.default_rng(seed)
    while count:
        pattern = random_pattern(rng) + ending
        try:
            (expression,) = compiled("target_modules", [pattern])
        except PatternError:
            continue
        count -= 1
        yield rng, expression


def test_no_search_tries_more_pieces_than_its_bound_counts():
    for rng, expression in accepted(0, 100):
        paths = ["ab" * 5, "aba" * 3, "abb" * 3, "a" * 9, "a.b" * 3, "a....", "...bab"]
        for path in [*paths, "".join(rng.choice(["a", "b", "."], 9))]:
            pattern = expression.pattern
            assert tried(pattern, path) <= tries(pattern, len(path)), (pattern, path)


def test_what_is_accepted_runs_in_the_time_that_it_may_take():
    for _, expression in accepted(1, 300, "!"):
        for path in ("ab" * 50, "aba" * 33, "a" * 100, "b" * 100):
            before = time.perf_counter()
            expression.fullmatch(path)
            assert time.perf_counter() - before < 0.5, expression
    assert tries(".*.*.*.*!", 100) < MOST_TRIES < tries(".*.*.*.*.*!", 100)


@pytest.mark.parametrize(
    ("pattern", "path", "number"),
    [
        (None, "model.layers.12.q", 12),
        ("h", "model.layers.1.h.3.q", 3),
        ("layers", "layers.4.q", 4),
        ("l.*s", "model.layers.12.q", 12),
        ("h", "model.layers.1.q", None),
        ("yers", "model.layers.12.q", None),
    ],
)
def test_what_a_number_follows_is_read_from_the_path(pattern, path, number):
    options = {"target_modules": ["q"], "layers_pattern": pattern}
    for wanted in (1, 3, 4, 12):
        rules = Rules(ld.LoraConfig(**options, layers_to_transform=[wanted]))
        assert rules.is_target(path) is (wanted == number)


# ----------------------------------------------------------------------------- names


def test_names_mean_what_their_plain_definition_says():
    rng = np.random.default_rng(0)
    words = ["q", "seq", "0", "10", "layer", "", "a.b", ".", ".q", "q."]
    for _ in range(500):
        path = ".".join(rng.choice(["q", "seq", "0", "10", "layer", "b", "a"], rng.integers(1, 5)))
        names = [".".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rng.integers(0, 6))]
        ends = [name for name in names if name]
        rules = Rules(
            ld.LoraConfig(target_modules=names, exclude_modules=names, modules_to_save=ends)
        )
        plain = any(path == name or path.endswith(f".{name}") for name in names)
        assert rules.named_as_target(path) == rules.excluded(path) == plain
        assert rules.saved_whole(path) == any(path.endswith(name) for name in ends)
        parts = path.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        assert rules.trains_whole(path) == any(p.endswith(name) for p in above for name in ends)


MANY = [f"x{i}" for i in range(20_000)]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": [*MANY, "q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": MANY},
        {"target_modules": ["q_proj"] * 20_000},
        {"target_modules": ["q_proj"], "modules_to_save": [*MANY, "9.q_proj"]},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": range(10**6),
            "layers_pattern": "layers",
        },
    ],
    ids=["targets", "exclusions", "one target often", "modules to save", "layer numbers"],
)
@pytest.mark.filterwarnings("ignore:exclude_modules")
def test_thousands_of_names_take_no_longer_than_reading_them(options):
    model, config = Wide(500), ld.LoraConfig(**options)
    before = time.perf_counter()
    found = match(model, config)
    assert time.perf_counter() - before < 1
    assert len(found.targets) == 500 - 50 * bool(config.modules_to_save)


def test_the_names_of_a_config_are_checked_as_fast():
    before = time.perf_counter()
    ld.get_peft_model(Wide(500), ld.LoraConfig(target_modules=["q_proj"] * 20_000))
    with pytest.raises(ValueError, match="modules_to_save='x0' matches no module"):
        ld.get_peft_model(Wide(9), ld.LoraConfig(target_modules=["q_proj"], modules_to_save=MANY))
    assert time.perf_counter() - before < 3


def test_a_single_path_is_asked_about_as_many_are():
    config = ld.LoraConfig(rank_pattern={"q": 3})
    assert layer_options(config, "a.q") == Rules(config).options({"a.q": None})["a.q"]
