"""Settings for all tests: figures are drawn without a screen, and property tests neither hurry nor vary from run to run."""

import os

from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("polytask", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("polytask")
