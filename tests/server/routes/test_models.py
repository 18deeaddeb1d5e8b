from __future__ import annotations

import httpx2


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
