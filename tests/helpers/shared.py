"""Where the shared models and data lie, for the tests that need real ones."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).resolve().parents[3] / "shared"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models and data are not beside this checkout")
