"""What Airflow learns about the package while it is being imported itself.

The standard library and a literal, nothing else: an error here, or a value that Airflow's schema does not
allow, breaks `import airflow` for everybody who has the package installed.
"""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider as Airflow's `provider_info.schema.json` wants it."""
    return {
        "package-name": "airflow-batch-llm",
        "name": "Batch LLM",
        "description": "The batch APIs of Anthropic, OpenAI and Vertex AI as a stage between warehouse tables.",
        "integrations": [
            {
                "integration-name": "Batch LLM",
                "tags": ["service"],
            }
        ],
        "config": {
            "batch_llm": {
                "description": "Defaults of the batch stages. An argument of an operator wins over them.",
                "options": {
                    "workspace": {
                        "description": (
                            "URI of the folder that holds the run folders: plans, journals, results and reports. "
                            "Every worker must reach it. Unset, it is allowed only where all tasks share a disk."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "gs://my-bucket/batch-llm",
                        "default": None,
                    },
                    "default_max_cost_usd": {
                        "description": "What one run of a stage may cost at most where it sets no max_cost_usd.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "25.0",
                    },
                },
            }
        },
    }
