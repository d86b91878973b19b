"""Describe the package to Airflow, which reads this while it is being imported itself.

The standard library and a literal, nothing else: an error here, or a value that Airflow's schema does not
allow, breaks `import airflow` for everybody who has the package installed.
"""

from typing import Any


def _duckdb() -> dict[str, Any]:
    """Return the form of the connection type that is ours."""
    return {
        "connection-type": "duckdb",
        "hook-class-name": "airflow_batch_llm.hooks.warehouse.DuckDBHook",
        "hook-name": "DuckDB",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port", "login", "password"],
            "relabeling": {"host": "Path of the file"},
            "placeholders": {"host": "/data/warehouse.duckdb"},
        },
        "conn-fields": {
            "staging": {
                "label": "Staging folder",
                "description": "Where answers wait for the merge; all workers must see it. Empty for one beside the file.",
                "schema": {"type": ["string", "null"]},
            },
            "memory_limit": {
                "label": "Memory limit",
                "description": "What DuckDB may use, such as 1GB.",
                "schema": {"type": ["string", "null"]},
            },
            "lock_wait_seconds": {
                "label": "Seconds to wait for another writer",
                "schema": {"type": ["number", "null"], "minimum": 0},
            },
        },
    }


def _config() -> dict[str, Any]:
    """Return the section of Airflow's configuration."""
    return {
        "batch_llm": {
            "description": "Defaults of the batch stages. An argument of an operator wins over them.",
            "options": {**_places(), **_guards()},
        }
    }


def _places() -> dict[str, Any]:
    """Return the options that say where runs are kept."""
    return {
        "workspace": _option(
            "URI of the folder that holds the run folders: plans, journals, results and reports. "
            "Every worker must reach it. Unset, it is allowed only where all tasks share a disk.",
            "string",
            example="gs://my-bucket/batch-llm",
        ),
        "deployment": _option(
            "Name of this Airflow deployment. Set it where several deployments share one workspace, to a "
            "name of its own in each: it becomes part of the path of every run folder. Empty, it is the only one.",
            "string",
            default="",
            example="production",
        ),
        "usage_table": _option(
            "Table that gets one row for each run, round and route: what it has spent, and for whom. It is created if "
            "need be. Unset, no ledger is kept.",
            "string",
            example="finance.llm_usage",
        ),
        "usage_conn_id": _option(
            "Connection of the database with the ledger. Unset, it is in the database of each run's target.",
            "string",
            example="warehouse",
        ),
        "task_tab": _option(
            "Whether Airflow before 3.4 shows the tab LLM batches on task instances. It then shows it on those of all "
            "operators. Airflow 3.4 and later show it on those of this package alone, whatever this says.",
            "boolean",
            default="False",
        ),
        "shared_workspace": _option(
            "Whether a workspace on a local path is a mount that every worker shares. Without it, such "
            "a workspace is refused under an executor that spreads tasks over machines.",
            "boolean",
            default="False",
        ),
    }


def _guards() -> dict[str, Any]:
    """Return the options that limit a run's cost and its reach."""
    return {
        "default_max_cost_usd": _option(
            "What one run of a stage may cost at most where it sets no max_cost_usd.", "float", default="25.0"
        ),
        "budgets": _option(
            "Budgets that runs share, by name, in JSON: the dollars, and the period in which they may be spent (day, "
            "week, month, year or all, in UTC). An operator names one with budget.",
            "string",
            example='{"support": {"usd": 500, "per": "month"}}',
        ),
        "budget_ceiling": _option(
            "One more budget, in JSON, which holds for every run on the workspace. No Dag can lift it.",
            "string",
            example='{"usd": 2000, "per": "month"}',
        ),
        "sdk_logs": _option(
            "Whether SDKs and drivers may log below WARNING in our tasks and triggers. At DEBUG they log "
            "keys, whole prompts and answers: switch it on only to look for a fault.",
            "boolean",
            default="False",
        ),
        "allow_insecure_base_url": _option(
            "Whether a connection may lead to http:// on another machine, or to a link-local address. Keys "
            "and prompts then travel unencrypted: for a gateway inside your own network. An extra of the "
            "same name says so for one connection.",
            "boolean",
            default="False",
        ),
        "hook_params": _option(
            "More names that the hook params of operators may have, separated by commas, for a hook or a "
            "warehouse adapter of your own. Their values are readable in XCom and in the run folder.",
            "string",
            example="catalog, http_path",
        ),
    }


def _option(
    description: str, kind: str, *, default: str | None = None, example: str | None = None
) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }


def _modules(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "integration-name": "Batch LLM",
            "python-modules": [f"airflow_batch_llm.{name}" for name in names],
        }
    ]


def get_provider_info() -> dict[str, Any]:
    """Return the provider as Airflow's `provider_info.schema.json` wants it."""
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
        "operators": _modules("operators.llm_batch", "operators.llm_evaluate", "operators.llm_transform"),
        "sensors": _modules("sensors.llm_batch", "sensors.pending_rows"),
        "hooks": _modules("hooks.warehouse"),
        "triggers": _modules("triggers.llm_batch", "triggers.new_files", "triggers.pending_rows"),
        "task-decorators": [
            {
                "name": "llm_transform",
                "class-name": "airflow_batch_llm.decorators.llm_transform_task",
            }
        ],
        "extra-links": [
            "airflow_batch_llm.links.BatchConsoleLink",
            "airflow_batch_llm.links.RunPageLink",
        ],
        "connection-types": [_duckdb()],
        "config": _config(),
    }
