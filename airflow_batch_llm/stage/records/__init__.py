"""Define the records of a run folder and of a workspace's registers, and read them."""
