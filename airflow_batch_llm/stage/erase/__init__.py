"""Erase: take one person's rows out of the run folders of a workspace."""
