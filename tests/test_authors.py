"""What lesson 10 is made of: the texts, the sampler, the methods and their measures."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loradora as ld
import minigrad as mg

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import author
import gpt
import plots
import text

EXAMPLES = Path(gpt.__file__).parent


@pytest.fixture(scope="module")
def base():
    return gpt.pretrained()


# ----------------------------------------------------------------------------- texts


@given(st.text(alphabet=text.ALPHABET))
def test_a_text_is_read_back_from_its_ids(written):
    ids = text.encode(written)
    assert ids.shape == (len(written),)
    assert text.decode(ids) == written


def test_characters_that_are_not_in_the_alphabet_are_counted():
    wanted = re.escape(
        "A-Z, a-z, space, newline and !\"'(),-.:;?: replace or drop '\\xe9' (2 of them)"
    )
    with pytest.raises(ValueError, match=f"mine has .*{wanted}, '1' .1 of"):
        text.encode("Th\u00e9 1st h\u00e9", "mine")
    with pytest.raises(ValueError, match=r", \.\.\.$"):
        text.encode("0123456789")


def test_the_texts_use_the_alphabet_and_all_of_it():
    used = {i for name in text.NOVELS for i in np.unique(text.encode(text.read(name)))}
    assert used == set(range(65))
    assert list(text.ALPHABET) == sorted(text.ALPHABET)
    assert len(text.novels()) == 3_555_867 + 2 * 4  # an empty line between two


def test_the_play_is_divided_between_scenes():
    parts = text.play()
    train, validation, test = map(text.decode, parts)
    assert train + validation + test == text.read("romeo_and_juliet")
    assert validation.startswith("Act V.\n\nScene I. Mantua.")
    assert test.startswith("Scene III. A churchyard")
    assert [len(part) for part in parts] == [119_628, 5_359, 14_870]


def test_a_text_of_ones_own_is_divided_in_eighteen_one_and_one_of_twenty(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("abcd" * 500)
    assert [len(part) for part in author.own(file)] == [1800, 100, 100]
    file.write_text("abcd" * 325)  # each part has a window, just so
    assert [len(ld.windows(part, gpt.CONTEXT)[0]) for part in author.own(file)] == [1106, 1, 1]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", r"own\.txt is too short: it has 0 characters and needs at least 1,300"),
        ("a" * 1299, r"it has 1,299 characters"),
        (
            "a" * 2000 + "7",
            r"own\.txt has characters that are not in the alphabet.*: replace or drop '7' \(1 of",
        ),
    ],
)
def test_a_text_of_ones_own_is_refused_by_name(written, message, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text(written, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        author.own(file)


def test_what_is_no_text_in_utf_8_is_refused_by_name(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes(b"caf\xe9" * 1000)
    with pytest.raises(ValueError, match=r"own\.txt is not a text in UTF-8: invalid continuation"):
        author.own(file)


# ----------------------------------------------------------------------------- the sampler


class Fixed(ld.Module):
    """Gives the same logits whatever it reads, and notes how long that was."""

    def __init__(self, logits):
        self.logits = np.asarray(logits)
        self.lengths = []

    def forward(self, ids):
        self.lengths.append(len(ids))
        return mg.Tensor(np.tile(self.logits, (len(ids), 1)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_are_drawn_as_softmax_has_them(temperature):
    logits = np.full(65, -40.0)
    logits[10:14] = [0.0, 0.5, 1.0, 1.5]
    how = {"temperature": temperature, "rng": np.random.default_rng(0)}
    drawn = text.encode(gpt.sample(Fixed(logits), "a", 4000, **how))
    share = np.bincount(drawn, minlength=65) / len(drawn)
    expected = mg.softmax(logits / temperature).data
    assert np.abs(share - expected).max() < 4 * np.sqrt(0.25 / len(drawn))


def test_at_temperature_zero_the_likeliest_character_is_taken():
    logits = np.zeros(65)
    logits[20] = 1e-3
    how = {"temperature": 0.0, "rng": np.random.default_rng(0)}
    assert gpt.sample(Fixed(logits), "a", 5, **how) == text.ALPHABET[20] * 5


def test_a_sample_looks_back_as_far_as_the_context_and_goes_on_from_its_prompt():
    model = Fixed(np.zeros(65))
    sampled = gpt.sample(model, "a" * 62, 5, temperature=1.0, rng=np.random.default_rng(0))
    assert model.lengths == [62, 63, 64, 64, 64]
    assert len(sampled) == 5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "the prompt is empty"), ("2b", r"the prompt has .* '2' \(1 of them\)")],
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        gpt.sample(Fixed(np.zeros(65)), prompt, 5, temperature=1.0, rng=np.random.default_rng(0))


def test_the_novelist_writes_words_and_the_same_ones_for_the_same_seed(base):
    written = [
        gpt.sample(base, "She was ", 120, temperature=0.5, rng=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    assert written[0] == written[1] != written[2]
    known = set(re.findall("[a-z]+", text.read("emma").lower()))
    words = re.findall("[a-z]+", written[0].lower())[:-1]
    assert sum(word in known for word in words) > 0.8 * len(words)


# ----------------------------------------------------------------------------- methods


def test_the_pretrained_net_knows_the_old_author_and_not_the_new_one(base):
    assert gpt.loss_on(base, author.northanger_abbey()) == pytest.approx(1.274, abs=0.01)
    assert 2.1 < gpt.loss_on(base, text.play().test) < 2.4
    assert all(p.dtype == np.float32 for p in base.parameters())


def test_the_loss_is_that_of_windows_spread_over_the_text(base):
    ids = text.play().test
    x, y = ld.windows(ids, gpt.CONTEXT)
    with mg.no_grad():
        both = mg.cross_entropy(base(x[[0, -1]]), y[[0, -1]]).item()
    assert gpt.loss_on(base, ids, most=2) == pytest.approx(both, rel=1e-6)
    assert gpt.loss_on(base, ids[:65]) == pytest.approx(
        mg.cross_entropy(base(ids[:64]), ids[1:65]).item(), rel=1e-6
    )


def test_every_method_has_a_name_and_a_file_of_its_own():
    found = [*author.methods(8), *author.ablation(8), *author.adapters(("k_proj", "fc1"), 4)]
    names = {m.name for m in found}
    assert len(names) == len({m.slug for m in found}) == 12  # two are in two lists
    assert {
        "LoRA q,v, r=8",
        "DoRA all linear, r=8",
        "LoRA q,k,v,o, r=4",
        "LoRA k,fc1, r=4",
    } <= names
    assert max(map(len, names)) <= 21  # the width of the column
    for name in names:
        assert name.isascii()


def test_the_ablation_spends_about_as_many_parameters_on_each(base):
    trained = [
        sum(p.size for p in method.build(base, 0).trainable_parameters())
        for method in author.ablation(8)[1:]
    ]
    assert trained == [16_384, 16_384, 16_384, 18_432]


def test_an_adapter_is_learnt_measured_and_leaves_the_base(base):
    before = base.state_dict()
    play = text.play()
    (lora, _) = author.adapters(author.QV, 2)
    run = author.best(lora, base, play, rates=[0.02], steps=11, seed=0)
    again = author.train(lora, base, play.train, rate=0.02, steps=11, seed=0)
    assert run.losses == again.losses
    row = author.measure(run, play.test, play.validation)
    assert row.method == "LoRA q,v, r=2"
    assert (row.trainable, row.total) == (4096, 814_208)
    assert row.loss_new < gpt.loss_on(base, play.test) - 0.05
    assert row.loss_off == gpt.loss_on(base, play.validation)
    assert row.loss_old != row.loss_off
    assert all(np.array_equal(before[n], a) for n, a in base.state_dict().items())
    moved = author.moved_heads(run, base, "q_proj")
    delta = run.model.merge_and_unload().model["decoder"].layers[1].self_attn.q_proj.weight.data
    W0 = base.model["decoder"].layers[1].self_attn.q_proj.weight.data
    expected = np.linalg.norm((delta - W0)[64:96]) / np.linalg.norm(W0[64:96])
    assert moved.shape == (4, 4)
    assert moved[1, 2] == pytest.approx(expected, rel=1e-5)
    assert not author.moved_heads(run, base, "k_proj").any()


def test_the_rate_is_chosen_on_the_validation_part_alone(base, monkeypatch):
    play, seen = text.play(), []

    def loss_on(model, ids):
        seen.append(ids)
        return -len(seen)  # so that the last is the best

    monkeypatch.setattr(author, "loss_on", loss_on)
    (lora, _) = author.adapters(author.QV, 2)
    how = {"steps": 11, "seed": 0}
    run = author.best(
        lora, base, text.Split(play.train, play.validation, None), rates=[0.1, 0.02], **how
    )
    assert run.rate == 0.02
    assert [ids is play.validation for ids in seen] == [True, True]


def test_a_rate_that_diverges_loses_and_does_not_end_the_search(base):
    play = text.play()
    (lora, _) = author.adapters(author.QV, 2)
    with np.errstate(all="ignore"):
        run = author.best(lora, base, play, rates=[1e37, 0.02], steps=11, seed=0)
        assert run.rate == 0.02
        with pytest.raises(FloatingPointError, match="LoRA q,v, r=2, at every rate: the loss is"):
            author.best(lora, base, play, rates=[1e37], steps=11, seed=0)


def test_a_training_is_what_the_lesson_says(base, monkeypatch):
    """It is clipped at 1, warmed up for ten steps, and without decay, and alpha is 2 r."""
    seen = {}

    def fit(model, x, y, *, optimizer, **how):
        seen.update(how, x=x, y=y, optimizer=optimizer, model=model)
        return []

    monkeypatch.setattr(ld, "fit", fit)
    ids = text.play().train
    (_, dora) = author.adapters("all-linear", 3)
    author.train(dora, base, ids, rate=0.03, steps=40, seed=7)
    expected = {"steps": 40, "batch_size": 32, "clip_grad_norm": 1.0, "rng": 7}
    assert {name: seen[name] for name in expected} == expected
    assert [seen["schedule"](k / 40) for k in (0, 5, 10, 25, 40)] == [0, 0.5, 1, 0.5, 0]
    (group,) = seen["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.03, 0)
    assert set(group["params"]) == set(seen["model"].trainable_parameters())
    assert np.array_equal(seen["x"][1:], seen["y"][:-1])
    assert seen["x"].shape == (len(ids) - 64, 64)
    config = seen["model"].peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_dora) == (3, 6, True)
    assert (config.target_modules, config.task_type) == ("all-linear", "CAUSAL_LM")


def test_the_frozen_base_is_not_trained_and_has_nothing_to_switch_off(base):
    frozen = author.methods(8)[0]
    run = author.best(frozen, base, text.play(), rates=[0.1], steps=11, seed=0)
    assert (run.model, run.losses) == (base, [])
    row = author.measure(run, text.play().test, text.play().test)
    assert (row.trainable, row.loss_off) == (0, None)
    assert row.loss_new == row.loss_old


def test_the_table_has_the_means_of_the_seeds_under_its_heads():
    row = author.Row("LoRA q,v, r=8", 0, 0.02, 16_384, 826_496, 1.5, 1.25, 1.3, 10.0)
    other = dataclasses.replace(row, seed=1, loss_new=2.5, loss_old=1.75, seconds=20.0)
    line = author.table_line([row, other])
    assert line == (
        "   LoRA q,v, r=8          16,384   2.0%  0.02      2.000      1.500  1.300   15"
    )
    head = author.table_head("Romeo")
    assert len(head) == len(line) <= 80
    assert head.index("Romeo") == line.index("2.000")
    full = dataclasses.replace(row, method="full fine-tuning", trainable=810_112, loss_off=None)
    assert re.search(r" 98.0%  0.02 .* 1.250      -   10$", author.table_line([full]))


@pytest.mark.parametrize(
    ("targets", "name", "rate"),
    [
        (("q_proj", "k_proj"), "LoRA q,k, r=4", 0.02),
        (("out_proj", "fc1"), "LoRA o,fc1, r=4", 0.01),
        ((*author.ATTENTION, "fc1", "fc2"), "LoRA all linear, r=4", 0.01),
        ("all-linear", "LoRA all linear, r=4", 0.01),
    ],
)
def test_the_more_is_adapted_the_lower_the_rate(targets, name, rate):
    lora, dora = author.adapters(targets, 4)
    assert (lora.name, lora.rate) == (name, rate)
    assert dora == lora._replace(kind="DoRA")


@pytest.mark.parametrize("kind", ["full", "scratch"])
def test_what_trains_all_parameters_trains_a_copy(kind, base):
    method = author.Method(kind, 0.002)
    model = method.build(base, 0)
    assert model is not base
    assert sum(p.size for p in model.trainable_parameters()) == 810_112
    same = [np.array_equal(p.data, q.data) for p, q in zip(model.parameters(), base.parameters())]
    assert all(same) is (kind == "full")


# ----------------------------------------------------------------------------- pre-training, picture


def test_pretraining_learns_and_saves_in_float16(tmp_path):
    command = [sys.executable, EXAMPLES / "pretrain_gpt.py", "--steps", "20"]
    run = [*command, "--out", tmp_path / "gpt.npz"]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    loss = float(re.search(r"Northanger Abbey: (\S+) nats", result.stdout)[1])
    assert loss < 3.5  # of a uniform guess it is log 65 = 4.17
    with np.load(tmp_path / "gpt.npz") as saved, np.load(gpt.CHECKPOINT) as shipped:
        assert {name: saved[name].shape for name in saved} == {n: shipped[n].shape for n in shipped}
        assert {saved[name].dtype for name in saved} == {np.dtype(np.float16)}
    assert gpt.CHECKPOINT.stat().st_size <= 1.7e6


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "19"], ["--seed", "-1"], ["--rate", "0"], ["--out", "x.foo"], ["--out", "x"]],
)
def test_pretraining_refuses_options_that_make_no_sense(arguments, tmp_path):
    command = [sys.executable, EXAMPLES / "pretrain_gpt.py", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"pretrain_gpt\.py: error: .*\n", result.stderr)


def test_the_picture_shows_a_line_for_each_method_and_a_number_for_each_head():
    pytest.importorskip("matplotlib")
    heads = {"q_proj": np.arange(8.0).reshape(2, 4), "v_proj": np.ones((2, 4))}
    curves = {"LoRA q,v, r=8": [3.0, 2.0, 1.0], "DoRA q,v, r=8": [3.0, 2.5, 2.0]}
    picture = plots.Authors(curves, 2.5, heads, "LoRA q,v, r=8")
    left, q, v, _ = picture._figure().axes
    lora = left.get_lines()[0]
    assert lora.get_label() == "LoRA q,v, r=8"
    assert lora.get_ydata().tolist() == [3.0, 2.5, 2.0]  # the mean so far
    assert [t.get_text() for t in q.texts] == [f"{i:.2f}" for i in range(8)]
    assert v.get_title() == "v_proj"
    assert repr(picture) == "Authors of LoRA q,v, r=8, DoRA q,v, r=8"
