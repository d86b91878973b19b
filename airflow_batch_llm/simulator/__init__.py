"""Speak the wire protocols of Anthropic Message Batches, OpenAI Batch and Vertex batch prediction, on loopback.

The simulator replaces the vendors in demos, tests and dry runs: no key, no bill, faults on demand, and a ledger with the
dollars that a vendor would charge. Start it with `airflow-batch-llm simulate`, or from Python with
`airflow_batch_llm.simulator.handle.Simulator`. This file imports nothing, so that the handle stays cheap.
"""
