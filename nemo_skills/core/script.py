"""Small command-line scripts: user errors as one message and an exit code."""

import sys
from collections.abc import Callable

from nemo_skills.core.errors import UserError


def run_script(script: Callable[[], None]) -> None:
    """Run `script`; what the user can fix goes to stderr as a message, without a traceback."""
    try:
        script()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
