"""What a run that goes on was planned with, and the stage asks for otherwise today.

The frozen plan decides; this only names the arguments that differ, never what stands in them. It reads no row, asks no
provider, and stops nothing.
"""

from dataclasses import asdict

from airflow_batch_llm.core.printing import verb
from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.settings import Stage
from airflow_batch_llm.core.spec import Spec, changed_fields
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.plan.planning import output_type_of, read_prompt, spec_of
from airflow_batch_llm.stage.records.plan import Plan, RunLimits

#: Fields of a spec that the user's arguments call otherwise.
_ARGUMENTS = {"schema": "output_type", "params": "extra_body"}


def described(plan: Plan, stage: Stage, provider: Provider) -> str:
    """One line for people; empty where nothing has changed."""
    try:
        names = changes(plan, stage, provider)
    except Exception as error:  # noqa: BLE001 - whatever a user's type raises, a run that is paid for goes on
        why = str(error) if isinstance(error, InputError) else type(error).__name__
        return f"The run goes on as it was planned. The stage as it is written now would be refused: {why}"
    if not names:
        return ""
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    verbs = verb(len(names), "has", "have"), verb(len(names), "counts", "count")
    return f"The run goes on as it was planned: {listed} {verbs[0]} changed since, and {verbs[1]} from the next plan on."


def changes(plan: Plan, stage: Stage, provider: Provider) -> list[str]:
    """The arguments that differ. Raises what planning would, where those of today cannot be compared."""
    output_type = output_type_of(stage)
    now = spec_of(stage, read_prompt(stage), output_type, provider)
    fields = changed_fields(Spec.from_json(plan.spec), now)
    names = [_ARGUMENTS.get(name, name) for name in fields]
    if "output_type" not in names and plan.output_type["columns"] != output_type.to_json()["columns"]:
        names.append("columns")
    planned, asked = _planned(plan), _asked(stage)
    return names + [name for name in asked if _spelled(planned[name]) != _spelled(asked[name])]


def _planned(plan: Plan) -> dict[str, object]:
    target = plan.target
    return {
        "key": target.key.names,
        "carry": target.carried.names,
        "target": target.table,
        "failures_target": target.failures.removeprefix(target.table),
        "write_mode": target.write_mode,
        "on_schema_change": target.on_schema_change,
        "create_target": target.create,
        "partition_by": target.partition_by,
        "cluster_by": target.cluster_by,
        "staging_schema": target.staging_schema,
        **asdict(plan.limits),
    }


def _asked(stage: Stage) -> dict[str, object]:
    shape = stage.shape
    return {
        "key": stage.key,
        "carry": [name for name in shape.carry if name not in stage.key],
        "target": stage.target,
        "failures_target": stage.failures_table.removeprefix(stage.target),
        "write_mode": shape.write_mode,
        "on_schema_change": shape.on_schema_change,
        "create_target": shape.create_target,
        "partition_by": shape.partition_by,
        "cluster_by": shape.cluster_by,
        "staging_schema": shape.staging_schema,
        **asdict(RunLimits.of(stage)),
    }


def _spelled(value: object) -> bytes:
    """The value as it is stored, where a list is a tuple and 25 is 25.0."""
    return canonical(plain(value))
