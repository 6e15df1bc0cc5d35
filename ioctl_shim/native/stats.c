/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers to caught stat calls: fstat(2), newfstatat and statx(2) with AT_EMPTY_PATH, and, with `run --stat-paths`,
 * stats by path (statpaths.c).  For the program an open node of the lab is a character device, and what an ioctl
 * gave it is an anonymous inode.  The FUSE file system below can only have regular files.  The kernel carries out
 * every other call, and every call on which something unexpected happens.
 *
 * Any thread, several at once.  The caller may hold up a call on a file of the lab, by its memory; the lock is
 * not held meanwhile.  Source: stat(2), statx(2), <linux/stat.h>, process_vm_writev(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "lane.h"
#include "takers.h"

#include "client.cdef"

/* Inodes that are remembered: a power of two.  An inode number is never used again, so none is forgotten but
 * for another one. */
#define SLOT_BITS 12
#define SLOTS (1u << SLOT_BITS)

struct node {
	uint64_t inode; /* 0: none, as no file has it */
	uint32_t kind, major, minor;
};

struct shim_stats {
	int listener;
	uint32_t major, minor; /* the device of the lab's file system */
	int by_path;           /* whether stats by path are answered, too */
	pthread_mutex_t lock;  /* of `nodes` */
	struct node nodes[SLOTS];
};

/* What a caught call asks for. */
struct question {
	int fd;
	uint64_t path; /* where its path is in the caller; 0 when it has none, or NULL */
	int flags;
	uint32_t mask;
	uint64_t to;
};

/* For the lab whose file system is on the device `major`:`minor`.  NULL: no memory.  There is no end to it but that of
 * the process. */
struct shim_stats *shim_stats_new(int listener, uint32_t major, uint32_t minor, int by_path)
{
	struct shim_stats *stats = calloc(1, sizeof(*stats));

	if (!stats)
		return NULL;
	stats->listener = listener;
	stats->major = major;
	stats->minor = minor;
	stats->by_path = by_path;
	pthread_mutex_init(&stats->lock, NULL);
	return stats;
}

/* ---- what an inode is ---- */

static struct node *slot(struct shim_stats *stats, uint64_t inode)
{
	return &stats->nodes[inode * 0x9e3779b97f4a7c15u >> (64 - SLOT_BITS)];
}

void shim_stats_learn(struct shim_stats *stats, uint64_t inode, uint32_t kind, uint32_t major, uint32_t minor)
{
	pthread_mutex_lock(&stats->lock);
	*slot(stats, inode) = (struct node){inode, kind, major, minor};
	pthread_mutex_unlock(&stats->lock);
}

static int known(struct shim_stats *stats, uint64_t inode, struct node *node)
{
	pthread_mutex_lock(&stats->lock);
	*node = *slot(stats, inode);
	pthread_mutex_unlock(&stats->lock);
	return node->inode == inode;
}

/* ---- the call ---- */

static int understand(const struct shim_seccomp_call *call, struct question *asked)
{
	const uint64_t *args = call->args;

	switch (call->nr) {
	case SYS_fstat:
		*asked = (struct question){(int)args[0], 0, AT_EMPTY_PATH, STATX_BASIC_STATS, args[1]};
		return 1;
	case SYS_newfstatat:
		*asked = (struct question){(int)args[0], args[1], (int)args[3], STATX_BASIC_STATS, args[2]};
		return 1;
	case SYS_statx:
		*asked = (struct question){(int)args[0], args[1], (int)args[2], (uint32_t)args[3], args[4]};
		return 1;
#ifdef SYS_stat
	case SYS_stat:
	case SYS_lstat:
		*asked = (struct question){AT_FDCWD, args[0], 0, STATX_BASIC_STATS, args[1]};
		asked->flags = call->nr == SYS_lstat ? AT_SYMLINK_NOFOLLOW : 0;
		return 1;
#endif
	}
	return 0;
}

/* Whether the answers to system call `nr` are here. */
int shim_stats_catches(int32_t nr)
{
	struct question asked;

	return understand(&(struct shim_seccomp_call){.nr = nr}, &asked);
}

/* Whether the call is about the descriptor itself.  The caller may hold this up. */
static int is_of_descriptor(const struct shim_seccomp_call *call, const struct question *asked)
{
	char first = 0;

	if (!(asked->flags & AT_EMPTY_PATH) || (asked->path && shim_peek(call->tid, asked->path, &first, 1)))
		return 0;
	return !first;
}

/*
 * Where in /proc the file is that the call asks for, if that may be a node; else 0.  *opened is a descriptor to close,
 * or -1.  The caller may hold this up if stats by path are answered.
 */
static int find_place(const struct shim_stats *stats, const struct shim_seccomp_call *call,
		      const struct question *asked, char place[48], int *opened)
{
	const struct stat_path path = {asked->fd, asked->path, !!(asked->flags & AT_SYMLINK_NOFOLLOW),
				       !!(asked->flags & AT_EMPTY_PATH)};
	int descriptor = asked->fd;

	*opened = -1;
	if (stats->by_path && asked->path)
		*opened = stat_path_open(call->tid, &path, stats->major, stats->minor, &descriptor);
	if (*opened >= 0)
		snprintf(place, 48, "/proc/self/fd/%d", *opened);
	else
		snprintf(place, 48, "/proc/%u/fd/%d", call->tid, descriptor);
	return *opened >= 0 || descriptor >= 0;
}

static int is_node(const struct shim_stats *stats, const struct statx *found)
{
	return found->stx_dev_major == stats->major && found->stx_dev_minor == stats->minor &&
	       S_ISREG(found->stx_mode) && found->stx_ino >> LANE_DEVICE_BIT & 1;
}

static struct timespec timespec_of(struct statx_timestamp from)
{
	return (struct timespec){.tv_sec = from.tv_sec, .tv_nsec = from.tv_nsec};
}

static struct stat stat_of(const struct statx *from)
{
	return (struct stat){
		.st_dev = makedev(from->stx_dev_major, from->stx_dev_minor),
		.st_ino = from->stx_ino,
		.st_mode = from->stx_mode,
		.st_nlink = from->stx_nlink,
		.st_uid = from->stx_uid,
		.st_gid = from->stx_gid,
		.st_rdev = makedev(from->stx_rdev_major, from->stx_rdev_minor),
		.st_size = (off_t)from->stx_size,
		.st_blksize = from->stx_blksize,
		.st_blocks = (blkcnt_t)from->stx_blocks,
		.st_atim = timespec_of(from->stx_atime),
		.st_mtim = timespec_of(from->stx_mtime),
		.st_ctim = timespec_of(from->stx_ctime),
	};
}

/* Write the answer into the caller.  The caller may hold this up. */
static int64_t tell(const struct shim_seccomp_call *call, const struct question *asked, const struct statx *answer)
{
	struct stat old;

	if (call->nr == SYS_statx)
		return shim_poke(call->tid, asked->to, answer, sizeof(*answer));
	old = stat_of(answer);
	return shim_poke(call->tid, asked->to, &old, sizeof(old));
}

/*
 * What the caller is told of `node`, which its descriptor at `place` was just now; -errno.  An anonymous inode
 * is that of our listener: all of the kernel's have the same.
 */
static int64_t describe(const struct shim_stats *stats, const char *place, const struct question *asked,
			const struct node *node, struct statx *answer)
{
	int flags = asked->flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);

	if (node->kind == NODE_ANONYMOUS)
		return statx(stats->listener, "", flags | AT_EMPTY_PATH, asked->mask, answer) < 0 ? -errno : 0;
	if (statx(AT_FDCWD, place, flags, asked->mask | STATX_TYPE | STATX_INO, answer) < 0)
		return -errno;
	if (!is_node(stats, answer) || answer->stx_ino != node->inode)
		return -EBADF;
	answer->stx_mode = (uint16_t)(S_IFCHR | (answer->stx_mode & ~S_IFMT));
	answer->stx_rdev_major = node->major;
	answer->stx_rdev_minor = node->minor;
	answer->stx_size = answer->stx_blocks = 0;
	return 0;
}

/*
 * What the call asks for: 0 with the answer, -errno if the kernel is to carry the call out, or the inode of a node
 * that is not known.  The first look at `place` asks no file system.
 */
static int64_t look(struct shim_stats *stats, const struct shim_seccomp_call *call, const struct question *asked,
		    const char *place, struct statx *answer)
{
	struct node node;

	if (statx(AT_FDCWD, place, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_INO, answer) < 0)
		return -errno;
	if (!is_node(stats, answer))
		return -ENODEV;
	if (!known(stats, answer->stx_ino, &node))
		return (int64_t)answer->stx_ino;
	if (node.kind == NODE_FILE)
		return -ENODEV;
	if (!(stats->by_path && asked->path) && !is_of_descriptor(call, asked))
		return -ENOTDIR;
	return describe(stats, place, asked, &node, answer);
}

/*
 * Answer a call, or let the kernel carry it out.  A caller that ends meanwhile is no failure.  Returns the inode
 * of a node if the call waits because that node is not known: then shim_stats_learn and this once more.  Else 0.
 *
 * The answer may wait for the lab's server, as the call itself would.
 */
uint64_t shim_stats_answer(struct shim_stats *stats, const struct shim_seccomp_call *call)
{
	struct question asked;
	struct statx answer;
	char place[48];
	int64_t seen, error;
	int opened;

	if (!understand(call, &asked) || !call->tid || !find_place(stats, call, &asked, place, &opened))
		goto proceed;
	seen = look(stats, call, &asked, place, &answer);
	if (opened >= 0)
		close(opened);
	if (seen > 0)
		return (uint64_t)seen;
	if (seen)
		goto proceed;
	if (shim_seccomp_valid(stats->listener, call->id))
		return 0; /* the thread's number may be another thread's by now */
	error = tell(call, &asked, &answer);
	if (error && error != -EFAULT)
		goto proceed;
	if (error)
		shim_seccomp_fail(stats->listener, call->id, EFAULT);
	else
		shim_seccomp_succeed(stats->listener, call->id, 0);
	return 0;
proceed:
	shim_seccomp_proceed(stats->listener, call->id);
	return 0;
}
