/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a descriptor is, by each system call that says it.
 *
 *   stats_client MODE PATH
 *
 * show     PATH by open(2), and by open(2) with O_PATH: a line of fstat, newfstatat and statx each
 * device   as show, of the device NAME of an open group file: PATH is GROUP:NAME
 * errors   each wrong call has the kernel's errno
 * vfork    a vfork(2) and a clone(2) child see the same as their parent
 * signals  right answers while signals arrive all the time
 * threads  right answers in many threads, of PATH and of other files
 * changing another thread puts another file under the number all the time: each answer is one of the two
 *
 * Says "ok" at the end; exits with 2 for another MODE.
 */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 16, ROUNDS = 300 };
static const char *path;
static struct stat expected;
static int fd, plain;

/* By the system call, whatever the C library makes of its functions. */
static long by_fstat(int of, struct stat *to) { return syscall(SYS_fstat, of, to); }
static long by_newfstatat(int of, struct stat *to) { return syscall(SYS_newfstatat, of, "", to, AT_EMPTY_PATH); }

static long by_statx(int of, struct stat *to)
{
	struct statx found = {0};
	long result = syscall(SYS_statx, of, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &found);

	memset(to, 0, sizeof(*to));
	to->st_mode = found.stx_mode, to->st_size = (off_t)found.stx_size, to->st_blocks = (blkcnt_t)found.stx_blocks;
	to->st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor), to->st_ino = found.stx_ino;
	to->st_dev = makedev(found.stx_dev_major, found.stx_dev_minor), to->st_nlink = found.stx_nlink;
	to->st_uid = found.stx_uid, to->st_gid = found.stx_gid, to->st_blksize = (blksize_t)found.stx_blksize;
	to->st_mtim.tv_sec = found.stx_mtime.tv_sec;
	if (!result)
		CHECK((found.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS);
	return result;
}

static const struct way {
	const char *name;
	long (*ask)(int of, struct stat *to);
} ways[] = {{"fstat", by_fstat}, {"newfstatat", by_newfstatat}, {"statx", by_statx}, {0}};

static void print(const char *name, const struct stat *found)
{
	printf("%s %o %u:%u %ld %ld %lu %u:%u %ld %lu\n", name, found->st_mode, major(found->st_rdev), minor(found->st_rdev),
	       (long)found->st_size, (long)found->st_blocks, (unsigned long)found->st_nlink, found->st_uid, found->st_gid,
	       (long)found->st_mtim.tv_sec, (unsigned long)found->st_ino);
}

static void show_fd(int of)
{
	struct stat found;

	for (const struct way *way = ways; way->name; way++) {
		CHECK(!way->ask(of, &found));
		print(way->name, &found);
	}
}

static void show(void)
{
	int alone = open(path, O_PATH);

	CHECK(alone >= 0);
	show_fd(fd);
	show_fd(alone);
}

static void device(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR);

	CHECK(!ioctl(fd, VFIO_GROUP_SET_CONTAINER, &container) && !ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	show_fd(ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, strchr(path, ':') + 1));
}

static void check_same(const struct stat *found)
{
	CHECK(found->st_mode == expected.st_mode && found->st_rdev == expected.st_rdev && found->st_ino == expected.st_ino);
}

static void check(void)
{
	struct stat found;

	for (const struct way *way = ways; way->name; way++) {
		CHECK(!way->ask(fd, &found));
		check_same(&found);
		CHECK(!way->ask(plain, &found) && S_ISDIR(found.st_mode));
	}
}

static void errors(void)
{
	struct stat found;
	struct statx wide;

	FAILS(syscall(SYS_fstat, fd, NULL), EFAULT);
	FAILS(syscall(SYS_fstat, fd, 1L << 60), EFAULT);
	FAILS(syscall(SYS_newfstatat, fd, "", NULL, AT_EMPTY_PATH), EFAULT);
	FAILS(syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, NULL), EFAULT);
	FAILS(syscall(SYS_fstat, -1, &found), EBADF);
	FAILS(syscall(SYS_fstat, 1000, &found), EBADF);
	FAILS(syscall(SYS_newfstatat, fd, "", &found, 0), ENOENT);
	FAILS(syscall(SYS_newfstatat, fd, "x", &found, AT_EMPTY_PATH), ENOTDIR);
	FAILS(syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX__RESERVED, &wide), EINVAL);
	FAILS(syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_SYNC_TYPE, STATX_BASIC_STATS, &wide), EINVAL);
	FAILS(syscall(SYS_newfstatat, fd, 1L << 60, &found, AT_EMPTY_PATH), EFAULT);
	CHECK(!syscall(SYS_newfstatat, AT_FDCWD, "", &found, AT_EMPTY_PATH) && S_ISDIR(found.st_mode));
}

static int in_child(void *unused)
{
	(void)unused;
	check();
	_exit(0);
}

static void expect_success(pid_t child)
{
	int status;

	CHECK(child > 0 && waitpid(child, &status, __WALL) == child && status == 0);
}

static void children(void)
{
	static char stack[1 << 16] __attribute__((aligned(16)));
	pid_t child = vfork();

	if (!child)
		in_child(NULL);
	expect_success(child);
	expect_success(clone(in_child, stack + sizeof(stack), CLONE_VM | CLONE_FILES | SIGCHLD, NULL));
}

static void tick(int number) { (void)number; }

static void signals(void)
{
	struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
	struct itimerval often = {{0, 100}, {0, 100}};

	CHECK(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &often, NULL));
	for (int i = 0; i < ROUNDS; i++)
		check();
}

static void *check_often(void *unused)
{
	for (int i = 0; i < ROUNDS; i++)
		check();
	return unused;
}

static void threads(void)
{
	pthread_t made[THREADS];

	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&made[i], NULL, check_often, NULL));
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(made[i], NULL));
}

static atomic_int ended;

static void *change(void *unused)
{
	int node = open(path, O_PATH), other = open("/", O_PATH);

	CHECK(node >= 0 && other >= 0);
	while (!ended)
		CHECK(dup2(other, fd) == fd && dup2(node, fd) == fd);
	return unused;
}

static void changing(void)
{
	struct stat found;
	pthread_t changer;

	CHECK(!pthread_create(&changer, NULL, change, NULL));
	for (int i = 0; i < ROUNDS; i++)
		for (const struct way *way = ways; way->name; way++) {
			CHECK(!way->ask(fd, &found));
			if (!S_ISDIR(found.st_mode) && !S_ISREG(found.st_mode)) /* a late answer is the kernel's */
				check_same(&found);
		}
	ended = 1;
	CHECK(!pthread_join(changer, NULL));
}

static const struct mode {
	const char *name;
	void (*act)(void);
} modes[] = {
	{"show", show}, {"device", device}, {"errors", errors}, {"vfork", children}, {"signals", signals},
	{"threads", threads}, {"changing", changing}, {0},
};

int main(int argc, char **argv)
{
	const struct mode *mode = modes;
	char file[256];

	while (mode->name && (argc != 3 || strcmp(mode->name, argv[1])))
		mode++;
	if (!mode->name)
		return 2;
	path = argv[2];
	snprintf(file, sizeof(file), "%s", path);
	file[strcspn(file, ":")] = 0;
	plain = open("/", O_RDONLY), fd = open(file, O_RDWR);
	CHECK(fd >= 0 && plain >= 0 && !by_fstat(fd, &expected));
	mode->act();
	puts("ok");
	return 0;
}
