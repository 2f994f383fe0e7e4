"""What the tests of the examples share with those of the harvest."""

from tests.harvest.conftest import save_adapter as save_adapter
from tests.harvest.conftest import save_tiny as save_tiny
