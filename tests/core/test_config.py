"""Settings: where they come from, how mistakes are named, and what is never shown."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core import config_address
from pgqrs_core.config import (
    SETTINGS,
    Config,
    DatabaseConfig,
    PerformanceConfig,
    PluginsConfig,
    QueueConfig,
    env_names,
)
from pgqrs_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "hunter2"
KEYS = [(section, key) for section, keys in SETTINGS.items() for key in keys]
#: A value that is right for each key and is not its default.
VALUES: dict[str, Any] = {
    "url": "postgresql://example/x",
    "host": "example",
    "port": 6543,
    "username": "worker",
    "password": SECRET,
    "database": "shop",
    "schema": "jobs",
    "max_connections": 7,
    "connection_timeout_seconds": 3.5,
    "default_lock_time_seconds": 0.5,
    "max_batch_size": 9,
    "enable_listen_notify": False,
    "cleanup_interval_seconds": 7.5,
    "prefetch_count": 0,
    "connection_pool_size": 2,
    "connection_idle_seconds": 2.5,
    "query_timeout_seconds": 0.0,
    "blocked": ("one", "two"),
    "content_types": ("mail.*=application/vnd.msgpack", "*=application/json"),
}


@pytest.fixture(autouse=True)
def _bare_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file in the working directory, and none of libpq's or our variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "DATABASE_URL", "PGQRS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for section, key in KEYS:
        for name in env_names(section, key):
            monkeypatch.delenv(name, raising=False)


def write(text: str | bytes, name: str = "pgqrs.yaml") -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def load(text: str | None = None, env: Mapping[str, str] | None = None, /, **overrides: Any) -> Config:
    if text is not None:
        write(text)
    return Config.load(env=env or {}, **overrides)


def value_of(config: Config, section: str, key: str) -> Any:
    return getattr(getattr(config, section), key)


def parameters(config: Config) -> dict[str, Any]:
    return dict(conninfo_to_dict(config.conninfo()))


def failure(text: str | None = None, env: Mapping[str, str] | None = None, /, **overrides: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(text, env, **overrides)
    return caught.value


# --- where settings come from


def test_nothing_given_means_defaults() -> None:
    assert load() == Config() == load("") == load("# only a comment\n") == load("queue:\n")


def test_the_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQRS_SCHEMA", "jobs")

    assert Config.load().database.schema == "jobs"


def as_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_can_be_given_in_every_way(section: str, key: str) -> None:
    value = VALUES[key]
    plain = list(value) if isinstance(value, tuple) else value

    configs = [
        load(**{key: value}),
        load(**{section: {key: value}}),
        *(load(None, {name: as_text(value)}) for name in env_names(section, key)),
        load(yaml.safe_dump({section: {key: plain}})),
    ]

    assert [value_of(config, section, key) for config in configs] == [value] * len(configs)
    assert value_of(Config(), section, key) == SETTINGS[section][key].default != value


@pytest.mark.parametrize(("section", "key"), [item for item in KEYS if item[1] not in ("url", "host")])
def test_argument_beats_environment_beats_file_beats_default(section: str, key: str) -> None:
    setting = SETTINGS[section][key]
    low = {"text": "low", "int": 3, "float": 2.0, "bool": True, "names": ["*=low"]}[setting.kind]
    middle = {"text": "mid", "int": "4", "float": "3", "bool": "yes", "names": "*=mid"}[setting.kind]
    file, env = yaml.safe_dump({section: {key: low}}), {env_names(section, key)[0]: str(middle)}
    unset = {env_names(section, key)[0]: ""}

    top, second, third = (
        load(file, env, **{key: VALUES[key]}),
        load(file, env),
        load(file, unset, **{key: None}),
    )

    assert value_of(top, section, key) == VALUES[key]
    assert as_text(value_of(second, section, key)).removesuffix(".0") in (middle, "True")
    assert value_of(third, section, key) in (low, ("*=low",))


def test_the_long_environment_name_beats_the_short_one() -> None:
    env = {
        "DATABASE_URL": "nonsense that does not matter",
        "PGQRS_DATABASE_URL": "postgresql://long/x",
        "PGQRS_SCHEMA": "short",
        "PGQRS_DATABASE_SCHEMA": "long",
    }

    config = load(None, env)

    assert (config.target, config.database.schema) == ("long:5432/x", "long")


def test_the_file_is_the_path_then_the_variable_then_the_working_directory() -> None:
    for name in ("path", "variable"):
        write(f"database: {{schema: {name}}}", f"{name}.yaml")
    write("database: {schema: here}")

    assert Config.load("path.yaml", env={"PGQRS_CONFIG": "variable.yaml"}).database.schema == "path"
    assert Config.load(Path("path.yaml"), env={}).database.schema == "path"
    assert load(None, {"PGQRS_CONFIG": "variable.yaml"}).database.schema == "variable"
    assert load(None, {"PGQRS_CONFIG": ""}).database.schema == "here"


def test_other_variables_are_left_alone() -> None:
    env = {"PGQRS_TEST_DSN": "x", "PGQRS_EMBEDDED_DIR": "x", "PGQRS_TEST_CITUS_DSN": "x", "PGQRSX": "x"}

    assert load(None, env) == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "YES", "on", "1")),
        *((text, False) for text in ("false", "No", " off ", "0")),
    ],
)
def test_true_and_false_have_many_words_in_the_environment(text: str, value: bool) -> None:
    assert load(None, {"PGQRS_QUEUE_ENABLE_LISTEN_NOTIFY": text}).queue.enable_listen_notify is value


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    assert load(None, {"PGQRS_PLUGINS_BLOCKED": " a, b ,,c"}).plugins.blocked == ("a", "b", "c")
    assert load("plugins: {blocked: [a]}", {"PGQRS_PLUGINS_BLOCKED": ","}).plugins.blocked == ()


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    write(b"\xef\xbb\xbfdatabase: {schema: jobs}")

    assert load().database.schema == "jobs"


def test_a_value_for_a_client_is_an_address_a_config_or_nothing() -> None:
    config, env = Config(), {"PGQRS_SCHEMA": "jobs"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)

        given_url, given_nothing = Config.from_value("host=a dbname=b"), Config.from_value()

    assert Config.from_value(config) is config
    assert (given_url.target, given_url.database.schema) == ("a:5432/b", "jobs")
    assert (given_nothing.database.url, given_nothing.database.schema) == (None, "jobs")
    with pytest.raises(ConfigurationError, match="expected a database URL or a Config, not a int"):
        Config.from_value(5)  # type: ignore[arg-type]


# --- mistakes

FILE_ERRORS = [
    ("a", "pgqrs.yaml, line 1: the file must be a mapping of keys, not a single value"),
    ("- a", "pgqrs.yaml, line 1: the file must be a mapping of keys, not a list"),
    ("\ndatabase: shop", "pgqrs.yaml, line 2: database must be a mapping of keys, not a single value"),
    ("queue:\n- a", "pgqrs.yaml, line 2: queue must be a mapping of keys, not a list"),
    ("\n\nqueu: {}", "pgqrs.yaml, line 3: unknown section 'queu'; did you mean queue?"),
    ("zzz: {}", "line 1: unknown section 'zzz'; known are database, performance, plugins, queue"),
    ("schema: jobs", "line 1: unknown section 'schema' (it belongs under 'database')"),
    ("database:\n  hots: a", "line 2: unknown key 'database.hots'; did you mean database.host?"),
    ("database:\n  max_batch_size: 1", "line 2: unknown key 'database.max_batch_size'"),
    ("queue:\n  <<: {}", "line 2: unknown key 'queue.<<'"),
    ("database:\n  ? [a]\n  : b", "line 2: a key of database must be plain text"),
    ("queue: {}\nqueue: {}", "line 2: key 'queue' of the file was already given in line 1"),
    ("database:\n  port: 1\n  'port': 2", "line 3: key 'port' of database was already given in line 2"),
    ("database:\n  port: abc", "line 2: database.port must be a whole number from 1 to 65,535, not 'abc'"),
    ("database:\n  port: '5432'", "database.port must be a whole number from 1 to 65,535, not '5432'"),
    ("database:\n  port: 0", "database.port must be a whole number from 1 to 65,535, not 0"),
    ("database:\n  port: 1.5", "database.port must be a whole number from 1 to 65,535, not 1.5"),
    ("database:\n  port: true", "database.port must be a whole number from 1 to 65,535, not true"),
    ("database:\n  port: [1]", "database.port must be a whole number from 1 to 65,535, not this list"),
    ("database:\n  port: {a: 1}", "database.port must be a whole number from 1 to 65,535, not a mapping"),
    (
        f"database:\n  port: 0x{'f' * 5000}",
        "database.port must be a whole number from 1 to 65,535, not this number",
    ),
    (f"database:\n  port: {'9' * 5000}", "line 2: database.port is no value that YAML can read"),
    ("database:\n  port: !!int x", "line 2: database.port is no value that YAML can read"),
    ("database:\n  port: !!int ''", "line 2: database.port is no value that YAML can read"),
    ("database:\n  port: !!bool x", "line 2: database.port is no value that YAML can read"),
    ("database:\n  port: !!timestamp x", "line 2: database.port is no value that YAML can read"),
    (
        "database:\n  host: !!python/object:os.system x",
        "line 2: database.host is no value that YAML can read",
    ),
    (
        "database:\n  host: 12",
        "line 2: database.host must be text that is not empty, not 12; put it in quotes",
    ),
    ("database:\n  host: yes", "database.host must be text that is not empty, not true; put it in quotes"),
    ("database:\n  host: 2024-05-01", "database.host must be text that is not empty, not a date"),
    (
        "database:\n  host: 2024-13-01",
        "line 2: database.host is no value that YAML can read; put it in quotes",
    ),
    ("database:\n  host: ''", "database.host must be text that is not empty, not ''"),
    ('database:\n  host: "a\\0b"', "database.host must be text that is not empty, not 'a\\x00b'"),
    ('database:\n  host: "\\ud800"', "database.host must be text that is not empty, not '\\ud800'"),
    ("database:\n  schema: ''", "database.schema must be text of 1 to 63 bytes, not ''"),
    (f"database:\n  schema: {'é' * 32}", "database.schema must be text of 1 to 63 bytes, not 'éé"),
    ("database:\n  schema:", "database.schema must be text of 1 to 63 bytes, not nothing"),
    (
        "database:\n  max_connections: 1",
        "database.max_connections must be a whole number from 2 to 1,000, not 1",
    ),
    ("queue:\n  default_lock_time_seconds: .nan", "must be a number from 0.1 to 43,200, not nan"),
    ("queue:\n  default_lock_time_seconds: .inf", "must be a number from 0.1 to 43,200, not inf"),
    ("queue:\n  default_lock_time_seconds: 0.05", "must be a number from 0.1 to 43,200, not 0.05"),
    (
        f"queue:\n  default_lock_time_seconds: 1{'0' * 400}",
        "must be a number from 0.1 to 43,200, not this number",
    ),
    ("queue:\n  default_lock_time_seconds: true", "must be a number from 0.1 to 43,200, not true"),
    ("queue:\n  enable_listen_notify: 1", "queue.enable_listen_notify must be true or false, not 1"),
    ("queue:\n  enable_listen_notify: 'no'", "queue.enable_listen_notify must be true or false, not 'no'"),
    ("plugins:\n  blocked: a", "plugins.blocked must be a list of names, not 'a'"),
    ("plugins:\n  blocked: [1]", "plugins.blocked must be a list of names, not this list"),
    ("plugins:\n  blocked: [[a]]", "plugins.blocked must be a list of names, not this list"),
    ("plugins:\n  blocked: ['']", "plugins.blocked must be a list of names, not this list"),
    ("database:\n  - {", "pgqrs.yaml, line 2: not valid YAML: "),
    ("a: 1\nb: [\n", "not valid YAML: "),
    ("a: 1\n\tb: 2", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
    ("--- {}\n--- {}", "line 2: not valid YAML: but found another document"),
    ("a: 1\nb: \x01", "line 2: not valid YAML: it holds a control character"),
    (b"a: 1\nb: \xff", "line 2: is not UTF-8 text"),
    ('a: "\\Uffffffff"', "pgqrs.yaml: not valid YAML: a \\U escape is beyond Unicode"),
    ("[" * 5000, "pgqrs.yaml: not valid YAML: it is nested too deeply"),
    ("database:\n  url: mysql://a/b", "pgqrs.yaml, line 2: database.url must be a URL (postgresql://, "),
    ("database:\n  url: postgresql://a/b\n  host: c", "pgqrs.yaml, line 2: database.url and database.host"),
]


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS)
def test_a_mistake_in_the_file_is_named_with_its_place(text: str | bytes, message: str) -> None:
    write(text)

    error = failure()

    assert message in str(error)
    assert str(error).startswith("pgqrs.yaml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
        (".", ".: cannot be read: Is a directory"),
        ("a\0b", "'a\\x00b': is not a file name"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(path: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config.load(path, env={})
    assert str(caught.value) == message

    assert str(failure(None, {"PGQRS_CONFIG": path})) == message


ENV_ERRORS = [
    ({"PGQRS_DATABASE_PORT": "abc"}, "database.port must be a whole number from 1 to 65,535, not 'abc'"),
    ({"PGQRS_DATABASE_PORT": "1_000"}, "database.port must be a whole number from 1 to 65,535, not '1_000'"),
    ({"PGQRS_DATABASE_PORT": "9" * 5000}, "database.port must be a whole number from 1 to 65,535, not '999"),
    ({"PGQRS_DATABASE_PORT": "-1"}, "database.port must be a whole number from 1 to 65,535, not -1"),
    (
        {"PGQRS_MAX_CONNECTIONS": "1001"},
        "database.max_connections must be a whole number from 2 to 1,000, not 1001",
    ),
    ({"PGQRS_QUEUE_CLEANUP_INTERVAL_SECONDS": "nan"}, "must be a number from 1 to 86,400, not 'nan'"),
    ({"PGQRS_QUEUE_CLEANUP_INTERVAL_SECONDS": "0"}, "must be a number from 1 to 86,400, not 0.0"),
    ({"PGQRS_QUEUE_ENABLE_LISTEN_NOTIFY": "maybe"}, "must be true or false, not 'maybe'"),
    ({"PGQRS_DATABASE_HOST": "\udcff"}, "database.host must be text that is not empty, not '\\udcff'"),
    ({"DATABASE_URL": "sqlite:///x"}, "environment variable DATABASE_URL: database.url must be a URL"),
    (
        {"PGQRS_DATABASE_URL": "host=a", "PGQRS_DATABASE_PORT": "1"},
        (
            "environment variable PGQRS_DATABASE_URL: database.url and database.port (environment variable "
            "PGQRS_DATABASE_PORT) are both given; leave one of them out"
        ),
    ),
]


@pytest.mark.parametrize(("env", "message"), ENV_ERRORS)
def test_a_mistake_in_the_environment_is_named_with_its_variable(env: dict[str, str], message: str) -> None:
    error = failure(None, env)

    assert message in str(error)
    assert error.source == f"environment variable {next(iter(env))}"
    assert error.key is not None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PGQRS_QUEUE_MAX_BATCHSIZE", "did you mean PGQRS_QUEUE_MAX_BATCH_SIZE?"),
        ("PGQRS_DATABASE_USER", "did you mean PGQRS_DATABASE_USERNAME?"),
        ("PGQRS_PLUGINS_BLOCK", "did you mean PGQRS_PLUGINS_BLOCKED?"),
        ("PGQRS_PERFORMANCE_PREFETCH", "did you mean PGQRS_PERFORMANCE_PREFETCH_COUNT?"),
    ],
)
def test_an_unknown_variable_of_a_section_is_an_error_with_the_nearest_name(name: str, hint: str) -> None:
    assert str(failure(None, {name: ""})) == f"environment: unknown variable {name!r}; {hint}"


ARGUMENT_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"shema": "a"}, "argument: unknown key 'shema'; did you mean schema?"),
    ({"x": "a"}, "argument: unknown key 'x'; known are blocked, cleanup_interval_seconds"),
    (
        {"queue": {"max_batch": 1}},
        "argument: unknown key 'queue.max_batch'; did you mean queue.max_batch_size?",
    ),
    ({"queue": {3: 1}}, "argument: unknown key 'queue.3'"),
    ({"queue": 3}, "argument: queue must be a mapping of keys, not this number"),
    ({"queue": QueueConfig()}, "argument: queue must be a mapping of keys, not a QueueConfig"),
    ({"port": "1"}, "argument: database.port must be a whole number from 1 to 65,535, not '1'"),
    ({"port": True}, "argument: database.port must be a whole number from 1 to 65,535, not true"),
    ({"port": 10**5000}, "argument: database.port must be a whole number from 1 to 65,535, not this number"),
    ({"blocked": "a"}, "argument: plugins.blocked must be a list of names, not 'a'"),
    ({"port": 1, "database": {"port": 1}}, "argument: database.port is given twice"),
    ({"url": "host=a", "host": "b"}, "argument: database.url and database.host (argument) are both given"),
    ({"url": ""}, "argument: database.url must be text that is not empty, not an empty text"),
    (
        {"url": "host=a\0"},
        "database.url must be text that is not empty, not text that PostgreSQL cannot store",
    ),
    (
        {"url": "host=a connect_timeout=3", "connection_timeout_seconds": 4},
        "argument: database.url and database.connection_timeout_seconds (argument) are both given",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENT_ERRORS)
def test_a_mistake_in_an_argument_says_what_was_expected(arguments: dict[str, Any], message: str) -> None:
    assert message in str(failure(**arguments))


def test_flat_names_are_unique() -> None:
    names = [key for _, key in KEYS]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_objects_in_code_are_checked_like_every_other_source(section: str, key: str) -> None:
    cls = type(getattr(Config(), section))

    with pytest.raises(ConfigurationError, match=f"^{section}.{key} must be ") as caught:
        cls(**{key: object()})

    assert (caught.value.key, caught.value.source) == (f"{section}.{key}", None)


@pytest.mark.parametrize(("section", "key"), [item for item in KEYS if SETTINGS[item[0]][item[1]].high])
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(section: str, key: str) -> None:
    setting, cls = SETTINGS[section][key], type(getattr(Config(), section))
    step = {"int": 1, "float": 0.001, "text": 1}[setting.kind]

    def make(size: float) -> Any:
        return "x" * int(size) if setting.kind == "text" else size

    for size in (setting.low, setting.high):
        assert getattr(cls(**{key: make(size)}), key) == make(size)
    for size in (setting.low - step, setting.high + step):
        with pytest.raises(ConfigurationError, match=re.escape(setting.expected)):
            cls(**{key: make(size)})


def test_values_have_one_form_however_they_were_given() -> None:
    queue = QueueConfig(default_lock_time_seconds=5)
    plugins = PluginsConfig(blocked=["a"])  # type: ignore[arg-type]

    assert repr(queue.default_lock_time_seconds) == "5.0"
    assert plugins.blocked == ("a",)
    assert hash(Config(queue=queue, plugins=plugins)) == hash(Config(queue=queue, plugins=plugins))


def test_settings_cannot_be_changed() -> None:
    config = Config()

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.queue = QueueConfig()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.queue.max_batch_size = 1  # type: ignore[misc]
    assert dataclasses.replace(config.queue, max_batch_size=1).max_batch_size == 1


def test_a_section_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="queue must be a QueueConfig"):
        Config(queue=PerformanceConfig())  # type: ignore[arg-type]


# --- addresses

FILE_URL = "database: {url: 'postgresql://u:p@h1:1,h2:2/d?sslmode=require'}"


def test_a_higher_url_replaces_lower_single_keys() -> None:
    config = load("database: {host: low, password: low}", {"DATABASE_URL": "postgresql://high/x"})

    assert config.target == "high:5432/x"
    assert "password" not in parameters(config)
    assert config.database.host is None


def test_a_url_hides_contradictions_below_it() -> None:
    env = {"DATABASE_URL": "nonsense", "PGQRS_DATABASE_HOST": "x"}

    assert load(FILE_URL, env, url="host=top").target.startswith("top:")


def test_higher_single_keys_change_parts_of_a_lower_url() -> None:
    config = load(FILE_URL, {"PGQRS_DATABASE_PASSWORD": "o'ther \\"}, database="arg")

    assert config.target == "h1:1,h2:2/arg"
    assert parameters(config)["password"] == "o'ther \\"
    assert parameters(config)["sslmode"] == "require"
    assert (config.database.host, config.database.password) == (None, None)


def test_a_host_from_above_also_replaces_the_address_behind_the_old_host() -> None:
    config = load("database: {url: host=old hostaddr=10.0.0.1 port=6}", host="new")

    assert config.target == "new:6"
    assert "hostaddr" not in parameters(config)


def test_one_host_over_a_url_with_two_ports_needs_a_port() -> None:
    assert str(failure(FILE_URL, host="new")) == (
        "argument: database.port: 2 ports do not fit 1 hosts; give one for all or for each"
    )
    assert load(FILE_URL, host="new", port=7).target == "new:7/d"


def test_an_embedded_address_has_no_parts_to_change() -> None:
    error = failure("database: {url: 'embedded:///srv/data'}", {"PGQRS_DATABASE_HOST": "x"})

    assert str(error).startswith("environment variable PGQRS_DATABASE_HOST: database.host cannot change part of")


def test_an_embedded_address_is_kept_for_its_plugin_to_resolve() -> None:
    config = load(url=f"embedded://u:{SECRET}@/srv/data?password={SECRET}")

    assert config.embedded
    assert not Config().embedded
    assert config.target == "embedded:///srv/data"
    with pytest.raises(ConfigurationError, match="embedded:///srv/data names a server that must be started first"):
        config.conninfo()
    assert load("database: {url: 'embedded://x'}", connection_timeout_seconds=3).database.url == "embedded://x"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "pgqrs", "PGQRS", "PostgreSQL"])
def test_all_schemes_of_postgresql_mean_the_same(scheme: str) -> None:
    config = load(url=f"{scheme}://u:p%40@h:1/d")

    assert config.conninfo() == load(url="postgresql://u:p%40@h:1/d").conninfo()


def test_single_keys_become_a_conninfo_string() -> None:
    config = load(host="h", port=1, username="u", password="p w", database="d")

    assert parameters(config) == {
        "host": "h",
        "port": "1",
        "user": "u",
        "password": "p w",
        "dbname": "d",
        "connect_timeout": "10",
        "fallback_application_name": "pgqrs",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }


def test_everything_that_the_url_says_is_kept() -> None:
    query = {
        "target_session_attrs": "read-write",
        "options": "-c search_path=a b",
        "application_name": "mine",
        "keepalives": "0",
        "keepalives_idle": "7",
        "tcp_user_timeout": "1",
        "fallback_application_name": "x",
        "connect_timeout": "4",
    }
    encoded = "&".join(f"{key}={value.replace(' ', '%20').replace('=', '%3D')}" for key, value in query.items())

    config = load(url=f"postgresql://h1,h2:2/d?{encoded}")

    assert query.items() <= parameters(config).items()
    assert config.database.connection_timeout_seconds == 4.0
    assert config.target == "h1:5432,h2:2/d"


@pytest.mark.parametrize(
    ("file", "env", "arguments", "seconds"),
    [
        ("database: {connection_timeout_seconds: 20}", {}, {"url": "host=a connect_timeout=3"}, 3),
        ("database: {url: host=a connect_timeout=3}", {}, {"connection_timeout_seconds": 20}, 20),
        ("database: {url: host=a connect_timeout=3}", {"PGQRS_DATABASE_HOST": "b"}, {}, 3),
        ("database: {connection_timeout_seconds: 20}", {}, {"url": "host=a"}, 20),
        ("", {}, {"connection_timeout_seconds": 2.5}, 2.5),
    ],
)
def test_the_timeout_of_a_url_is_the_same_setting(
    file: str, env: dict[str, str], arguments: dict[str, Any], seconds: float
) -> None:
    config = load(file, env, **arguments)

    assert config.database.connection_timeout_seconds == seconds
    assert parameters(config)["connect_timeout"] == {2.5: "3"}.get(seconds, str(int(seconds)))
    assert dataclasses.replace(config.database, schema="x").connection_timeout_seconds == seconds


def test_code_cannot_contradict_itself() -> None:
    with pytest.raises(ConfigurationError, match=r"database.url and database.port are both given"):
        DatabaseConfig(url="host=a", port=1)
    with pytest.raises(ConfigurationError, match=r"database.url and database.connection_timeout_seconds"):
        DatabaseConfig(url="host=a connect_timeout=3", connection_timeout_seconds=4)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql://u:p@h:1/d", "h:1/d"),
        ("postgresql://u@h", "h:5432/u"),
        ("postgresql://", "local socket:5432"),
        ("postgresql://%2Ftmp/d", "/tmp:5432/d"),
        ("host=@abstract dbname=d", "@abstract:5432/d"),
        ("postgresql://[::1]:5/d", "[::1]:5/d"),
        ("postgresql://a,b/d?port=7", "a:7,b:7/d"),
        ("postgresql://a:1,b:/d", "a:1,b:5432/d"),
        ("hostaddr=10.0.0.1 dbname=a@b", "10.0.0.1:5432/a@b"),
        ("service=shop", "service shop"),
        ("dbname='a b' user=x password=y", "local socket:5432/a b"),
    ],
)
def test_the_target_names_server_and_database(url: str, target: str) -> None:
    assert load(url=url).target == target


@pytest.mark.parametrize("scheme", ["postgresql", "pgqrs"])
def test_a_database_may_hold_an_at_sign_that_is_encoded(scheme: str) -> None:
    assert parameters(load(url=f"{scheme}://u:p%40%2F@h/shop%40eu%2Fa%3Fb"))["dbname"] == "shop@eu/a?b"
    assert parameters(load(url=f"{scheme}://h?dbname=shop%40eu"))["dbname"] == "shop@eu"
    assert parameters(load(url=f"{scheme}://%40socket/d"))["host"] == "@socket"


@pytest.mark.parametrize(
    "url", ["postgresql://u:p/word@h/d", "postgresql://u:p@ss@h/d", "postgresql://u:p@ss/word@h/d"]
)
def test_an_at_sign_that_is_not_encoded_is_taken_for_one_of_the_password(url: str) -> None:
    assert "percent-encode the special characters of its password" in str(failure(url=url))


def test_the_target_knows_the_variables_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGUSER", "me")
    assert load().target == "a:1/me"

    monkeypatch.setenv("PGDATABASE", f"postgresql://u:{SECRET}@h/d")
    assert SECRET not in load().target


# --- secrets

#: Each is what somebody writes who means SECRET to be a password, and gets the address wrong.
WRONG_URLS = [
    f"{SECRET}",
    f"postgresql+psycopg2://u:{SECRET}@h/d",
    f"mysql://u:{SECRET}@h/d",
    f"postgresql://u:{SECRET}%ZZ@h/d",
    f"postgresql://u:a@{SECRET}@h/d",
    f"postgresql://u:a/{SECRET}@h/d",
    f"postgresql://u:12/{SECRET}@h/d",
    f"postgresql://u:p@h/d?{SECRET}",
    f"postgresql://u:p@h/d?{SECRET}=1",
    f"postgresql://u:p@h:{SECRET}/d",
    f"postgresql://u:p@h:99999/d?password={SECRET}",
    f"postgresql://u:{SECRET}@[::1/d",
    f"postgresql://u:{SECRET}%00@h/d",
    f"postgresql://u:{SECRET}%aa@h/d",
    f"postgresql://u:@{SECRET},@h/d",
    f"postgresql://u:{SECRET}@h/d?connect_timeout=0",
    f"postgresql://u:{SECRET}@h/d?connect_timeout={SECRET}",
    f"host=a password='{SECRET}",
    f"host=a {SECRET}",
    f"host=a {SECRET}=1",
    f"host=a port={SECRET}",
    f"host=u:{SECRET}@h",
    f"dbname=postgresql://u:{SECRET}@h/d",
    f"postgresql://a,b:1,c:1,d/x?port=1,2&password={SECRET}",
]

LEAKY_FILES = [
    f"database:\n  password: *{SECRET}",
    f"database:\n  password: !{SECRET} x",
    f"database:\n  password: !{SECRET}'!{SECRET} x",
    f"database:\n  password: &{SECRET}",
    f"database:\n  password: %{SECRET}",
    f"database:\n  password: @{SECRET}",
    f"database:\n  password: '{SECRET}",
    f'database:\n  password: "{SECRET}\\q"',
    f"database:\n  password: {SECRET}: x",
    f"database:\n  password: [{SECRET}]",
    f"database:\n  password: {{{SECRET}: 1}}",
    f"database:\n  password: |\n {SECRET}\n  port: 1",
    f"database:\n  password: !!int {SECRET}",
    f"database:\n  password: !!binary {SECRET}é",
    f"database:\n  password: '{SECRET}\\0'\n  'x",
    f"database:\n  database: postgresql://u:{SECRET}@h/d",
    f"database:\n  host: password={SECRET}",
    f"database:\n  host: u:{SECRET}@h",
    f"database:\n  port: postgresql://u:{SECRET}@h/d",
    f"postgresql://u:{SECRET}@h/d: 1",
    f"postgresql://u:{SECRET}@h/d",
    f"database:\n  ? postgresql://u:{SECRET}@h/d\n  : 1",
    f"database:\n  ? password={SECRET}\n  : 1\n  ? password={SECRET}\n  : 1",
]


def assert_silent(error: BaseException) -> None:
    """Nothing about the error, as a person or a log collector sees it, holds the secret."""
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    messages = re.sub(r"^  .*\n", "", shown, flags=re.MULTILINE)  # source lines and their places
    assert SECRET not in messages
    assert SECRET not in str(error) + repr(error) + repr(vars(error))
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_does_not_show_its_password(url: str) -> None:
    for error in (failure(url=url), failure(None, {"DATABASE_URL": url})):
        assert "database.url" in str(error)
        assert_silent(error)
    with pytest.raises(ConfigurationError) as caught:
        DatabaseConfig(url=url)
    assert_silent(caught.value)


@pytest.mark.parametrize("text", LEAKY_FILES)
def test_a_broken_file_does_not_show_its_password(text: str) -> None:
    try:
        config = load(text)
    except ConfigurationError as error:
        assert_silent(error)
    else:
        assert SECRET not in repr(config) + config.target


def test_a_numeric_password_is_refused_without_showing_it() -> None:
    error = failure("database:\n  password: 31337")

    assert str(error) == "pgqrs.yaml, line 2: database.password must be text, not this number; put it in quotes"


@pytest.mark.parametrize(
    "address",
    [{"password": SECRET}, {"url": f"postgresql://u:{SECRET}@h/d"}, {"url": f"host=a password={SECRET}"}],
)
def test_secrets_are_masked_wherever_settings_are_shown(address: dict[str, str]) -> None:
    config = load(**address)

    for value in (config, config.database):
        for shown in (repr(value), str(value), f"{value}", "%s" % (value,), repr([value])):  # noqa: UP031
            assert SECRET not in shown
            assert "***" in shown
    assert SECRET not in repr(config.describe())
    assert SECRET not in config.target
    assert SECRET in config.conninfo()


def test_the_description_holds_every_key_and_the_target() -> None:
    described = load(url=f"postgresql://u:{SECRET}@h/d", schema="jobs").describe()

    assert described["target"] == "h:5432/d"
    assert described["database"]["url"] == "***"
    assert described["database"]["password"] is None
    assert described["database"]["schema"] == "jobs"
    assert {section: list(described[section]) for section in SETTINGS} == {
        section: list(keys) for section, keys in SETTINGS.items()
    }


def test_copies_and_pickles_keep_everything() -> None:
    for config in (
        load(password=SECRET, blocked=["a"]),
        load(url=f"host=a password={SECRET} connect_timeout=3"),
    ):
        for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
            assert twin == config
            assert twin.conninfo() == config.conninfo()


def test_errors_survive_a_pickle() -> None:
    error = failure(port="x")

    twin = pickle.loads(pickle.dumps(error))

    assert (str(twin), twin.key, twin.source) == (str(error), "database.port", "argument")


# --- anything at all

PIECES = st.sampled_from(
    [
        *"[]{}:,-?&*!|>'\"%@`#\n \t\\\x00é\ud7ff",
        *("\n  ", ": ", "- ", "<<", "&a ", "*a ", "---\n", "...\n", "%YAML 1.1\n", "\\U0011ffff", "\\x"),
        *("!!int ", "!!timestamp ", "!!binary ", "!!set ", "!!bool ", "!!float "),
        *("0x", "1:2", "2024-99-99", ".nan", "~", "true", "1e999"),
        *("postgresql://", "host=a", "embedded://", *SETTINGS),
        *(f"{key}: " for _, key in KEYS),
    ]
)
YAML_TEXT = st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
KEYED = st.dictionaries(
    st.sampled_from([*SETTINGS]),
    st.dictionaries(st.sampled_from([key for _, key in KEYS]), TREES, max_size=4) | TREES,
)


def holds_or_is_refused(**arguments: Any) -> None:
    """Settings are either right in every respect or refused with our own error."""
    try:
        config = Config.load(**arguments)
    except ConfigurationError:
        return
    assert repr(config)
    assert config.target
    assert pickle.loads(pickle.dumps(config)) == config
    if not config.embedded:
        assert conninfo_to_dict(config.conninfo())


@given(text=YAML_TEXT | st.text() | KEYED.map(yaml.safe_dump))
@example(text="database:\n  host: !!omap x")
@example(text="database: &a\n  host: *a")
@example(text="plugins:\n  blocked: &a [*a]")
@example(text="plugins:\n  blocked: !!seq x")
@settings(max_examples=400, deadline=None)
def test_no_text_in_the_file_raises_anything_but_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    holds_or_is_refused(path=path, env={})


@given(
    env=st.dictionaries(
        st.sampled_from([name for item in KEYS for name in env_names(*item)]),
        st.text(max_size=30) | st.integers().map(str) | st.floats().map(str) | st.sampled_from(WRONG_URLS),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_environment_raises_anything_but_our_own_error(env: dict[str, str]) -> None:
    holds_or_is_refused(env=env)


@given(overrides=KEYED)
@settings(max_examples=200, deadline=None)
def test_no_argument_raises_anything_but_our_own_error(overrides: dict[str, Any]) -> None:
    holds_or_is_refused(env={}, **overrides)


# --- the documentation

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def documented_default(section: str, key: str) -> str:
    default = SETTINGS[section][key].default
    if default is None or default == ():
        return "–" if default is None else "none"
    if isinstance(default, bool):
        return str(default).lower()
    return default if isinstance(default, str) else f"{default:,g}"


def test_the_documented_table_is_the_code() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| `\w+\.\w+` ", line)]

    assert rows == [
        f"| `{section}.{key}` | {setting.summary} | {setting.expected} | {setting.unit or '–'} "
        f"| {documented_default(section, key)} "
        f"| {', '.join(f'`{name}`' for name in env_names(section, key))} |"
        for section, keys in SETTINGS.items()
        for key, setting in keys.items()
    ]


def test_the_documented_examples_load(monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    [file], [code] = (re.findall(f"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("yaml", "python"))
    env = dict(re.findall(r"export (\w+)='?(.*?)'?\n", page))

    from_file, from_env = load(file), load(None, env)
    write(file)
    monkeypatch.setattr(Path, "read_bytes", lambda _: file.encode())  # the code names a file in /etc
    names: dict[str, Any] = {}
    exec(code, names)

    assert from_file.target == "db1.example.org:5432,db2.example.org:5432/shop"
    assert (from_env.target, from_env.plugins.blocked) == ("db.example.org:5432/shop", ("prometheus", "otel"))
    assert names["config"].queue.max_batch_size == 500


def test_the_documented_errors_are_the_real_ones() -> None:
    [first, second] = re.findall(r"```\n(.*?)\n(.*?)\n```", PAGE.read_text())[0]

    assert str(failure("\n\n\n\nqueue:\n  max_batch_size: many")) == first
    Path("pgqrs.yaml").unlink()
    assert str(failure(None, {"PGQRS_QUEUE_MAX_BATCHSIZE": "5"})) == second


@pytest.mark.parametrize(
    ("url", "rest", "schema"),
    [
        ("pgqrs://u:p%40x@h/db?schema=jobs", "pgqrs://u:p%40x@h/db", "jobs"),
        ("pgqrs://h/db?sslmode=require&schema=a%20b&user=a%2Bb", "pgqrs://h/db?sslmode=require&user=a%2Bb", "a b"),
        ("pgqrs://h/db?sslmode=require", "pgqrs://h/db?sslmode=require", None),
        ("host=h password='what?schema=x'", "host=h password='what?schema=x'", None),
    ],
)
def test_the_schema_is_taken_out_of_a_url_and_nothing_else_is_touched(url: str, rest: str, schema: str | None) -> None:
    assert config_address.split_schema(url) == (rest, schema)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("pgqrs://u:secret@h:5432/db", "pgqrs://u:**@h:5432/db"),
        ("pgqrs://u:secret@a:1,b:2/db?sslmode=require", "pgqrs://u:**@a:1,b:2/db?sslmode=require"),
        ("pgqrs://u:se/cr@et@h/db", "pgqrs://u:**@h/db"),
        ("pgqrs://u:se?cr@et@h/db", "pgqrs://u:**@h/db"),
        ("pgqrs://u:secret@h/db?application_name=a@b", "pgqrs://u:**@h/db?application_name=a@b"),
        ("pgqrs://u@h:5432/db", "pgqrs://u@h:5432/db"),
        ("pgqrs://h/db?user=u&password=secret&schema=s", "pgqrs://h/db?user=u&password=**&schema=s"),
        ("pgqrs://h/db?sslpassword=secret", "pgqrs://h/db?sslpassword=**"),
        ("pgqrs://u:secret@", "pgqrs://u:**@"),
        ("pgqrs://h/db?user=u&pass%77ord=secret", "pgqrs://h/db?user=u&pass%77ord=**"),
        ("pgqrs://", "pgqrs://"),
    ],
)
def test_the_password_is_masked(url: str, shown: str) -> None:
    assert config_address.masked(url) == shown
    assert "secret" not in config_address.masked(url)
