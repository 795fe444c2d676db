"""Bounds a package to releases that do not build any more, and have no wheel for this Python."""

import yaml

print(yaml.safe_load("answer: 42"))
