"""Which code a plan's jobs run: packaged now, packaged before, or that of another experiment."""

from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.launch.packaging import CodePackage, build_package
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import latest, nemorun_home

# A Python session that launches many experiments packages once: they all get the same code, and soon
_session: dict[Path, CodePackage] = {}


def choose_code(plan: Plan) -> CodePackage | str:
    """Return a package, or the folder that has the code of the experiment named by `--reuse_code_exp`.

    Raises:
        UserError: there is no such code, or the repository has uncommitted changes.
    """
    options, executor = plan.options, plan.cluster.executor
    if options.reuse_code_exp:
        record = latest(options.reuse_code_exp)
        if record.code_dir is None or record.executor != executor:
            raise UserError(
                f"--reuse_code_exp: experiment '{record.expname}' has no code for executor {executor}"
            )
        return record.code_dir
    cwd = Path.cwd()
    found = _session.get(cwd)
    if found is None or not options.reuse_code or not found.path.is_file():
        folder = nemorun_home().absolute() / "ns_packages"
        found = _session[cwd] = build_package(cwd, folder, allow_uncommitted=options.allow_uncommitted)
    return found
