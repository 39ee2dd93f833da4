"""Makes one packed file of several, such as those of parts of a large data set.

`python -m nemo_skills.training.merge_packed_data --input_prefixes a/packed_4096_seed0 b/packed_4096_seed0
--output_prefix all/packed_4096_seed0`
"""

import argparse
from pathlib import Path

from nemo_skills.core.log import setup_logging
from nemo_skills.core.script import run_script


def merge_packed_data() -> None:
    """Read the arguments, then merge."""
    from nemo_skills.training.packed_merging import merge

    parser = argparse.ArgumentParser(description="Make one packed file of several, in their order.")
    parser.add_argument(
        "--input_prefixes", nargs="+", required=True, metavar="PREFIX",
        help="packed files: their names without .input_ids.npy and so on",
    )  # fmt: skip
    parser.add_argument("--output_prefix", required=True, metavar="PREFIX", help="the file to make")
    args = parser.parse_args()
    setup_logging()
    merge([Path(prefix) for prefix in args.input_prefixes], Path(args.output_prefix))


if __name__ == "__main__":
    run_script(merge_packed_data)
