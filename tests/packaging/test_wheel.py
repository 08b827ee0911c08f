"""What is shipped, seen as somebody who installs it."""

import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = ("pgqrs_native", "pgqrs_kombu", "pgqrs_celery", "pgqrs_dramatiq")
PLUGINS = (
    "pgqrs_embedded",
    "pgqrs_otel",
    "pgqrs_prometheus",
    "pgqrs_msgpack",
    "pgqrs_pickle",
    "pgqrs_pydantic",
    "pgqrs_zstd",
    "pgqrs_crypto",
)


def test_the_wheel_installs_exactly_our_top_level_names(wheel: Path):
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}

    assert names == {"pgqrs_core", *ADAPTERS, *PLUGINS}


def test_the_wheel_holds_every_sql_file_and_type_marker(wheel: Path):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    adapters = [(ROOT / "adapters", name) for name in ADAPTERS]
    shelves = [(ROOT, "pgqrs_core"), *adapters, *((ROOT / "plugins", name) for name in PLUGINS)]

    wanted = {
        str(path.relative_to(base))
        for base, package in shelves
        for pattern in ("**/*.sql", "**/py.typed", "**/*.py", "**/*.json")
        for path in (base / package).glob(pattern)
    }

    assert wanted <= shipped


def test_the_wheel_holds_no_tests_and_no_leftovers(wheel: Path):
    for name in zipfile.ZipFile(wheel).namelist():
        assert not name.startswith(("tests/", "benchmarks/", "examples/"))
        assert "__pycache__" not in name


def test_the_licences_are_shipped(wheel: Path):
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist()]

    assert {"LICENSE-APACHE", "LICENSE-MIT"} <= set(names)


@pytest.mark.timeout(300)
def test_with_the_core_dependencies_alone_everything_but_the_extras_imports(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True)
    program = (
        "import pgqrs_core, pgqrs_native, pgqrs_native.plugin, pgqrs_celery.plugin, pgqrs_dramatiq.plugin, pgqrs_embedded\n"
        "import pgqrs_otel.plugin, pgqrs_prometheus.plugin\n"
        "import pgqrs_msgpack, pgqrs_pickle, pgqrs_pydantic, pgqrs_zstd, pgqrs_crypto\n"
        "from pgqrs_core import Plugins\n"
        "plugins = Plugins.load()\n"
        "print(sorted(one.name for one in plugins.loaded), plugins.broken)\n"
        "hooks = plugins.hooks\n"
        "print(hooks.observes_claim, hooks.observes_consume, hooks.surrounds_enqueue, hooks.surrounds_handler)\n"
    )

    done = subprocess.run([python, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    command = subprocess.run([python.parent / "pgqrs", "--help"], capture_output=True, text=True, check=False)

    names = f"{sorted(['json', *(name.removeprefix('pgqrs_') for name in (*ADAPTERS, *PLUGINS[1:]))])} ()"
    # Without their libraries, plugins that watch messages watch none.
    assert done.stdout == f"{names}\nFalse False False False\n", done.stderr
    assert command.returncode == 1
    assert "not installed: pip install " in command.stderr
    assert "[cli]" in command.stderr
