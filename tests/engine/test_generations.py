"""Generations of a run in one journal: each is read as if it were the only one, and written beside the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdeco.durable import MemoryJournal
from flowdeco.engine.generations import Generation, generations, present_rows
from flowdeco.engine.journal import Remembered, Row
from flowdeco.engine.recorder import Recorder


def row(branch, number=0):
    """A row of a step."""
    return Row(branch, number, "stage", "s", None, "completed", 0.0, 0.0, "", b"")


def remembered(rows, inputs=(), legs=()):
    """A run with these rows."""
    return Remembered("run-1", "p", "running", None, 0.0, (), list(inputs), rows, legs=legs)


def marked(branch, generation):
    """The name of a branch in the journal."""
    return f"{branch}~{generation}" if generation else branch


ROWS = st.lists(st.tuples(st.sampled_from(["0", "b"]), st.integers(0, 2) | st.just(10)), max_size=12)


@given(ROWS, st.lists(st.integers(0, 12), max_size=3).map(sorted))
def test_each_generation_has_its_rows_in_their_order(steps, counts):
    """Inputs and resumes come after those of its rows that were written before them."""
    rows = [row(marked(branch, generation), number) for number, (branch, generation) in enumerate(steps)]
    whole = remembered(rows, [(at, b"%d" % at) for at in counts], [(at, at / 2) for at in counts])
    found = generations(whole)
    there = sorted({generation for _, generation in steps}) or [0]
    assert len(found) == len(there)
    for generation, each in zip(there, found, strict=True):
        mine = [number for number, (_, its) in enumerate(steps) if its == generation]
        before = [sum(number < at for number in mine) for at in counts] if len(there) > 1 or there[0] else counts
        assert each.rows == [row(steps[number][0], number) for number in mine]
        assert each.inputs == [(so_many, b"%d" % at) for so_many, at in zip(before, counts, strict=True)]
        assert list(each.legs) == [(so_many, at / 2) for so_many, at in zip(before, counts, strict=True)]
        assert each[:6] == whole[:6]
    assert present_rows(rows) == found[-1].rows


@pytest.fixture
def journal():
    """A journal with a run of two branches, in its third generation."""
    made = MemoryJournal()
    made.create("run-1", "p", made.codec.encode({}, "inputs"), ())
    made.write("run-1", [row("0"), row("b", 1), row("0~1", 2), row("0~2", 3), row("c~2", 4)])
    return made


def branches(journal):
    """The branches of the rows in a journal, with the numbers of these."""
    return [(each.branch, each.number) for each in journal.read("run-1").rows]


def recorder_of(journal, generation):
    """The recorder of a generation of the run."""
    made = Recorder(journal, "run-1", str, hash)
    made.generation = generation
    return made


def test_the_rows_of_the_first_generation_have_no_suffix():
    """There is nothing to tell them from."""
    for rows in ([], [row("0"), row("b")]):
        assert Generation.of(remembered(rows)) == Generation() == ("", frozenset())
    journal = MemoryJournal()
    journal.create("run-1", "p", journal.codec.encode({}, "inputs"), ())
    first = recorder_of(journal, Generation())
    first.write([row("0"), row("b", 1), row("b", 2)])
    first.drop({"b": 2})
    assert branches(journal) == [("0", 0), ("b", 1)]


def test_the_next_generation_is_written_beside_those_before_it(journal):
    """Until these are dropped; then it is all there is."""
    new = recorder_of(journal, Generation.of(journal.read("run-1"), later=1))
    new.write([row("0", 5), row("0", 6), row("b", 7)])
    assert branches(journal)[5:] == [("0~3", 5), ("0~3", 6), ("b~3", 7)]
    new.drop({"0": 6, "c": 0})
    assert branches(journal)[3:] == [("0~2", 3), ("c~2", 4), ("0~3", 5), ("b~3", 7)]
    new.drop_older()
    assert branches(journal) == [("0~3", 5), ("b~3", 7)]
    assert Generation.of(remembered([]), later=1) == Generation("~1")


def test_the_present_generation_is_written_on(journal):
    """By a resume; its own rows are not among the older ones."""
    present = recorder_of(journal, Generation.of(journal.read("run-1")))
    assert present.generation.older == {"0", "b", "0~1"}
    present.write([row("0", 5)])
    present.drop_older()
    assert branches(journal) == [("0~2", 3), ("c~2", 4), ("0~2", 5)]
