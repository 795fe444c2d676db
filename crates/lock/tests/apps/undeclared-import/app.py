"""Imports what it does not declare; the module's name is not the distribution's."""

import yaml

print(yaml.safe_load("answer: 42"))
