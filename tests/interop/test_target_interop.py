"""A config selects the same layers, ranks and scalings here and in PEFT."""

from typing import Any

import pytest

import loradora as ld

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
pytest.importorskip("safetensors", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)


def linear() -> Any:
    return torch.nn.Linear(4, 4)


def block() -> Any:
    mlp = torch.nn.ModuleDict({"up": linear(), "down": linear()})
    return torch.nn.ModuleDict({"q": linear(), "k": linear(), "seq": linear(), "mlp": mlp})


def tower(device: str = "meta") -> Any:
    """Numbered blocks at two depths, nested numbers, and names that are parts of other names."""
    parts, blocks = torch.nn.ModuleDict, torch.nn.ModuleList
    with torch.device(device):  # where only the names matter, numbers are not needed
        encoder = {"layers": blocks([block(), block(), block()]), "h": blocks([block(), block()])}
        return parts(
            {
                "encoder": parts(encoder),
                "layers": blocks([block(), block()]),
                "experts": blocks([parts({"layers": blocks([block(), block()])})]),
                "q": linear(),
                "barfoo": linear(),
                "foo": linear(),
                "head": torch.nn.Sequential(linear(), torch.nn.ReLU(), linear()),
            }
        )


def mirror(theirs: Any) -> ld.Module:
    """Return a tree of modules with the names of ``theirs``, and a Linear wherever it has one."""
    if isinstance(theirs, torch.nn.Linear):
        return ld.Linear(theirs.in_features, theirs.out_features)
    ours = ld.Module()
    for name, child in theirs.named_children():
        setattr(ours, name, mirror(child))
    return ours


OURS = mirror(tower())


def row(target_modules: Any, **options: Any) -> dict[str, Any]:
    return {"target_modules": target_modules, **options}


LISTS = [
    row(["q"]),
    row(["q", "q"]),
    row(["k", "up"]),
    row(["mlp.up"]),
    row(["layers.0.q"]),
    row(["encoder.layers.0.q"]),
    row(["encoder.layers.0.q", "k"]),
    row(["head.0"]),
    row(["foo"]),
]
PATTERNS = [
    row("all-linear"),
    row("All-Linear", init_lora_weights="Gaussian"),
    row("q"),
    row(".*q"),
    row(r".*\.q"),
    row(r"encoder\.layers\.[01]\.(q|k)"),
    row(r".*layers.*up"),
    row("(?!encoder).*foo"),
]
EXCLUSIONS = [
    row(["q"], exclude_modules=["encoder.layers.0.q"]),
    row(["q"], exclude_modules=["0.q"]),
    row(["q"], exclude_modules=["k"]),
    row(["q"], exclude_modules="q"),
    row(["q"], exclude_modules=r"encoder\..*"),
    row(["q"], exclude_modules=["encoder"]),
    row(["q"], exclude_modules=[]),
    row(["q"], exclude_modules=""),
    row(["q", "foo"], exclude_modules=["foo"]),
    row("all-linear", exclude_modules=["q", "k"]),
    row("all-linear", exclude_modules=r".*layers.*"),
    row(r".*q", exclude_modules=r"layers.*"),
]
DEPTHS = [
    row(["q", "up"], layers_to_transform=wanted, layers_pattern=pattern)
    for wanted in (0, [1], [0, 2], [])
    for pattern in (None, [], "", "layers", ["h"], ["layers", "h"], "encoder.layers", "lay.*")
] + [
    row(["q"], layers_to_transform=[9]),
    row(["encoder.layers.1.q", "foo"], layers_to_transform=[0]),
    row(["layers.1.q"], layers_to_transform=[0]),
    row(["layers.1.k", "k"], layers_to_transform=[0]),
    row(["layers.0.q", "encoder.layers.0.q", "layers.1.q"], layers_to_transform=[1]),
    row(["q"], layers_pattern=[]),
]
RANKS = [
    row(["q", "k", "up", "foo", "barfoo"], rank_pattern=ranks)
    for ranks in (
        {"q": 3},
        {"^q": 3},
        {"layers.0.q": 3},
        {"^layers.0.q": 3},
        {r"layers\.\d+\.q": 6},
        {"encoder.*q": 3},
        {"q": 3, "encoder.layers.0.q": 5},
        {"encoder.layers.0.q": 5, "q": 3},
        {"foo": 2},
        {"^foo": 2},
        {"mlp.up": 2},
        {"up|k": 5},
        {r".*\.0\..*": 3},
    )
] + [
    row(["q", "k"], rank_pattern={"q": 3}, alpha_pattern={"k": 5, "layers.0.q": 2}, use_rslora=rs)
    for rs in (False, True)
]
SAVED = [
    row(["q"], modules_to_save=["head"]),
    row(["q"], modules_to_save=["head.0"]),
    row("all-linear", modules_to_save=["head"]),
    row("all-linear", modules_to_save=["head.2"]),
    row(["k"], modules_to_save=["q"]),
    row(["k"], modules_to_save=["oo", "own"]),
    row(["q", "up"], modules_to_save=["0.mlp.up", "encoder.layers.0.q"]),
    row(["q", "up"], modules_to_save=["0.mlp.up"], exclude_modules=["1.mlp.up"]),
    row(r".*\.(q|up)", modules_to_save=["up"]),
]
AGREED = [
    pytest.param(options, id=", ".join(f"{name}={value!r}" for name, value in options.items()))
    for options in LISTS + PATTERNS + EXCLUSIONS + DEPTHS + RANKS + SAVED
]

REFUSED = [
    row([]),
    row(""),
    row(["eq"]),
    row(["nothing"]),
    row(["mlp"]),
    row("layers"),
    row(["0"]),
    row(["head.1"]),
    row(".*"),
    row(["q"], exclude_modules=["q"]),
    row(["q"], modules_to_save=["q"]),
    row(["q", "foo"], modules_to_save=["oo"]),
    row(["0"], layers_to_transform=[0]),
    row(["k"], layers_to_transform=[9]),
    row(".*q", layers_to_transform=[0]),
    row("all-linear", layers_to_transform=[0]),
    row(["q"], layers_pattern="layers"),
    row(["q"], r=0),
    row(["q"], r=-1),
    row(["q"], r=3, init_lora_weights="orthogonal"),
    row(["q"], lora_bias=True, use_dora=True),
    row(["q"], lora_bias=True, init_lora_weights="gaussian"),
    row(["q"], lora_bias=True, init_lora_weights="pissa"),
    row(["q"], init_lora_weights="unheard of"),
    row(["q"], task_type="UNHEARD_OF"),
]


@pytest.mark.parametrize("options", AGREED)
def test_the_same_layers_are_adapted_with_the_same_ranks(options: dict[str, Any]) -> None:
    theirs = peft.get_peft_model(tower(), peft.LoraConfig(**options))
    ours = ld.get_peft_model(OURS, ld.LoraConfig(**options))
    assert twins.adapted(ours) == twins.adapted(theirs)
    assert ours.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]


#: PEFT's words, so that a refusal for another reason than the option does not count.
PEFTS_WORDS = (
    r"No `target_modules`|Target modules? .* not (found|supported)|is not supported|No modules were"
    r"|`layers_to_transform`|`r` should be|rank to be even|lora_bias|Unknown init|Invalid task type"
    r"|modules_to_save cannot be applied"
)


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_peft_refuses_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=PEFTS_WORDS):
        peft.get_peft_model(tower(), peft.LoraConfig(**options))
    with pytest.raises(ValueError, match=r"target_modules|Linear|layers_|must be|init|lora_bias"):
        ld.get_peft_model(OURS, ld.LoraConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        row("all-linear"),
        row(r".*layers\.\d\.(q|mlp\.up)"),
        row(["q", "k", "seq", "up", "down"], layers_to_transform=[1]),
        row("all-linear", modules_to_save=["head"]),
    ],
    ids=str,
)
def test_peft_condenses_names_in_its_file_without_changing_their_meaning(options, tmp_path) -> None:
    theirs = peft.get_peft_model(tower("cpu"), peft.LoraConfig(**options))
    theirs.save_pretrained(str(tmp_path))
    ours = ld.PeftModel.from_pretrained(OURS, tmp_path)
    assert twins.adapted(ours) == twins.adapted(theirs)


@pytest.mark.parametrize("pattern", ["oo", "^encoder", "nothing"])
def test_a_rank_for_nothing_is_a_warning_in_peft_and_an_error_here(pattern: str) -> None:
    options = row(["q", "foo"], rank_pattern={pattern: 3})
    with pytest.warns(RuntimeWarning, match="did not match"):
        peft.get_peft_model(tower(), peft.LoraConfig(**options))
    with pytest.raises(ValueError, match="rank_pattern key"):
        ld.get_peft_model(OURS, ld.LoraConfig(**options))
