"""From a NeMo checkpoint to the scores of its fine-tuned successor, in one script.

    python examples/train_convert_eval.py --cluster=slurm --nemo_model=/nemo_models/llama3.1-8b \
        --training_data=/data/sft-data.jsonl --output_dir=/workspace/my-training \
        --num_gpus=8 --num_training_jobs=4 --server_types=vllm,nemo

On Slurm this returns as soon as all jobs are queued: each waits for the one whose result it needs. Elsewhere
one step runs after the other. Copy the script and change it: every step is one call, with the options of the
command of the same name (`ns train --help`).
"""

import argparse

from nemo_skills.core.script import run_script
from nemo_skills.pipeline.cli import convert, eval, train, wrap_arguments  # noqa: A004


def main() -> None:
    """Run the command line."""
    options = parse()
    where = {"cluster": options.cluster}
    name, output = options.expname, options.output_dir

    # the last job of this experiment averages the checkpoints
    train(
        ctx=wrap_arguments(options.train_args),
        expname=name,
        output_dir=output,
        nemo_model=options.nemo_model,
        training_data=options.training_data,
        num_gpus=options.num_gpus,
        num_nodes=options.num_nodes,
        num_training_jobs=options.num_training_jobs,
        average_steps=options.average_steps,
        **where,
    )
    models = {"nemo": (f"{output}/model-averaged-nemo", name)}

    convert(
        expname=f"{name}-to-hf",
        run_after=name,
        convert_from="nemo",
        convert_to="hf",
        model_type=options.model_type,
        input_model=f"{output}/model-averaged-nemo",
        output_model=f"{output}/model-averaged-hf",
        **where,
    )
    models |= dict.fromkeys(("vllm", "hf"), (f"{output}/model-averaged-hf", f"{name}-to-hf"))

    if "trtllm" in options.server_types:
        convert(
            expname=f"{name}-to-trtllm",
            run_after=f"{name}-to-hf",
            convert_from="hf",
            convert_to="trtllm",
            input_model=f"{output}/model-averaged-hf",
            output_model=f"{output}/model-averaged-trtllm",
            num_gpus=options.num_gpus,
            **where,
        )
        models["trtllm"] = (f"{output}/model-averaged-trtllm", f"{name}-to-trtllm")

    for server_type in options.server_types:
        model, made_by = models[server_type]
        eval(
            ctx=wrap_arguments(options.eval_args),
            expname=f"{name}-eval-{server_type}",
            run_after=made_by,
            model=model,
            server_type=server_type,
            server_gpus=options.num_gpus,
            server_args=options.server_args,
            benchmarks=options.benchmarks,
            extra_datasets=options.extra_datasets,
            output_dir=f"{output}/results-{server_type}",
            **where,
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--cluster", help="cluster config; default: this machine")
    add("--expname", default="my-training", help="name of the training; the other steps' names begin with it")
    add("--nemo_model", required=True, help="NeMo checkpoint to start from")
    add("--training_data", required=True, help="file to train on")
    add("--output_dir", required=True, help="folder for everything")
    add("--model_type", help="family of the model, such as llama; default: what the checkpoint says")
    add("--num_gpus", type=int, default=0, help="GPUs per node, for each step that uses them")
    add("--num_nodes", type=int, default=1, help="nodes that train")
    add("--num_training_jobs", type=int, default=1, help="jobs that train one after the other")
    add("--average_steps", default="", help="checkpoints to average, as 500,1000; default: all that are kept")
    add("--server_types", default="vllm", type=lambda text: text.split(","), help="vllm, nemo, hf, trtllm")
    add("--server_args", default="", help="more arguments for each server")
    add("--benchmarks", default="gsm8k", help="what to score the model on")
    add("--extra_datasets", help="folder of benchmarks of your own")
    add("--train_args", default="", help="arguments of the training main, as ++model.optim.lr=1e-5")
    add(
        "--eval_args",
        default="",
        help="arguments of the generation main, as ++prompt_template=llama3-instruct",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
