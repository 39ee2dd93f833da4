/*
 * A stand-in for Pyxis, for tests only: `srun --container-image=...` really enters another root folder.
 *
 * It shares nothing with Pyxis but the options. An image is a folder or a tar archive (whatever its name, so a
 * `.sqsh` may be either), or a name that is looked up in the folder `images=` of plugstack.conf with '/', ':' and
 * '#' turned into '+'. Each step gets a mount namespace with an overlay on the image, so that containers are
 * writable and images are not changed; a container with a name lives until its job ends.
 *
 * Like enroot: variables in the image's /etc/environment win over the job's, unless --container-env names them;
 * /proc, /sys, /dev and the host's name resolution are there; /tmp is empty and private; mount sources must exist.
 * Jobs must run as root.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/slurm_errno.h>
#include <slurm/spank.h>

SPANK_PLUGIN(container_stand_in, 1)

#define LOG "container plugin: "
#define DEFAULT_WORKDIR "/"

enum { IMAGE, MOUNTS, WORKDIR, ENVIRONMENT, NAME, HOME_YES, HOME_NO, READONLY, WRITABLE, IGNORED };

static struct {
	char *image, *mounts, *workdir, *env, *name;
	bool home, readonly;
} wanted;

static const char *images_dir = "", *state_dir = "/tmp";
static char base[PATH_MAX]; /* the container's own folder: upper, work, root */
static bool active, mounted, broken;

#define fail(...) (slurm_error(LOG __VA_ARGS__), -1)

__attribute__((format(printf, 1, 2))) static char *text(const char *format, ...)
{
	char *result = NULL;
	va_list args;
	va_start(args, format);
	if (vasprintf(&result, format, args) < 0)
		abort();
	va_end(args);
	return result;
}

/* ---- options ---- */

static int take_option(int which, const char *value, int remote)
{
	(void) remote;
	switch (which) {
	case IMAGE:
		wanted.image = text("%s", value);
		break;
	case MOUNTS:
		wanted.mounts = wanted.mounts ? text("%s,%s", wanted.mounts, value) : text("%s", value);
		break;
	case WORKDIR:
		if (value[0] != '/')
			return fail("--container-workdir: %s is not an absolute path", value);
		wanted.workdir = text("%s", value);
		break;
	case ENVIRONMENT:
		wanted.env = wanted.env ? text("%s,%s", wanted.env, value) : text("%s", value);
		break;
	case NAME:
		if (strchr(value, '/') || !*value)
			return fail("--container-name: invalid name '%s'", value);
		wanted.name = text("%s", value);
		break;
	case HOME_YES:
	case HOME_NO:
		wanted.home = which == HOME_YES;
		break;
	case READONLY:
	case WRITABLE:
		wanted.readonly = which == READONLY;
		break;
	}
	return 0;
}

#define OPTION(name, arg, usage, val) { name, arg, usage, (arg) != NULL, val, take_option }
struct spank_option spank_options[] = {
	OPTION("container-image", "PATH|NAME", "root folder or tar archive to enter", IMAGE),
	OPTION("container-mounts", "SRC:DST[:FLAGS],...", "bind mounts; flags joined by '+', e.g. ro", MOUNTS),
	OPTION("container-workdir", "PATH", "working directory inside", WORKDIR),
	OPTION("container-env", "NAME,...", "variables whose value the image must not replace", ENVIRONMENT),
	OPTION("container-name", "NAME", "keep the container for later steps of the job", NAME),
	OPTION("container-mount-home", NULL, "mount the user's home", HOME_YES),
	OPTION("no-container-mount-home", NULL, "do not mount the user's home", HOME_NO),
	OPTION("container-readonly", NULL, "read-only container", READONLY),
	OPTION("container-writable", NULL, "writable container", WRITABLE),
	OPTION("container-remap-root", NULL, "accepted, without effect", IGNORED),
	OPTION("no-container-remap-root", NULL, "accepted, without effect", IGNORED),
	OPTION("container-entrypoint", NULL, "accepted, without effect", IGNORED),
	OPTION("no-container-entrypoint", NULL, "accepted, without effect", IGNORED),
	SPANK_OPTIONS_TABLE_END
};

static void read_settings(int ac, char **av)
{
	for (int i = 0; i < ac; i++) {
		if (!strncmp(av[i], "images=", 7))
			images_dir = av[i] + 7;
		else if (!strncmp(av[i], "state=", 6))
			state_dir = av[i] + 6;
	}
}

/* ---- files ---- */

static int make_dirs(const char *path)
{
	char *copy = text("%s", path);
	int result = 0;
	for (char *slash = strchr(copy + 1, '/'); result == 0; slash = strchr(slash + 1, '/')) {
		if (slash)
			*slash = '\0';
		if (mkdir(copy, 0755) && errno != EEXIST)
			result = fail("cannot create %s: %s", copy, strerror(errno));
		if (!slash)
			break;
		*slash = '/';
	}
	free(copy);
	return result;
}

static int run_program(char *const argv[])
{
	int status = -1;
	pid_t pid = fork();
	if (pid == 0) {
		execvp(argv[0], argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return fail("cannot run %s: %s", argv[0], strerror(errno));
	return status == 0 ? 0 : fail("%s %s failed", argv[0], argv[1]);
}

static int bind_path(const char *source, const char *target, bool readonly)
{
	struct stat info;
	if (stat(source, &info))
		return fail("mount source %s: %s", source, strerror(errno));
	if (S_ISDIR(info.st_mode)) {
		if (make_dirs(target))
			return -1;
	} else {
		char *copy = text("%s", target);
		int result = make_dirs(dirname(copy));
		free(copy);
		int fd = result ? -1 : open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
		if (fd < 0)
			return fail("cannot create %s: %s", target, strerror(errno));
		close(fd);
	}
	if (mount(source, target, NULL, MS_BIND | MS_REC, NULL))
		return fail("cannot mount %s at %s: %s", source, target, strerror(errno));
	if (readonly && mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))
		return fail("cannot make %s read-only: %s", target, strerror(errno));
	return 0;
}

/* ---- entering ---- */

/* The folder that is the image: itself, a name in images_dir, or an archive unpacked into the container's folder. */
static char *image_folder(void)
{
	struct stat info;
	char *path;
	if (wanted.image[0] == '/' || wanted.image[0] == '.') {
		path = text("%s", wanted.image);
	} else {
		path = text("%s/%s", images_dir, wanted.image);
		for (char *c = path + strlen(images_dir) + 1; *c; c++)
			if (strchr("/:#", *c))
				*c = '+';
	}
	if (stat(path, &info)) {
		slurm_error(LOG "failed to import image %s: %s", wanted.image, strerror(errno));
		return NULL;
	}
	if (S_ISDIR(info.st_mode))
		return realpath(path, NULL);
	char *unpacked = text("%s/image", base);
	if (mkdir(unpacked, 0755) && errno == EEXIST)
		return unpacked;
	char *argv[] = { "tar", "-xf", path, "-C", unpacked, NULL };
	return run_program(argv) ? NULL : unpacked;
}

static int mount_root(const char *root)
{
	char *upper = text("%s/upper", base), *work = text("%s/work", base), *link = text("%s/lower", base);
	char lower[PATH_MAX] = "";
	if (make_dirs(upper) || make_dirs(work) || make_dirs(root))
		return -1;
	/* A named container remembers its image, so that later steps need only the name. */
	if (readlink(link, lower, sizeof(lower) - 1) < 0) {
		if (!wanted.image)
			return fail("no container named %s in this job, and no --container-image", wanted.name);
		char *image = image_folder();
		if (!image || symlink(image, link))
			return -1;
		snprintf(lower, sizeof(lower), "%s", image);
	}
	char *options = text("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work);
	if (mount("overlay", root, "overlay", 0, options))
		return fail("cannot mount image %s: %s", lower, strerror(errno));
	return 0;
}

static int mount_system(const char *root)
{
	static const char *const folders[] = { "/proc", "/sys", "/dev" };
	static const char *const files[] = { "/etc/hosts", "/etc/hostname", "/etc/resolv.conf" };
	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++)
		if (bind_path(folders[i], text("%s%s", root, folders[i]), false))
			return -1;
	for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++)
		if (access(files[i], R_OK) == 0 && bind_path(files[i], text("%s%s", root, files[i]), false))
			return -1;
	char *tmp = text("%s/tmp", root);
	if (make_dirs(tmp) || mount("tmpfs", tmp, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"))
		return fail("cannot mount %s: %s", tmp, strerror(errno));
	return 0;
}

static int mount_wanted(const char *root)
{
	const char *home = getenv("HOME");
	if (wanted.home && bind_path(home ? home : "/root", text("%s%s", root, home ? home : "/root"), false))
		return -1;
	char *rest = wanted.mounts ? text("%s", wanted.mounts) : NULL;
	for (char *entry; rest && (entry = strsep(&rest, ","));) {
		if (!*entry)
			continue;
		char *source = strsep(&entry, ":"), *target = strsep(&entry, ":");
		char *flags = entry ? text("+%s+", entry) : "";
		if (!target)
			target = source;
		if (source[0] != '/' || target[0] != '/')
			return fail("--container-mounts: %s:%s must be absolute paths", source, target);
		if (bind_path(source, text("%s%s", root, target), strstr(flags, "+ro+") != NULL))
			return -1;
	}
	return 0;
}

static int build_container(spank_t sp)
{
	uint32_t job = 0, step = 0, node = 0;
	uid_t uid = 0;
	spank_get_item(sp, S_JOB_UID, &uid);
	spank_get_item(sp, S_JOB_ID, &job);
	spank_get_item(sp, S_JOB_STEPID, &step);
	spank_get_item(sp, S_JOB_NODEID, &node);
	if (uid != 0)
		return fail("only root's jobs can enter containers here");
	/* Both virtual nodes share this folder, hence the node in the name. */
	if (wanted.name)
		snprintf(base, sizeof(base), "%s/%u_%u_%s", state_dir, job, node, wanted.name);
	else
		snprintf(base, sizeof(base), "%s/%u.%u.%u", state_dir, job, step, node);
	if (make_dirs(base))
		return -1;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL))
		return fail("cannot enter a mount namespace: %s", strerror(errno));
	if (!wanted.name && mount("tmpfs", base, "tmpfs", 0, NULL))
		return fail("cannot mount %s: %s", base, strerror(errno));
	mounted = true;
	char *root = text("%s/root", base);
	if (mount_root(root) || mount_system(root) || mount_wanted(root))
		return -1;
	if (wanted.readonly && mount(NULL, root, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))
		return fail("cannot make the container read-only: %s", strerror(errno));
	return 0;
}

/*
 * Once per step, in slurmstepd: build the container in a mount namespace of its own, which the tasks inherit. The
 * tasks report a failure: after one from here srun would exit with 0.
 */
int slurm_spank_user_init(spank_t sp, int ac, char **av)
{
	if (!spank_remote(sp) || !(wanted.image || wanted.name))
		return 0;
	read_settings(ac, av);
	active = true;
	broken = build_container(sp) != 0;
	return 0;
}

static bool kept(const char *name)
{
	char *list = text(",%s,", wanted.env ? wanted.env : ""), *item = text(",%s,", name);
	bool found = strstr(list, item) != NULL;
	free(list);
	free(item);
	return found;
}

static void set_image_environment(spank_t sp)
{
	char line[4096];
	FILE *file = fopen("/etc/environment", "re");
	while (file && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		char *value = line, *name = strsep(&value, "=");
		if (*name && *name != '#' && value && !kept(name))
			spank_setenv(sp, name, value, 1);
	}
	if (file)
		fclose(file);
}

/* In each task, just before it runs the user's command. */
int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	(void) ac;
	(void) av;
	if (!active)
		return 0;
	if (broken)
		return -1;
	const char *workdir = wanted.workdir ? wanted.workdir : DEFAULT_WORKDIR;
	char *root = text("%s/root", base);
	if (chroot(root))
		return fail("cannot enter %s: %s", root, strerror(errno));
	if (chdir(workdir))
		return fail("couldn't chdir to %s: %s", workdir, strerror(errno));
	setenv("PWD", workdir, 1);
	spank_setenv(sp, "PWD", workdir, 1);
	set_image_environment(sp);
	return 0;
}

/* ---- cleaning up ---- */

int slurm_spank_exit(spank_t sp, int ac, char **av)
{
	(void) ac;
	(void) av;
	if (!mounted || !spank_remote(sp))
		return 0;
	umount2(text("%s/root", base), MNT_DETACH);
	if (!wanted.name) {
		umount2(base, MNT_DETACH);
		rmdir(base);
	}
	return 0;
}

/* Named containers go when their job does. */
int slurm_spank_job_epilog(spank_t sp, int ac, char **av)
{
	uint32_t job = 0;
	read_settings(ac, av);
	if (spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS)
		return 0;
	char *prefix = text("%u_", job);
	DIR *folder = opendir(state_dir);
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		if (strncmp(entry->d_name, prefix, strlen(prefix)))
			continue;
		char *argv[] = { "rm", "-rf", text("%s/%s", state_dir, entry->d_name), NULL };
		run_program(argv);
	}
	if (folder)
		closedir(folder);
	return 0;
}
