"""Other methods on the cells of a study: the same split, the same folds, the same score."""

from __future__ import annotations

from analysis.peers.catalogue import PEERS, Peer
from analysis.peers.comparing import TIME_LIMIT, read, run
from analysis.peers.tables import draw, section, table

__all__ = ["PEERS", "TIME_LIMIT", "Peer", "draw", "read", "run", "section", "table"]
