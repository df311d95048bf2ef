"""One message of a peer to the rule that answers it.

Every message of `cluster.messages.SlotMessage` has its line here, or does not type-check. The rules
are functions over the slot; leadership and moves are told where they have to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from cluster.copying import on_chunk
from cluster.messages import (
    Accept,
    Ack,
    Ask,
    Chunk,
    Compare,
    Compared,
    Condemn,
    Confirm,
    Confirmed,
    Drop,
    Establish,
    Fetch,
    Gap,
    HandOver,
    Install,
    Prepare,
    Promise,
    Pull,
    Pulled,
    Refuse,
    Retiring,
    SlotMessage,
    Space,
    Surplus,
    Tail,
    TailQuery,
    Willing,
)
from cluster.primary import on_ack
from cluster.reconfigure import on_drop, on_surplus
from cluster.replica import on_accept, on_establish, on_prepare
from cluster.slot import Primary
from cluster.takeover import on_ask, on_promise, on_pull, on_pulled, on_refuse, on_willing
from cluster.transfer import on_install, on_tail, on_tail_query

if TYPE_CHECKING:
    from cluster.ballot import NodeId
    from cluster.leadership import Leadership
    from cluster.moves import Moves
    from cluster.scrub import Scrub
    from cluster.slot import Context, Slot


def dispatch(  # noqa: C901 - one line per message
    slot: Slot,
    sender: NodeId,
    message: SlotMessage,
    ctx: Context,
    leadership: Leadership,
    moves: Moves,
    scrub: Scrub,
) -> None:
    """Hand a slot's message to its rule; those of a whole node never come here.

    Raises:
        Damage: what it needs to read here is damaged; nothing was changed, because every handler
            reads before it changes anything (R18).
    """
    match message:
        case Accept():
            on_accept(slot, sender, message, ctx)
        case Ack():
            on_ack(slot, sender, message, ctx)
            if moves.active or leadership.handing or leadership.catching_up.under_way:
                acknowledged(slot, sender, leadership, moves)
        case Promise():
            on_promise(slot, sender, message, ctx)
        case Establish():
            if moves.admits(slot):
                on_establish(slot, sender, message, ctx)
        case Prepare():
            on_prepare(slot, sender, message, ctx)
        case Refuse():
            on_refuse(slot, sender, message, ctx)
        case Gap() | Fetch():
            moves.on_wish(slot, sender, message)
        case Ask():
            on_ask(slot, sender, message, ctx)
        case Willing():
            on_willing(slot, sender, message, ctx)
        case Pull():
            on_pull(slot, sender, message, ctx)
        case Pulled():
            on_pulled(slot, sender, message, ctx)
        case TailQuery():
            on_tail_query(slot, sender, message, ctx)
        case Tail():
            on_tail(slot, sender, message, ctx)
        case Install():
            on_install(slot, sender, message, ctx)
        case Chunk():
            if moves.admits(slot):
                on_chunk(slot, sender, message, ctx)
        case HandOver():
            leadership.on_hand_over(slot, sender, message)
        case Drop():
            on_drop(slot, message, ctx)
        case Surplus():
            on_surplus(slot, sender, ctx)
        case Compare() | Compared() | Condemn():
            scrub.receive(slot, sender, message)
        case Confirm() | Confirmed() | Retiring() | Space():
            pass  # dispatched before
        case _:
            assert_never(message)


def acknowledged(slot: Slot, sender: NodeId, leadership: Leadership, moves: Moves) -> None:
    """A peer is durable at more: whoever waits for that goes on."""
    if isinstance(slot.role, Primary):
        if leadership.catching_up.under_way:
            leadership.catching_up.acked(sender, slot, slot.role)
        if slot.number in leadership.handing:
            leadership.proceed(slot, slot.role)
    if slot.number in moves.active:
        moves.advance(slot)
