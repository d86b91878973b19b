"""Fakes and contract suites that other adapters can inherit."""
