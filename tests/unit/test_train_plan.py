"""What `ns train` plans, and what it refuses."""

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container
from nemo_skills.pipeline.launch import slurm
from nemo_skills.pipeline.launch.plan import PYTHON, Job
from nemo_skills.pipeline.main_args import encode_override, validate
from nemo_skills.pipeline.options import JobOptions, NodeOptions, TrainOptions, WandbOptions
from nemo_skills.pipeline.train import SCHEMA, Request, main_arguments, plan_train, wandb_values
from tests.golden_files import assert_golden

BARE = ClusterConfig(
    name="bare",
    executor="slurm",
    container_runtime="none",
    job_dir="/jobs",
    partition="gpu",
    cpu_partition="cpu",
    timeouts={"gpu": "04:00:00"},
    containers={"nemo": Container.parse("venv:/envs/nemo")},
)
NODES = NodeOptions(num_gpus=8, num_nodes=2)


def request(
    cluster: ClusterConfig = BARE,
    nodes: NodeOptions = NODES,
    job: JobOptions = JobOptions(expname="t"),  # noqa: B008
    args: tuple[str, ...] = (),
    **own: object,
) -> Request:
    values = {"output_dir": "/out", "hf_model": "/models/m", "training_data": ("/d.npy",)} | own
    return Request(
        cluster=cluster,
        log_dir="/out/logs",
        job=job,
        nodes=nodes,
        own=TrainOptions(**values),  # type: ignore[arg-type]
        wandb={},
        args=args,
    )


def argv(job: Job) -> list[object]:
    return list(job.main.commands[0])


def test_the_scripts_of_a_chain() -> None:
    plan = plan_train(request(num_training_jobs=2, args=("++model.tensor_model_parallel_size=4",)))
    text = [f"== {job.name}/{file.name}\n{file.text}" for job in slurm.render(plan) for file in job.files]
    assert [job.name for job in plan.jobs] == ["t", "t-part2", "t-average"]
    # what does not change from plan to plan is in the goldens of launching
    kept = [
        line for part in text for line in part.splitlines() if line.startswith(("==", "#SB", "exec", "unf"))
    ]
    assert_golden("slurm/train.txt", "\n".join(kept) + "\n")


def test_the_mean_waits_for_the_last_job() -> None:
    *jobs, average = plan_train(request(num_training_jobs=3, average_steps=(5, 10))).jobs
    assert [job.continues for job in jobs] == [None, "t", "t-part2"]
    assert average.after == ("t-part3",)
    assert "++steps=[5,10]" in argv(average)
    (alone,) = plan_train(request(num_training_jobs=0, hf_model=None, training_data=())).jobs
    assert (alone.after, alone.main.gpus, alone.main.role) == ((), 0, "nemo")
    assert "++output=/out/model-averaged-hf" in argv(alone)


def test_nemo_checkpoints_are_converted_before_and_after() -> None:
    own = {"hf_model": None, "nemo_model": "/n", "num_training_jobs": 2}
    start, *jobs, average = plan_train(request(**own)).jobs
    assert [job.name for job in (start, *jobs, average)] == ["t-from-nemo", "t", "t-part2", "t-average"]
    assert [job.after for job in (start, *jobs, average)] == [(), ("t-from-nemo",), (), ("t-part2",)]
    assert argv(start)[2:] == [
        "nemo_skills.conversion.nemo_to_hf",
        "++input_model=/n",
        "++output_model=/out/in-hf-format/start-model",
    ]
    assert start.main.gpus == 0
    assert all("++model.restore_from_path=/out/in-hf-format/start-model" in argv(job) for job in jobs)
    wanted = {"++output=/out/in-hf-format/model-averaged", "++nemo_output=/out/model-averaged-nemo"}
    assert wanted <= set(argv(average))
    # from a Hugging Face folder there is one if it is asked for; to average alone nothing is converted before
    (*_, average) = plan_train(request(final_nemo_path="/here")).jobs
    assert {"++output=/out/model-averaged-hf", "++nemo_output=/here"} <= set(argv(average))
    (average,) = plan_train(request(**own | {"num_training_jobs": 0})).jobs
    assert wanted <= set(argv(average))


@pytest.mark.parametrize(
    ("limit", "most"),
    [("04:00:00", "00:03:50:00"), ("00:01:00", "00:00:00:45"), ("2-12", "02:11:50:00"), ("UNLIMITED", None)],
)
def test_the_main_stops_before_the_time_limit(limit: str, most: str | None) -> None:
    cluster = ClusterConfig(
        name="c", executor="slurm", container_runtime="none", job_dir="/j", default_timeout=limit
    )
    said = [word for word in argv(plan_train(request(cluster)).jobs[0]) if "max_time_per_run" in str(word)]
    assert said == ([encode_override("exp_manager.max_time_per_run", most)] if most else [])


def test_the_users_own_time_comes_last() -> None:
    own = "++exp_manager.max_time_per_run=00:00:10:00"
    assert argv(plan_train(request(args=(own,))).jobs[0])[-1] == own


def test_processes_without_gpus() -> None:
    nodes = NodeOptions(num_gpus=2)
    main = plan_train(request(ClusterConfig(), nodes, training_device="cpu")).jobs[0].main
    assert (main.gpus, main.env, main.role) == (0, (("CUDA_VISIBLE_DEVICES", ""),), "nemo-skills")
    assert "--processes=2" in main.commands[0]
    # one process needs nobody who starts it
    main = plan_train(request(ClusterConfig(), NodeOptions(), training_data=("a", "b"))).jobs[0].main
    assert main.commands[0][:3] == (PYTHON, "-m", "nemo_skills.training.start_sft")
    assert encode_override("model.data.train_ds.file_names", ["a", "b"]) in main.commands[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hf_model": None}, "--hf_model or --nemo_model is missing"),
        ({"training_data": ()}, "--training_data is missing"),
        ({"nemo_model": "/n"}, "give --hf_model or --nemo_model, not both"),
        ({"final_nemo_path": "/n.nemo"}, "names a folder"),
        ({"backend": "megatron"}, "--backend=megatron is not available"),
        ({"cluster": ClusterConfig()}, "--num_nodes=2 needs a Slurm cluster"),
        ({"job": JobOptions(dependent_jobs=1)}, "--num_training_jobs"),
        ({"training_device": "cuda", "nodes": NodeOptions()}, "needs --num_gpus"),
        ({"args": ("++trainer.devices=3",)}, "use --num_gpus instead"),
        ({"args": ("++model.data.train_ds.file_path=x",)}, "use --training_data instead"),
    ],
)
def test_what_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_train(request(**values))  # type: ignore[arg-type]


def test_wandb_is_used_where_there_is_a_key_or_a_project() -> None:
    assert wandb_values(WandbOptions(), "t", key=False) == {}
    assert wandb_values(WandbOptions(disable_wandb=True, wandb_project="p"), "t", key=True) == {}
    kwargs = "exp_manager.wandb_logger_kwargs"
    assert wandb_values(WandbOptions(wandb_project="p"), "t", key=False) == {
        "exp_manager.create_wandb_logger": True, f"{kwargs}.project": "p", f"{kwargs}.name": "t"
    }  # fmt: skip
    assert f"{kwargs}.project" not in wandb_values(WandbOptions(), "t", key=True)


def test_batches_that_the_processes_cannot_share_are_refused_at_submission() -> None:
    """64 processes: alone they take 64 rows, in groups of four any multiple of 16."""
    nodes = NodeOptions(num_gpus=8, num_nodes=8)
    tp, size = "++model.tensor_model_parallel_size=4", "++model.data.train_ds.global_batch_size=32"
    for args in ((), (tp,), (tp, size)):
        validate(SCHEMA, main_arguments(request(nodes=nodes, args=args)))
    with pytest.raises(UserError, match=r"train_ds.global_batch_size=32 .* nearest values that are: 64\."):
        validate(SCHEMA, main_arguments(request(nodes=nodes, args=(size,))))
