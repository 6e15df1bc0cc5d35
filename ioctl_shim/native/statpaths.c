/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which file a caught stat by path is about, if it may be a file of the lab.
 *
 * A path is resolved as the kernel would for the caller: from its root, its working directory or its descriptor,
 * in its mount namespace.  Each step may wait for the server of a file system, which may itself wait for an answer
 * of ours, so paths of strangers are left alone.  Looked at are only these:
 *
 * - paths that have "vfio" or "iommu" in them, and paths that begin in a directory of the lab;
 * - /dev/fd/N, /proc/self/fd/N and their like, which stand for a descriptor of the caller.
 *
 * Any thread; the caller may hold it up.  No state.  Source: openat2(2), path_resolution(7), setfsuid(2),
 * proc_pid_fd(5).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lane.h"
#include "takers.h"

enum { PAGE = 4096, PIECE = 256, MOST_DIGITS = 9 };

static uint64_t least(uint64_t one, uint64_t other)
{
	return one < other ? one : other;
}

/* The path at `vaddr` of the caller, with its NUL, which has PATH_MAX bytes of room.  -errno. */
static int64_t read_path(uint32_t tid, uint64_t vaddr, char *path)
{
	uint64_t got = 0;

	while (got < PATH_MAX) {
		uint64_t page = PAGE - (vaddr + got) % PAGE; /* no piece reaches into another page */
		uint64_t size = least(page, least(PIECE, PATH_MAX - got));
		int64_t error = shim_peek(tid, vaddr + got, path + got, size);

		if (error)
			return error;
		if (memchr(path + got, 0, size))
			return 0;
		got += size;
	}
	return -ENAMETOOLONG;
}

/* The number of the descriptor that a path stands for by its form; -1 for other paths. */
static int descriptor_in(const char *path)
{
	static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/", NULL};
	static const char *const names[] = {"/dev/stdin", "/dev/stdout", "/dev/stderr", NULL};

	for (int name = 0; names[name]; name++)
		if (!strcmp(path, names[name]))
			return name;
	for (int folder = 0; folders[folder]; folder++) {
		size_t length = strlen(folders[folder]), digits = strspn(path + strnlen(path, length), "0123456789");

		if (!strncmp(path, folders[folder], length) && digits && digits <= MOST_DIGITS && !path[length + digits])
			return atoi(path + length);
	}
	return -1;
}

/* Whether `place`, a link in /proc, leads to a file of the lab.  Asks no file system. */
static int is_of_lab(const char *place, uint32_t major, uint32_t minor)
{
	struct statx found;

	if (statx(AT_FDCWD, place, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE, &found) < 0)
		return 0;
	return found.stx_dev_major == major && found.stx_dev_minor == minor;
}

static int resolve(int from, const char *path, int nofollow, uint64_t how)
{
	struct open_how open = {.flags = O_PATH | O_CLOEXEC | (nofollow ? O_NOFOLLOW : 0), .resolve = how};

	return (int)syscall(SYS_openat2, from, path, &open, sizeof(open));
}

/*
 * A path below the directory `from` of the caller's.  A symlink with an absolute target would lead to our root, and
 * not to the caller's.  So there must be no symlink in it, or none that leaves the mount.
 */
static int resolve_below(int from, const char *path, int nofollow)
{
	int fd = resolve(from, path, nofollow, RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV);

	return fd >= 0 ? fd : resolve(from, path, nofollow, RESOLVE_NO_SYMLINKS);
}

/*
 * Directories let pass whom they let pass by the caller's user and group.  These two calls are about this thread
 * alone.  An unknown owner, which is that of a process that may not be traced, is root.
 */
static void act_as(uid_t uid, gid_t gid)
{
	syscall(SYS_setfsgid, gid);
	syscall(SYS_setfsuid, uid);
}

static int open_path(uint32_t tid, const struct stat_path *asked, const char *path, const char *base)
{
	char process[32], root[32];
	struct stat owner;
	int from, fd;

	snprintf(process, sizeof(process), "/proc/%u", tid);
	snprintf(root, sizeof(root), "/proc/%u/root", tid);
	if (stat(process, &owner) < 0)
		return -1;
	from = open(*path == '/' ? root : base, O_PATH | O_CLOEXEC);
	if (from < 0)
		return -1;
	act_as(owner.st_uid, owner.st_gid);
	if (*path == '/')
		fd = resolve(from, path, asked->nofollow, RESOLVE_IN_ROOT);
	else
		fd = resolve_below(from, path, asked->nofollow);
	act_as(geteuid(), getegid());
	close(from);
	return fd;
}

/*
 * Finds the file that a path of thread `tid` leads to.  Returns an O_PATH descriptor, or -1 for a file that need not
 * be looked at.  If the path stands for a descriptor of the caller, *descriptor is its number, and nothing is opened.
 */
int stat_path_open(uint32_t tid, const struct stat_path *asked, uint32_t major, uint32_t minor, int *descriptor)
{
	char path[PATH_MAX], base[48];

	*descriptor = -1;
	if (read_path(tid, asked->vaddr, path))
		return -1;
	if (!*path) {
		*descriptor = asked->may_be_empty ? asked->fd : -1;
		return -1;
	}
	if (*path == '/' && !asked->nofollow && (*descriptor = descriptor_in(path)) >= 0)
		return -1;
	if (asked->fd == AT_FDCWD)
		snprintf(base, sizeof(base), "/proc/%u/cwd", tid);
	else
		snprintf(base, sizeof(base), "/proc/%u/fd/%d", tid, asked->fd);
	if (!strstr(path, "vfio") && !strstr(path, "iommu") && (*path == '/' || !is_of_lab(base, major, minor)))
		return -1;
	return open_path(tid, asked, path, base);
}
