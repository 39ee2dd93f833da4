"""Images of container roles, built from the local base image by the shipped Dockerfiles, and used by jobs."""

import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_skills.pipeline.launch import docker
from nemo_skills.pipeline.launch.plan import PYTHON, Component, Job
from tests.integration.docker_jobs import DockerUser
from tests.integration.generation import read_rows, write_rows
from tests.services import rootfs
from tests.services.docker import BASE_IMAGE, DockerEngine
from tests.services.require import require

REPO = Path(__file__).resolve().parents[2]
DOCKERFILES = REPO / "dockerfiles"
ROLES = ("nemo-skills", "vllm", "trtllm", "nemo", "sandbox")
SANDBOX_PACKAGES = ("numpy", "sympy")


@pytest.fixture(scope="session")
def wheels() -> Path:
    """What the images install, collected once; kept until a version changes."""
    inputs = [REPO / "constraints.txt", REPO / "pyproject.toml", DOCKERFILES / "provision.py"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:12]
    target = rootfs.cache_dir() / f"wheels-{digest}"
    if not target.is_dir():
        draft = target.with_name(f"{target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        copy_project(draft)
        for arguments in ([], ["--only", *SANDBOX_PACKAGES]):
            argv = [sys.executable, draft / "dockerfiles/provision.py", "wheels", *arguments]
            done = subprocess.run(argv, capture_output=True, text=True)
            require(
                "docker", done.returncode == 0, f"no wheels can be collected: {done.stderr.strip()[-300:]}"
            )
        (draft / "dockerfiles/wheels").rename(target)
        shutil.rmtree(draft)
    return target


def copy_project(folder: Path) -> None:
    """Copy what building images needs."""
    shutil.copytree(DOCKERFILES, folder / "dockerfiles", ignore=shutil.ignore_patterns("wheels"))
    for name in ("pyproject.toml", "constraints.txt", ".dockerignore"):
        shutil.copy(REPO / name, folder / name)


def build(folder: Path, engine: DockerEngine, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [folder / "dockerfiles/build.sh", *arguments]
    return subprocess.run(argv, env=engine.env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def images(
    docker_engine: DockerEngine, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The tag of both images, built offline."""
    folder = tmp_path_factory.mktemp("project") / "pro ject"
    copy_project(folder)
    shutil.copytree(wheels, folder / "dockerfiles/wheels")
    arguments = ["--base", BASE_IMAGE, "--tag=tested", "--build-arg", "EXTRAS=", "nemo-skills", "sandbox"]
    done = build(folder, docker_engine, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("built ")] == [
        "built nemo-skills:tested",
        "built nemo-skills-sandbox:tested",
    ]
    yield "tested"
    docker_engine.docker("rmi", "nemo-skills:tested", "nemo-skills-sandbox:tested")


@pytest.mark.service("docker")
def test_generation_needs_nothing_but_the_image(images: str, docker_user: DockerUser) -> None:
    write_rows(docker_user.workspace / "in.jsonl", 3)
    config = docker_user.write_config(
        containers={"nemo-skills": f"nemo-skills:{images}"}, mounts=[f"{docker_user.workspace}:/workspace"]
    )
    ended = docker_user.run(docker_user.command(config))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(read_rows(docker_user.workspace / "out put/generation/output.jsonl")) == 3
    assert "building" not in ended.stderr
    assert "pulling" not in ended.stderr


@pytest.mark.service("docker")
def test_a_sandbox_has_packages_but_neither_rights_nor_secrets(
    images: str, docker_user: DockerUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-the-tests")
    look = (
        "import os, pathlib, time, numpy, sympy\n"
        "run = pathlib.Path(os.environ['NS_RUN_DIR'])\n"
        "def can_write(path):\n"
        "    try: pathlib.Path(path, 'x').touch(); return True\n"
        "    except OSError: return False\n"
        "answer = [os.getuid(), 'HF_TOKEN' in os.environ, can_write('/workspace'), can_write(run)]\n"
        "(run / 'answer').write_text(repr(answer))\n"
        "time.sleep(1000)\n"
    )
    wait = (
        "import os, time, pathlib\n"
        "answer = pathlib.Path(os.environ['NS_RUN_DIR'], 'answer')\n"
        "while not answer.exists(): time.sleep(0.05)\n"
        "print(answer.read_text(), 'HF_TOKEN' in os.environ)\n"
    )
    plan = docker_user.plan(
        "", containers={"nemo-skills": f"nemo-skills:{images}", "sandbox": f"nemo-skills-sandbox:{images}"}
    )
    sandbox = Component(name="sandbox", commands=((PYTHON, "-c", look),), role="sandbox")
    main = Component(name="main", commands=((PYTHON, "-c", wait),), role="nemo-skills")
    docker.submit(replace(plan, jobs=(Job(name="exp", components=(sandbox, main)),)))
    log = docker_user.workspace / "logs/exp-main.log"
    assert log.read_text() == "[65534, False, False, True] True\n"


class Registry(http.server.ThreadingHTTPServer):
    """A read-only registry of one image, on loopback, where Docker asks for no encryption."""

    def __init__(self, image: str, engine: DockerEngine, folder: Path) -> None:
        engine.docker("save", f"--output={folder / 'image.tar'}", image)
        with tarfile.open(folder / "image.tar") as tar:
            tar.extractall(folder, filter="data")
        [saved] = json.loads((folder / "manifest.json").read_text())
        self.blobs: dict[str, bytes] = {}
        config = self._add(folder / saved["Config"], "container.image.v1+json")
        layers = [self._add(folder / name, "image.rootfs.diff.tar") for name in saved["Layers"]]
        self.kind = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = {"schemaVersion": 2, "mediaType": self.kind, "config": config, "layers": layers}
        self.manifest = json.dumps(manifest).encode()
        super().__init__(("127.0.0.1", 0), RegistryRequest)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def _add(self, path: Path, kind: str) -> dict[str, object]:
        data = path.read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": f"application/vnd.docker.{kind}", "size": len(data), "digest": digest}


class RegistryRequest(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Registry)
        last = self.path.rpartition("/")[2]
        data = self.server.manifest if "/manifests/" in self.path else self.server.blobs.get(last, b"{}")
        self.send_response(200)
        if "/manifests/" in self.path:
            self.send_header("Content-Type", self.server.kind)
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.service("docker")
def test_images_that_are_not_here_are_pulled_once(
    docker_user: DockerUser, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Registry(BASE_IMAGE, docker_user.engine, tmp_path) as registry:
        image = f"127.0.0.1:{registry.server_port}/team/image:v1"
        plan = docker_user.plan("echo it runs", containers={"nemo-skills": image})
        docker.submit(plan)
        registry.shutdown()
    docker.submit(plan)
    assert (docker_user.workspace / "logs/exp-main.log").read_text() == "it runs\nit runs\n"
    assert "Download" not in capfd.readouterr().out
    docker_user.engine.docker("rmi", image)


def test_every_role_has_a_dockerfile_with_its_base_as_an_argument() -> None:
    found = {path.name.removeprefix("Dockerfile.") for path in DOCKERFILES.glob("Dockerfile.*")}
    assert found == set(ROLES)
    for role in ROLES:
        text = (DOCKERFILES / f"Dockerfile.{role}").read_text()
        assert re.search(r"^ARG BASE(=\S+)?$", text, re.MULTILINE)
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tag"], "--tag needs a value"),
        (["--push", "vllm"], "unknown option --push"),
        (["nemo-skills", "vlm"], "there is no role 'vlm'"),
        (["trtllm"], "trtllm has no default base image"),
        ([], "usage:"),
    ],
)
def test_mistakes_of_the_build_script_are_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [DOCKERFILES / "build.sh", *arguments],
        env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
