"""Installs the packages that jobs need into an image; or collects them for building without a network.

Needs nothing but Python 3.11 or newer. In a Dockerfile, beside pyproject.toml and constraints.txt:

    python3 provision.py install [--extras serve] [PACKAGE ...]

On a machine with a network, and the same version of Python as the image:

    python3 dockerfiles/provision.py wheels [--extras serve] [PACKAGE ...]

This fills `dockerfiles/wheels`. Images built while that folder is there install from it and nowhere else.
Versions are those of constraints.txt, except that a package of the base image stays as it is.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distributions
from pathlib import Path

TARGET = Path("/opt/nemo-skills")
# What starts jobs stays on the workstation; jobs themselves need none of it
LAUNCH_SIDE = {"nemo-run", "leptonai"}


def requirements(project: Path, extras: list[str], packages: list[str]) -> list[str]:
    """Return what a job needs: the project's own requirements, those of its extras, and others by name."""
    metadata = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    own = [line for line in metadata["dependencies"] if _name(line) not in LAUNCH_SIDE]
    optional = metadata["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        sys.exit(f"unknown extras: {', '.join(unknown)}; there are {', '.join(optional)}")
    return [*own, *(line for extra in extras for line in optional[extra]), *packages]


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pip(folder: Path) -> list[str]:
    """Return the command of pip, which a wheel in the folder brings where Python has none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if wheels := sorted(folder.glob("pip-*.whl")):
        return [sys.executable, str(wheels[-1] / "pip")]
    sys.exit("this Python has no pip, and there is no wheel of it")


def install(wanted: list[str], constraints: Path, wheels: Path) -> None:
    """Fill the gaps of the base image, in a virtual environment that sees what the image has."""
    venv.create(TARGET, system_site_packages=True, symlinks=True)
    offline = any(wheels.glob("*.whl"))
    source = ["--no-index", f"--find-links={wheels}"] if offline else []
    present = {_name(found.name) for found in distributions()}
    kept = [
        line for line in constraints.read_text().splitlines() if "==" in line and _name(line) not in present
    ]
    pins = TARGET / "constraints.txt"
    pins.write_text("\n".join(kept) + "\n", encoding="utf-8")
    options = ["--no-cache-dir", "--no-warn-script-location", f"--constraint={pins}", *source]
    python = str(TARGET / "bin" / "python")
    subprocess.run([*pip(wheels), "--python", python, "install", *options, *wanted], check=True)


def collect(wanted: list[str], constraints: Path, wheels: Path) -> None:
    """Fill the folder with wheels of everything that `install` would fetch, and of pip."""
    wheels.mkdir(exist_ok=True)
    argv = [*pip(wheels), "wheel", f"--wheel-dir={wheels}", f"--constraint={constraints}", *wanted, "pip"]
    subprocess.run(argv, check=True)


def main() -> None:
    """Run one of the two tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=("install", "wheels"))
    parser.add_argument("--extras", default="", help="extras of the project, separated by commas")
    parser.add_argument("--only", action="store_true", help="only the packages given, not the project's")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE")
    options = parser.parse_intermixed_args()
    here = Path(__file__).resolve().parent
    # in an image everything lies in one folder
    root, wheels = (here, here) if (here / "pyproject.toml").exists() else (here.parent, here / "wheels")
    extras = [extra for extra in options.extras.split(",") if extra]
    wanted = options.packages
    if not options.only:
        wanted = requirements(root / "pyproject.toml", extras, wanted)
    task = install if options.task == "install" else collect
    task(wanted, root / "constraints.txt", wheels)


if __name__ == "__main__":
    main()
