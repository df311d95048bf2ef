"""Whom the slots need: what losing a node or a zone would cost, by what all nodes say together.

A slot's members are known for sure by its primary alone, so each node tells of those that it leads,
grouped by their members. A slot can be served while a majority of each of its member sets can be
reached (rule 9); two sets stand while it changes its members.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.losses import losses
from cluster.quorum import is_quorum
from cluster.slot_config import SlotConfig
from kvstore.cli.admin import Answer, ask_http, learn_routes
from kvstore.errors import Unavailable
from kvstore.node.operator_view import ConfigStatus, QuorumsStatus

if TYPE_CHECKING:
    from collections.abc import Collection

    from kvstore.wire.protocol import RouteNode


class Survey(NamedTuple):
    """One moment of the cluster."""

    nodes: list[RouteNode]
    up: set[int]
    """Ids of those that answer and that nobody thinks dead."""
    configs: list[ConfigStatus]
    unled: int
    """Slots that no node serves now, or that nobody who answers knows of."""


async def survey(url: str, timeout: float) -> Survey:
    """Ask every node whom its slots need.

    Raises:
        BadRequest: the address cannot be read.
        Unavailable: no node answers.
    """
    routes = await learn_routes(url, timeout)
    addresses = [node.http_address for node in routes.nodes]
    answers = await ask_http(addresses, "/v1/cluster/quorums", timeout)
    told = [quorums_in(answer) for answer in answers]
    found = [status for status in told if status is not None]
    if not found:
        raise Unavailable(
            "no node answers over HTTP; tried " + "; ".join(answer.error for answer in answers)
        )
    up = {
        node.id
        for node, status in zip(routes.nodes, told, strict=True)
        if status is not None and node.state != "dead"
    }
    led = sum(status.led for status in found)
    configs = [config for status in found for config in status.configs]
    return Survey(routes.nodes, up, configs, max(found[0].total - led, 0))


def quorums_in(answer: Answer) -> QuorumsStatus | None:
    """What a node told; None if it did not."""
    if answer.error:
        return None
    try:
        return msgspec.convert(answer.document, QuorumsStatus)
    except msgspec.ValidationError:
        return None


def slots_lost(found: Survey, without: Collection[int]) -> int:
    """Slots that lose their quorum when these nodes stop, of those that have one now."""
    left = found.up.difference(without)
    return sum(
        slots
        for config, slots in slots_of(found).items()
        if is_quorum(found.up, config) and not is_quorum(left, config)
    )


def slots_stopped(found: Survey) -> int:
    """Slots that have no quorum as it is."""
    stopped = (n for config, n in slots_of(found).items() if not is_quorum(found.up, config))
    return sum(stopped) + found.unled


def slots_of(found: Survey) -> Counter[SlotConfig]:
    """How many slots have this config now."""
    counts: Counter[SlotConfig] = Counter()
    for told in found.configs:
        config = SlotConfig(tuple(map(tuple, told.sets)), tuple(told.learners))
        counts[config] += told.slots
    return counts


def worst_pairs(found: Survey) -> list[tuple[str, str, int]]:
    """Two nodes, or two zones, that stop slots which neither stops alone; the worst come first."""
    rows: list[tuple[str, str, int]] = []
    names = {node.id: node.name for node in found.nodes}
    zones = {node.id: node.zone for node in found.nodes if node.zone}
    for kind, group_of in (("zones", zones), ("nodes", names)):
        lost = losses(slots_of(found), found.up, group_of)
        pairs = [(pair, slots) for pair, slots in lost.most_common() if len(pair) == 2]
        rows += [("+".join(pair), kind, slots) for pair, slots in pairs]
    return rows


def slots_naming(found: Survey, node: int) -> int:
    """Slots of which this node is a member or a learner."""
    return sum(
        config.slots
        for config in found.configs
        if node in config.learners or any(node in members for members in config.sets)
    )
