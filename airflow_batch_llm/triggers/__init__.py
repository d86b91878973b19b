"""Triggers wait in the triggerer, and hold nothing but identifiers."""
