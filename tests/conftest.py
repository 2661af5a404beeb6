"""What all tests share: where the real models and their data lie."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of trained networks."""
    return ROOT / "models"
