"""Requires what takes a newer Python only."""

import django

print(django.get_version())
