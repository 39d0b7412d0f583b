"""The golden cases are still what PyTorch, transformers and PEFT compute; their script checks that."""

import sys

import golden_cases
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason=golden_cases.NEEDED)
peft = pytest.importorskip("peft", reason=golden_cases.NEEDED)
transformers = pytest.importorskip("transformers", reason=golden_cases.NEEDED)

FILES = {name: golden_cases.load(name) for name in golden_cases.EXPECTATIONS}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=case["id"])
        for name, golden in FILES.items()
        for case in golden.cases
        if case["scored"]
    ],
)
def test_the_expectations_of_a_case_are_computed_again(name, case):
    assert list(golden_cases.differing(FILES[name]._replace(cases=[case]))) == []


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script on two cases of each file; return what it prints."""
    monkeypatch.setattr(golden_cases, "DATA", tmp_path)
    for golden in FILES.values():
        golden_cases.save(golden._replace(cases=golden.cases[:2]))

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["golden_cases.py", *arguments])
        golden_cases.main()
        return capsys.readouterr().out

    return script


def test_the_script_confirms_what_is_right(run):
    assert run() == "".join(f"{name}: 2 cases, nothing differs\n" for name in FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["value", "shape", "dtype", "missing"])
def test_the_script_notices_and_mends_a_wrong_expectation(name, change, run):
    golden = golden_cases.load(name)
    key = golden.cases[1]["out" if name == "op_cases" else "y"]
    right = golden.arrays.pop(key)
    if change != "missing":
        wrong = {"value": right + 1e-6, "shape": right[None], "dtype": right.astype(np.float32)}
        golden.arrays[key] = wrong[change]
    golden_cases.save(golden)
    with pytest.raises(SystemExit, match="--write puts it into the files"):
        run()
    assert f"{name}: 2 cases, {key} differs" in run("--write")
    mended = golden_cases.load(name)
    np.testing.assert_allclose(mended.arrays[key], right, rtol=1e-12, strict=True)
    assert mended.meta["torch"] == torch.__version__
    assert mended.arrays.keys() == FILES[name].arrays.keys()
    run()
