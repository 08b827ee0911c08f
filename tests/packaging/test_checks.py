"""The checks that read the code: they are tests, so that one command runs all."""

import ast
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(300)
def test_the_code_has_sound_types():
    run("mypy")


@pytest.mark.timeout(300)
def test_code_that_uses_the_api_has_sound_types():
    run("mypy", "tests/typing/api.py")


def test_the_linter_is_content():
    run("ruff", "check", ".")


def test_the_code_is_formatted():
    run("ruff", "format", "--check", ".")


def test_imports_follow_the_layers():
    run("lint-imports")


def test_nothing_in_the_project_names_a_path_of_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = ["/" + "work/", "/" + "root/"]

    found = [
        f"{name}: {word}"
        for name in listed.stdout.split()
        if (ROOT / name).is_file()
        for word in forbidden
        if word in (ROOT / name).read_text(encoding="utf-8", errors="ignore")
    ]

    assert found == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/pgqrs_*/__init__.py")), ids=lambda path: path.parent.name)
def test_no_public_name_of_a_package_is_one_of_its_modules(path: Path):
    """Whoever imports the module, however deep inside, would put it in the place of what users import by that name."""
    (names,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ] or [[]]

    assert set(names) & {module.name for module in pkgutil.iter_modules([str(path.parent)])} == set()
