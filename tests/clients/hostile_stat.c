/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that is hostile to the supervisor of its `vfsfuse run`, by fstat(2), newfstatat(2) and statx(2):
 *
 *   hostile_stat [-u] MODE FILE NODE MAJOR:MINOR [CALL [MEMORY]]
 *
 * NODE is a character device of the lab.  FILE is an ordinary file, over which a file that answers nothing is mounted
 * (held_file.h); -u mounts it in a user namespace.  MODE is one of these:
 *
 * buffer      THREADS threads make CALL on NODE, and the result goes to MEMORY that waits (held_memory.h)
 * path        the same, but the path is in MEMORY: the empty one, or NODE for a CALL by path
 * file        they make CALL on the file that answers nothing
 * killed      processes make fstat on NODE with a buffer in userfaultfd memory, and are killed meanwhile
 * served      the server of FILE calls fstat on NODE before each of its answers
 * faults      so does who answers the page faults of userfaultfd memory
 * swapped     the number of NODE is that of another file now and then
 * threads     a thousand threads call fstat on NODE
 * forks       255 processes do, each the child of another
 * undumpable  a process that may not be traced does
 *
 * While something is held, another process of the same run has to get its answers: only then is it released.  Says
 * "ok" at the end; exits with 77 when the machine has no such memory, and says why.  It ends after SECONDS at the
 * latest.
 */
#define _GNU_SOURCE
#include "held_file.h"
#include "held_memory.h"
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { SECONDS = 150, THREADS = 32, MANY = 1000, ROUNDS = 20, DEEP = 7, KILLED = 20 };

static struct shared {
	atomic_ulong rounds; /* of the other process */
	atomic_int end, go, begun, done;
} *shared;

static const char *node_path;
static dev_t number;
static int node = -1, release_end = -1, subject = -1;
static pid_t other;

/* ---- calls ---- */

static int by_fstat(int fd, const char *empty, void *out)
{
	(void)empty;
	return syscall(SYS_fstat, fd, out);
}

static int by_newfstatat(int fd, const char *empty, void *out)
{
	return syscall(SYS_newfstatat, fd, empty, out, AT_EMPTY_PATH);
}

static int by_statx(int fd, const char *empty, void *out)
{
	return syscall(SYS_statx, fd, empty, AT_EMPTY_PATH, STATX_BASIC_STATS, out);
}

/* The same by a path, for `run --stat-paths`. */
static int path_stat(int fd, const char *path, void *out)
{
	(void)fd;
#ifdef SYS_stat
	return syscall(SYS_stat, path, out);
#else
	return syscall(SYS_newfstatat, AT_FDCWD, path, out, 0);
#endif
}

static int path_newfstatat(int fd, const char *path, void *out)
{
	(void)fd;
	return syscall(SYS_newfstatat, AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}

static int path_statx(int fd, const char *path, void *out)
{
	(void)fd;
	return syscall(SYS_statx, AT_FDCWD, path, 0, STATX_BASIC_STATS, out);
}

static const struct call {
	const char *name;
	int (*make)(int fd, const char *path, void *out);
	int extended; /* whether the result is a struct statx */
	int by_path;
} calls[] = {
	{"fstat", by_fstat, 0, 0},
	{"newfstatat", by_newfstatat, 0, 0},
	{"statx", by_statx, 1, 0},
	{"path-stat", path_stat, 0, 1},
	{"path-newfstatat", path_newfstatat, 0, 1},
	{"path-statx", path_statx, 1, 1},
	{0},
}, *call = calls;

static mode_t mode_in(const struct call *made, const void *out)
{
	return made->extended ? ((const struct statx *)out)->stx_mode : ((const struct stat *)out)->st_mode;
}

static dev_t number_in(const struct call *made, const void *out)
{
	const struct statx *s = out;

	if (!made->extended)
		return ((const struct stat *)out)->st_rdev;
	return makedev(s->stx_rdev_major, s->stx_rdev_minor);
}

static int is_node(const struct call *made, const void *out)
{
	return S_ISCHR(mode_in(made, out)) && number_in(made, out) == number;
}

static void ask(int fd)
{
	char out[512];

	for (const struct call *each = calls; !each->by_path; each++)
		CHECK(!each->make(fd, "", out) && is_node(each, out));
}

static void ask_node(void)
{
	ask(node);
}

/* ---- everybody else ---- */

static void start_other(void)
{
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	pid_t client = getpid();
	struct stat status;

	other = fork();
	CHECK(other >= 0 && null >= 0);
	if (other)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != client)
		_exit(0);
	while (!shared->end) {
		int mine = open(node_path, O_RDONLY | O_CLOEXEC);

		CHECK(mine >= 0);
		ask(mine);
		CHECK(!fstat(null, &status) && status.st_rdev == makedev(1, 3) && !stat("/", &status) && S_ISDIR(status.st_mode));
		close(mine);
		shared->rounds++;
	}
	_exit(0);
}

/* Others get their answers, whatever is held. */
static void await_others(void)
{
	unsigned long before = shared->rounds;

	while (shared->rounds < before + ROUNDS)
		usleep(1000);
}

static void end_other(void)
{
	int status;

	shared->end = 1;
	CHECK(waitpid(other, &status, 0) == other && !status);
}

static void start_threads(pthread_t *threads, int count, void *(*run)(void *))
{
	pthread_attr_t small;

	CHECK(!pthread_attr_init(&small) && !pthread_attr_setstacksize(&small, 64 * 1024));
	for (int thread = 0; thread < count; thread++)
		CHECK(!pthread_create(&threads[thread], &small, run, (void *)(intptr_t)thread));
}

static void join(const pthread_t *threads, int count)
{
	for (int thread = 0; thread < count; thread++)
		CHECK(!pthread_join(threads[thread], NULL));
}

/* ---- calls that are held ---- */

static const struct memory *kind;
static int in_buffer, in_path;

static void *held_call(void *unused)
{
	static const char empty[1];
	char own[512];
	void *out = in_buffer ? memory : own;

	await(&shared->go);
	shared->begun++;
	CHECK(!call->make(subject, in_path ? memory : empty, out));
	shared->done++;
	if (subject == node)
		CHECK(is_node(call, out));
	else
		CHECK(S_ISREG(mode_in(call, out)) && !number_in(call, out));
	return unused;
}

/* Make the calls, and release them when others have had their answers meanwhile.  The threads are there before the
 * lock of the program's mappings may be held. */
static void hold_calls(void)
{
	static pthread_t threads[THREADS];

	start_threads(threads, THREADS, held_call);
	arm_memory(kind);
	shared->go = 1;
	while (shared->begun < THREADS || !held->kinds)
		usleep(1000);
	await_others();
	CHECK(!shared->done);
	CHECK(write(release_end, "", 1) == 1);
	join(threads, THREADS);
}

static void hold_memory(void)
{
	make_memory(kind);
	hold_calls();
}

static void buffer(void)
{
	in_buffer = 1;
	hold_memory();
}

static void path(void)
{
	in_path = 1;
	if (call->by_path)
		snprintf((char *)held->content, PAGE, "%s", node_path);
	hold_memory();
}

static void file(void)
{
	subject = hostile;
	hold_calls();
}

/* ---- the rest ---- */

static void killed(void)
{
	pid_t clients[KILLED];

	kind = &memories[sizeof(memories) / sizeof(*memories) - 2];
	CHECK(!strcmp(kind->name, "userfault"));
	for (int client = 0; client < KILLED; client++) {
		clients[client] = fork();
		CHECK(clients[client] >= 0);
		if (!clients[client]) {
			make_memory(kind);
			shared->begun++;
			(void)by_fstat(node, "", memory);
			_exit(1);
		}
	}
	while (shared->begun < KILLED || !held->kinds)
		usleep(1000);
	await_others();
	for (int client = 0; client < KILLED; client++) {
		int status;

		CHECK(!kill(clients[client], SIGKILL) && waitpid(clients[client], &status, 0) == clients[client]);
		CHECK(WIFSIGNALED(status));
	}
	await_others();
}

static void served(void)
{
	struct stat *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, hostile, 0), status;

	CHECK(mapped != MAP_FAILED);
	for (int round = 0; round < ROUNDS; round++) {
		CHECK(!fsync(hostile) && !fstat(hostile, &status) && S_ISREG(status.st_mode));
		CHECK(!posix_fadvise(hostile, 0, 0, POSIX_FADV_DONTNEED) && !madvise(mapped, PAGE, MADV_DONTNEED));
		CHECK(!fstat(node, mapped) && is_node(calls, mapped));
	}
	await_others();
}

static void *answer_after_asking(void *unused)
{
	struct uffd_msg fault;
	static char zeros[PAGE];

	while (read(faults, &fault, sizeof(fault)) == sizeof(fault)) {
		struct uffdio_copy copy = {.dst = fault.arg.pagefault.address & -PAGE, .len = PAGE, .src = (uintptr_t)zeros};

		ask_node();
		CHECK(!ioctl(faults, UFFDIO_COPY, &copy) || errno == EEXIST);
	}
	return unused;
}

static void faults_are_answered_by_who_asks(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	pthread_t thread;

	memory = (char *)plain_pages(PAGE + MAPPED) + PAGE;
	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (faults < 0) {
		printf("userfaultfd(2): %s\n", strerror(errno));
		exit(SKIP);
	}
	range.range = (struct uffdio_range){(uintptr_t)memory, MAPPED};
	CHECK(!ioctl(faults, UFFDIO_API, &api) && !ioctl(faults, UFFDIO_REGISTER, &range));
	CHECK(!pthread_create(&thread, NULL, answer_after_asking, NULL));
	for (int page = 0; page < PAGES; page++)
		CHECK(!by_fstat(node, "", memory + page * PAGE) && is_node(calls, memory + page * PAGE));
	await_others();
}

static int swapped_number, plain_file;

static void *swap(void *unused)
{
	while (!shared->end) {
		CHECK(dup2(plain_file, swapped_number) == swapped_number);
		CHECK(dup2(node, swapped_number) == swapped_number);
	}
	return unused;
}

/* Each answer is about one of the two files.  Which one the kernel finds is a race that the program has with itself;
 * a node that takes the number after the supervisor has looked is the regular file that it is. */
static void swapped(void)
{
	struct stat of_node, of_plain, found;
	pthread_t thread;

	plain_file = memfd_create("plain", MFD_CLOEXEC);
	swapped_number = dup(node);
	CHECK(plain_file >= 0 && swapped_number >= 0 && !fstat(node, &of_node) && !fstat(plain_file, &of_plain));
	CHECK(!pthread_create(&thread, NULL, swap, NULL));
	for (int round = 0; round < 100 * ROUNDS; round++) {
		CHECK(!fstat(swapped_number, &found));
		if (found.st_dev == of_plain.st_dev && found.st_ino == of_plain.st_ino)
			CHECK(S_ISREG(found.st_mode) && !found.st_rdev);
		else
			CHECK(found.st_dev == of_node.st_dev && found.st_ino == of_node.st_ino);
		if (S_ISCHR(found.st_mode))
			CHECK(found.st_rdev == number && found.st_ino == of_node.st_ino);
		else
			CHECK(!found.st_rdev);
	}
	await_others();
	end_other();
	other = 0;
	CHECK(!pthread_join(thread, NULL));
}

static void *ask_often(void *unused)
{
	for (int round = 0; round < ROUNDS / 4; round++)
		ask_node();
	return unused;
}

static void threads(void)
{
	static pthread_t all[MANY];

	start_threads(all, MANY, ask_often);
	join(all, MANY);
	await_others();
}

static void fork_below(int depth)
{
	for (int side = 0; depth && side < 2; side++) {
		pid_t child = fork();

		CHECK(child >= 0);
		if (!child) {
			fork_below(depth - 1);
			_exit(0);
		}
	}
	ask_node();
	for (int status; wait(&status) > 0;)
		CHECK(!status);
}

static void forks(void)
{
	pid_t root = fork();
	int status;

	CHECK(root >= 0);
	if (!root) {
		fork_below(DEEP);
		_exit(0);
	}
	CHECK(waitpid(root, &status, 0) == root && !status);
	await_others();
}

static void undumpable(void)
{
	CHECK(!prctl(PR_SET_DUMPABLE, 0));
	ask_node();
	await_others();
}

static const struct mode {
	const char *name;
	void (*run)(void);
	int mounts; /* whether it mounts the file */
} modes[] = {
	{"buffer", buffer, 1}, {"path", path, 1}, {"file", file, 1}, {"killed", killed, 1}, {"served", served, 1},
	{"faults", faults_are_answered_by_who_asks, 0}, {"swapped", swapped, 0}, {"threads", threads, 0},
	{"forks", forks, 0}, {"undumpable", undumpable, 0}, {0},
}, *mode = modes;

static void mount_held_file(const char *path, enum how how)
{
	int pipe_ends[2];

	CHECK(!pipe(pipe_ends) && dup2(pipe_ends[0], 0) == 0);
	release_end = pipe_ends[1];
	CHECK(!fcntl(release_end, F_SETFD, FD_CLOEXEC) && !close(pipe_ends[0]));
	if (mode->run == served)
		before_answer = ask_node;
	hostile = held_file(path, kinds_of((char[]){"GETATTR,READ,WRITE"}), SECONDS, how, 0);
}

int main(int argc, char **argv)
{
	enum how how = AS_ROOT;
	unsigned major_number, minor_number;
	int option;

	while ((option = getopt(argc, argv, "u")) != -1)
		how = option == 'u' ? IN_USER_NAMESPACE : how;
	argv += optind, argc -= optind;
	CHECK(argc >= 4 && sscanf(argv[3], "%u:%u", &major_number, &minor_number) == 2);
	number = makedev(major_number, minor_number);
	while (mode->name && strcmp(mode->name, argv[0]))
		mode++;
	while (argc > 4 && call->name && strcmp(call->name, argv[4]))
		call++;
	for (kind = memories; argc > 5 && kind->name && strcmp(kind->name, argv[5]);)
		kind++;
	CHECK(mode->name && call->name && kind->name);
	node_path = argv[2];
	subject = node = open(node_path, O_RDONLY | O_CLOEXEC);
	CHECK(node >= 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	alarm(SECONDS);
	if (mode->mounts)
		mount_held_file(argv[1], how);
	start_other();
	mode->run();
	if (other)
		end_other();
	puts("ok");
	return 0;
}
