"""Other methods on the cells of a study: the same split, the same folds, the same score."""

from __future__ import annotations

from scdgn.analysis.peers.catalogue import PEERS, Peer
from scdgn.analysis.peers.comparing import TIME_LIMIT, read, run
from scdgn.analysis.peers.tables import draw, section, table

__all__ = ["PEERS", "TIME_LIMIT", "Peer", "draw", "read", "run", "section", "table"]
