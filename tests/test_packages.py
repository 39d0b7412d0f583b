"""What is installed and where it comes from: the metadata, the page on an index, the extras."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUP = configparser.RawConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
METADATA = SETUP["metadata"]


def lines(value):
    return value.strip().splitlines()


# ----------------------------------------------------------------------------- metadata


def test_the_packages_are_those_of_the_repository_and_tell_type_checkers_that_they_are_typed():
    packages = lines(SETUP["options"]["packages"])
    assert sorted(packages) == sorted(file.parent.name for file in ROOT.glob("*/__init__.py"))
    assert {**SETUP["options.package_data"]} == dict.fromkeys(packages, "py.typed")
    assert all((ROOT / package / "py.typed").exists() for package in packages)


def test_the_licence_is_an_expression_and_not_also_a_classifier():
    assert METADATA["license_expression"] == "MIT"
    assert "license" not in METADATA
    assert "License ::" not in METADATA["classifiers"]
    assert (ROOT / METADATA["license_files"]).read_text(encoding="utf-8").startswith("MIT License")


def test_the_classifiers_name_every_python_from_the_oldest_that_is_allowed():
    minors = re.findall(
        r"^Programming Language :: Python :: 3\.(\d+)$", METADATA["classifiers"], re.M
    )
    assert SETUP["options"]["python_requires"] == f">=3.{minors[0]}"
    assert [int(minor) for minor in minors] == list(range(10, 15))


# ----------------------------------------------------------------------------- the page on an index


def test_the_page_has_no_link_picture_or_formula_that_an_index_cannot_show():
    page = METADATA["long_description"]
    assert not page.startswith("file:")  # the README has all of these
    assert METADATA["long_description_content_type"] == "text/markdown"
    assert not re.search(r"\]\((?!https://)", page)
    assert "![" not in page
    assert "$" not in page
    assert not re.search(r"^\|", page, re.M)


def test_the_code_on_the_page_trains_a_network(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", METADATA["long_description"], re.M | re.S)
    names: dict = {}
    exec(compile(code, "page", "exec"), names)
    assert "trainable params: 6,642" in capsys.readouterr().out
    assert names["losses"][-1] < names["losses"][0]
    assert type(names["merged"]) is type(names["base"])
