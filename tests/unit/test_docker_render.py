"""Docker command lines and scripts, word for word."""

import csv
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.cluster.mounts import Mount
from nemo_skills.pipeline.launch.docker import _mount_option, render_for
from nemo_skills.pipeline.launch.docker_engine import Engine, image_name
from nemo_skills.pipeline.launch.plan import PYTHON, Component, Job, Plan
from nemo_skills.pipeline.options import ServerOptions
from nemo_skills.pipeline.servers.component import server_components
from tests.golden_files import assert_golden

CONTAINERS = {
    "nemo-skills": Container.parse("nemo-skills:1"),
    "vllm": Container.parse("vllm/vllm-openai:v0.11.0"),
    "trtllm": Container.parse("trtllm:1"),
    "sandbox": Container.parse("sandbox:1"),
}
CLUSTER = ClusterConfig(
    name="docker",
    executor="local",
    containers=CONTAINERS,
    mounts=(Mount("/data/my work", "/workspace"), Mount("/data/models", "/hf_models", read_only=True)),
)
IMAGES = tuple((role, container.ref) for role, container in CONTAINERS.items())
ENGINE = Engine(images=IMAGES)
MAIN = Component(
    name="main",
    commands=((PYTHON, "-m", "nemo_skills.inference.generate", '++prompt_config=it\'s "here"'),),
    role="nemo-skills",
)
SANDBOX = Component(name="sandbox", commands=((PYTHON, "-m", "sandbox"),), role="sandbox")


def _server(kind: str, gpus: int) -> Component:
    options = ServerOptions(server_type=kind, model="/hf_models/m", server_gpus=gpus)
    [component] = server_components(options, CLUSTER)
    return component


def _plan(*components: Component) -> Plan:
    return Plan(
        expname="my exp",
        cluster=CLUSTER,
        jobs=(Job(name="my exp-rs0", components=components),),
        log_dir="/workspace/logs",
        env=(("PLAIN", "a 'plain' value"),),
    )


def _text(plan: Plan, engine: Engine = ENGINE) -> str:
    """Return all scripts, `docker run` with an option a line."""
    parts = []
    for job in render_for(plan, engine):
        for file in job.files:
            lines = file.text
            if file.name.endswith(".docker.sh"):
                lines = (
                    "\n".join(f"  {shlex.quote(word)}" for word in shlex.split(file.text, comments=True))
                    + "\n"
                )
            parts.append(f"== {job.name}/{file.name}\n{lines}")
    return "\n".join(parts)


def test_main_alone() -> None:
    assert_golden("docker/main.txt", _text(_plan(MAIN)))


@pytest.mark.parametrize(("kind", "gpus"), [("stub", 0), ("hf", 0), ("vllm", 2), ("trtllm", 4)])
def test_server_and_main(kind: str, gpus: int) -> None:
    assert_golden(f"docker/server_{kind}.txt", _text(_plan(_server(kind, gpus), MAIN)))


def test_server_main_and_sandbox_of_a_user_who_is_not_root() -> None:
    engine = Engine(images=IMAGES, user="1000:1001", groups=(27, 44), flags=("--security-opt=label=disable",))
    assert_golden("docker/sandbox_user.txt", _text(_plan(_server("hf", 0), SANDBOX, MAIN), engine))


def test_components_get_gpus_of_their_own_among_the_users() -> None:
    engine = Engine(images=IMAGES, devices=("4", "GPU-abc", "7"))
    trained = Component(name="main", commands=((PYTHON, "train.py"),), role="nemo-skills", gpus=1)
    assert_golden("docker/gpus.txt", _text(_plan(_server("vllm", 2), trained), engine))
    with pytest.raises(UserError, match=r"needs 3 GPUs, but CUDA_VISIBLE_DEVICES is '4,5'"):
        render_for(_plan(_server("vllm", 2), trained), Engine(images=IMAGES, devices=("4", "5")))


_NAMES = st.text(
    st.characters(blacklist_characters="/:\n\0", blacklist_categories=["Cs"]), min_size=1
).filter(lambda name: name not in {".", ".."})


@given(source=_NAMES, target=_NAMES, read_only=st.booleans())
def test_any_mount_survives_dockers_reading_of_csv(source: str, target: str, read_only: bool) -> None:
    mount = Mount(f"/s/{source}", f"/t/{target}", read_only)
    [fields] = csv.reader([_mount_option(mount)], strict=True)
    assert fields == [
        "type=bind",
        f"source={mount.source}",
        f"target={mount.target}",
        *(["readonly"] if read_only else []),
    ]


def test_images_of_dockerfiles_are_named_by_file_and_place() -> None:
    names = [
        image_name(Container(kind="dockerfile", ref=ref))
        for ref in (
            "/a/dockerfiles/Dockerfile.nemo-skills",
            "/b/dockerfiles/Dockerfile.nemo-skills",
            "/My Dir/Dockerfile",
        )
    ]
    assert [name.partition(":")[0] for name in names] == ["nemo-skills"] * 2 + ["nemo-skills-my-dir"]
    assert len(set(names)) == 3
