"""The campaign in its short form, and in its long one: `python -m tests.faults.campaign` prints the table of it."""

import pytest

from tests.faults.campaign import DURING, ENDS, Case, Field, assert_same_bits, describe, draw_cases, run_campaign

SHORT, LONG = 10, 120


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    """A table, and the run that met no fault."""
    return Field(tmp_path_factory.mktemp("faults"))


def check(field: Field, cases: list[Case]) -> None:
    """Every fault is survived."""
    seen = run_campaign(field, cases)
    print(describe(seen))
    failed = [f"{one.processes} processes, {one.fault}: {one.why}" for one in seen if not one.survived]
    assert not failed, "\n".join(failed)


def test_faults_are_survived(field: Field) -> None:
    check(field, draw_cases(SHORT, seed=4))


def test_a_table_that_is_damaged_between_two_starts_is_named_and_mended(field: Field) -> None:
    given_up = field.launch("damaged", 2, faults="exit@step,step=60,rank=1", restarts=0)
    assert given_up.returncode == 93, given_up.stdout + given_up.stderr
    table = field.folder / "table.csv"
    content = table.read_bytes()
    for damaged, complaint in (
        (content.replace(b",red,", b",\xff\xfe,", 1), "table.csv: "),
        (content.replace(b",red,", b",blue,", 1), "this folder holds a run with other settings"),
    ):
        table.write_bytes(damaged)
        before = {path: path.read_bytes() for path in (field.folder / "damaged" / "checkpoints").rglob("*.*")}
        refused = field.launch("damaged", 1)
        assert refused.returncode == 2 and complaint in refused.stdout + refused.stderr
        assert "mend:" in refused.stdout + refused.stderr and "Traceback" not in refused.stdout + refused.stderr
        assert {path: path.read_bytes() for path in (field.folder / "damaged" / "checkpoints").rglob("*.*")} == before
    table.write_bytes(content)
    assert field.launch("damaged", 2).returncode == 0
    assert_same_bits(field.reference, field.folder / "damaged")


@pytest.mark.campaign
def test_many_faults_are_survived(field: Field) -> None:
    check(field, draw_cases(LONG, seed=0))


def test_the_long_form_holds_every_kind_at_every_place_on_every_world() -> None:
    cases = draw_cases(LONG, seed=0)
    faults = [fault for case in cases for fault in case.faults]
    assert len(faults) >= 100
    assert {(fault.kind, fault.place) for fault in faults} >= {(kind, place) for kind in ENDS for place in DURING}
    assert {"no_space", "nan"} <= {fault.kind for fault in faults}
    for processes in (1, 2, 4):
        ranks = {fault.rank for case in cases for fault in case.faults if case.processes == processes}
        assert set(range(processes)) <= ranks
    assert draw_cases(LONG, seed=0) == cases != draw_cases(LONG, seed=1)
