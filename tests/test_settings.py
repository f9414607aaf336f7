"""Settings: where they come from, which are refused and how, and every form of a database's address."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from duetime.errors import InvalidSettings
from duetime.settings import DatabaseUrl, Settings


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DUETIME_", "PG")) or name in {"DATABASE_URL", "PORT"}:
            monkeypatch.delenv(name)


def problems_of(**given: Any) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        Settings(**given)
    return {detail["where"].split()[0]: detail["problem"] for detail in caught.value.details}


class TestSources:
    def test_without_anything_set_it_uses_the_embedded_database_and_listens_to_this_machine_only(self) -> None:
        settings = Settings()
        assert settings.database is None
        assert settings.data_dir == Path(".duetime")
        assert (settings.host, settings.port) == ("127.0.0.1", 8000)
        assert settings.check() == []

    def test_the_variables_of_platforms_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgres://me@there/db")
        monkeypatch.setenv("PORT", "9000")
        settings = Settings()
        assert settings.database_url == "postgres://me@there/db"
        assert settings.port == 9000

    def test_our_variables_win_over_the_platforms_and_keywords_over_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgres://platform/db")
        monkeypatch.setenv("DUETIME_DATABASE_URL", "postgres://ours/db")
        monkeypatch.setenv("PORT", "1")
        monkeypatch.setenv("DUETIME_PORT", "2")
        assert Settings().database_url == "postgres://ours/db"
        assert Settings().port == 2
        assert Settings(database_url="postgresql://keyword/db").database_url == "postgresql://keyword/db"
        assert Settings(port=3).port == 3

    @pytest.mark.parametrize(
        ("text", "seconds"), [("30", 30), ("0.25", 0.25), (" 7 ", 7), ("PT1M", 60), ("0.0005", 0.0005)]
    )
    def test_durations_are_seconds_in_the_environment(
        self, text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DUETIME_POLL_INTERVAL", text)
        assert Settings().poll_interval == timedelta(seconds=seconds)

    def test_durations_are_numbers_or_timedeltas_in_python(self) -> None:
        settings = Settings(poll_interval=2.5, look_ahead=0, drain_timeout=timedelta(minutes=2))
        assert settings.poll_interval == timedelta(seconds=2.5)
        assert settings.look_ahead == timedelta(0)
        assert settings.drain_timeout == timedelta(minutes=2)

    def test_task_modules_are_separated_by_commas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DUETIME_TASK_MODULES", "reminders, my_app.tasks,")
        assert Settings().task_modules == ("reminders", "my_app.tasks")
        assert Settings(task_modules=("one",)).task_modules == ("one",)

    def test_an_empty_variable_counts_as_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DUETIME_PORT", "PORT", "DATABASE_URL", "DUETIME_API_TOKEN"):
            monkeypatch.setenv(name, "")
        settings = Settings()
        assert settings.port == 8000
        assert settings.database_url is None
        assert settings.api_token is None
        assert any("DATABASE_URL is empty" in warning for warning in settings.warnings())

    def test_settings_do_not_change(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            setattr(Settings(), "port", 1)  # noqa: B010 - type checkers know better than to allow the plain form

    def test_every_setting_has_a_description(self) -> None:
        assert [name for name, field in Settings.model_fields.items() if not field.description] == []


class TestProblems:
    def test_all_of_them_are_listed_at_once_with_what_came_and_what_is_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DUETIME_PORT", "http")
        monkeypatch.setenv("DUETIME_HOST", "10.0.0.1")
        problems = problems_of(role="boss", lease_duration=-1, prot=1)
        assert set(problems) == {"port", "role", "lease_duration", "prot", "api_token,"}
        assert "'http'" in problems["port"]
        assert "TCP port" in problems["port"]
        assert "'both', 'scheduler' or 'worker'" in problems["role"]
        assert "did you mean 'port'?" in problems["prot"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("port", 65536),
            ("port", -1),
            ("pool_size", 0),
            ("poll_interval", 0),
            ("poll_interval", "10m"),
            ("poll_interval", "nan"),
            ("poll_interval", float("inf")),
            ("poll_interval", True),
            ("poll_interval", timedelta(days=8)),
            ("schema_name", "Duetime"),
            ("schema_name", "pg_mine"),
            ("schema_name", "a; drop schema public"),
            ("schema_name", "a" * 64),
            ("schema_name", "name\n"),
            ("task_modules", "not a module"),
            ("task_modules", "os.path;evil"),
            ("host", ""),
            ("node_name", ""),
            ("max_concurrent_jobs", 0),
            ("log_level", "LOUD"),
            ("database_url", "mysql://host/db"),
        ],
    )
    def test_a_value_without_meaning_is_refused_by_its_name(self, name: str, value: object) -> None:
        assert list(problems_of(**{name: value})) == [name]

    def test_load_raises_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DUETIME_POOL_SIZE", "many")
        with pytest.raises(InvalidSettings, match=r"pool_size \(DUETIME_POOL_SIZE\)"):
            Settings.load()

    def test_secrets_are_in_no_message_and_no_representation(self) -> None:
        settings = Settings(database_url="postgres://me:hunter2@there/db", api_token="hunter2hunter2hunter2")
        assert "hunter2" not in repr(settings)
        assert "hunter2" not in str(settings)
        assert "hunter2" not in "".join(settings.check())
        with pytest.raises(InvalidSettings) as caught:
            Settings(database_url="mysql://me:hunter2@there/db", api_token=["hunter2"])
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in str(caught.value.details)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.com"])  # noqa: S104
    def test_other_machines_are_served_with_a_token_only(self, host: str) -> None:
        assert any("DUETIME_API_TOKEN" in problem for problem in Settings(host=host).problems())
        assert Settings(host=host, api_token="0123456789abcdef").problems() == []

    def test_other_machines_are_served_without_a_token_when_told_so_and_that_is_said(self) -> None:
        settings = Settings(host="::", insecure=True)
        assert settings.problems() == []
        assert any("insecure" in warning for warning in settings.warnings())

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
    def test_this_machine_is_served_without_a_token(self, host: str) -> None:
        assert Settings(host=host).check() == []

    def test_a_token_that_does_not_fit_into_a_header_is_refused(self) -> None:
        assert any("printable ASCII" in problem for problem in Settings(api_token="two words").problems())

    def test_a_token_that_can_be_guessed_is_warned_of(self) -> None:
        assert any("guessed" in warning for warning in Settings(api_token="short").warnings())

    @pytest.mark.parametrize("name", ["call_timeout", "look_ahead"])
    def test_a_lease_has_to_outlive_what_happens_under_it(self, name: str) -> None:
        given: dict[str, Any] = {name: 31}
        settings = Settings(**given)
        assert any(name in problem for problem in settings.problems())

    def test_a_file_is_no_data_dir(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert any("directory" in problem for problem in Settings(data_dir=tmp_path / "file").problems())

    def test_a_misspelt_variable_is_a_warning_with_the_one_that_was_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DUETIME_LOOKAHEAD", "2")
        assert Settings().problems() == []
        (warning,) = Settings().check()
        assert warning.startswith("Warning: ")
        assert "did you mean 'DUETIME_LOOK_AHEAD'?" in warning

    def test_parameters_of_the_address_that_mean_nothing_are_a_warning(self) -> None:
        settings = Settings(database_url="postgresql://there/db?pgbouncer=true&connection_limit=5")
        assert any("connection_limit, pgbouncer" in warning for warning in settings.warnings())


def parse(text: str) -> DatabaseUrl:
    return DatabaseUrl.parse(text)


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        "scheme",
        [
            "postgres",
            "postgresql",
            "postgresql+asyncpg",
            "postgresql+psycopg",
            "postgresql+psycopg2",
            "postgres+asyncpg",
            "POSTGRESQL",
        ],
    )
    def test_every_scheme_of_postgresql_means_the_same(self, scheme: str) -> None:
        assert parse(f"{scheme}://me:pw@there:6432/db") == DatabaseUrl(
            database="db", host="there", port=6432, user="me", password="pw"
        )

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("mysql://me:hunter2@there/db", "'mysql'"),
            ("sqlite:///file.db", "'sqlite'"),
            ("postgresql:me:hunter2@there/db", "does not begin with"),
            ("me:hunter2@there/db", "does not begin with"),
            ("", "does not begin with"),
            ("postgresql://me:hunter2@there", "the name of a database"),
            ("postgresql://me:hunter2@there/", "the name of a database"),
            ("postgresql://me:hunter2@there:port/db", "port from 1 to 65535"),
            ("postgresql://me:hunter2@there:99999/db", "port from 1 to 65535"),
            ("postgresql://me:hunter2@there:0/db", "port from 1 to 65535"),
            ("postgresql://me:hunter2@[::1/db", "host name"),
            ("postgresql://me:hunter2@there/db?sslmode=required", "did you mean 'require'"),
            ("postgresql://me:hunter2@there/db?target_session_attrs=master", "target_session_attrs"),
            ("postgresql://me:hunter2@there/db?connect_timeout=soon", "connect_timeout"),
            ("postgresql://me:hunter2%FF@there/db", "UTF-8"),
            ("postgresql://me:hunter2%00@there/db", "%00"),
            ("postgresql://me:hunter2@there/db\nother", "control character"),
            ("postgresql://me:hunter2/more@there/db", "percent-encode"),
            ("postgresql://me:123/hunter2@there/db", "percent-encode"),
            ("postgresql://me:123?hunter2=1@there/db", "percent-encode"),
        ],
    )
    def test_what_is_no_address_is_refused_with_what_to_do_and_without_the_password(self, text: str, part: str) -> None:
        with pytest.raises(InvalidSettings) as caught:
            parse(text)
        assert part in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_special_characters_of_a_password_are_percent_encoded_or_harmless(self) -> None:
        assert parse("postgresql://me:p%40ss%2Fw%3Frd%25@there/db").password == "p@ss/w?rd%"
        assert parse("postgresql://me:p@ss#word:+&=@there/db").password == "p@ss#word:+&="

    @pytest.mark.parametrize(
        ("text", "host", "port"),
        [
            ("postgresql://there/db", "there", 5432),
            ("postgresql://[2001:db8::1]:6000/db", "2001:db8::1", 6000),
            ("postgresql://[::1]/db", "::1", 5432),
            ("postgresql:///db?host=/var/run/some%20dir", "/var/run/some dir", 5432),
            ("postgresql:///db?host=/var/run/some dir&port=6543", "/var/run/some dir", 6543),
            ("postgresql://me@/db?host=/run/postgresql", "/run/postgresql", 5432),
            ("postgresql://%2Fvar%2Frun:6000/db", "/var/run", 6000),
            ("postgresql:///db?host=::1", "::1", 5432),
            ("postgresql://ignored/db?host=counts", "counts", 5432),
            ("postgresql:///db", None, 5432),
        ],
    )
    def test_hosts_are_names_addresses_or_socket_directories(self, text: str, host: str | None, port: int) -> None:
        url = parse(text)
        assert (url.host, url.port) == (host, port)
        arguments = url.asyncpg_arguments()
        assert arguments.get("host") == host
        assert parse(url.text) == url

    def test_several_hosts_are_tried_in_order(self) -> None:
        url = parse("postgresql://one:1,two,[::1]:3/db?target_session_attrs=primary")
        assert (url.host, url.port) == ("one", 1)
        assert url.fallbacks == (("two", 5432), ("::1", 3))
        assert url.asyncpg_arguments()["host"] == ["one", "two", "::1"]
        assert url.asyncpg_arguments()["port"] == [1, 5432, 3]
        assert url.asyncpg_arguments()["target_session_attrs"] == "primary"
        assert parse(url.text) == url

    def test_neons_address_loses_what_asyncpg_does_not_know_and_its_pooler(self) -> None:
        url = parse(
            "postgresql://me:pw@ep-quiet-sun-123-pooler.eu-central-1.aws.neon.tech/db"
            "?sslmode=require&channel_binding=require"
        )
        assert url.is_pooled
        assert url.direct.host == "ep-quiet-sun-123.eu-central-1.aws.neon.tech"
        assert not url.direct.is_pooled
        assert url.direct.direct == url.direct
        assert url.ignored == ()
        assert url.direct.asyncpg_arguments() == {
            "host": "ep-quiet-sun-123.eu-central-1.aws.neon.tech",
            "port": 5432,
            "user": "me",
            "password": "pw",
            "database": "db",
            "ssl": "require",
        }

    @pytest.mark.parametrize("host", ["my-pooler.example.com", "x-pooler.evilneon.tech", "neon.tech"])
    def test_a_pooler_of_somebody_else_keeps_its_name(self, host: str) -> None:
        url = parse(f"postgresql://{host}/db")
        assert not url.is_pooled
        assert url.direct == url

    @pytest.mark.parametrize(
        ("query", "ssl"),
        [
            ("sslmode=verify-full", "verify-full"),
            ("sslmode=disable", "disable"),
            ("ssl=require", "require"),
            ("ssl=true", "require"),
            ("ssl=false", "disable"),
            ("ssl=true&sslmode=verify-ca", "verify-ca"),
            ("sslmode=verify-full&sslrootcert=system", True),
            ("", None),
        ],
    )
    def test_tls_is_asked_for_in_libpqs_words_or_those_of_other_drivers(self, query: str, ssl: object) -> None:
        assert parse(f"postgresql://there/db?{query}").asyncpg_arguments().get("ssl") == ssl

    def test_files_for_tls_travel_in_the_text_that_asyncpg_reads_them_from(self) -> None:
        url = parse("postgresql://there/db?sslmode=verify-full&sslrootcert=/etc/my%20ca.pem&sslkey=/k")
        assert url.asyncpg_arguments()["dsn"] == "postgresql://?sslkey=/k&sslrootcert=/etc/my%20ca.pem"
        assert parse(url.text) == url

    def test_session_settings_are_sent_by_name(self) -> None:
        url = parse(
            "postgresql://there/db?application_name=my%20app"
            "&options=-c%20search_path%3Dmine%5C%20own%20--statement-timeout%3D5s%20endpoint%3Dep-1"
        )
        assert url.asyncpg_arguments()["server_settings"] == {
            "application_name": "my app",
            "search_path": "mine own",
            "statement_timeout": "5s",
            "options": "endpoint=ep-1",
        }
        assert parse(url.text) == url

    def test_timeouts_and_caches_become_arguments(self) -> None:
        url = parse("postgresql://there/db?connect_timeout=3&prepared_statement_cache_size=0")
        assert url.asyncpg_arguments()["timeout"] == 3
        assert url.asyncpg_arguments()["statement_cache_size"] == 0
        assert "timeout" not in parse("postgresql://there/db?connect_timeout=0").asyncpg_arguments()

    def test_equal_addresses_are_equal_and_can_be_kept_in_sets_and_pickled(self) -> None:
        first, second = (parse("postgresql://there/db?application_name=a") for _ in range(2))
        assert {first} == {second}
        assert pickle.loads(pickle.dumps(first)) == second  # noqa: S301 - our own

    @hypothesis_settings(deadline=None)
    @given(st.text())
    def test_reading_raises_nothing_but_invalid_settings(self, text: str) -> None:
        for prefix in ("", "postgresql://", "postgres://me:pw@there/db?", "postgresql://me:pw@there"):
            try:
                url = parse(prefix + text)
            except InvalidSettings:
                continue
            assert parse(url.text) == parse(parse(url.text).text)
            url.asyncpg_arguments()

    @hypothesis_settings(deadline=None)
    @given(
        password=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        database=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip),
    )
    def test_what_is_written_is_read_back_and_only_the_full_text_has_the_password(
        self, password: str, database: str
    ) -> None:
        marked = f"hunter2{password}hunter2"
        url = DatabaseUrl(database=database or "db", host="there", user="me", password=marked)
        assert parse(url.text) == url
        for shown in (url.redacted, str(url), repr(url)):
            assert "hunter2" not in shown

    @hypothesis_settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_a_badly_written_password_is_in_no_message(self, password: str) -> None:
        for text in (f"postgresql://me:hunter2{password}@there/db", f"mysql://me:hunter2{password}@there/db"):
            try:
                shown = parse(text).redacted
            except InvalidSettings as exc:
                shown = str(exc)
            assert "hunter2" not in shown
