"""The configuration from its three sources: which one counts, and what is said about mistakes."""

import json
import math
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pathlens.configuration import Configuration, load_configuration
from pathlens.configuration.configuration import GROUPS, SETTINGS
from pathlens.errors import ServerStartError
from pathlens.gateway import AuthorisationSettings, GatewaySettings
from pathlens.settings.words import accepted, bounds, plain_type
from pathlens.torchserve import TorchServeSettings

ARCHIVES = {"torchserve.archives": (Path("digits.mar"),)}
EVERYWHERE = "0.0.0.0"  # noqa: S104 - is compared, not listened on
NUMBERS = sorted(name for name, field in SETTINGS.items() if bounds(field) is not None)

words = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
keys = words | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.lists(st.integers(), max_size=2)
)
values = scalars | st.dictionaries(keys, scalars, max_size=2)
known_groups = st.sampled_from(sorted(GROUPS))
tables = st.dictionaries(
    known_groups | keys,
    st.dictionaries(st.sampled_from(sorted(SETTINGS)).map(lambda n: n.split(".")[1]) | keys, values),
)


def toml(value: object) -> str:
    """Write a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # A basic string is one of JSON, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else repr(value)


def document(table: Mapping[str, object]) -> str:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items())


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        (tmp_path / "pathlens.toml").write_text(text, encoding="utf-8")
        return tmp_path / "pathlens.toml"

    return written


def complaint(file: Path | None, flags: Mapping[str, object] = ARCHIVES) -> str:
    with pytest.raises(ServerStartError) as caught:
        load_configuration(file, flags)
    assert caught.value.reason == "CONFIGURATION_INVALID"
    return caught.value.message


def attempt(file: Path | None, flags: Mapping[str, object] = ARCHIVES) -> tuple[Any, str]:
    """Return the configuration, or what is wrong with it."""
    try:
        return load_configuration(file, flags), ""
    except ServerStartError as error:
        return None, error.message


class TestSources:
    def test_nothing_said_means_the_defaults(self) -> None:
        configuration = load_configuration(flags=ARCHIVES)
        assert configuration.gateway == GatewaySettings()
        assert configuration.torchserve == TorchServeSettings(archives=(Path("digits.mar"),))
        assert configuration.tls is None
        assert configuration.authorisation == AuthorisationSettings()

    def test_a_file_sets_every_group(self, write: Write) -> None:
        configuration = load_configuration(
            write(
                """
                [gateway]
                host = "0.0.0.0"
                drain_seconds = 5
                [torchserve]
                archives = ["a.mar", "b.mar"]
                workers = 2
                archive_sha256 = { a = "%s" }
                [tls]
                certificate = "tls.crt"
                private_key = "tls.key"
                [authorisation]
                token_file = "tokens"
                reflection = "off"
                """
                % ("AB" * 32)
            )
        )
        assert (configuration.gateway.host, configuration.gateway.drain_seconds) == ("0.0.0.0", 5.0)  # noqa: S104
        assert configuration.torchserve.archives == (Path("a.mar"), Path("b.mar"))
        assert configuration.torchserve.archive_sha256 == {"a": "ab" * 32}
        assert configuration.tls is not None
        assert configuration.tls.private_key == Path("tls.key")
        assert configuration.authorisation.reflection == "off"

    def test_the_environment_goes_before_the_file_and_the_command_line_before_both(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write("[gateway]\nport = 1\nmetrics_port = 1\nbatch_chunk = 1\nmax_batch_items = 1\n")
        monkeypatch.setenv("PATHLENS_GATEWAY__PORT", "2")
        monkeypatch.setenv("PATHLENS_GATEWAY__METRICS_PORT", "2")
        monkeypatch.setenv("PATHLENS_GATEWAY__STREAM_WINDOW", "2")
        gateway = load_configuration(file, {**ARCHIVES, "gateway.port": 3}).gateway
        assert (gateway.port, gateway.metrics_port, gateway.stream_window) == (3, 2, 2)
        assert (gateway.batch_chunk, gateway.max_batch_items) == (1, 1)

    @pytest.mark.parametrize("name", sorted(SETTINGS))
    def test_every_setting_can_be_given_by_a_variable_and_is_complained_about_by_its_name(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        variable = f"PATHLENS_{name.replace('.', '__').upper()}"
        monkeypatch.setenv(variable, "[" if "archive" in name else "a\tb" if bounds(SETTINGS[name]) else "[1]")
        configuration, said = attempt(None, {} if name == "torchserve.archives" else ARCHIVES)
        group, _, field = name.partition(".")
        if configuration is None:
            # Half of the TLS settings is complained about for the other half.
            assert f"{variable}: {name} " in said or (group == "tls" and "is missing" in said)
        else:
            assert str(getattr(getattr(configuration, group), field)) == "[1]"

    def test_a_variable_may_hold_json_or_a_single_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATHLENS_TORCHSERVE__ARCHIVE_SHA256", json.dumps({"Digits.mar": "0" * 64}))
        monkeypatch.setenv("PATHLENS_TORCHSERVE__ARCHIVES", "one.mar")
        torchserve = load_configuration().torchserve
        assert torchserve.archives == (Path("one.mar"),)
        assert torchserve.archive_sha256 == {"Digits.mar": "0" * 64}
        monkeypatch.setenv("PATHLENS_TORCHSERVE__ARCHIVES", '["one.mar", "two.mar"]')
        assert load_configuration().torchserve.archives == (Path("one.mar"), Path("two.mar"))

    def test_an_empty_variable_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATHLENS_GATEWAY__PORT", "")
        assert load_configuration(flags=ARCHIVES).gateway.port == 8080

    @pytest.mark.parametrize("name", ["PATHLENS_SERVICE_PORT", "PATHLENS_GATEWAY_PORT", "PATHLENS_RESPONSE_TIMEOUT"])
    def test_a_variable_of_somebody_else_is_left_alone(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # Kubernetes gives such names to the pods beside a service called pathlens.
        monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
        assert load_configuration(flags=ARCHIVES).gateway == GatewaySettings()

    def test_the_archives_are_those_of_the_store_unless_some_are_named(self, tmp_path: Path, write: Write) -> None:
        (tmp_path / "b.mar").touch()
        (tmp_path / "a.mar").touch()
        file = write(f"[torchserve]\nmodel_store = {toml(str(tmp_path))}")
        assert load_configuration(file).torchserve.archive_files() == (tmp_path / "a.mar", tmp_path / "b.mar")
        assert load_configuration(file, ARCHIVES).torchserve.archive_files() == (Path("digits.mar"),)

    def test_an_empty_store_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        said = complaint(None, {"torchserve.model_store": tmp_path})
        assert str(tmp_path) in said
        assert "`pathlens pack BUNDLE`" in said

    def test_a_configuration_cannot_be_changed(self) -> None:
        configuration = load_configuration(flags=ARCHIVES)
        with pytest.raises(ValueError, match="frozen"):
            configuration.tls = None


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "setting", "meant"),
        [
            ("[gateway]\nprot = 1", "gateway.prot", "gateway.port"),
            ("[gateway]\nmax_inflight = 1", "gateway.max_inflight", "gateway.max_in_flight"),
            ("[gateway]\nworkers = 1", "gateway.workers", "torchserve.workers"),
            ("[torchserve]\ntoken_file = 1", "torchserve.token_file", "authorisation.token_file"),
            ("[gatway]\nport = 1", "gatway", "[gateway]"),
            ("[Gateway]\nport = 1\n[gateway]\nport = 2", "Gateway", "[gateway]"),
            ("port = 1", "port", "gateway.port"),
            ("prot = 1", "prot", "gateway.port"),
            ("[authorization]\nhealth = 'open'", "authorization", "[authorisation]"),
            ("[gateway]\n'a\\nb' = 1", r"gateway.'a\\nb'", "gateway."),
        ],
    )
    def test_an_unknown_key_is_named_with_its_file_and_the_nearest_known_one(
        self, text: str, setting: str, meant: str, write: Write
    ) -> None:
        file = write(text)
        said = complaint(file)
        assert said.startswith(f"{file}: there is no setting {setting}: did you mean {meant}")
        assert said.endswith("?")
        assert "\n" not in said

    @pytest.mark.parametrize(
        ("variable", "setting"),
        [
            ("PATHLENS_GATEWAY__PROT", "gateway.prot: did you mean gateway.port?"),
            ("PATHLENS_GATWAY__PORT", "gatway.port: did you mean gateway.port?"),
            ("pathlens_gateway__Prot", "gateway.prot: did you mean gateway.port?"),
            ("PATHLENS_GATEWAY__PORT__X", "gateway.port.x: did you mean gateway.port?"),
            ("PATHLENS___PORT", "''.port: did you mean gateway.port?"),
        ],
    )
    def test_an_unknown_variable_is_named_with_the_nearest_setting(
        self, variable: str, setting: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, "secret")
        said = complaint(None)
        assert f"{variable}: there is no setting {setting}" in said
        assert said.count(variable) == 1

    def test_the_same_unknown_key_in_file_and_environment_is_named_twice(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATHLENS_GATEWAY__PROT", "1")
        file = write("[gateway]\nprot = 1")
        said = complaint(file)
        assert f"{file}: there is no setting gateway.prot" in said
        assert "PATHLENS_GATEWAY__PROT: there is no setting gateway.prot" in said

    def test_all_problems_of_all_sources_are_told_at_once(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        file = write("[gateway]\nport = 70000\nprot = 1\n[torchserve]\nworkers = 0\n[tls]\ncertificate = 'x'\n")
        monkeypatch.setenv("PATHLENS_TORCHSERVE__HEAP_MEGABYTES", "much")
        said = complaint(file, {**ARCHIVES, "authorisation.health": "token"}).splitlines()
        assert said[0] == "There are 6 problems:"
        assert {line.strip() for line in said[1:]} == {
            f"{file}: gateway.port is 70000: choose a value from 0 to 65535.",
            f"{file}: there is no setting gateway.prot: did you mean gateway.port?",
            f"{file}: torchserve.workers is 0: choose a value from 1 to 1024.",
            f"{file}: tls.private_key is missing: choose a path.",
            "PATHLENS_TORCHSERVE__HEAP_MEGABYTES: torchserve.heap_megabytes is 'much': choose a whole number from 64 to"
            " 1048576.",
            "Command line: authorisation.health is 'token' and there is no token_file: name one, or choose 'open'.",
        }

    @pytest.mark.parametrize("value", ["5", "'text'", "[1]", "2026-01-01"])
    def test_a_group_that_is_no_table_is_named(self, value: str, write: Write) -> None:
        assert "gateway is " in complaint(write(f"gateway = {value}"))

    def test_a_group_in_a_variable_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATHLENS_GATEWAY", '{"port": 1}')
        assert complaint(None).startswith("PATHLENS_GATEWAY: gateway is ")

    @pytest.mark.parametrize("digest", ["abc", "g" * 64, "0" * 63, "\uff10" * 64])
    def test_a_pin_that_is_no_sha256_is_named(self, digest: str, write: Write) -> None:
        said = complaint(write(f"[torchserve.archive_sha256]\ndigits = '{digest}'"))
        assert "torchserve.archive_sha256.digits is not a SHA-256" in said

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"[gateway", "is not TOML"), (b"\xff\xfe", "is not TOML"), (b"[gateway]\nport = 1\nport = 2", "is not TOML")],
    )
    def test_a_file_that_is_not_toml_is_named(self, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / "odd.toml").write_bytes(content)
        said = complaint(tmp_path / "odd.toml")
        assert said.startswith(str(tmp_path / "odd.toml"))
        assert words in said

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        assert complaint(tmp_path / "no.toml") == f"{tmp_path / 'no.toml'} cannot be read (No such file or directory)."


class TestContradictions:
    @pytest.mark.parametrize(
        ("flags", "names"),
        [
            ({"gateway.max_in_flight": 100}, "gateway.max_in_flight is 100 and torchserve.job_queue_size 100"),
            (
                {"torchserve.job_queue_size": 3},
                "gateway.max_in_flight is 3, from torchserve.workers 1, and torchserve.job_queue_size 3",
            ),
            (
                {"torchserve.workers": 9, "gateway.max_in_flight": 8},
                "gateway.max_in_flight is 8 and torchserve.workers 9: choose at least 18",
            ),
            ({"gateway.max_image_bytes": 2**26 + 1}, "let a message hold an image"),
            ({"gateway.max_bulk_calls": 1025}, "gateway.max_bulk_calls is 1025 and gateway.max_calls 1024"),
            ({"gateway.prediction_share": 0.76}, "leaves explanations 32212254, and one may have 33554432"),
            ({"gateway.max_in_flight_bytes": 44_739_242}, "leaves explanations 33554431, and one may have 33554432"),
            ({"gateway.port": 9090, "gateway.host": EVERYWHERE}, "gateway.port and gateway.metrics_port are both 9090"),
            ({"gateway.port": 9090, "gateway.metrics_host": "::"}, "gateway.metrics_port are both 9090"),
            ({"torchserve.max_message_bytes": 2**20}, "torchserve.max_message_bytes 1048576"),
            ({"torchserve.response_timeout_seconds": 150}, "gateway.upstream_timeout_seconds is 150"),
            ({"torchserve.heap_megabytes": 761}, "choose at least 762"),
            ({"gateway.max_in_flight_bytes": 2**30}, "choose at least 3450"),
            ({"gateway.port": 9090}, "gateway.port and gateway.metrics_port are both 9090"),
            ({"gateway.health_port": 8080}, "gateway.port and gateway.health_port are both 8080"),
            (
                {"torchserve.inference_port": 7070, "torchserve.management_port": 7070},
                "torchserve.inference_port and torchserve.management_port are both 7070",
            ),
        ],
    )
    def test_settings_that_do_not_fit_together_are_named_with_the_remedy(
        self, flags: dict[str, object], names: str
    ) -> None:
        assert names in complaint(None, {**ARCHIVES, **flags})

    @pytest.mark.parametrize(
        ("flags", "names"),
        [
            ({"torchserve.inference_port": 0}, "torchserve.inference_port is 0: choose a port, such as 7070"),
            ({"torchserve.management_port": 0}, "torchserve.management_port is 0: choose a port, such as 7071"),
            ({"gateway.metrics_port": 9091}, "gateway.metrics_port and torchserve.metrics_port are both 9091"),
            ({"gateway.health_port": 7072}, "gateway.health_port and torchserve.health_port are both 7072"),
            ({"gateway.drain_seconds": 61}, "let TorchServe wait as long as the gateway"),
        ],
    )
    def test_what_does_not_fit_together_in_two_processes_is_refused_for_these_alone(
        self, flags: dict[str, object], names: str
    ) -> None:
        both = {"torchserve.inference_port": 7070, "torchserve.management_port": 7071, **ARCHIVES}
        load_configuration(flags=both, split=True)
        load_configuration(flags={**both, **flags})
        with pytest.raises(ServerStartError) as caught:
            load_configuration(flags={**both, **flags}, split=True)
        assert names in caught.value.message

    def test_a_gateway_alone_needs_no_archive(self, tmp_path: Path) -> None:
        assert load_configuration(flags={"torchserve.model_store": tmp_path}, archives=False)

    @pytest.mark.parametrize(
        "flags",
        [
            {"gateway.max_in_flight": 99},
            {"torchserve.workers": 24},
            {"torchserve.workers": 8, "gateway.max_in_flight": 8},
            {"gateway.max_image_bytes": 2**26},
            {"gateway.max_bulk_calls": 1024},
            {"gateway.prediction_share": 0.75},
            {"gateway.max_in_flight_bytes": 44_739_243},
            {"torchserve.response_timeout_seconds": 149},
            {"torchserve.heap_megabytes": 762},
            {"gateway.port": 9090, "gateway.metrics_host": "::1"},
            {"gateway.port": 0, "gateway.metrics_port": 0},
        ],
    )
    def test_the_last_ones_that_fit_are_taken(self, flags: dict[str, object]) -> None:
        assert isinstance(load_configuration(flags={**ARCHIVES, **flags}), Configuration)


@given(table=tables)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_toml_is_taken_or_every_unknown_key_of_it_is_named(table: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text(document(table), encoding="utf-8")
    unknown: list[tuple[str, ...]] = [(group,) for group in table if group not in GROUPS]
    unknown += [
        (group, key)
        for group, inner in table.items()
        if group in GROUPS
        for key in inner
        if f"{group}.{key}" not in SETTINGS
    ]
    configuration, said = attempt(file)
    assert configuration is None or not unknown
    assert said.count("there is no setting") == said.count("did you mean") == len(unknown)
    for name in unknown:
        if all(part.isascii() and part.isidentifier() for part in name):
            assert f"{file}: there is no setting {'.'.join(name)}: did you mean " in said


@given(
    name=st.sampled_from(NUMBERS),
    value=st.integers() | st.integers(0, 2000) | st.floats(allow_nan=False),
    by_variable=st.booleans(),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_is_taken_as_it_is_or_named_with_its_range(
    name: str, value: float, by_variable: bool, tmp_path: Path
) -> None:
    group, _, key = name.partition(".")
    assume(isinstance(value, int) or SETTINGS[name].annotation is float)
    file = tmp_path / "any.toml"
    file.write_text("" if by_variable else document({group: {key: value}}))
    lowest, highest = bounds(SETTINGS[name]) or (math.nan, math.nan)
    with pytest.MonkeyPatch.context() as patch:
        if by_variable:
            patch.setenv(f"PATHLENS_{group.upper()}__{key.upper()}", repr(value))
        configuration, said = attempt(file)
    assert (f"{name} is " in said and f"from {lowest} to {highest}" in said) is not (lowest <= value <= highest)
    if configuration is None:
        # Out of range, or at odds with another setting.
        assert name in said or "torchserve.heap_megabytes" in said
    else:
        assert getattr(getattr(configuration, group), key) == value


def test_every_number_has_a_range() -> None:
    numbers = {name for name, field in SETTINGS.items() if plain_type(field) in (int, float)}
    assert numbers == set(NUMBERS)


def test_every_setting_says_what_it_takes_and_what_it_is() -> None:
    for name, field in SETTINGS.items():
        assert accepted(field), name
        assert (field.description or "").endswith("."), name
