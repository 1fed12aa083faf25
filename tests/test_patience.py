"""The labs' patience: what ends it, and what does not."""

from __future__ import annotations

from pathlib import Path

from lab.patience import Patience

SECOND = 10**9


class World:
    """A clock, and a process whose threads run and wait."""

    def __init__(self, proc: Path) -> None:
        self.now = 100.0
        self.proc = proc
        self.threads = {"7": [5 * SECOND, 3 * SECOND], "8": [0, 0]}
        self.write()

    def write(self) -> None:
        for name, (ran, waited) in self.threads.items():
            task = self.proc / "7/task" / name
            task.mkdir(parents=True, exist_ok=True)
            (task / "schedstat").write_text(f"{int(ran)} {int(waited)} 12\n")

    def passes(self, seconds: float, share: float | None = None) -> None:
        """So long, in which the first thread has that share of a CPU, or wants none."""
        self.now += seconds
        if share is not None:
            self.threads["7"][0] += int(share * seconds * SECOND)
            self.threads["7"][1] += int((1 - share) * seconds * SECOND)
        self.write()

    def patience(self, seconds: float, pid: int | None = 7) -> Patience:
        return Patience(seconds, pid, clock=lambda: self.now, proc=self.proc)


def test_it_ends_when_nothing_happens(tmp_path: Path) -> None:
    for pid in (7, None, 99):
        world = World(tmp_path)
        patience = world.patience(60, pid)
        world.passes(59)
        assert not patience.ended()
        world.passes(2)
        assert patience.ended()
        assert patience.since == 61


def test_whatever_happens_begins_it_anew(tmp_path: Path) -> None:
    world = World(tmp_path)
    patience = world.patience(60)
    for _ in range(100):
        world.passes(59)
        patience.sign()
        assert not patience.ended()
    world.passes(61)
    assert patience.ended()
    assert patience.since == 61


def test_who_gets_a_third_of_what_it_wants_has_three_times_as_long(tmp_path: Path) -> None:
    world = World(tmp_path)
    patience = world.patience(60)
    for _ in range(17):
        world.passes(10, share=1 / 3)
        assert not patience.ended()
    world.passes(11, share=1 / 3)
    assert patience.ended()


def test_who_is_hardly_served_at_all_does_not_wait_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path)
    patience = world.patience(60)
    world.passes(299, share=0.001)
    assert not patience.ended()
    world.passes(2, share=0.001)
    assert patience.ended()


def test_who_is_at_rest_has_no_longer_though_it_is_served_late(tmp_path: Path) -> None:
    world = World(tmp_path)
    patience = world.patience(60)
    for _ in range(7):
        world.threads["7"][0] += SECOND // 10
        world.threads["7"][1] += SECOND // 2
        world.passes(10)
    assert patience.ended()


def test_who_has_more_threads_than_there_are_cpus_is_found_stuck(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.threads = {str(number): [0, 0] for number in range(8)}
    world.write()
    patience = world.patience(60)
    for _ in range(25):
        for times in world.threads.values():
            times[0] += 10 * SECOND // 4
            times[1] += 10 * SECOND * 3 // 4
        world.passes(10)
    assert patience.ended()


def test_threads_may_come_and_go(tmp_path: Path) -> None:
    world = World(tmp_path)
    patience = world.patience(60)
    (tmp_path / "7/task/8/schedstat").unlink()
    (tmp_path / "7/task/9").mkdir()
    (tmp_path / "7/task/9/schedstat").write_text("")
    world.threads = {"7": world.threads["7"], "10": [0, 0]}
    world.passes(30)
    assert not patience.ended()
    world.passes(31)
    assert patience.ended()
