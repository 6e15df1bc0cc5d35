/* SPDX-License-Identifier: Apache-2.0 */
/* The client's memory and descriptors: process_vm_readv(2), process_vm_writev(2), pidfd_getfd(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pump.h"

typedef ssize_t (*transfer)(pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long,
			    unsigned long);

/* A client's memory or descriptor is touched now: the client can make that take as long as it likes, and the
 * watchdog looks for it if this thread is the pump. */
static struct pump *enter_client(void)
{
	struct pump *pump = own_pump();

	if (pump)
		__atomic_store_n(&pump->in_client, 1, __ATOMIC_RELAXED);
	return pump;
}

static void leave_client(struct pump *pump)
{
	if (!pump)
		return;
	__atomic_store_n(&pump->in_client, 0, __ATOMIC_RELAXED);
	pump->was_held |= __atomic_load_n(&pump->state, __ATOMIC_RELAXED) == PUMP_RETIRED;
}

static int64_t move_all(transfer move, uint32_t tid, uint64_t vaddr, void *buf, uint64_t size)
{
	struct pump *pump = enter_client();
	uint64_t done = 0;
	int64_t error = 0;

	while (done < size && !error) {
		struct iovec local = {(char *)buf + done, size - done};
		struct iovec remote = {(void *)(uintptr_t)(vaddr + done), size - done};
		ssize_t moved = move((pid_t)tid, &local, 1, &remote, 1, 0);

		if (moved <= 0)
			error = moved < 0 ? -errno : -EFAULT;
		else
			done += (uint64_t)moved;
	}
	leave_client(pump);
	return error;
}

/* 0, or -EFAULT (not mapped for this access), -ESRCH (the thread has ended), -EPERM (no permission). */
int64_t shim_peek(uint32_t tid, uint64_t vaddr, void *buf, uint64_t size)
{
	return move_all(process_vm_readv, tid, vaddr, buf, size);
}

int64_t shim_poke(uint32_t tid, uint64_t vaddr, const void *buf, uint64_t size)
{
	return move_all(process_vm_writev, tid, vaddr, (void *)buf, size);
}

/* ---- descriptors ---- */

/* A kind of file that is borrowed: whether `path`, a link in /proc/<pid>/fd, leads to one.  1, 0 or -errno.
 * Neither asks the file system of the file, which may be one that never answers. */
typedef int is_kind(const char *path, uint64_t st_dev);

static int is_eventfd(const char *path, uint64_t st_dev)
{
	static const char eventfd[] = "anon_inode:[eventfd]";
	char target[sizeof(eventfd)];
	ssize_t size = readlink(path, target, sizeof(target));

	(void)st_dev;
	return size < 0 ? -errno : size == sizeof(eventfd) - 1 && !memcmp(target, eventfd, (size_t)size);
}

/* st_dev of the file that `path` leads to; 0 or -errno. */
static int look(const char *path, uint64_t *st_dev, uint16_t *mode)
{
	struct statx found;

	/* a mask of 0: st_dev alone, which even somebody else's FUSE mount does not refuse */
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, 0, &found) < 0)
		return -errno;
	*st_dev = makedev(found.stx_dev_major, found.stx_dev_minor);
	*mode = found.stx_mode; /* right on file systems that the kernel serves by itself */
	return 0;
}

static int is_on(const char *path, uint64_t st_dev)
{
	uint64_t found;
	uint16_t mode;
	int error = look(path, &found, &mode);

	return error ? error : found == st_dev;
}

static int is_regular_on(const char *path, uint64_t st_dev)
{
	uint64_t found;
	uint16_t mode;
	int error = look(path, &found, &mode);

	return error ? error : found == st_dev && S_ISREG(mode);
}

#define MOST_LOST 64 /* threads that may be lost in close(2) */
static int lost;

static void *close_it(void *fd)
{
	prctl(PR_SET_NAME, "lost-close");
	close((int)(intptr_t)fd);
	__atomic_sub_fetch(&lost, 1, __ATOMIC_ACQ_REL);
	return NULL;
}

/* Closes a descriptor whose file system may never let close(2) return, on a thread that may be lost.  When too
 * many are lost already, the descriptor stays open. */
void shim_close_stranger(int fd)
{
	sigset_t all, before;
	pthread_t thread;
	int started = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (__atomic_add_fetch(&lost, 1, __ATOMIC_ACQ_REL) <= MOST_LOST)
		started = !pthread_create(&thread, NULL, close_it, (void *)(intptr_t)fd);
	if (started)
		pthread_detach(thread);
	else
		__atomic_sub_fetch(&lost, 1, __ATOMIC_ACQ_REL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Whether descriptor `fd` of thread `tid` is one that only names a file (O_PATH): neither readable nor writable,
 * as the mode of its link shows.  (fdinfo would tell, but an epoll's waits for a lock of its client.) */
static int only_names(const char *path)
{
	struct stat link;

	return !lstat(path, &link) && !(link.st_mode & (S_IRUSR | S_IWUSR));
}

/* A copy of descriptor `fd` of thread `tid`, if it is of a kind.  The client may put another file there
 * meanwhile, so the copy is looked at again. */
static int borrow(int pidfd, uint32_t tid, int fd, is_kind *kind, uint64_t st_dev)
{
	char path[64];
	int is, copy;

	snprintf(path, sizeof(path), "/proc/%u/fd/%d", tid, fd);
	is = kind(path, st_dev);
	if (is < 0)
		return is == -ENOENT ? -EBADF : is;
	if (!is)
		return only_names(path) ? -EBADF : -EINVAL;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (copy < 0)
		return -errno;
	if (fcntl(copy, F_GETFL) & O_PATH) {
		close(copy); /* no file system hears of it */
		return -EBADF;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	if (kind(path, st_dev) == 1)
		return copy;
	shim_close_stranger(copy);
	return -EINVAL;
}

static int borrow_of_client(int pidfd, uint32_t tid, int fd, is_kind *kind, uint64_t st_dev)
{
	struct pump *pump = enter_client();
	int copy = borrow(pidfd, tid, fd, kind, st_dev);

	leave_client(pump);
	return copy;
}

/* A copy of the thread's descriptor `fd`, which is an eventfd: its number, -EBADF for no descriptor or one that
 * only names a file, -EINVAL for another kind of file, -EPERM. */
int shim_borrow_eventfd(int pidfd, uint32_t tid, int fd)
{
	return borrow_of_client(pidfd, tid, fd, is_eventfd, 0);
}

/* The same for a file of the mount `st_dev`. */
int shim_borrow_file(int pidfd, uint32_t tid, int fd, uint64_t st_dev)
{
	return borrow_of_client(pidfd, tid, fd, is_on, st_dev);
}

/* The same for a regular file on a file system, `st_dev`, that the kernel serves by itself. */
int shim_borrow_regular(int pidfd, uint32_t tid, int fd, uint64_t st_dev)
{
	return borrow_of_client(pidfd, tid, fd, is_regular_on, st_dev);
}

/* st_dev of the file behind descriptor `fd` of the thread. 0, or -EBADF. Asks no file system. */
int shim_device_of(uint32_t tid, int fd, uint64_t *st_dev)
{
	char path[64];
	uint16_t mode;
	int error;

	snprintf(path, sizeof(path), "/proc/%u/fd/%d", tid, fd);
	error = look(path, st_dev, &mode);
	return error == -ENOENT ? -EBADF : error;
}

/* Whether `tid` is the first thread of a process, by whose number the process is known. */
int shim_leads_process(uint32_t tid)
{
	return !syscall(SYS_tgkill, tid, tid, 0) || errno == EPERM;
}

int shim_pidfd_getfd(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
}
