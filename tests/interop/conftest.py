"""Live against PyTorch and PEFT, where they are installed: ``pip install -e '.[interop]'``.

Warnings are errors here as everywhere.  PEFT's warnings about its own files are allowed by their text, so
that none about our files is.
"""

from pathlib import Path

import pytest

#: PEFT 0.21 takes the bias of a B in the file that it has just written for a damaged matrix.
FALSE_ALARM = r"ignore:Adapter .*invalid shape. base_model.*lora_B\.bias:UserWarning"

#: PEFT 0.21 asks a model of transformers 5 for an attribute under its old name.
OLD_NAME = r"ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings(FALSE_ALARM))
            item.add_marker(pytest.mark.filterwarnings(OLD_NAME))
