"""Records: what a run folder and the registers of a workspace hold, and how it is read."""
