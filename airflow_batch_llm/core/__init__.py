"""The pure part: records and decisions. Nothing here reads a clock, a file, a network or a configuration."""
