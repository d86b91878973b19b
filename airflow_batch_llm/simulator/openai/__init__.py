"""OpenAI's files, batches and endpoints on loopback."""

PROVIDER = "openai"
