"""`erase`, as a user at a shell runs it."""

import json

from tests.cli.conftest import Desk


def test_it_says_what_it_erased_and_what_it_cannot_and_land_and_inspect_go_on(desk: Desk) -> None:
    desk.run()
    workspace = str(desk.folder / "workspace")

    looked = desk.command("erase", workspace, "--key", "7", "--dry-run", "--json")
    done = desk.command("erase", workspace, "--key", "7")
    again = desk.command("erase", workspace, "--key", "7")

    (run,) = json.loads(looked.stdout)["runs"]
    assert (run["rows"], run["prompts"], run["answers"]) == (1, 1, 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert ": erased: 1 row, 1 prompt, 1 answer\n" in done.stdout
    assert "  DELETE FROM labels WHERE id = 7;\n" in done.stdout
    assert f"  anthropic batch {run['batches'][0]['batch_id']}, until 20" in done.stdout
    assert again.stdout == "No run folder holds a row with this key.\n"
    desk.ask("DROP TABLE labels")
    assert "24 answers merged" in desk.command("land", str(desk.run_folder), str(desk.spec_file)).stdout
    assert "Passed: 25 of 25 rows" in desk.command("inspect", str(desk.run_folder)).stdout


def test_values_without_as_many_columns_are_refused(desk: Desk) -> None:
    desk.run()

    done = desk.command(
        "erase", str(desk.folder / "workspace"), "--key", "7", "--key-column", "a", "--key-column", "b"
    )

    assert (done.returncode, done.stderr.startswith("InputError: 1 value and 2 columns")) == (2, True)
