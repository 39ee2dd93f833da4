"""NeMo checkpoints behind servers: the copy that is served, and how a server of it begins."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.conversion import hf_to_nemo
from nemo_skills.conversion.config import ConvertConfig
from nemo_skills.conversion.hf_copy import SUFFIX, hf_copy
from nemo_skills.core.errors import UserError
from nemo_skills.core.safetensors import SafetensorsFolder
from nemo_skills.examples import tiny_model
from nemo_skills.inference.server import serve_trtllm
from nemo_skills.training.averaging import average
from nemo_skills.training.checkpoint_folders import find_checkpoints
from tests.services.process import wait_until

pytestmark = pytest.mark.service("train")

COPY = "import sys; from pathlib import Path; from nemo_skills.conversion import hf_copy, nemo_to_hf\n"
RUN = "print(hf_copy.hf_copy(Path(sys.argv[1])))\n"
HANGING = (
    "def hang(config):\n"
    "    Path(config.output_model + '.unfinished').mkdir()\n"
    "    Path(sys.argv[1] + '-begun').touch()\n"
    "    import time; time.sleep(600)\n"
    "nemo_to_hf.convert = hang\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("models") / "hf")


@pytest.fixture
def checkpoint(model: Path, weird_tmp_path: Path) -> Path:
    output = weird_tmp_path / "nemo"
    hf_to_nemo.convert(ConvertConfig(input_model=str(model), output_model=str(output)))
    return output


def weights(folder: Path) -> dict[str, bytes]:
    tensors = SafetensorsFolder(folder)
    found = {}
    for name, kind in tensors.kinds.items():
        found[name] = bytearray(kind.nbytes)
        tensors.read_into(name, 0, memoryview(found[name]))
    return {name: bytes(data) for name, data in found.items()}


def start(code: str, checkpoint: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COPY + code + RUN, str(checkpoint)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_copy_is_made_once_and_is_the_model(model: Path, checkpoint: Path) -> None:
    copy = hf_copy(checkpoint)
    assert copy.parent == checkpoint.with_name(f"nemo{SUFFIX}")
    assert weights(copy) == weights(model)
    before = {file.name: file.stat().st_mtime_ns for file in copy.iterdir()}
    assert hf_copy(checkpoint) == copy
    assert {file.name: file.stat().st_mtime_ns for file in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert hf_copy(model) == model

    data = next((checkpoint / "model_weights").glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[-9] ^= 1
    data.write_bytes(content)
    assert hf_copy(checkpoint) != copy, "of other weights there is another copy"
    with pytest.raises(UserError, match="there is no model"):
        hf_copy(checkpoint / "no")


def test_where_it_goes_when_the_checkpoints_folder_cannot_be_written(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = checkpoint.with_name("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    checkpoint.with_name(f"nemo{SUFFIX}").touch()  # a file, so that there can be no such folder
    copy = hf_copy(checkpoint)
    assert cache in copy.parents
    assert hf_copy(checkpoint) == copy


def test_processes_wait_for_the_one_that_converts_and_go_on_when_it_is_killed(checkpoint: Path) -> None:
    killed = start(HANGING, checkpoint)
    wait_until("the first converts", Path(f"{checkpoint}-begun").exists, 60)
    waiting = [start("", checkpoint) for _ in range(2)]
    assert waiting[0].stderr is not None
    killed.kill()
    answers = [process.communicate(timeout=120) for process in waiting]
    killed.communicate()
    folders = {output.strip() for output, _ in answers}
    assert [process.returncode for process in waiting] == [0, 0], answers
    assert len(folders) == 1
    assert weights(Path(folders.pop()))


def test_the_server_gets_the_copy_and_clients_its_name(checkpoint: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "nemo_skills.inference.server.serve_nemo", "--model", str(checkpoint)]
    program = ["python", "-c", "import sys; print(sys.argv[1:])", "{model}", "--x={model}", "--", "a b"]
    process = subprocess.Popen(
        [*words, "--publish", "--", *program],
        env={"NS_RUN_DIR": str(tmp_path), "PATH": "/bin"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    entry = tmp_path / "server-0.json"
    entry.write_text(json.dumps({"pid": process.pid, "model": str(checkpoint), "port": 1}))
    output, _ = process.communicate(timeout=120)
    copy = str(hf_copy(checkpoint))
    assert output == f"{[copy, '--x={model}', '--', 'a b']}\n"
    assert json.loads(entry.read_text()) == {"pid": process.pid, "model": copy, "port": 1}


def test_a_broken_checkpoint_is_one_clear_error(checkpoint: Path) -> None:
    data = max((checkpoint / "model_weights").glob("*.distcp"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1000])
    words = [sys.executable, "-m", "nemo_skills.inference.server.serve_nemo", "--model", str(checkpoint)]
    ended = subprocess.run([*words, "--", "python", "-c", "1"], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert data.name in ended.stderr
    assert list(checkpoint.with_name(f"nemo{SUFFIX}").iterdir()) == [], (
        "nothing that could be taken for a copy"
    )


def test_engines_of_tensorrt_llm_are_served_as_such(tmp_path: Path) -> None:
    serve = ["trtllm-llmapi-launch", "trtllm-serve", str(tmp_path), "--tp_size", "2"]
    assert serve_trtllm.command(serve) == serve
    (tmp_path / "rank0.engine").touch()
    assert serve_trtllm.command([*serve, "--tokenizer=/t"]) == [
        *serve,
        "--tokenizer=/t",
        "--backend",
        "tensorrt",
    ]
    assert serve_trtllm.command(serve)[-2:] == ["--tokenizer", str(tmp_path)]


def test_nemo_checkpoints_are_averaged(model: Path, tmp_path: Path) -> None:
    for step, name in (
        (10, "step=10"),
        (20, "megatron_gpt_sft--val_loss=0.913-step=20-consumed_samples=64-last"),
    ):
        output = tmp_path / "checkpoints" / name
        hf_to_nemo.convert(ConvertConfig(input_model=str(model), output_model=str(output)))
        if step == 20:  # as a trainer writes it, without anything but weights
            for file in (output / "model_weights").iterdir():
                file.rename(output / file.name)
            for other in ("hf", "model_weights"):
                shutil.rmtree(output / other)
            (output / "model_config.yaml").unlink()
    for _ in range(2):  # copies beside checkpoints are no checkpoints
        found = find_checkpoints(tmp_path / "checkpoints")
        assert [checkpoint.step for checkpoint in found] == [10, 20]
        average(found, tmp_path / "mean", 10**9, str(model))
    assert weights(tmp_path / "mean") == weights(model)
    assert (tmp_path / "mean" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_mean_becomes_a_nemo_checkpoint_too(model: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(model, tmp_path / "checkpoints" / f"checkpoint-{step}")
    output, nemo = tmp_path / "mean", tmp_path / "nemo"

    def run(*words: str) -> str:
        main = [sys.executable, "-m", "nemo_skills.training.average_checkpoints"]
        main += [f"++checkpoints_dir={tmp_path}/checkpoints", f"++output={output}", f"++nemo_output={nemo}"]
        ended = subprocess.run([*main, *words], capture_output=True, text=True)
        return ended.stderr if ended.returncode == 0 else f"failed: {ended.stderr}"

    assert f"wrote {nemo}" in run()
    assert weights(hf_copy(nemo)) == weights(model)
    assert "is the mean of these checkpoints already" in run()
    # other steps: another mean, which takes the place of the one before
    first = hf_copy(nemo)
    assert f"wrote {nemo}" in run("++steps=[2]")
    assert hf_copy(nemo) != first
    shutil.rmtree(nemo)
    nemo.mkdir()
    (nemo / "notes.txt").touch()
    assert "holds something else than a mean" in run("++steps=[2]")
