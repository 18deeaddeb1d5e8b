from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import cuda


def test_it_runs_where_there_is_no_gpu(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "HISTORY", 70)
    monkeypatch.setattr(cuda, "_STEPS", 2)
    out = tmp_path / "cuda.json"
    cuda.main(["--device", "cpu", "--model", str(tiny_model), "--memory", "window", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["device"] == "cpu"
    for sessions in cuda.SESSIONS:
        assert found[f"recorded_{sessions}_logits_apart"] < 0.1
        assert found[f"decode_{sessions}_recorded_ms"] > 0


def test_a_machine_without_gpu_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        cuda.main([])
    assert "--device cpu" in capsys.readouterr().err
