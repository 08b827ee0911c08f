"""``pgqrs.yaml`` in the working directory is obeyed only if no other user can have written it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pgqrs_core import config_trust
from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError

IS_ROOT = os.geteuid() == 0
OTHER = 54_321


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, this user's alone, with a configuration file."""
    directory = tmp_path / "work"
    directory.mkdir(mode=0o755)
    monkeypatch.chdir(directory)
    (directory / "pgqrs.yaml").write_text("database: {schema: found}\n")
    (directory / "pgqrs.yaml").chmod(0o644)
    return directory


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let a file belong to another user: for root it is one that he makes it; for others they are another user."""

    def give(path: Path) -> None:
        if IS_ROOT:
            os.chown(path, OTHER, 0, follow_symlinks=False)
            return
        mine = os.geteuid()
        monkeypatch.setattr(config_trust.os, "geteuid", lambda: OTHER)
        # What belongs to this user besides that file is that other user's, too.
        monkeypatch.setattr(
            config_trust, "_check_owner", _but_for(path.lstat().st_ino, mine, config_trust._check_owner)
        )

    return give


def _but_for(inode: int, mine: int, check: Callable[..., None]) -> Callable[..., None]:
    def check_owner(path: str, what: str, found: os.stat_result) -> None:
        if found.st_ino == inode or found.st_uid != mine:
            check(path, what, found)

    return check_owner


def load() -> str:
    return Config.load(env={}).database.schema


def test_a_file_of_ones_own_is_read(here: Path) -> None:
    assert load() == "found"


def test_a_file_of_another_user_is_refused_by_name_with_the_remedy(
    here: Path, give_away: Callable[[Path], None]
) -> None:
    give_away(here / "pgqrs.yaml")

    with pytest.raises(ConfigurationError) as refused:
        load()

    text = str(refused.value)
    assert text.startswith(f"{here}/pgqrs.yaml: is not read, because it belongs to user ")
    assert text.endswith(f"`export PGQRS_CONFIG={here}/pgqrs.yaml`")


def test_a_file_that_is_named_is_read_as_it_is(here: Path, give_away: Callable[[Path], None]) -> None:
    give_away(here / "pgqrs.yaml")
    here.chmod(0o777)

    assert Config.load(env={"PGQRS_CONFIG": f"{here}/pgqrs.yaml"}).database.schema == "found"
    assert Config.load("pgqrs.yaml", env={}).database.schema == "found"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o646, "it can be written by every user"), (0o664, "it can be written by the members of group")],
)
def test_a_file_that_others_can_write_is_refused(
    here: Path, mode: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_trust, "_is_private", lambda group: False)
    (here / "pgqrs.yaml").chmod(mode)

    with pytest.raises(ConfigurationError, match=reason):
        load()


def test_a_file_that_this_users_own_group_can_write_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_trust, "_is_private", lambda group: True)
    (here / "pgqrs.yaml").chmod(0o664)

    assert load() == "found"


def test_a_group_is_private_if_it_is_roots_or_has_the_users_name_and_no_other_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def group(name: str, *members: str) -> None:
        monkeypatch.setattr(config_trust.pwd, "getpwuid", lambda _: config_trust.pwd.struct_passwd(("ada",) * 7))
        found = config_trust.grp.struct_group((name, "x", 7, list(members)))
        monkeypatch.setattr(config_trust.grp, "getgrgid", lambda _: found)

    answers = []
    for name, *members in (("ada",), ("ada", "ada"), ("ada", "bob"), ("staff",), ("staff", "ada")):
        group(name, *members)
        answers.append(config_trust._is_private(7))

    assert answers == [True, True, False, False, False]
    assert config_trust._is_private(0)


def test_a_directory_that_others_can_write_is_refused_unless_it_is_sticky(here: Path) -> None:
    here.chmod(0o777)
    with pytest.raises(ConfigurationError, match=f"its directory {here} can be written by every user"):
        load()

    here.chmod(0o1777)
    assert load() == "found"


def test_a_file_of_another_user_in_a_sticky_directory_is_refused(here: Path, give_away: Callable[[Path], None]) -> None:
    here.chmod(0o1777)
    give_away(here / "pgqrs.yaml")

    with pytest.raises(ConfigurationError, match="it belongs to user"):
        load()


def test_a_directory_of_another_user_is_refused(here: Path, give_away: Callable[[Path], None]) -> None:
    give_away(here)

    with pytest.raises(ConfigurationError, match=f"its directory {here} belongs to user"):
        load()


def test_a_symbolic_link_is_refused_if_it_or_the_way_to_its_target_is_anothers(
    here: Path, give_away: Callable[[Path], None]
) -> None:
    target = here.parent / "settings"
    target.mkdir()
    (here / "pgqrs.yaml").rename(target / "pgqrs.yaml")
    (here / "pgqrs.yaml").symlink_to("../settings/pgqrs.yaml")
    assert load() == "found"

    target.chmod(0o777)
    with pytest.raises(ConfigurationError, match=f"the directory {target} of its target can be written by every user"):
        load()
    target.chmod(0o755)
    give_away(here / "pgqrs.yaml")
    with pytest.raises(ConfigurationError, match="the symbolic link belongs to user"):
        load()


def test_what_is_mounted_for_reading_only_may_look_as_if_all_could_write_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.chmod(0o777)
    found = os.statvfs(here)
    read_only = os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, found[9]))
    monkeypatch.setattr(config_trust.os, "statvfs", lambda _: read_only)

    assert load() == "found"
