"""What a server that follows announced weights says of them, and who keeps it from others."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.handover.word import HOLDS, ROUTE, Hold, Word
from server.pod.pod import Pod

router = APIRouter(tags=["weights"])


@router.get(ROUTE)
async def told(request: Request) -> Word:
    """What this server serves, and what is coming."""
    pod: Pod = request.app.state.pod
    return await pod.word()


@router.post(HOLDS)
async def held(asked: Hold, request: Request) -> Word:
    """Keep this server from other weights than these for a while; 0 seconds: no more."""
    pod: Pod = request.app.state.pod
    return pod.hold(asked)
