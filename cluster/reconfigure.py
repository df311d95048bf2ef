"""Changing a slot's members: rules 13 to 15. Topology proposes, slots dispose.

::

    (old) ──────────> (old) + learners ──────────> (old, new) ──────────> (new)
          R13: name                    R14: all in            R14: that
          the missing                  step                   is committed

The ring says where a slot *should* be; the slot's primary takes it there by operations of the slot
itself, so that the config is replicated like everything else, and whoever leads next goes on from
what the config says: no other memory is needed. One operation is under way at a time. Each step is
chosen anew from the config and the owners that are wanted *now* (`next_config`), so a topology that
changes midway is simply where the next step leads; a joint config is finished first. A change of
order alone moves no quorum and takes one step.

A node that is left out finds that out by itself: what holds a slot that the ring does not give it
asks the slot's leader (`Surplus`), until it is told to drop it (R15) or is wanted again. The leader
remembers nothing and waits for nobody. What stays behind is the *stub*.

Which slots are moved when is not decided here but in `cluster.moves`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.ballot import NO_BALLOT, Position
from cluster.catching_up import is_in_step
from cluster.messages import Drop
from cluster.primary import propose
from cluster.quorum import is_quorum
from cluster.replica import step_down
from cluster.slot import Primary
from cluster.slot_config import NO_CONFIG, SlotConfig

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot


def next_config(config: SlotConfig, wanted: tuple[NodeId, ...]) -> SlotConfig | None:
    """The next step from a config towards these members; None when it has arrived (R13, R14).

    >>> next_config(SlotConfig(((1, 2),)), (1, 3))
    SlotConfig(sets=((1, 2),), learners=(3,))
    >>> next_config(SlotConfig(((1, 2),), (3,)), (1, 3))
    SlotConfig(sets=((1, 2), (1, 3)), learners=())
    >>> next_config(SlotConfig(((1, 2), (1, 3))), (1, 3))
    SlotConfig(sets=((1, 3),), learners=())
    >>> next_config(SlotConfig(((1, 3),)), (1, 3))
    """
    members = config.sets[-1]
    if len(config.sets) == 2:
        return SlotConfig((members,))
    if set(members) == set(wanted):
        arrived = SlotConfig((wanted,))
        return None if config == arrived else arrived
    missing = tuple(node for node in wanted if node not in members)
    if set(config.learners) != set(missing):
        return SlotConfig(config.sets, missing)
    return SlotConfig((members, wanted))


def is_settled(primary: Primary) -> bool:
    """Whether the config is committed: no other is proposed before (R14), no Drop sent (R15)."""
    return primary.serving and primary.committed >= primary.config_at


def is_ready(slot: Slot, primary: Primary, step: SlotConfig, ctx: Context) -> bool:
    """Whether the step finds in step whom it needs: durable at what is committed (R14).

    All learners, says the rule. And a quorum of the new members that can be reached now, or the
    slot would be without one as soon as the joint config is applied, because who stays is down.
    """
    if len(step.sets) == 1:
        return True
    durable = {node for node in primary.durable if is_in_step(primary, node)}
    new = SlotConfig(step.sets[1:])
    return durable.issuperset(slot.config.learners) and is_quorum(durable & ctx.reachable, new)


def change(slot: Slot, primary: Primary, step: SlotConfig, ctx: Context) -> None:
    """Propose the config as an operation of the slot; it counts as soon as it is applied (R14)."""
    assert is_settled(primary), "one change at a time"
    propose(slot, primary, (0, 0), [], None, ctx, step)
    assert slot.config == step


def on_surplus(slot: Slot, sender: NodeId, ctx: Context) -> None:
    """A node asks whether it has left the slot: by a committed config it has (R15)."""
    primary = slot.role
    if isinstance(primary, Primary) and is_settled(primary) and sender not in slot.config.everyone:
        at = Position(primary.ballot, primary.committed)
        ctx.out.send[sender].append(Drop(slot.number, at, slot.config))


def on_drop(slot: Slot, drop: Drop, ctx: Context) -> None:
    """Let go of the slot, unless this replica has come further since; the stub stays (R15)."""
    if not slot.holds_state or slot.position > drop.position or ctx.me in drop.config.everyone:
        return
    step_down(slot, ctx)
    ctx.store.drop(slot.prefix)
    if slot.copy is not None:
        ctx.store.drop(slot.copy.content.prefix)
        slot.copy = None
    slot.holds_state = False
    slot.established, slot.sequence = NO_BALLOT, 0
    slot.config, slot.runs = NO_CONFIG, ()
    slot.left_at = drop.position  # what was promised stays promised
    slot.save(ctx)
