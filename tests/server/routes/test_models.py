from __future__ import annotations

import httpx2

from tests.server.scripted import MANY, ScriptedPool


async def test_the_served_model_is_listed_and_found(http: httpx2.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert (listed["object"], listed["has_more"], len(listed["data"])) == ("list", False, 1)
    model = listed["data"][0]
    assert (model["id"], model["object"], model["state_bytes"]) == ("tiny/scripted", "model", 4096)
    assert (await http.get("/v1/models/tiny/scripted")).json() == model


async def test_other_models_are_not_found(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/v1/models/tiny")
    assert answer.status_code == 404
    assert "tiny/scripted" in answer.json()["error"]["message"]


async def test_a_model_is_listed_once_with_all_its_memories(http: httpx2.AsyncClient, pool: ScriptedPool) -> None:
    pool.described = MANY
    listed = (await http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["tiny/scripted", "other/scripted"]
    assert (listed["first_id"], listed["last_id"]) == ("tiny/scripted", "other/scripted")
    first, other = listed["data"]
    assert (first["memory"], first["state_bytes"]) == ("slots", 4096)
    assert first["memories"] == [
        {"memory": "slots", "state_bytes": 4096},
        {"memory": "window", "state_bytes": 2048},
    ]
    assert other["memory"] == "infini"
    assert (await http.get("/v1/models/other/scripted")).json() == other
