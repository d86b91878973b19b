"""What runs in the triggerer: it waits, and holds nothing but identifiers."""
