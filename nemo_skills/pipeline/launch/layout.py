"""Where the files of an experiment lie on a cluster, and how its components see them."""

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.mounts import Mount, MountTable, normalise_path
from nemo_skills.pipeline.launch.plan import Argv, Component, Job, Plan
from nemo_skills.pipeline.launch.render import Site

CODE_TARGET = "/nemo_run/code"
JOB_TARGET = "/nemo_run/job"
SECRETS_FILE = "secrets.env"
SANDBOX = "sandbox"
"""Role of components that run code of models; they get no secrets."""
_CODE_IN_TEXT = r"(?<![\w./-]){}(?![\w.-])"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Host paths of one experiment; the only place that knows its file names."""

    exp_dir: str
    code_dir: str
    """Packaged code: the user's repository and `nemo_skills`."""

    @property
    def experiment_id(self) -> str:
        """The experiment's own name, unlike that which the user chose."""
        return PurePosixPath(self.exp_dir).name

    def job_dir(self, job: Job) -> str:
        """Return the folder of one job."""
        return str(PurePosixPath(self.exp_dir) / job.name)

    def mounts(self, plan: Plan, job: Job) -> tuple[Mount, ...]:
        """Return everything that the containers of a job mount."""
        own = (Mount(self.code_dir, CODE_TARGET), Mount(self.job_dir(job), JOB_TARGET))
        return MountTable(plan.cluster.mounts).with_extra(own).mounts

    def site(self, plan: Plan, job: Job, component: Component) -> Site:
        """Return how a component finds its tools."""
        cluster = plan.cluster
        container = cluster.container(component.role)
        code = CODE_TARGET if cluster.uses_containers else self.code_dir
        job_dir = JOB_TARGET if cluster.uses_containers else self.job_dir(job)
        programs = None
        if container.kind == "venv":
            if not container.ref.startswith("/"):
                raise UserError(
                    f"cluster config '{cluster.name}': containers.{component.role}: give the virtual"
                    f" environment's full path, not '{container.ref}'"
                )
            programs = str(PurePosixPath(container.ref) / "bin")
        return Site(
            interpreter=f"{programs}/python" if programs else "python3",
            code_dir=code,
            path_dirs=(programs,) if programs else (),
            python_path=code,
            work_dir=code,
            env=plan.env,
            secrets_file=None if component.role == SANDBOX else f"{job_dir}/{SECRETS_FILE}",
        )


def host_path(cluster: ClusterConfig, path: str) -> str:
    """Return where a path given by the user lies on the cluster's hosts.

    Raises:
        UserError: no mount covers the path in the containers that jobs run in, or a job elsewhere would not
            find it because it is relative.
    """
    if cluster.uses_containers:
        return MountTable(cluster.mounts).to_host(path)
    return normalise_path(path) if cluster.executor == "slurm" else path


def with_local_code(component: Component, code_dir: str, *, inside: str = "") -> Component:
    """Let `/nemo_run/code` in the words of a component mean the real folder, where there are no containers.

    This is the one exception to passing words on as they are. With `inside` only that folder of it is meant.
    """
    path = re.compile(_CODE_IN_TEXT.format(re.escape(f"{CODE_TARGET}/{inside}".rstrip("/"))))
    code_dir = str(PurePosixPath(code_dir) / inside)

    def real(argv: Argv) -> Argv:
        # in a line of shell the folder's name must not fall apart
        quoted = shlex.quote(code_dir) if argv[:2] == ("bash", "-c") else code_dir
        return tuple(path.sub(lambda _: quoted, word) if isinstance(word, str) else word for word in argv)

    return replace(
        component,
        before=tuple(map(real, component.before)),
        commands=tuple(map(real, component.commands)),
        after=tuple(map(real, component.after)),
    )
