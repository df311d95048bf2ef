"""The failure detector in virtual time: what it finds, how fast, and whom it wrongly accuses."""

from __future__ import annotations

import random

import pytest

from cluster.members import MemberEvent, MemberState, MemberUpdate
from cluster.swim import Swim
from cluster.swim_messages import Ping, PingAck, PingNack, PingReq
from cluster.swim_settings import SwimSettings
from tests.cluster.gossip_cluster import GossipCluster

ALIVE, SUSPECT, DEAD, LEFT = MemberState
SEEDS = range(8)


def make_swim(*others: int) -> Swim:
    swim = Swim(1, SwimSettings(), random.Random(0), 0)
    swim.join(others, 0)
    return swim


def tick_until(swim: Swim, end_ms: int) -> list[tuple[int, object]]:
    sent: list[tuple[int, object]] = []
    for now_ms in range(0, end_ms + 1, 10):
        sent += swim.tick(now_ms)
    return sent


# -- one node --------------------------------------------------------------------------------------


def test_a_silent_member_is_probed_then_by_others_then_suspected_then_dead() -> None:
    swim = make_swim(2, 3)
    [(target, ping)] = swim.tick(0)
    assert isinstance(ping, Ping)
    [(helper, request), (again, repeated)] = swim.tick(50)
    assert {target, helper} == {2, 3}
    assert isinstance(request, PingReq)
    assert (request.number, request.target) == (ping.number, target)
    assert (again, repeated.number) == (target, ping.number), "a message may have been lost"
    assert [to for to, _ in swim.tick(75)] == [target], "or two"
    assert swim.state(target) is ALIVE
    swim.tick(100)
    assert swim.take_events() == [MemberEvent(target, SUSPECT)]
    tick_until(swim, 700)
    assert MemberEvent(target, DEAD) in swim.take_events()


def test_an_ack_through_a_helper_clears_the_target() -> None:
    swim = make_swim(2, 3)
    [(target, ping)] = swim.tick(0)
    [(helper, _), _] = swim.tick(50)
    assert isinstance(ping, Ping)
    swim.on_message(helper, PingAck(ping.number, []), 60)
    swim.tick(100)
    assert swim.state(target) is ALIVE


def test_an_answer_to_the_second_ping_clears_the_target() -> None:
    swim = make_swim(2)
    [(target, ping)] = swim.tick(0)
    assert [to for to, _ in swim.tick(50)] == [target], "nobody else can be asked"
    swim.on_message(target, PingAck(ping.number, []), 60)
    assert swim.on_message(target, PingAck(ping.number, []), 61) == []
    swim.tick(100)
    assert swim.state(target) is ALIVE


def test_who_was_accused_wrongly_time_and_again_has_more_time_to_answer() -> None:
    swim = Swim(1, SwimSettings(fickle_from_members=2), random.Random(0), 0)
    swim.join((2,), 0)
    for incarnation in range(1, 4):
        swim.on_message(2, Ping(1, [MemberUpdate(2, incarnation, ALIVE)]), 10 * incarnation)
    assert swim.members()[2].is_fickle(100)
    swim.tick(100)
    tick_until(swim, 1_000)
    assert swim.state(2) is ALIVE
    tick_until(swim, 1_300)
    assert swim.state(2) is SUSPECT, "a second more, no less and no longer"
    swim.on_message(2, Ping(1, [MemberUpdate(2, 8, ALIVE)]), 1_300)
    assert not swim.members()[2].is_fickle(900_000), "it is forgotten"


def test_a_helper_pings_for_others_and_passes_the_answer_on() -> None:
    swim = make_swim(2, 3)
    [(target, ping)] = swim.on_message(2, PingReq(77, 3, []), 0)
    assert target == 3
    assert isinstance(ping, Ping)
    [(origin, ack)] = swim.on_message(3, PingAck(ping.number, []), 5)
    assert origin == 2
    assert isinstance(ack, PingAck)
    assert ack.number == 77


def test_a_helper_says_when_it_has_not_heard_either() -> None:
    swim = make_swim(2, 3)
    swim.on_message(2, PingReq(77, 3, []), 0)
    nacks = [m for to, m in swim.tick(30) if to == 2 and isinstance(m, PingNack)]
    assert [nack.number for nack in nacks] == [77]


def test_an_accusation_of_this_node_is_refuted_with_a_higher_incarnation() -> None:
    swim = make_swim(2, 3)
    [(_, ack)] = swim.on_message(2, Ping(5, [MemberUpdate(1, 4, DEAD, 3)]), 0)
    assert swim.state(1) is ALIVE
    assert MemberUpdate(1, 5, ALIVE) in ack.updates
    assert swim.health_score == 1


def test_whoever_is_suspected_is_told_so_when_it_is_probed() -> None:
    swim = make_swim(2, 3)
    swim.on_message(3, Ping(1, [MemberUpdate(2, 0, SUSPECT, 9)]), 0)
    for _ in range(100):  # long after the news has been sent often enough
        swim._news(3)
    [(_, ack)] = swim.on_message(2, Ping(2, []), 1)
    assert MemberUpdate(2, 0, SUSPECT, 9) in ack.updates


def test_whoever_repeats_what_was_refuted_is_told_so_in_the_answer() -> None:
    swim = make_swim(2, 3)
    swim.on_message(3, Ping(1, [MemberUpdate(2, 1, ALIVE)]), 0)
    for _ in range(100):
        swim._news(3)
    [(_, ack)] = swim.on_message(3, Ping(2, [MemberUpdate(2, 0, SUSPECT, 9)]), 1)
    assert MemberUpdate(2, 1, ALIVE) in ack.updates


def test_the_accused_whose_time_is_over_first_is_named_in_every_message() -> None:
    swim = make_swim(*range(2, 40))
    for node in (7, 8, 9):
        swim.on_message(3, Ping(1, [MemberUpdate(node, 0, SUSPECT, 3)]), node)
    for _ in range(100):
        swim._news(3)
    for _ in range(50):
        assert MemberUpdate(7, 0, SUSPECT, 3) in swim._news(3)


@pytest.mark.parametrize(
    ("believed", "heard", "wins"),
    [
        ((0, ALIVE), (0, SUSPECT), True),
        ((0, SUSPECT), (0, ALIVE), False),
        ((0, SUSPECT), (1, ALIVE), True),
        ((1, ALIVE), (0, DEAD), False),
        ((1, SUSPECT), (1, DEAD), True),
        ((1, DEAD), (1, SUSPECT), False),
        ((1, DEAD), (2, ALIVE), True),
        ((3, LEFT), (3, DEAD), False),
        ((3, LEFT), (4, ALIVE), True),
    ],
)
def test_precedence(
    believed: tuple[int, MemberState], heard: tuple[int, MemberState], wins: bool
) -> None:
    swim = make_swim(2, 3)
    swim.on_message(3, Ping(1, [MemberUpdate(2, *believed, 3)]), 0)
    swim.on_message(3, Ping(2, [MemberUpdate(2, *heard, 3)]), 0)
    swim.check()
    assert swim.state(2) is (heard[1] if wins else believed[1])


def test_strangers_are_neither_heard_nor_believed() -> None:
    swim = make_swim(2)
    assert swim.on_message(99, Ping(1, [MemberUpdate(2, 0, DEAD, 99)]), 0) == []
    assert swim.state(2) is ALIVE
    swim.on_message(2, Ping(1, [MemberUpdate(99, 0, ALIVE)]), 0)
    assert 99 not in swim.members()


def test_a_refused_connection_asks_others_at_once() -> None:
    swim = make_swim(2, 3)
    [(helper, request)] = swim.on_unreachable(2, 0)
    assert helper == 3
    assert isinstance(request, PingReq)
    assert swim.on_unreachable(2, 1) == [], "one question at a time"
    assert swim.state(2) is ALIVE


def test_a_node_that_was_away_accuses_nobody() -> None:
    swim = make_swim(2, 3)
    swim.tick(0)
    swim.tick(60_000)
    assert swim.state(2) is ALIVE
    assert swim.state(3) is ALIVE
    assert swim.health_score == 1


def test_removed_members_are_forgotten() -> None:
    swim = make_swim(2, 3)
    swim.on_message(3, Ping(1, [MemberUpdate(2, 0, SUSPECT, 3)]), 0)
    swim.tick(0)
    swim.remove(2)
    swim.check()
    tick_until(swim, 2_000)
    swim.check()


def test_a_helper_forgets_what_a_removed_member_asked() -> None:
    swim = make_swim(2, 3)
    [(_, ping)] = swim.on_message(2, PingReq(77, 3, []), 0)
    assert isinstance(ping, Ping)
    swim.remove(2)
    assert swim.on_message(3, PingAck(ping.number, []), 5) == []
    assert all(to != 2 for to, _ in swim.tick(30))


# -- a cluster -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_calm_clusters_stay_calm(seed: int) -> None:
    cluster = GossipCluster(5, seed)
    cluster.run(20_000)
    assert cluster.calm()
    assert all(swim.health_score == 0 for swim in cluster.nodes.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_node_of_three_is_dead_within_a_second_and_returns(seed: int) -> None:
    cluster = GossipCluster(3, seed)
    cluster.run(1_000 + 37 * seed)
    cluster.frozen.add(2)
    assert cluster.run_until(lambda: cluster.believed(2, SUSPECT), 500)
    assert cluster.run_until(lambda: cluster.believed(2, DEAD), 1_000) < 700
    cluster.run(10_000)
    cluster.thaw(2)
    assert cluster.run_until(cluster.calm, 3_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_pause_is_refuted(seed: int) -> None:
    cluster = GossipCluster(5, seed)
    cluster.run(1_000)
    cluster.frozen.add(2)
    cluster.run(350)
    cluster.thaw(2)
    cluster.run(1_500)
    assert cluster.calm()
    assert all(MemberEvent(2, DEAD) not in swim.take_events() for swim in cluster.nodes.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restarted_node_refutes_its_own_death(seed: int) -> None:
    cluster = GossipCluster(5, seed)
    cluster.frozen.add(4)
    cluster.run_until(lambda: cluster.believed(4, DEAD), 5_000)
    cluster.restart(4)
    assert cluster.run_until(cluster.calm, 3_000)
    assert cluster.nodes[4].incarnation > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_who_leaves_is_not_called_dead_and_may_come_back(seed: int) -> None:
    cluster = GossipCluster(5, seed)
    cluster.run(500)
    cluster.send(3, cluster.nodes[3].leave(cluster.now_ms))
    cluster.frozen.add(3)
    cluster.run_until(lambda: cluster.believed(3, LEFT), 2_000)
    cluster.restart(3)
    assert cluster.run_until(cluster.calm, 3_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_link_cut_both_ways_between_two_of_five_accuses_nobody_to_death(seed: int) -> None:
    cluster = GossipCluster(5, seed)
    cluster.cut |= {(1, 2), (2, 1)}
    cluster.run(20_000)
    dead = [
        event
        for swim in cluster.nodes.values()
        for event in swim.take_events()
        if event.state is DEAD
    ]
    assert dead == []


@pytest.mark.parametrize("seed", SEEDS)
def test_both_halves_of_a_healed_cut_find_each_other(seed: int) -> None:
    cluster = GossipCluster(6, seed)
    left, right = {1, 2, 3}, {4, 5, 6}
    cluster.cut |= {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right}
    cluster.run(10_000)
    assert cluster.nodes[1].state(4) is DEAD
    assert cluster.nodes[4].state(1) is DEAD
    cluster.cut.clear()
    assert cluster.run_until(cluster.calm, 20_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_five_percent_loss_kills_nobody(seed: int) -> None:
    cluster = GossipCluster(20, seed, loss=0.05)
    cluster.run(20_000)
    dead = [
        event
        for swim in cluster.nodes.values()
        for event in swim.take_events()
        if event.state is DEAD
    ]
    assert dead == []


def test_cost_per_node_does_not_grow_with_the_cluster() -> None:
    per_node = []
    for count in (10, 40, 160):
        cluster = GossipCluster(count)
        cluster.run(3_000)
        per_node.append(cluster.messages_sent / count / 3)
    assert max(per_node) <= 1.2 * min(per_node)
