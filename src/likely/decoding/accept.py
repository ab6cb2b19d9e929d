"""Which drafted tokens are kept: rule M (greedy) and rule G (keyed noise), one walk.

At each node the target's own sampler picks a token, once; where a child holds that token the walk descends.  The
emitted tokens are the target's picks, so their law is the target's for any draft whatever.
"""

from __future__ import annotations

from collections.abc import Callable

from likely.decoding.draft import Draft


def matched_walk(draft: Draft, pick: Callable[[int, tuple[int, ...]], int]) -> tuple[list[int], list[int]]:
    """(accepted nodes from the root down, emitted tokens: the accepted ones and one more).

    pick(node, path) -> the target's token after `node` (-1: the root), `path` holding the drafted tokens down to it.
    It is called once per visited node.
    """
    children = draft.children()
    node = -1
    path: tuple[int, ...] = ()
    accepted: list[int] = []
    while True:
        token = pick(node, path)
        path = (*path, token)
        child = children.get(node, {}).get(token)
        if child is None:
            return accepted, list(path)
        accepted.append(child)
        node = child
