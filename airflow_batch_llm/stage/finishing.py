"""The end of a run: its report, its verdict, and what is cleaned up.

The report is stored once. A retry after that reads it and comes to the same verdict without doing anything.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_batch_llm.core.model import Usage
from airflow_batch_llm.core.report import Report, gate
from airflow_batch_llm.errors import QualityGateFailed
from airflow_batch_llm.stage.folder import Registers, RunFolder
from airflow_batch_llm.stage.landed import Landed
from airflow_batch_llm.stage.plan import Plan
from airflow_batch_llm.stage.settings import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over."""

    report: Report

    def raise_for_verdict(self) -> None:
        """Raise `QualityGateFailed` if too few rows succeeded. The good ones have landed."""
        if not self.report.passed:
            raise QualityGateFailed(self.report.verdict)
