from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import PREFIX, InvalidSettingsError, Settings, load

KEY = "A" * 43 + "="


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_defaults_need_no_environment(tmp_path: Path) -> None:
    settings = load()
    assert (settings.host, settings.port, settings.memory, settings.device) == ("127.0.0.1", 8000, "slots", ("auto",))
    assert settings.data_dir == tmp_path / "palimpsest"
    assert (settings.window, settings.slots, settings.slot_dtype) == (None, None, None)
    assert settings.api_keys == {}


def test_data_goes_home_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    assert load().data_dir == Path.home() / ".local/share/palimpsest"


def test_every_field_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_environment_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_PORT", "9000")
    monkeypatch.setenv("PALIMPSEST_WINDOW", "")
    monkeypatch.setenv("PALIMPSEST_DEVICE", "cuda:0, cuda:1")
    monkeypatch.setenv("PALIMPSEST_API_KEYS", '{"secret": "a"}')
    settings = load(memory="window")
    assert (settings.port, settings.window, settings.memory) == (9000, None, "window")
    assert settings.device == ("cuda:0", "cuda:1")
    assert "secret" not in repr(settings)
    assert load(port=1).port == 1


def test_a_worker_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load(
        device="cpu,cuda:1",
        segment=64,
        slot_dtype="bf16",
        memory_options={"heads": [[0, 1], [2, 3]], "sinks": 8, "name": "ü \" '"},
        adapter=tmp_path / "learned.safetensors",
        offers=["window", {"memory": "infini", "model": "m", "options": {"rule": "delta"}, "adapter": tmp_path / "a"}],
        calibration=tmp_path / "c.json",
        snapshot_seconds=0.5,
        store="rediss+cluster://one:1,two:2",
        redis_username="me",
        redis_password="open sesame",
        redis_sentinel_password="simsim",
        redis_tls_ca=tmp_path / "ca.pem",
        snapshot_generations=1,
        encryption_keys={"new": KEY, "old": KEY},
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load() == settings


def test_keys_that_no_worker_needs_are_not_handed_on() -> None:
    settings = load(api_keys={"secret": "a"}, export_keys={"mine": f"hmac:{KEY}"})
    assert "secret" not in str(settings.environment())
    assert KEY not in str(settings.environment())


def test_secrets_are_not_shown() -> None:
    settings = load(redis_password="sesame", encryption_keys={"new": KEY}, export_keys={"mine": f"hmac:{KEY}"})
    assert "sesame" not in repr(settings)
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("PORT", "70000", "less than or equal to 65535"),
        ("PORT", "http", "integer"),
        ("MEMORY_OPTIONS", "window", "JSON object"),
        ("MEMORY_OPTIONS", "[1]", "dictionary"),
        ("OFFERS", "infini", "must be JSON"),
        ("OFFERS", "7", "must be a JSON list"),
        ("OFFERS", '{"memory": "infini"}', "must be a JSON list"),
        ("OFFERS", '["window", {"model": "m"}]', "entry 2, memory: Field required"),
        ("OFFERS", '["window", 7]', "entry 2: "),
        ("OFFERS", '[""]', "entry 1, memory: "),
        ("OFFERS", '[{"memory": "window", "option": {}}]', "entry 1, option: "),
        ("OFFERS", '[{"memory": "window", "options": [1]}]', "entry 1, options: "),
        ("OFFERS", '["{"]', "must be JSON"),
        ("SEGMENT", "0", "greater than or equal to 1"),
        ("DRAIN_SECONDS", "nan", "finite"),
        ("DEVICE", " , ", "at least 1"),
        ("API_KEYS", "key", "JSON object"),
        ("API_KEYS", '{"": "a"}', "empty"),
        ("API_KEYS", '{"white space": "a"}', "visible ASCII"),
        ("ENCRYPTION_KEYS", '{"new": "white space"}', "not base64"),
        ("EXPORT_KEYS", f'{{"mine": "{KEY}"}}', "mine"),
        ("STORE", "mysql://here", "redis://localhost"),
        ("STORE", "redis://", "redis://localhost"),
        ("SNAPSHOT_GENERATIONS", "3", "less than or equal to 2"),
    ],
)
def test_wrong_values_name_their_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(InvalidSettingsError) as error:
        load()
    assert str(error.value).startswith(f"PALIMPSEST_{name}: ")
    assert part in str(error.value)
    assert "white space" not in str(error.value)


def test_auto_stands_alone() -> None:
    with pytest.raises(InvalidSettingsError, match="auto stands alone"):
        load(device="auto,cpu")


def test_the_default_pair_comes_first_then_those_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offers = f'["window", {{"model": "b", "memory": "infini", "adapter": "{tmp_path}/learned"}}]'
    monkeypatch.setenv("PALIMPSEST_OFFERS", offers)
    served = load(model="a", memory="slots", adapter=tmp_path / "own").pairs()
    assert [str(one.pair) for one in served] == ["slots of a", "window of a", "infini of b"]
    assert [one.adapter for one in served] == [tmp_path / "own", None, tmp_path / "learned"]


def test_knobs_are_for_all_pairs_and_options_come_before_them() -> None:
    settings = load(
        memory="window",
        window=64,
        segment=32,
        slots=8,
        slot_dtype="bf16",
        memory_options={"segment": 16},
        offers=["slots", {"memory": "infini", "options": {"window": 128, "rule": "delta"}}],
    )
    assert [dict(one.options) for one in settings.pairs()] == [
        {"window": 64, "segment": 16},
        {"window": 64, "segment": 32, "slots": 8, "slot_dtype": "bf16"},
        {"window": 128, "segment": 32, "rule": "delta"},
    ]


def test_a_calibration_is_for_the_default_model_unless_an_offer_has_its_own(tmp_path: Path) -> None:
    own = {"memory": "memorizing", "calibration": str(tmp_path / "own")}
    settings = load(
        model="a", calibration=tmp_path / "given", offers=["window", own, {"memory": "slots", "model": "b"}]
    )
    given = [one.calibration for one in settings.pairs()]
    assert given == [tmp_path / "given", tmp_path / "given", tmp_path / "own", None]


def test_relative_paths_are_those_of_the_one_who_starts_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load(adapter="one", offers=[{"memory": "infini", "adapter": "two"}])
    assert [one.adapter for one in settings.pairs()] == [Path("/one"), Path("/two")]


@pytest.mark.parametrize(
    "offers",
    [
        ["slots"],
        ["window", "window"],
        [{"memory": "slots", "model": "a", "options": {"slots": 8}}],
        ["window", {"memory": "window", "model": "a"}],
    ],
)
def test_a_pair_named_twice_is_refused(offers: list[object]) -> None:
    with pytest.raises(InvalidSettingsError, match=r"offers: (slots|window) of a is named twice"):
        load(model="a", memory="slots", offers=offers)


def test_the_same_memory_of_two_models_is_two_pairs() -> None:
    assert len(load(model="a", offers=[{"memory": "slots", "model": "b"}]).pairs()) == 2
