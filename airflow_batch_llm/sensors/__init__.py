"""Tasks that wait and change nothing: a sensor never sends, and never cancels."""
