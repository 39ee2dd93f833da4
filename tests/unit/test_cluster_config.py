"""Cluster configs: where they are found, what they may hold, and how mistakes are reported."""

from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container, load_cluster_config
from tests.conftest import REPO


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_without_a_cluster_jobs_are_processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_SKILLS_CONFIG", raising=False)
    assert load_cluster_config(None) == ClusterConfig()
    assert load_cluster_config("none").executor == "none"


def test_lookup_order(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weird_tmp_path)
    monkeypatch.setenv("NEMO_SKILLS_CONFIG_DIR", str(weird_tmp_path / "env"))
    _write(weird_tmp_path / "cluster_configs", "a", "executor: none\npartition: here")
    assert load_cluster_config("a").partition == "here"
    _write(weird_tmp_path / "env", "a", "executor: none\npartition: env")
    assert load_cluster_config("a").partition == "env"
    given = _write(weird_tmp_path / "given", "a", "executor: none\npartition: given")
    assert load_cluster_config("a", str(given.parent)).partition == "given"
    assert load_cluster_config(str(given)).partition == "given"
    monkeypatch.setenv("NEMO_SKILLS_CONFIG", str(given))
    assert load_cluster_config(None).partition == "given"


def test_unknown_name_suggests_the_nearest(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weird_tmp_path)
    _write(weird_tmp_path / "cluster_configs", "draco", "executor: none")
    with pytest.raises(UserError, match="Did you mean 'draco'"):
        load_cluster_config("darco")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("executor: slrum", "'slrum' is not one of none, local, slurm. Did you mean 'slurm'"),
        ("executor: none\nmoutns: [a:b]", "unknown key 'moutns'. Did you mean 'mounts'"),
        ("executor: none\nmounts: /a:/b", "mounts: expected a list"),
        ("executor: none\nmounts: [nonsense]", "mounts: "),
        ("executor: slurm", "needs job_dir"),
        ("partition: x", "executor is missing"),
        (
            "executor: slurm\nssh_tunnel: {host: h, usr: u, job_dir: /x}",
            "unknown key 'usr'. Did you mean 'user'",
        ),
        ("executor: slurm\nssh_tunnel: {host: h}", "missing user, job_dir"),
        ("executor: [", "not valid YAML"),
        ("- a", "expected keys and values"),
        ("executor: none\ncontainers: {vllm: 'venv:'}", "names no path"),
    ],
)
def test_mistakes_name_file_and_key(weird_tmp_path: Path, text: str, message: str) -> None:
    path = _write(weird_tmp_path, "c", text)
    with pytest.raises(UserError) as error:
        load_cluster_config(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_all_mistakes_are_reported_together(weird_tmp_path: Path) -> None:
    path = _write(weird_tmp_path, "c", "executor: slrum\nmoutns: []\naccount: [1]")
    with pytest.raises(UserError) as error:
        load_cluster_config(str(path))
    assert len(str(error.value).splitlines()) == 3


def test_unquoted_times_are_not_base_60_numbers(weird_tmp_path: Path) -> None:
    text = "executor: slurm\njob_dir: /j\ntimeouts: {batch: 04:30:00}\ndefault_timeout: '1-00:00:00'"
    config = load_cluster_config(str(_write(weird_tmp_path, "c", text)))
    assert config.timeouts == {"batch": "04:30:00"}
    assert config.default_timeout == "1-00:00:00"


def test_container_references() -> None:
    assert Container.parse("python") == Container(kind="python")
    assert Container.parse("venv:/a b") == Container(kind="venv", ref="/a b")
    assert Container.parse("dockerfile:x/Dockerfile").kind == "dockerfile"
    assert Container.parse("/x/y.sqsh").kind == "sqsh"
    assert Container.parse("vllm/vllm-openai:v0.11.0").kind == "image"


def test_roles(weird_tmp_path: Path) -> None:
    bare = load_cluster_config(str(_write(weird_tmp_path, "bare", "executor: none\ncontainers: {vllm: img}")))
    assert bare.container("nemo-skills") == Container(kind="python")
    with pytest.raises(UserError, match="without containers"):
        bare.container("vllm")
    docker = load_cluster_config(str(_write(weird_tmp_path, "d", "executor: local\ncontainers: {vllm: img}")))
    assert docker.container("vllm").ref == "img"
    with pytest.raises(UserError, match=r"no container for role 'vlm'.*Did you mean 'vllm'"):
        docker.container("vlm")


@pytest.mark.parametrize(
    "path", sorted((REPO / "cluster_configs").glob("example-*.yaml")), ids=lambda p: p.stem
)
def test_shipped_examples_are_valid(path: Path) -> None:
    assert load_cluster_config(str(path)).executor in ("local", "slurm")


@pytest.mark.parametrize("option", ["--input_model=~/m", "--output_model=~/m"])
def test_a_home_that_no_shell_has_replaced(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A job would make a folder of that name."""
    paths = ["--input_model=/a", "--output_model=/b", option]
    assert cli.main(["convert", "--convert_from=nemo", "--convert_to=hf", *paths]) == 2
    assert "~/m: `~` stands for a folder only where a shell replaces it" in capsys.readouterr().err
