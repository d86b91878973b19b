"""The warehouses by name: where each lives, and what to install for it. Imported on use."""
