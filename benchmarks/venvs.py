"""Environments of their own for contenders whose packages clash with ours or with each other's.

They are in ``.venvs``, beside this. A contender may need a newer Python than ours; it is then looked for.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from shutil import rmtree, which

from .contenders import CONTENDERS, Entry

FOLDER = Path(__file__).parent / ".venvs"

UNLISTED = (".pyenv/versions/*/bin/python", ".local/share/uv/python/*/bin/python3")
"""Under a user's home: interpreters that no PATH need lead to."""

_VERSION = "import sys; print(*sys.version_info[:2])"
_VERSIONS = """
import importlib.metadata, json, platform
found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions() if "Name" in one.metadata}
print(json.dumps({"Python": platform.python_version()} | found))
"""


def setup() -> bool:
    """Make the environments, or what they lack, and say which contenders still cannot run.

    Returns:
        Whether all can.
    """
    for venv in sorted({entry.venv for entry in CONTENDERS.values()} - {""}):
        _make(venv, [entry for entry in CONTENDERS.values() if entry.venv == venv])
    _installed.cache_clear()
    lacking = lacks()
    for name, reason in lacking.items():
        print(f"{name} cannot run here: {reason}")
    if not lacking:
        print("All contenders can run.")
    return not lacking


def available() -> frozenset[str]:
    """The contenders that can run here."""
    return frozenset(CONTENDERS) - lacks().keys()


def lacks() -> dict[str, str]:
    """What the contenders that cannot run here lack."""
    return {name: lack for name, entry in CONTENDERS.items() if (lack := _lack(entry))}


def python(name: str) -> str:
    """The interpreter of a contender's environment, be it there or not."""
    return _python(CONTENDERS[name].venv)


def versions() -> dict[str, str]:
    """Of Python and of the contenders' packages; where an environment has another than ours, with its name."""
    found: dict[str, str] = {}
    for entry in sorted(CONTENDERS.values(), key=lambda entry: entry.venv):
        installed = _installed(entry.venv)
        for package in ("Python", *(requirement.partition("==")[0] for requirement in entry.packages)):
            version = installed.get(_normal(package))
            if version and found.setdefault(package, version) != version:
                found[f"{package} ({entry.venv})"] = version
    return found


# -- what is there -------------------------------------------------------------------------------------------------


def _lack(entry: Entry) -> str:
    installed = _installed(entry.venv)
    if not installed:
        return f"no environment {entry.venv}: python -m benchmarks setup"
    if _release(installed["python"]) < entry.python:
        return f"needs Python {entry.python[0]}.{entry.python[1]}, the environment has {installed['python']}"
    missing = [requirement for requirement in entry.packages if not _satisfied(requirement, installed)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _satisfied(requirement: str, installed: dict[str, str]) -> bool:
    package, _, pinned = requirement.partition("==")
    version = installed.get(_normal(package))
    return version == pinned if pinned else version is not None


@cache
def _installed(venv: str) -> dict[str, str]:
    """Versions by package, Python among them; nothing if there is no such environment."""
    if not venv:
        named = (one for one in distributions() if "Name" in one.metadata)  # what pip left half-way has none
        found = {one.metadata["Name"]: one.version for one in named} | {"Python": platform.python_version()}
    elif Path(_python(venv)).exists():
        found = json.loads(_output(_python(venv), "-c", _VERSIONS) or "{}")
    else:
        found = {}
    return {_normal(package): version for package, version in found.items()}


def _python(venv: str) -> str:
    return str(FOLDER / venv / "bin" / "python") if venv else sys.executable


def _normal(package: str) -> str:
    return package.lower().replace("_", "-")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# -- what is made --------------------------------------------------------------------------------------------------


def _make(venv: str, entries: list[Entry]) -> None:
    """One environment: all packages in one go, or, if pip finds no way, contender by contender."""
    if not _made(venv, max(entry.python for entry in entries)):
        return
    wanted = sorted({package for entry in entries if _lack(entry) for package in entry.packages})
    if wanted and not _install(venv, wanted):
        for entry in entries:
            _install(venv, entry.packages)


def _made(venv: str, oldest: tuple[int, int]) -> bool:
    """Whether the environment is there; it is made if not, if pip is missing, or if its Python need not be so old."""
    installed = _installed(venv)
    whole = "pip" in installed
    if whole and _release(installed["python"]) >= oldest:
        return True
    interpreter = _interpreter(oldest)
    if whole and not interpreter:
        return True
    interpreter = interpreter or sys.executable
    print(f"{venv}: made with {interpreter}")
    made = False
    try:
        command = [interpreter, "-m", "venv", "--clear", str(FOLDER / venv)]
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    finally:
        if not made:
            rmtree(FOLDER / venv, ignore_errors=True)
    _installed.cache_clear()
    if not made:
        print(f"{venv}: not made, since {interpreter} -m venv fails; on Debian and Ubuntu it needs python3-venv")
    return made


def _install(venv: str, packages: list[str] | tuple[str, ...]) -> bool:
    print(f"{venv}: pip install {' '.join(packages)}")
    done = subprocess.run([_python(venv), "-m", "pip", "install", "--quiet", *packages], check=False)
    return done.returncode == 0


def _interpreter(oldest: tuple[int, int]) -> str | None:
    """The oldest on this machine that is new enough, of equal ones ours."""
    found = {_release(".".join(version.split())): path for path in _interpreters() if (version := _version(path))}
    suitable = [release for release in found if release >= oldest]
    return found[min(suitable)] if suitable else None


def _interpreters() -> Iterator[str]:
    for pattern in UNLISTED:
        yield from map(str, sorted(Path.home().glob(pattern)))
    yield from filter(None, (which(f"python3.{minor}") for minor in range(11, 20)))
    yield sys.executable


def _version(interpreter: str) -> str:
    return _output(interpreter, "-c", _VERSION)


def _output(*command: str) -> str:
    """What a command prints; nothing if it fails, as the place-holders of version managers do."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""
