"""Vertex's batch prediction jobs on loopback."""

PROVIDER = "vertex"
