"""The option groups that wrappers share. Each option of the command line is declared here, and only once.

The first line of a group's docstring is the title of its panel in `--help`.
"""

from dataclasses import dataclass

from nemo_skills.pipeline.declare import REQUIRED, option


@dataclass(frozen=True, kw_only=True)
class WhereOptions:
    """Cluster."""

    cluster: str | None = option(
        None, "Name of a cluster config, or the path of one. Jobs without a cluster run on this machine."
    )
    config_dir: str | None = option(
        None,
        "Folder of cluster configs, instead of $NEMO_SKILLS_CONFIG_DIR and ./cluster_configs. "
        "(--config-dir, with a dash, is Hydra's.)",
    )


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(WhereOptions):
    """Cluster: where it runs."""

    mount_paths: tuple[str, ...] = option(
        (),
        "Folders to mount besides the cluster config's, as source:target, separated by commas.",
        separator=",",
    )
    check_mounted_paths: bool = option(
        False,
        "Check that mounted paths exist, create missing output and log folders, mount what is not mounted.",
    )
    log_dir: str | None = option(
        None, "Folder for the logs of the jobs. By default it lies beside the output."
    )


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Job: how it is submitted."""

    expname: str | None = option(
        None, "Name of the experiment, for --run_after and in the queue. By default the command's name."
    )
    run_after: tuple[str, ...] = option(
        (), "Names of experiments whose jobs must have ended successfully before."
    )
    partition: str | None = option(None, "Slurm partition, instead of the cluster config's.")
    qos: str | None = option(None, "Slurm quality of service.")
    time_min: str | None = option(
        None, "Slurm may shorten the time limit down to this, as 00:30:00, to start the job earlier."
    )
    not_exclusive: bool = option(False, "Share nodes with other jobs instead of taking them whole.")
    reuse_code: bool = option(
        True, "Use the code that this Python session packaged last instead of packaging again."
    )
    reuse_code_exp: str | None = option(None, "Name of an experiment whose packaged code is used.")
    allow_uncommitted: bool = option(False, "Package the git repository although it has uncommitted changes.")
    dependent_jobs: int = option(
        0, "How many more jobs to queue, each going on where the one before it ran out of time.", minimum=0
    )
    dry_run: bool = option(False, "Print the plan, the scripts and the mounts; submit nothing.")
    no_validate: bool = option(False, "Submit without checking the arguments of the main script.")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Model server."""

    model: str | None = option(
        None, "Path or hub name of the model; the model's name when a remote server has it."
    )
    server_type: str | None = option(None, "Kind of server: hf, vllm, openai (any compatible address), ...")
    server_address: str | None = option(
        None,
        "Address of a server that already runs, as http://host:port/v1; several are separated by commas.",
    )
    server_gpus: int = option(0, "GPUs per node for a server that the job starts.", minimum=0)
    server_nodes: int = option(1, "Nodes for a server that the job starts.", minimum=1)
    server_replicas: int = option(
        1, "How many such servers share the work, on the same node and each with GPUs of its own.", minimum=1
    )
    server_args: str = option("", "More arguments for the server, in one text, passed on word for word.")
    with_sandbox: bool = option(
        False, "Start a sandbox in the job too, in which code that the model writes can run."
    )


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Generation."""

    input_file: str = option(REQUIRED, "JSONL file with one input per line.")
    output_dir: str = option(REQUIRED, "Folder for the results.")
    num_random_seeds: int | None = option(
        None, "How many times to sample every input, each time with another seed.", minimum=1
    )
    starting_seed: int = option(0, "The first of these seeds.", minimum=0)
    random_seeds: tuple[int, ...] = option(
        (), "The seeds themselves, as 0,3,7 or 0..7, instead of their number."
    )
    num_chunks: int | None = option(
        None, "Split the input into this many parts that run side by side.", minimum=1
    )
    chunk_ids: tuple[int, ...] = option((), "Run only these parts, as 0,2 or 0..3. The first is 0.")
    rerun_done: bool = option(False, "Submit also what an earlier run has finished.")
    offline: bool = option(
        False, "Start no server: the job loads --model itself, in a process for each of --server_gpus."
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data of benchmarks."""

    data_dir: str | None = option(
        None, "Folder of prepared data, instead of $NEMO_SKILLS_DATA_DIR or ./data."
    )
    extra_datasets: str | None = option(None, "Folder of benchmarks of your own.")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DataOptions):
    """Evaluation."""

    benchmarks: tuple[str, ...] = option(
        REQUIRED,
        "Benchmarks, or groups of them, as name or name:k: k samples of every answer; without k, or with 0,"
        " one greedy answer.",
    )
    output_dir: str = option(REQUIRED, "Folder for the results, which are in its eval-results.")
    num_jobs: int = option(
        1, "How many jobs, each with a server of its own, share the work on Slurm.", minimum=1
    )
    split: str | None = option(
        None, "Split of the benchmarks, instead of the one that scores are reported on."
    )
    grader_args: str = option("", "More arguments for the main that grades answers, in one text.")
    score_args: str = option("", "More arguments for the main that scores, as ++max_truncated_share=0.2.")
    rerun_done: bool = option(False, "Do again also what an earlier run has finished.")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Judge: a model that grades answers."""

    judge_model: str | None = option(None, "Path or name of the model that judges, as --model.")
    judge_server_type: str | None = option(None, "Kind of its server.")
    judge_server_address: str | None = option(None, "Address of its server, if that already runs.")
    judge_server_gpus: int = option(0, "GPUs per node for its server.", minimum=0)
    judge_server_nodes: int = option(1, "Nodes for its server.", minimum=1)
    judge_server_args: str = option("", "More arguments for its server, in one text.")
    judge_args: str = option("", "More arguments for the main that asks it, in one text, as ++prompt_config.")


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """Results."""

    folders: tuple[str, ...] = option(
        REQUIRED,
        "Folders of results, such as --output_dir of ns eval, or patterns of them, separated by commas.",
        separator=",",
        place="DIR",
    )
    benchmarks: tuple[str, ...] = option((), "Only these benchmarks; names may be patterns.")
    only: tuple[str, ...] = option((), "Only folders whose name or path fits one of these patterns.")
    groups: bool = option(False, "Show also the scores of groups of rows.")
    format: str = option(
        "table",
        "How results are printed.",
        choices=("table", "json", "csv", "markdown", "latex"),
    )
    wandb_project: str | None = option(None, "Project of Weights & Biases that gets the results too.")
    wandb_group: str | None = option(None, "Group of the runs there, one for each folder.")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Comparison."""

    folders: tuple[str, ...] = option(
        REQUIRED,
        "The two folders of results, such as --output_dir of ns eval.",
        separator=",",
        place="DIR",
    )
    benchmarks: tuple[str, ...] = option((), "Only these benchmarks; names may be patterns.")
    show: int = option(0, "How many problems to list that only one of them solves.", minimum=0)
    format: str = option("table", "A table for people, or JSON for programs.", choices=("table", "json"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Training."""

    output_dir: str = option(REQUIRED, "Folder for checkpoints and results.")
    hf_model: str | None = option(None, "Hugging Face folder (or hub name) of the model to start from.")
    nemo_model: str | None = option(None, "The same as a NeMo checkpoint, which is converted first.")
    recipe: str | None = option(
        None, "Recipe to start from (see ns recipe list), or file.py:function; arguments have its keys then."
    )
    training_algo: str = option("sft", "Fine-tuning on responses, or on preferences.", choices=("sft", "dpo"))
    training_data: tuple[str, ...] = option(
        (), "Files to train on, .jsonl or packed .npy, separated by commas.", separator=","
    )
    validation_data: tuple[str, ...] = option((), "Files to validate on, the same way.", separator=",")
    num_training_jobs: int = option(
        1, "Jobs that train one after the other, as time limits demand. 0 only averages.", minimum=0
    )
    average_steps: tuple[int, ...] = option(
        (), "Steps of the checkpoints to average, as 500,1000. By default all that are kept."
    )
    final_hf_path: str | None = option(
        None, "Folder for the averaged model, instead of model-averaged-hf in --output_dir."
    )
    final_nemo_path: str | None = option(
        None, "Folder for it as a NeMo checkpoint, with --nemo_model instead of model-averaged-nemo."
    )
    backend: str = option("torch", "What trains.", choices=("torch", "megatron"))
    training_device: str = option(
        "auto",
        "With cpu, --num_gpus counts processes per node that use no GPU; auto takes GPUs where there are.",
        choices=("auto", "cpu", "cuda"),
    )
    config_path: str | None = option(None, "Folder of a YAML file with the main's arguments.")
    config_name: str | None = option(None, "Name of that file.")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Conversion."""

    convert_from: str = option(REQUIRED, "Format of the model.", choices=("nemo", "hf"))
    convert_to: str = option(
        REQUIRED,
        "Format of the result; trtllm is an engine of TensorRT-LLM.",
        choices=("hf", "nemo", "trtllm"),
    )
    input_model: str = option(REQUIRED, "Folder of the model; for NeMo also a .nemo file.")
    output_model: str = option(REQUIRED, "Folder for the result, which appears when it is complete.")
    model_type: str | None = option(
        None,
        "Family of the model, as llama or qwen; by default found out, and checked otherwise.",
    )
    hf_model_name: str | None = option(
        None,
        "Hugging Face folder (or hub name) of a model of the same kind, for config and tokenizer where the"
        " model to convert does not hold them.",
    )
    dtype: str | None = option(None, "Type of the weights, as bf16; by default as they are.")


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Recipe."""

    action: str = option(
        REQUIRED,
        "What to do: list all, show one, export one.",
        choices=("list", "show", "export"),
        place="ACTION",
    )
    name: str | None = option(None, "Name of a recipe.", place="NAME")
    gpus: str | None = option(None, "With show: also the memory that it takes on such GPUs, as 8xH100.")
    origin: bool = option(False, "With show: where each value comes from.")
    format: str = option(
        "yaml",
        "With export: a YAML file, overrides that make any recipe this one, or arguments of the main.",
        choices=("yaml", "overrides", "main"),
    )
    output: str | None = option(None, "With export: file to write, instead of printing.")


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """Weights & Biases, where $WANDB_API_KEY is set."""

    disable_wandb: bool = option(False, "Do not log there.")
    wandb_project: str | None = option(
        None, "Project; without a key the run then stays in a folder, for wandb sync."
    )
    wandb_group: str | None = option(None, "Group of runs.")


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Generations to read."""

    folders: tuple[str, ...] = option(
        REQUIRED,
        "Folders with JSONL files, such as --output_dir of ns eval, or such files.",
        separator=",",
        place="DIR",
    )
    port: int = option(0, "Port on this machine; any free one if it is 0.", minimum=0)
    browser: bool = option(False, "Open the page in your browser.")


@dataclass(frozen=True, kw_only=True)
class HookOptions:
    """Before and after."""

    preprocess_cmd: str | None = option(None, "Shell command to run before, in the same container.")
    postprocess_cmd: str | None = option(None, "Shell command to run after, if all went well.")


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Resources."""

    num_gpus: int = option(0, "GPUs per node.", minimum=0)
    num_nodes: int = option(1, "Nodes.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(NodeOptions):
    """Resources."""

    num_tasks: int = option(1, "Processes per node. More than one process needs Slurm.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Experiments."""

    expnames: tuple[str, ...] = option(
        (), "Names of experiments, as --expname gave them when they were launched.", place="EXPNAME"
    )


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """Output."""

    format: str = option("table", "A table for people, or JSON for programs.", choices=("table", "json"))
    all: bool = option(False, "List every experiment, not only the latest ones.")


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Logs."""

    job: str | None = option(None, "Name of one job of the experiment, where it has several.")
    component: str | None = option(
        None, "Whose log: main (the default), server, or on Slurm sbatch, the batch script's own."
    )
    lines: int = option(500, "How many of the last lines to show; 0 shows all.", minimum=0)
    follow: bool = option(False, "Go on showing what comes, until the jobs have ended.")


@dataclass(frozen=True, kw_only=True)
class CommandOptions(ResourceOptions):
    """Command."""

    container: str = option("nemo-skills", "Container that it runs in: a role of the cluster config.")


@dataclass(frozen=True, kw_only=True)
class TunnelOptions:
    """Tunnel."""

    create_tunnel: bool = option(False, "Let a server on a cluster answer on this machine, through ssh.")
    tunnel_port: int = option(
        0, "Port of this machine for it, instead of the server's own or any that is free.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class CleanOptions:
    """What to remove."""

    older_than: str = option("7d", "Age of experiments to remove, as 12h, 7d or 4w.")
    yes: bool = option(False, "Remove what is otherwise only listed.")


@dataclass(frozen=True, kw_only=True)
class SetupOptions:
    """New cluster config. In a terminal, what is not given here is asked for."""

    name: str | None = option(None, "Name of the config, which --cluster takes later.")
    executor: str | None = option(
        None, "Where jobs run: in this machine's Docker or on Slurm.", choices=("local", "slurm")
    )
    ssh_host: str | None = option(
        None, "Login node of the cluster, or its alias in your ssh config. Without it this is a login node."
    )
    ssh_user: str | None = option(None, "Your name there.")
    ssh_identity: str | None = option(None, "Private key file, if ssh does not know it anyway.")
    ssh_port: int | None = option(None, "Port of its ssh server.", minimum=1)
    job_dir: str | None = option(None, "Folder on the cluster for the files of jobs; all nodes must see it.")
    account: str | None = option(None, "Slurm account.")
    slurm_partition: str | None = option(None, "Slurm partition for jobs; the cluster's default if empty.")
    slurm_cpu_partition: str | None = option(None, "Slurm partition for jobs that need no GPU.")
    default_timeout: str | None = option(None, "Time limit of jobs, as 04:00:00.")
    container_runtime: str | None = option(
        None, "Whether the cluster runs containers with Pyxis.", choices=("pyxis", "none")
    )
    containers: tuple[str, ...] = option(
        (), "Images, as role=reference, separated by commas. Most jobs run in nemo-skills.", separator=","
    )
    mounts: tuple[str, ...] = option(
        (), "Folders that containers see, as source:target, separated by commas.", separator=","
    )
    env_vars: tuple[str, ...] = option((), "Variables of your environment that jobs get, such as HF_TOKEN.")
    overwrite: bool = option(False, "Replace a config of that name.")
    verify: bool = option(False, "Write nothing, only check the config that --cluster names.")


@dataclass(frozen=True, kw_only=True)
class PrepareDataOptions:
    """Preparation of benchmarks."""

    benchmarks: tuple[str, ...] = option(
        (), "Names of benchmarks, or of groups such as math-all.", place="NAME"
    )
    split: str | None = option(None, "Split to prepare, instead of the one that scores are reported on.")
    source: tuple[str, ...] = option(
        (), "Files of the split that were downloaded already, for one benchmark.", separator=","
    )
    overwrite: bool = option(False, "Prepare also what is there already.")
