"""Fixtures for tests in NequIP's environment."""

import os
import sys
from pathlib import Path

# NequIP's commands are run by name, by its own tests too.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Model dtypes, molecules and crystals of the host's test suite.
from nequip.utils.unittests.conftest import *  # noqa: F403
