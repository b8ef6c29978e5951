"""Lets the tests import the small networks that several of them share, as `networks.<file>`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
