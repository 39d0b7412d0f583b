"""``LoraConfig`` understands what PEFT's does, says what it does not, and never ignores an option."""

import copy
import dataclasses
import functools
import json
import math
import pickle
import re
import sys
import time
import warnings
from collections import deque
from enum import Enum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradora import LoraConfig
from loradora.config import as_trained
from loradora.matching import is_target, layer_options

KEYS = """
    alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias
    corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode
    init_lora_weights kasa_config layer_replication layers_pattern layers_to_transform loftq_config
    lora_alpha lora_bias lora_dropout lora_ga_config megatron_config megatron_core modules_to_save
    monteclora_config peft_type peft_version qalora_group_size r rank_pattern revision target_modules
    target_parameters task_type trainable_token_indices use_bdlora use_dora use_qalora use_rslora
    velora_config
"""

FIELDS = dataclasses.fields(LoraConfig)
ABSENT = {f.name: f.metadata["absent"] for f in FIELDS if "absent" in f.metadata}

# ----------------------------------------------------------------------------- options


def test_the_defaults_are_those_of_peft():
    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 8, 0.0, "none")
    assert (config.init_lora_weights, config.rank_pattern, config.alpha_pattern) == (True, {}, {})
    unset = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
    assert {getattr(config, name) for name in (*unset, "layers_pattern", "task_type")} == {None}
    assert not any(getattr(config, name) for name in ("use_rslora", "use_dora", "lora_bias"))


def test_two_configs_share_no_dict():
    one, other = LoraConfig(), LoraConfig()
    for name in ("rank_pattern", "alpha_pattern", "loftq_config"):
        assert getattr(one, name) is not getattr(other, name)


ACCEPTED = [
    {"r": 1},
    {"r": np.int64(4)},
    {"lora_alpha": 0.5},
    {"lora_alpha": 0},
    {"lora_alpha": -3},
    {"lora_dropout": 0},
    {"lora_dropout": 0.999},
    {"target_modules": ["q", "v"]},
    {"target_modules": ("q", "v")},
    {"target_modules": r".*\.q"},
    {"target_modules": "all-linear"},
    {"exclude_modules": ["q"]},
    {"exclude_modules": "q.*"},
    *[{"bias": bias} for bias in ("none", "all", "lora_only")],
    *[{"init_lora_weights": s} for s in (True, False, "gaussian", "orthogonal", "pissa", "olora")],
    *[{"task_type": t} for t in (None, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS")],
    *[{"task_type": t} for t in ("QUESTION_ANS", "FEATURE_EXTRACTION")],
    {"target_modules": ["q"], "layers_to_transform": 1},
    {"target_modules": ["q"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q"], "layers_to_transform": range(2), "layers_pattern": "layers"},
    {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"modules_to_save": ["head"]},
    {"rank_pattern": {"q": 4, r"^v\.0": 2}},
    {"alpha_pattern": {"q": 0.5}},
    {"use_dora": True, "use_rslora": True},
    {"use_dora": True, "detach_norm": False},
    {"use_dora": True, "norm_axis": 0},
    {"use_dora": True, "norm_axis": 0, "detach_norm": False},
    {"lora_bias": True},
    {"lora_bias": True, "init_lora_weights": False},
    {"ensure_weight_tying": True},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
def test_what_is_valid_is_accepted_and_survives_its_file(options):
    config = LoraConfig(**options)
    values = json.loads(json.dumps(config.to_dict()))
    again = LoraConfig.from_dict(values)
    assert again.to_dict() == config.to_dict()
    for name, value in options.items():
        plain = value if isinstance(value, (str, dict)) or not np.iterable(value) else sorted(value)
        assert values[name] == plain


def test_a_set_of_names_is_valid_and_written_in_order():
    names = {"q", "k", "v", "o", "up", "down"}
    assert LoraConfig(target_modules=names).to_dict()["target_modules"] == sorted(names)


REFUSED = [
    ({"r": 0}, ValueError, "r must be at least 1, not 0"),
    ({"r": -1}, ValueError, "r must be at least 1, not -1"),
    ({"r": True}, TypeError, "r must be an integer, not True"),
    ({"r": 2.0}, TypeError, r"r must be an integer, not 2\.0"),
    ({"r": "4"}, TypeError, "r must be an integer, not '4'"),
    ({"r": None}, TypeError, "r must be an integer, not None"),
    ({"lora_alpha": math.nan}, ValueError, "lora_alpha must be finite, not nan"),
    ({"lora_alpha": -math.inf}, ValueError, "lora_alpha must be finite, not -inf"),
    ({"lora_alpha": 10**400}, ValueError, "lora_alpha must be finite, not 1000"),
    ({"lora_alpha": True}, TypeError, "lora_alpha must be a number, not True"),
    ({"lora_alpha": "16"}, TypeError, "lora_alpha must be a number, not '16'"),
    ({"lora_dropout": -0.1}, ValueError, r"lora_dropout must lie in \[0, 1\), not -0\.1"),
    ({"lora_dropout": 1.0}, ValueError, r"lora_dropout must lie in \[0, 1\), not 1\.0"),
    ({"lora_dropout": math.nan}, ValueError, "lora_dropout must be finite, not nan"),
    ({"lora_dropout": "0.1"}, TypeError, r"lora_dropout must be a number, not '0\.1'"),
    ({"lora_dropout": None}, TypeError, "lora_dropout must be a number, not None"),
    ({"lora_dropout": False}, TypeError, "lora_dropout must be a number, not False"),
    ({"bias": "some"}, ValueError, "bias must be one of .* not 'some'"),
    ({"bias": None}, ValueError, "bias must be one of .* not None"),
    ({"init_lora_weights": "eva"}, ValueError, "init_lora_weights must be one of .* not 'eva'"),
    ({"init_lora_weights": 1}, ValueError, "init_lora_weights must be one of .* not 1"),
    ({"task_type": "CHAT"}, ValueError, "task_type must be one of .* not 'CHAT'"),
    ({"peft_type": "LOHA"}, ValueError, "peft_type must be one of .* not 'LOHA'"),
    ({"use_dora": 1}, ValueError, "use_dora must be one of .* not 1"),
    ({"use_rslora": "yes"}, ValueError, "use_rslora must be one of .* not 'yes'"),
    ({"inference_mode": None}, ValueError, "inference_mode must be one of .* not None"),
    ({"use_dora": True, "detach_norm": 0}, ValueError, "detach_norm must be one of .* not 0"),
    ({"use_dora": True, "norm_axis": 2}, ValueError, r"norm_axis must be one of \(0, 1\), not 2"),
    ({"use_dora": True, "norm_axis": True}, ValueError, "norm_axis must be one of .* not True"),
    ({"use_dora": True, "norm_axis": None}, ValueError, "norm_axis must be one of .* not None"),
    ({"detach_norm": False}, ValueError, "detach_norm=False goes with use_dora=True"),
    ({"norm_axis": 0}, ValueError, "norm_axis=0 goes with use_dora=True"),
    ({"lora_bias": True, "use_dora": True}, ValueError, "lora_bias does not go with use_dora"),
    *[
        (
            {"lora_bias": True, "init_lora_weights": scheme},
            ValueError,
            f"lora_bias goes with init_lora_weights=True or False, not {scheme!r}",
        )
        for scheme in ("gaussian", "orthogonal", "pissa", "olora")
    ],
    ({"ensure_weight_tying": 1}, ValueError, "ensure_weight_tying must be one of .* not 1"),
    ({"init_lora_weights": "orthogonal", "r": 3}, ValueError, "needs an even r, not 3"),
    ({"target_modules": "q", "layers_to_transform": 1}, ValueError, "goes with a list"),
    ({"target_modules": ["q"], "layers_pattern": "h"}, ValueError, "goes with layers_to_transform"),
    ({"layers_to_transform": "1"}, TypeError, "must be a list of integers, not '1'"),
    ({"layers_to_transform": [0.5]}, TypeError, r"must be a list of integers, not \[0\.5\]"),
    ({"layers_to_transform": True}, TypeError, "must be a list of integers, not True"),
    ({"target_modules": 5}, TypeError, "target_modules must be a list of names, not 5"),
    ({"target_modules": [5]}, TypeError, r"target_modules must be a list of names, not \[5\]"),
    ({"target_modules": {"q": 1}}, TypeError, "target_modules must be a list of names"),
    ({"target_modules": "("}, ValueError, r"'\(' is no regular expression: missing \)"),
    ({"exclude_modules": 5}, TypeError, "exclude_modules must be a list of names, not 5"),
    ({"exclude_modules": "*"}, ValueError, r"'\*' is no regular expression"),
    ({"modules_to_save": "head"}, TypeError, "modules_to_save must be a list of names, not 'head'"),
    ({"modules_to_save": ["a", ""]}, ValueError, "modules_to_save holds an empty name"),
    ({"modules_to_save": 5}, TypeError, "modules_to_save must be a list of names, not 5"),
    ({"modules_to_save": [None]}, TypeError, "modules_to_save must be a list of names"),
    ({"layers_pattern": 5, "layers_to_transform": 1}, TypeError, "layers_pattern must be a list"),
    ({"layers_pattern": ["["], "layers_to_transform": 1}, ValueError, "no regular expression"),
    ({"rank_pattern": None}, TypeError, "rank_pattern must be a dict .* not None"),
    ({"rank_pattern": ["q"]}, TypeError, "rank_pattern must be a dict"),
    ({"rank_pattern": {3: 4}}, TypeError, "rank_pattern must be a dict from names"),
    ({"rank_pattern": {"q": 0}}, ValueError, r"rank_pattern\['q'\] must be at least 1, not 0"),
    ({"rank_pattern": {"q": 1.5}}, TypeError, r"rank_pattern\['q'\] must be an integer, not 1\.5"),
    ({"rank_pattern": {"(": 4}}, ValueError, r"'\(' is no regular expression"),
    ({"rank_pattern": {"q": True}}, TypeError, r"rank_pattern\['q'\] must be an integer, not True"),
    ({"rank_pattern": {"q": 2**70}}, ValueError, r"rank_pattern\['q'\] must be at most"),
    ({"r": 2**70}, ValueError, f"r must be at most {sys.maxsize}, not {2**70}"),
    ({"layers_to_transform": [2**70]}, TypeError, "layers_to_transform must be a list of integers"),
    ({"revision": 5}, TypeError, "revision must be a string, not 5"),
    ({"revision": b"x"}, TypeError, "revision must be a string, not b'x'"),
    ({"revision": "\ud800"}, TypeError, r"revision must be a string, not '\\ud800'"),
    ({"base_model_name_or_path": ["x"]}, TypeError, r"base_model_name_or_path .*, not \['x'\]"),
    ({"peft_version": 0.21}, TypeError, r"peft_version must be a string, not 0\.21"),
    ({"peft_version": 0}, TypeError, "peft_version must be a string, not 0"),
    ({"auto_mapping": "x"}, TypeError, "auto_mapping must be a dict of plain values, not 'x'"),
    ({"auto_mapping": {1: "x"}}, TypeError, "auto_mapping must be a dict of plain values"),
    ({"auto_mapping": {"x": {1, 2}}}, TypeError, "auto_mapping must be a dict of plain values"),
    ({"auto_mapping": {"x": 10**400}}, TypeError, "auto_mapping must be a dict of plain values"),
    (
        {"auto_mapping": {"a": [[[[[1]]]]]}},
        TypeError,
        "auto_mapping must be a dict of plain values",
    ),
    ({"target_modules": ["q", "\udfff"]}, TypeError, "target_modules must be a list of names"),
    ({"modules_to_save": ["\udfff"]}, TypeError, "modules_to_save must be a list of names"),
    ({"alpha_pattern": {"\udfff": 1}}, TypeError, "alpha_pattern must be a dict from names"),
    ({"alpha_pattern": [("q", 1)]}, TypeError, "alpha_pattern must be a dict"),
    ({"alpha_pattern": {"q": math.nan}}, ValueError, r"alpha_pattern\['q'\] must be finite"),
    ({"alpha_pattern": {"q": "1"}}, TypeError, r"alpha_pattern\['q'\] must be a number, not '1'"),
    ({"alpha_pattern": {"[": 1}}, ValueError, r"'\[' is no regular expression"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda v: str(v)[:60])
def test_what_is_not_valid_is_refused_by_name_and_value(options, error, message):
    with pytest.raises(error, match=message):
        LoraConfig(**options)


def test_every_option_has_a_row_among_those_accepted_or_refused():
    tried = {name for options in ACCEPTED for name in options}
    tried |= {name for options, *_ in REFUSED for name in options}
    assert {f.name for f in FIELDS} - tried == set(ABSENT)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("target_modules", "All-Linear", "all-linear"),
        ("target_modules", "ALL-LINEAR", "all-linear"),
        ("init_lora_weights", "Gaussian", "gaussian"),
        ("init_lora_weights", "OLoRA", "olora"),
    ],
)
def test_a_name_that_peft_takes_in_any_case_is_taken_in_any_case(name, given, meant):
    config = LoraConfig(**{name: given})
    assert getattr(config, name) == meant
    assert config == LoraConfig(**{name: meant})


def test_an_expression_keeps_its_case():
    assert LoraConfig(target_modules=r".*\.Q").target_modules == r".*\.Q"
    assert LoraConfig(target_modules=["All-Linear"]).target_modules == ["All-Linear"]


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        ("SEQ_CLS", ["classifier", "score"]),
        ("TOKEN_CLS", ["classifier", "score"]),
        ("QUESTION_ANS", ["qa_outputs"]),
        ("CAUSAL_LM", None),
        ("SEQ_2_SEQ_LM", None),
        ("FEATURE_EXTRACTION", None),
    ],
)
def test_a_task_trains_its_head(task, heads):
    assert LoraConfig(task_type=task).modules_to_save == heads
    both = LoraConfig(task_type=task, modules_to_save=["x"]).modules_to_save
    assert both == ["x", *(heads or ())]


# ----------------------------------------------------------------------------- the file


def test_the_version_is_that_of_the_peft_whose_format_it_is_unless_a_file_has_another():
    assert LoraConfig().to_dict()["peft_version"] == "0.21.2"
    assert LoraConfig(peft_version=None).peft_version == "0.21.2"
    older = LoraConfig.from_dict({"peft_type": "LORA", "peft_version": "0.18.0"})
    assert older.to_dict()["peft_version"] == "0.18.0"


START = {"eva": "eva_config", "lora_ga": "lora_ga_config", "LoRA_GA": "lora_ga_config", "mica": ""}


@pytest.mark.parametrize("scheme", START)
def test_how_a_lora_started_is_of_no_consequence_once_it_is_trained(scheme):
    values = LoraConfig(r=3, lora_alpha=5, target_modules=["q"]).to_dict()
    given = values | {"init_lora_weights": scheme} | {n: {"rho": 2.0} for n in [START[scheme]] if n}
    assert LoraConfig.from_dict(as_trained(given)).to_dict() == values
    with pytest.raises(ValueError, match=r"init_lora_weights must be|is not implemented"):
        LoraConfig.from_dict(given)  # a new adapter cannot start like this


@pytest.mark.parametrize("name", ["eva_config", "lora_ga_config", "corda_config", "loftq_config"])
def test_options_of_another_start_are_of_no_consequence_either(name):
    values = LoraConfig(init_lora_weights="gaussian", target_modules=["q"]).to_dict()
    assert LoraConfig.from_dict(as_trained(values | {name: {"a": 1}})).to_dict() == values


@pytest.mark.parametrize("scheme", ["corda", "loftq", "pissa_niter_16"])
def test_a_start_that_leaves_another_weight_than_the_bases_is_refused(scheme):
    values = LoraConfig(target_modules=["q"]).to_dict() | {"init_lora_weights": scheme}
    with pytest.raises(ValueError, match=f"{scheme!r} .*weight.* not in the file"):
        as_trained(values)


@pytest.mark.parametrize("scheme", [True, False, "gaussian", "orthogonal", "pissa", "olora"])
def test_starts_that_are_known_here_are_kept(scheme):
    values = LoraConfig(init_lora_weights=scheme).to_dict()
    assert as_trained(values)["init_lora_weights"] == scheme


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_file_has_exactly_the_keys_of_peft(use_dora):
    config = LoraConfig(use_dora=use_dora, detach_norm=True, norm_axis=1)
    assert list(config.to_dict()) == sorted(KEYS.split())


def test_options_that_peft_does_not_have_are_in_a_file_if_they_are_set():
    config = LoraConfig(use_dora=True, detach_norm=False)
    assert list(config.to_dict()) == sorted([*KEYS.split(), "detach_norm"])
    config = LoraConfig(use_dora=True, norm_axis=0, detach_norm=False)
    assert list(config.to_dict()) == sorted([*KEYS.split(), "detach_norm", "norm_axis"])


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_an_option_that_is_not_implemented_is_refused_with_the_reason(name):
    message = f"{name}='set' is not implemented: {re.escape(ABSENT[name])}"
    with pytest.raises(ValueError, match=message):
        LoraConfig(**{name: "set"})
    with pytest.raises(ValueError, match=message):
        LoraConfig.from_dict(LoraConfig().to_dict() | {name: "set"})


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_an_option_that_is_not_implemented_may_be_given_as_peft_writes_it(name):
    default = getattr(LoraConfig(), name)
    for value in (default, None, False):
        assert getattr(LoraConfig(**{name: value}), name) == value
    assert LoraConfig(**{name: default}) == LoraConfig()


def test_an_option_that_nobody_knows_is_a_type_error():
    with pytest.raises(TypeError, match="unheard_of"):
        LoraConfig(unheard_of=None)


def test_a_config_can_be_copied_pickled_and_replaced():
    config = LoraConfig(r=2, rank_pattern={"q": 3}, target_modules=["q"])
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config) == config != LoraConfig()
    assert dataclasses.replace(config, r=4).r == 4
    with pytest.raises(ValueError, match="eva_config=1 is not implemented"):
        dataclasses.replace(config, eva_config=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_mapping", {"base_model_class": "Net", "parent_library": None, "parts": ["a", 1]}),
        ("base_model_name_or_path", "x"),
        ("peft_version", "0.18.0"),
        ("revision", "x"),
    ],
)
def test_what_only_says_where_a_file_came_from_is_kept(name, value):
    assert LoraConfig.from_dict(LoraConfig().to_dict() | {name: value}).to_dict()[name] == value


class Task(str, Enum):
    """Made as PEFT's TaskType is."""

    CAUSAL_LM = "CAUSAL_LM"


def test_a_task_of_pefts_own_type_is_a_task():
    config = LoraConfig(task_type=Task.CAUSAL_LM)
    assert json.loads(json.dumps(config.to_dict()))["task_type"] == "CAUSAL_LM"


def test_numbers_of_numpy_become_numbers_of_json():
    config = LoraConfig(
        r=np.int64(4),
        lora_alpha=np.float32(8),
        alpha_pattern={"a": np.int32(3)},
        target_modules=["a"],
        layers_to_transform=[np.int64(1)],
    )
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_options_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        LoraConfig(16, 32)


def test_names_in_any_collection_can_be_written():
    many = [np.array(["q"]), deque(["q"]), {"q": 1}.keys(), ("q",), frozenset({"q"})]
    for names in many:
        written = LoraConfig(target_modules=names).to_dict()
        assert json.loads(json.dumps(written))["target_modules"] == ["q"]


def deep(levels):
    """Return a list in a list in a list."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


LARGE = {
    "deep": deep(900),
    "deep and named": functools.reduce(lambda inside, _: {"a": inside}, range(900), "x"),
    "a long string": "x" * 10**6,
    "a long list": list(range(10**5)),
    "a long list of strings": ["(" * 100] * 10**5,
    "a large dict": {str(i): [i] for i in range(10**4)},
    "a large key": {"(" * 10**6: 1},
    "many deep ones": [deep(50)] * 1000,
    "a huge number": 10**4000,
    "a negative one": -(10**4000),
    "a large float": 1e308,
    "no number": math.nan,
}


def refusal(values):
    """Return why these values are no config; or None, if they are one that survives its file."""
    try:
        config = LoraConfig.from_dict({"peft_type": "LORA"} | values)
    except (TypeError, ValueError) as error:
        return str(error)
    assert LoraConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    return None


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("name", [f.name for f in FIELDS])
def test_whatever_a_file_says_costs_little_and_is_reported_shortly(name, value):
    before = time.perf_counter()
    reason = refusal({name: value})
    assert time.perf_counter() - before < 2  # at most 0.3, alone
    assert reason is None or (name in reason and len(reason) < 1000)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "lora_dropout", "layers_to_transform"])
def test_a_number_with_more_digits_than_python_writes_is_refused_by_name(name):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        LoraConfig(**{name: 10**5000})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["q", "all-linear", "(.|.)*!", "orthogonal", "LORA", "SEQ_CLS", "lora_only"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([f.name for f in FIELDS]), json_values, max_size=4))
@settings(deadline=2000)
def test_any_json_is_a_config_or_is_refused(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what re says of odd patterns
        reason = refusal(values)
    assert reason is None or len(reason) < 1000


@pytest.mark.parametrize("values", [None, [], "LORA", {1: 2, "peft_type": "LORA"}, {"\ud800": 1}])
def test_what_is_no_dict_of_options_is_no_config(values):
    with pytest.raises(TypeError, match="a config is a dict from options to values, not"):
        LoraConfig.from_dict(values)


def test_thousands_of_keys_of_the_future_are_not_all_named():
    values = {"peft_type": "LORA"} | {f"key {i:05}": i for i in range(20_000)}
    before = time.perf_counter()
    with pytest.warns(UserWarning, match="unknown keys .*'key 00000'") as found:
        LoraConfig.from_dict(values)
    assert len(str(found[0].message)) < 300
    assert time.perf_counter() - before < 1


def test_a_key_of_the_future_warns_and_is_named():
    with pytest.warns(UserWarning, match=r"unknown keys .*\['brand_new', 'use_tomorrow'\]"):
        config = LoraConfig.from_dict({"peft_type": "LORA", "use_tomorrow": 1, "brand_new": 2})
    assert config == LoraConfig()


def test_five_keys_are_a_config():
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = LoraConfig.from_dict(values | {"use_dora": True})
    assert config == LoraConfig(r=4, lora_alpha=8, target_modules=["q"], use_dora=True)


@pytest.mark.parametrize("values", [{}, {"peft_type": "LOHA"}, {"r": 8}], ids=str)
def test_a_file_of_another_kind_of_adapter_is_refused(values):
    with pytest.raises(ValueError, match="peft_type must be 'LORA', not"):
        LoraConfig.from_dict(values)


# ----------------------------------------------------------------------------- which layers

A_LIST = ["q", "v"]

TARGETS = [
    # a list names whole trailing parts of a path
    ({"target_modules": ["q"]}, "q", True),
    ({"target_modules": ["q"]}, "layer.0.q", True),
    ({"target_modules": ["q"]}, "layer.0.seq", False),
    ({"target_modules": ["q"]}, "layer.0.q_proj", False),
    ({"target_modules": ["q"]}, "q.0", False),
    ({"target_modules": ["0.q"]}, "layer.0.q", True),
    ({"target_modules": ["0.q"]}, "layer.10.q", False),
    ({"target_modules": ["layer.0.q"]}, "layer.0.q", True),
    ({"target_modules": A_LIST}, "layer.0.v", True),
    ({"target_modules": A_LIST}, "layer.0.k", False),
    ({"target_modules": []}, "q", False),
    ({"target_modules": ["."]}, "q", False),
    ({"target_modules": ["q.*"]}, "qx", False),  # no expression
    # a string is an expression for the whole path
    ({"target_modules": "q"}, "q", True),
    ({"target_modules": "q"}, "layer.0.q", False),
    ({"target_modules": r".*\.q"}, "layer.0.q", True),
    ({"target_modules": r".*\.q"}, "q", False),
    ({"target_modules": r".*\.(q|v)"}, "layer.0.v", True),
    ({"target_modules": r".*\.(q|v)"}, "layer.0.vo", False),
    ({"target_modules": r"layer\.[0-3]\.q"}, "layer.3.q", True),
    ({"target_modules": r"layer\.[0-3]\.q"}, "layer.4.q", False),
    ({"target_modules": r".*"}, "anything.at.all", True),
    ({"target_modules": "all-linear"}, "anything.at.all", True),
    # exclusion comes first
    ({"target_modules": ["q"], "exclude_modules": ["0.q"]}, "layer.0.q", False),
    ({"target_modules": ["q"], "exclude_modules": ["0.q"]}, "layer.1.q", True),
    ({"target_modules": ["q"], "exclude_modules": r"layer\.0\..*"}, "layer.0.q", False),
    ({"target_modules": ["q"], "exclude_modules": "q"}, "layer.0.q", True),
    ({"target_modules": ".*", "exclude_modules": ["q"]}, "layer.0.q", False),
    ({"target_modules": "all-linear", "exclude_modules": ["head"]}, "head", False),
    ({"target_modules": ["q"], "exclude_modules": ["q"]}, "q", False),
    # modules that train whole are no targets
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "head", False),
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "head.0", False),
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "model.head.0", False),
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "overhead", False),
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "model.overhead.0", False),
    ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "header", True),
    ({"target_modules": "all-linear", "modules_to_save": ["h.0"]}, "head", True),
    # layer numbers
    ({"target_modules": ["q"], "layers_to_transform": 1}, "model.layers.1.q", True),
    ({"target_modules": ["q"], "layers_to_transform": 1}, "model.layers.11.q", False),
    ({"target_modules": ["q"], "layers_to_transform": [0, 2]}, "model.layers.2.q", True),
    ({"target_modules": ["q"], "layers_to_transform": [0, 2]}, "model.layers.1.q", False),
    ({"target_modules": ["q"], "layers_to_transform": [1]}, "model.q", False),
    ({"target_modules": ["q"], "layers_to_transform": [1]}, "model.layers.1.experts.0.q", True),
    ({"target_modules": ["q"], "layers_to_transform": [0]}, "model.layers.1.experts.0.q", False),
    ({"target_modules": ["q"], "layers_to_transform": []}, "model.layers.7.q", True),
    ({"target_modules": ["model.q"], "layers_to_transform": [1]}, "model.q", True),
    *[
        (
            {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": pattern},
            path,
            hit,
        )
        for pattern, path, hit in [
            ("layers", "layers.1.q", True),
            ("layers", "model.layers.1.q", True),
            ("layers", "model.h.1.q", False),
            (["h", "layers"], "model.h.1.q", True),
            (["h", "layers"], "model.layers.2.q", False),
            ("experts", "model.layers.0.experts.1.q", True),
            ("layers", "model.layers.0.experts.1.q", False),
            ("", "model.h.1.q", True),
        ]
    ],
]


@pytest.mark.parametrize(("options", "path", "hit"), TARGETS, ids=str)
def test_which_layers_are_targets(options, path, hit):
    assert is_target(LoraConfig(**options), path) is hit


def test_without_targets_there_is_nothing_to_match():
    with pytest.raises(ValueError, match="target_modules is not set: name the Linear layers"):
        is_target(LoraConfig(), "q")


PATTERNS = [
    ("foo", "foo", True),
    ("foo", "x.foo", True),
    ("foo", "barfoo", False),
    ("foo", "foo.x", False),
    ("^foo", "foo", True),
    ("^foo", "x.foo", False),
    ("0.foo", "x.0.foo", True),
    (r"layer\.\d+\.foo", "x.layer.12.foo", True),
    ("foo|bar", "x.bar", True),
    ("foo|bar", "x.barn", False),
    (".*foo", "barfoo", True),
]


@pytest.mark.parametrize(("pattern", "path", "hit"), PATTERNS)
@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_patterns_match_whole_trailing_parts(option, pattern, path, hit):
    options = layer_options(LoraConfig(r=8, lora_alpha=16, **{option: {pattern: 3}}), path)
    name, default = {"rank_pattern": ("r", 8), "alpha_pattern": ("lora_alpha", 16)}[option]
    assert options[name] == (3 if hit else default)


def test_the_first_pattern_that_matches_wins_and_the_two_do_not_mix():
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern={"q": 2, ".*": 4}, alpha_pattern={"v": 5})
    found = {path: layer_options(config, path) for path in ("x.q", "x.v")}
    assert [(o["r"], o["lora_alpha"]) for o in found.values()] == [(2, 16), (4, 5)]


def test_layers_get_the_options_of_the_config():
    config = LoraConfig(
        r=2, lora_alpha=5, use_rslora=True, lora_dropout=0.25, init_lora_weights="gaussian"
    )
    assert layer_options(config, "q") == {
        "r": 2,
        "lora_alpha": 5,
        "use_rslora": True,
        "lora_dropout": 0.25,
        "init_lora_weights": "gaussian",
    }
    plain = layer_options(LoraConfig(), "q")
    for options in (
        {"lora_bias": True},
        {"use_dora": True, "detach_norm": False},
        {"use_dora": True, "norm_axis": 0},
    ):
        found = layer_options(LoraConfig(**options), "q")
        assert found == plain | {n: v for n, v in options.items() if n != "use_dora"}


def test_an_option_that_there_is_not_is_not_set_in_vain():
    config = LoraConfig()
    with pytest.raises(AttributeError, match="LoraConfig has no option 'lora_alhpa'"):
        config.lora_alhpa = 64
    config.lora_alpha = 64
    assert config.lora_alpha == 64
