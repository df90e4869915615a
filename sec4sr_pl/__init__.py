"""Train, adversarially train, and honestly evaluate the robustness of speaker recognizers."""

import os

os.environ.setdefault("SB_DISABLE_QUIRKS", "allow_tf32")
"""SpeechBrain would turn on products of 19 bits (TF32) for all of the process when it is imported."""
