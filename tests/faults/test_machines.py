"""What happens to the machine of a server: its disk is full, its clock jumps."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgqrs_core.cluster import Cluster, make_directory, programs, reachable_bindir, server_account
from pgqrs_core.testing import throw_away_cluster

from .crowd import Crowd, ask, until

pytestmark = pytest.mark.faults

#: Bytes of the small disk.
DISK = 150_000_000


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system that is soon full."""
    place = Path(f"/tmp/pgqrs-disk-{secrets.token_hex(4)}")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
        place.rmdir()


@pytest.fixture
def cluster_on_small_disk(small_disk: Path, pgqrs_bindir: Path, tmp_path: Path) -> Iterator[Cluster]:
    small_disk.chmod(0o755)
    directory = small_disk / "server"
    account = server_account()
    make_directory(directory, account)
    bindir = reachable_bindir(pgqrs_bindir, account, copy_to=Path(f"{small_disk}-bin"))
    options = {"shared_buffers": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    cluster = Cluster(bindir, directory, password=secrets.token_hex(8), options=options, durable=False)
    cluster.start()
    yield cluster
    cluster.stop("immediate")


def fill(place: Path) -> Path:
    """Leave nothing of the disk."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    return ballast


def test_nothing_is_lost_when_the_disk_is_full(
    cluster_on_small_disk: Cluster, small_disk: Path, gather: Callable[..., Crowd]
) -> None:
    cluster = cluster_on_small_disk
    crowd = gather(cluster.dsn, pause=0.002)
    crowd.begin()

    with crowd.crash():
        ballast = fill(small_disk)
        # The server refuses single statements, or gives up altogether when it cannot write its log.
        refused = crowd.count("refused") + crowd.count("unnoted") + crowd.count("unknown")
        until(
            lambda: crowd.count("refused") + crowd.count("unnoted") + crowd.count("unknown") > refused,
            "the crowd notices that the disk is full",
        )
        time.sleep(2)
        ballast.unlink()
        if cluster.postmaster() is None:
            cluster.start()
        until(lambda: ask(cluster.dsn, "select 1"), "the server is back")
    crowd.flow()

    assert crowd.finish() == []


def find_libfaketime() -> Path | None:
    """Return the library that lies about the time: ``$LIBFAKETIME``, or Debian's."""
    named = [Path(os.environ["LIBFAKETIME"])] if "LIBFAKETIME" in os.environ else []
    return next(
        (path for path in (*named, *Path("/usr/lib").glob("*/faketime/libfaketime.so.1")) if path.exists()), None
    )


@pytest.fixture
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that says by how much the server's clock is wrong."""
    place = Path(f"/tmp/pgqrs-clock-{secrets.token_hex(4)}")
    place.write_text("+0")
    place.chmod(0o644)
    yield place
    place.unlink()


@pytest.fixture
def dreaming_cluster(clock: Path, pgqrs_bindir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A server that believes what the file says."""
    library = find_libfaketime()
    if library is None:
        pytest.skip("needs libfaketime: install the package libfaketime, or set LIBFAKETIME")
    lies = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # Sleeps and time-outs go by a clock that does not jump.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with throw_away_cluster(pgqrs_bindir) as cluster:
        cluster.stop()
        monkeypatch.setattr(programs, "_KEPT_VARIABLES", (*programs._KEPT_VARIABLES, *lies))
        with monkeypatch.context() as patch:
            for name, value in lies.items():
                patch.setenv(name, value)
            cluster.start()
        yield cluster


@pytest.mark.parametrize("hours", [1, -1])
def test_nothing_is_lost_when_the_clock_of_the_server_jumps(
    hours: int, dreaming_cluster: Cluster, clock: Path, gather: Callable[..., Crowd]
) -> None:
    crowd = gather(dreaming_cluster.dsn, pause=0.005)
    crowd.begin()
    before = ask(dreaming_cluster.dsn, "select extract(epoch from now())::float8")[0][0]

    clock.write_text(f"{hours:+d}h")
    after = until(
        lambda: [ask(dreaming_cluster.dsn, "select extract(epoch from now())::float8")[0][0]], "the server answers"
    )[0]
    assert abs(after - before - 3600 * hours) < 60
    crowd.flow()
    if hours < 0:
        # What was leased or delayed waits for the old time to come again; the rest has gone on.
        clock.write_text("+0")
        crowd.flow()
    # A jump ahead, this one back to the right time included, ends all leases at once: whoever held one may lose it.
    assert [line for line in crowd.finish() if not line.startswith("DOUBLED")] == []
