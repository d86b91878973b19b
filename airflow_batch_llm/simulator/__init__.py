"""The wire protocols of Anthropic Message Batches, OpenAI Batch and Vertex batch prediction, on loopback.

It stands in for the vendors in demos, tests and dry runs: no key, no bill, faults on demand, and a ledger that says
what the bill would have been. Start it with `airflow-batch-llm simulate`, or from Python with
`airflow_batch_llm.simulator.handle.Simulator`. This file imports nothing, so that the handle stays cheap.
"""
