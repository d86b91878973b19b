"""The workspace that holds run folders: records that are written once, and files.

Every decision about money rests on one property: of any number of processes that create the same record, exactly
one succeeds, and everybody reads the whole of what it wrote.
"""

from airflow_batch_llm.store.storage import Block
from airflow_batch_llm.store.workspace import Workspace, ahead, at_once

__all__ = ["Block", "Workspace", "ahead", "at_once"]
