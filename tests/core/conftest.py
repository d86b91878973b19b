"""Hypothesis judges what is computed, not how long a busy machine takes over it."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
