"""What `ns convert` plans, and what it refuses."""

import dataclasses
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.examples import tiny_model
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.convert import Request, check_input, plan_convert
from nemo_skills.pipeline.launch import slurm
from nemo_skills.pipeline.options import ConvertOptions, JobOptions, NodeOptions
from tests.golden_files import assert_golden

BARE = ClusterConfig(
    name="bare",
    executor="slurm",
    container_runtime="none",
    job_dir="/jobs",
    partition="gpu",
    cpu_partition="cpu",
    containers={"nemo": Container.parse("venv:/envs/nemo"), "trtllm": Container.parse("venv:/envs/trtllm")},
)


def request(
    formats: str = "nemo hf",
    cluster: ClusterConfig = BARE,
    nodes: tuple[int, int] = (8, 1),
    job: JobOptions = JobOptions(expname="c"),  # noqa: B008
    args: tuple[str, ...] = (),
    **own: str,
) -> Request:
    start, end = formats.split()
    values = {"input_model": "/in it", "output_model": "/out"} | own
    return Request(
        cluster=cluster,
        log_dir="/logs",
        job=job,
        nodes=NodeOptions(num_gpus=nodes[0], num_nodes=nodes[1]),
        own=ConvertOptions(convert_from=start, convert_to=end, **values),  # type: ignore[arg-type]
        args=args,
    )


CASES = {
    "nemo_hf": request(model_type="llama", hf_model_name="org/m", dtype="bf16", args=("++verify=true",)),
    "hf_nemo": request("hf nemo"),
    "hf_trtllm": request("hf trtllm", args=("++quantization=fp8",)),
    "hf_trtllm_2_nodes": request("hf trtllm", nodes=(4, 2), input_model="/in"),
}


def test_the_scripts() -> None:
    text = []
    for name, case in CASES.items():
        [rendered] = slurm.render(plan_convert(case))
        lines = [line for file in rendered.files for line in file.text.splitlines()]
        # what does not change from plan to plan is in the goldens of launching
        text += [
            f"== {name}",
            *(line for line in lines if line.startswith(("#SB", "exec", "srun", "  srun"))),
        ]
    assert_golden("slurm/convert.txt", "\n".join(text) + "\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"formats": "nemo trtllm"},
            "not possible. Convert it to hf first. Possible: nemo to hf, hf to nemo",
        ),
        ({"formats": "hf hf"}, "--convert_from=hf --convert_to=hf is not possible"),
        ({"output_model": "/in it/"}, "are the same"),
        ({"formats": "hf trtllm", "nodes": (0, 1)}, "--convert_to=trtllm needs --num_gpus"),
        ({"formats": "hf trtllm", "hf_model_name": "m"}, "--hf_model_name is for NeMo models"),
        ({"formats": "hf trtllm", "nodes": (1, 2), "cluster": ClusterConfig()}, "needs a Slurm cluster"),
        ({"formats": "hf trtllm", "nodes": (1, 2)}, "would split or expand '++input_model="),
        ({"nodes": (0, 2)}, "runs on one node"),
        ({"job": JobOptions(dependent_jobs=1)}, "--dependent_jobs"),
        ({"args": ("++dtype=bf16",)}, "use --dtype instead"),
        ({"formats": "hf trtllm", "args": ("++tensor_parallel_size=2",)}, "use --num_gpus instead"),
    ],
)
def test_what_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_convert(request(**values))  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.service("train")
def test_a_model_on_this_machine_is_looked_at(weird_tmp_path: Path) -> None:
    model = tiny_model.build(weird_tmp_path / "model")
    there = request("hf nemo", ClusterConfig(), input_model=str(model))
    check_input(there)
    other = dataclasses.replace(
        there, own=dataclasses.replace(there.own, convert_from="nemo", convert_to="hf")
    )
    with pytest.raises(UserError, match="is in format hf, not nemo"):
        check_input(other)
    missing = request("hf nemo", ClusterConfig(), input_model=f"{model}-2")
    with pytest.raises(UserError, match="model-2 does not exist"):
        check_input(missing)
    # what another job is to make, or what is on another machine, need not be there
    check_input(dataclasses.replace(missing, job=JobOptions(run_after=("t",))))
    check_input(request("hf nemo", input_model=f"{model}-2"))


def test_arguments_are_checked_at_submission(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "--convert_from=nemo", "--input_model=/in", "--output_model=/out", "--dry_run"]
    assert cli.main([*words, "--convert_to=hf", "++verfiy=true"]) == 2
    assert "Did you mean 'verify'?" in capsys.readouterr().err
    assert cli.main([*words, "--convert_to=hf", "--dtype=bf17"]) == 2
    assert "dtype=bf17 is unknown" in capsys.readouterr().err
    words[1] = "--convert_from=hf"
    assert cli.main([*words, "--convert_to=trtllm", "--num_gpus=2", "++quantization=fp9"]) == 2
    assert "fp9" in capsys.readouterr().err


def test_a_chain_in_python(weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The calls that users of NeMo checkpoints chain; folders of one step are those of the next."""
    config = weird_tmp_path / "cluster.yaml"
    text = "executor: slurm\njob_dir: /jobs\nmounts: ['/lustre:/workspace']\n"
    config.write_text(f"{text}containers: {{nemo: n, nemo-skills: s, trtllm: t, vllm: v}}\n")
    output = "/workspace/t"
    where = {"cluster": str(config), "dry_run": True}
    cli.train(
        ctx=cli.wrap_arguments(""), expname="t", output_dir=output, nemo_model="/workspace/llama3.1-8b-base",
        num_nodes=8, num_gpus=8, num_training_jobs=2, training_data="/workspace/sft-data.jsonl", **where,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert f"++nemo_output={output}/model-averaged-nemo" in shown
    assert f"{output}/model-averaged-hf" not in shown, "that name is for the conversion which follows"
    cli.convert(
        ctx=cli.wrap_arguments(""), input_model=f"{output}/model-averaged-nemo", run_after="t",
        output_model=f"{output}/model-averaged-hf", expname="t-to-hf", convert_from="nemo", convert_to="hf",
        model_type="llama", num_gpus=8, hf_model_name="meta-llama/Meta-Llama-3.1-8B", **where,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "after: t\n" in shown
    assert "--gpus-per-node" not in shown
    cli.convert(
        ctx=cli.wrap_arguments("++max_seq_len=16384"), input_model=f"{output}/model-averaged-hf", num_gpus=8,
        output_model=f"{output}/model-averaged-trtllm", expname="t-to-trtllm", convert_from="hf",
        convert_to="trtllm", model_type="llama", **where,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "--gpus-per-node=8" in shown
    assert "++tensor_parallel_size=8 ++pipeline_parallel_size=1 ++max_seq_len=16384" in shown
