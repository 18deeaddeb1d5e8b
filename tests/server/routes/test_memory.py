from __future__ import annotations

import httpx2


async def test_memory_is_reported(http: httpx2.AsyncClient, session_id: str) -> None:
    assert (await http.get(f"/v1/sessions/{session_id}/memory")).json() == {
        "object": "memory",
        "session_id": session_id,
        "memory": "slots",
        "position": 0,
        "state_bytes": 4096,
        "folds": 2,
        "local_tokens": 7,
        "layers": [{"layer": 3, "kv_heads": [1], "slots": 8, "used": 5}],
        "remembered": [{"position": 4, "text": "the gate"}],
    }
