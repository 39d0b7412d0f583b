"""How hard Hypothesis tries: 25 examples per promise, or with ``--thorough`` ten times as many."""

import gc
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

EXAMPLES = 25
FAILED = Path(__file__).parent.parent / ".hypothesis" / "examples"

settings.register_profile(
    "default",
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    # the default place, but named: then it may be read-only without a warning
    database=DirectoryBasedExampleDatabase(FAILED),
    suppress_health_check=[HealthCheck.too_slow],  # a slow machine is not a failure
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=10 * EXAMPLES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help=f"try {10 * EXAMPLES} random examples per promise instead of {EXAMPLES}",
    )


def pytest_configure(config: pytest.Config) -> None:
    # many tests press Ctrl-C, and a shell makes its background jobs ignore that
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("thorough" if config.getoption("--thorough") else "default")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for examples only in tests: importing other files may need an extra, or run a script."""
    is_code, is_test = collection_path.suffix == ".py", collection_path.name.startswith("test_")
    return True if is_code and not is_test else None


@pytest.fixture
def no_gc():
    """The garbage collector off: what disappears now was freed by its reference count alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
