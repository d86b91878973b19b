"""Databases that the warehouse tests run on, started here and stopped with the session."""
