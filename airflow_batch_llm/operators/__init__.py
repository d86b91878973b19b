"""The tasks that a Dag is made of. They check their arguments, and leave the work to the stage."""
