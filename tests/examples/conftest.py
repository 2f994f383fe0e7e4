"""What the tests of the examples share with those of the harvest."""

from collections.abc import Callable

import pytest

from store import ModelRef
from tests.harvest.conftest import save_adapter as save_adapter
from tests.harvest.conftest import save_tiny as save_tiny


@pytest.fixture(scope="module")
def tiny(save_tiny: Callable[[str], str]) -> ModelRef:
    return ModelRef(save_tiny("llama"), dtype="float32")
