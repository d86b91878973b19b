from tests.cli.conftest import Desk


def test_a_table_that_was_dropped_is_filled_again_without_a_key_or_a_provider(desk: Desk) -> None:
    desk.run()
    before = desk.ask("SELECT id, label FROM labels ORDER BY id")
    desk.ask("DROP TABLE labels")
    desk.simulator.reset()

    done = desk.command("land", str(desk.run_folder), str(desk.spec_file), DESK_KEY="")

    assert (done.returncode, done.stderr) == (0, "")
    assert "25 answers merged into labels." in done.stdout
    assert desk.ask("SELECT id, label FROM labels ORDER BY id") == before
    assert desk.charged() == 0


def test_all_generations_of_a_run_are_landed(desk: Desk) -> None:
    desk.run()
    desk.ask("INSERT INTO tickets VALUES (25, 'one more')")
    desk.run("--again")
    desk.ask("DROP TABLE labels")

    done = desk.command("land", str(desk.run_folder), str(desk.spec_file))

    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        "25 answers merged into labels.",
        "1 answer merged into labels.",
    ]
    assert desk.ask("SELECT count(*) FROM labels") == [(26,)]


def test_a_folder_without_a_run_is_refused(desk: Desk) -> None:
    done = desk.command("land", str(desk.folder), str(desk.spec_file))

    assert (done.returncode, done.stderr.startswith("InputError: ")) == (2, True)
