"""The page "LLM batches": runs, one run, and spending, read from the workspace. It changes nothing."""
