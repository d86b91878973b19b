import subprocess
import sys

import pytest

import airflow_batch_llm


def test_every_public_name_can_be_had_and_is_the_one_of_its_module() -> None:
    had = {name: getattr(airflow_batch_llm, name) for name in airflow_batch_llm.__all__}

    assert {name for name, value in had.items() if name != "__version__" and value.__name__ != name} == set()


def test_nothing_else_can_be_had() -> None:
    assert {*airflow_batch_llm._HOMES, "__version__"} == set(airflow_batch_llm.__all__)
    assert set(airflow_batch_llm.__all__) <= set(dir(airflow_batch_llm))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = airflow_batch_llm.Nothing


def test_a_name_is_imported_when_it_is_used_and_not_before() -> None:
    program = "import sys, airflow_batch_llm as a; assert 'pyarrow' not in sys.modules; a.Run; assert 'pyarrow' in sys.modules"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
