"""What gossip costs and finds by cluster size: the cheap sizes of `make bench-gossip`."""

from __future__ import annotations

from math import log2

from cluster.broadcasts import Broadcasts
from cluster.members import MemberState, MemberUpdate
from cluster.rota import Rota
from scripts.bench_gossip import Bench, StormyBench, Weather

ALIVE, SUSPECT, DEAD, LEFT = MemberState


class Least:
    """A generator that always draws 0."""

    def randrange(self, stop: int, /) -> int:
        assert stop > 0
        return 0


def test_messages_and_bytes_of_a_node_do_not_grow_with_the_cluster() -> None:
    costs = [Bench(count).cost(1_500) for count in (20, 80, 240)]
    for figures in zip(*costs, strict=True):
        assert max(figures) <= 1.2 * min(figures)


def test_a_death_is_known_to_all_in_rounds_that_grow_with_the_logarithm() -> None:
    for count in (30, 100):
        bench = Bench(count)
        for _ in range(2):
            _, judged, known = bench.death()
            assert judged < known < 4 * log2(count), count
            assert known - judged < log2(count), "from the first verdict on"


def test_slow_nodes_and_lost_messages_kill_nobody() -> None:
    bench = StormyBench(100, Weather(loss=0.05, slow=0.02))
    bench.pass_time(5_000)
    suspicions, slow_deaths, deaths = bench.verdicts()
    assert suspicions > 0
    assert slow_deaths == deaths == 0


def test_everyone_has_one_turn_in_a_round_whoever_comes_and_goes() -> None:
    rota = Rota(Least())
    rota.add(range(6))
    first = [rota.next(), rota.next(), rota.next()]
    rota.remove(first[0])
    rota.add([9])
    rest = [rota.next() for _ in range(4)]
    rota.check()
    assert sorted([*first, *rest]) == [0, 1, 2, 3, 4, 5, 9]
    rota.remove(next(node for node in range(6) if node not in first))
    assert len({rota.next() for _ in range(5)}) == 5


def told(broadcasts: Broadcasts, count: int, sends_max: int = 4) -> list[tuple[int, MemberState]]:
    return [(news.node, news.state) for news in broadcasts.take(count, sends_max=sends_max)]


def test_news_are_told_least_often_sent_first_and_newest_among_equals() -> None:
    broadcasts = Broadcasts()
    for node in (1, 2, 3):
        broadcasts.put(MemberUpdate(node, 1, ALIVE))
    assert told(broadcasts, 2) == [(3, ALIVE), (2, ALIVE)]
    assert told(broadcasts, 2) == [(1, ALIVE), (3, ALIVE)]
    broadcasts.put(MemberUpdate(2, 1, DEAD))
    assert told(broadcasts, 1) == [(2, DEAD)]
    while told(broadcasts, 3):
        pass
    assert len(broadcasts) == 0


def test_accusations_wait_for_what_must_reach_everybody() -> None:
    broadcasts = Broadcasts()
    broadcasts.put(MemberUpdate(1, 1, SUSPECT, 9), sends=2)
    broadcasts.put(MemberUpdate(2, 1, ALIVE))
    assert [told(broadcasts, 1) for _ in range(3)] == [[(2, ALIVE)], [(2, ALIVE)], [(2, ALIVE)]]
    assert told(broadcasts, 1) == [(1, SUSPECT)]


def test_a_confirmation_makes_an_accusation_no_fresher() -> None:
    broadcasts = Broadcasts()
    broadcasts.put(MemberUpdate(1, 1, SUSPECT, 9))
    assert told(broadcasts, 1) == [(1, SUSPECT)]
    broadcasts.put_more(MemberUpdate(1, 1, SUSPECT, 8), sends=2)
    assert len([*iter(lambda: told(broadcasts, 1), [])]) == 3
    broadcasts.put_more(MemberUpdate(1, 1, SUSPECT, 7), sends=2)
    assert len([*iter(lambda: told(broadcasts, 1), [])]) == 2
