/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events for inotify(7) watchers.  The kernel makes them when a system call creates or removes a name, and FUSE
 * has no other way.  So a thread makes such calls on the mount, and the pump answers them as if the name were
 * just coming or going; it gives other processes the answers that are true.
 *
 * The thread has a table of files of its own: the kernel can end it at any time, because it does not keep
 * /dev/fuse open.  It works on a copy of the mount where it may make one, so that it keeps nobody from
 * unmounting.  It knows nothing of Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pump.h"

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define OPEN_TREE_COPY 1 /* OPEN_TREE_CLONE */

static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER; /* one call at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;    /* of what follows, but for `asked_by` */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static const struct lane_change *change; /* to be made; NULL when there is none */
static int result;
static int running;

/* The thread's id while it makes a change: its requests on the change's name are answered here.  The change is
 * constant meanwhile. */
static uint32_t asked_by;
static const struct lane_change *asked;
static int looked_up; /* whether the kernel has asked for the name */

static int is_own(const struct lane_change *own, const struct request *r, const char *name)
{
	return own->parent == r->header->nodeid && !strcmp(own->name, name);
}

int answer_watchers(const struct request *r)
{
	uint32_t tid = __atomic_load_n(&asked_by, __ATOMIC_ACQUIRE);
	const char *name = r->body;
	int made = r->header->opcode == FUSE_MKNOD;

	if (!tid || r->header->pid != tid)
		return 0;
	if (made)
		name += sizeof(struct fuse_mknod_in);
	else if (r->header->opcode != FUSE_LOOKUP && r->header->opcode != FUSE_UNLINK)
		return 0;
	if (!is_own(asked, r, name))
		return 0;
	if (r->header->opcode == FUSE_UNLINK)
		send_error(r->header->unique, 0);
	else if (made || asked->shown)
		send_entry(r, &asked->found);
	else
		send_error(r->header->unique, -ENOENT);
	if (r->header->opcode == FUSE_LOOKUP)
		__atomic_store_n(&looked_up, 1, __ATOMIC_RELEASE);
	return 1;
}

/* Does the system call in `directory`, an open one. */
static int call_in(int directory, const struct lane_change *made)
{
	int fd;

	switch (made->call) {
	case LANE_CREATE:
		return mknodat(directory, made->name, S_IFREG | 0600, 0);
	case LANE_UNLINK:
		return unlinkat(directory, made->name, 0);
	default:
		fd = openat(directory, made->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? fd : close(fd);
	}
}

static int open_root(const struct lane_change *made)
{
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, made->mountpoint, OPEN_TREE_COPY | O_CLOEXEC);
	struct stat root;

	if (fd < 0)
		fd = open(made->mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &root) || root.st_dev != made->st_dev)) {
		close(fd); /* another file system is mounted there now */
		errno = ENODEV;
		fd = -1;
	}
	return fd;
}

static int make(const struct lane_change *made)
{
	int root = open_root(made), directory, error = 0;

	if (root < 0)
		return -errno;
	directory = openat(root, made->directory, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (directory < 0) {
		error = -errno;
		close(root);
		return error;
	}
	asked = made;
	__atomic_store_n(&looked_up, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&asked_by, (uint32_t)gettid(), __ATOMIC_RELEASE);
	if (call_in(directory, made))
		error = -errno;
	__atomic_store_n(&asked_by, 0, __ATOMIC_RELEASE);
	close(directory);
	close(root);
	return error ? error : __atomic_load_n(&looked_up, __ATOMIC_ACQUIRE);
}

static void *work(void *unused)
{
	int ready = !unshare(CLONE_FILES) && !syscall(SYS_close_range, 0, ~0u, 0);

	prctl(PR_SET_NAME, "watchers");
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!change)
			pthread_cond_wait(&changed, &lock);
		const struct lane_change *made = change;
		pthread_mutex_unlock(&lock);
		int got = ready ? make(made) : -ENOSYS;
		pthread_mutex_lock(&lock);
		result = got;
		change = NULL;
		pthread_cond_broadcast(&changed);
	}
	return unused;
}

/* Starts the thread.  Returns 0 or a negative errno.  With `lock`. */
static int start(void)
{
	pthread_t thread;
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, NULL, work, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return -error;
	pthread_detach(thread);
	running = 1;
	return 0;
}

/* Makes a change and waits for it, for ever if somebody holds up the directory.  Returns 1 when the kernel has
 * asked for the name, 0 when it has not, or a negative errno.  Not on a pump. */
int lane_make_change(const struct lane_change *wanted)
{
	int got;

	pthread_mutex_lock(&calling);
	pthread_mutex_lock(&lock);
	got = running ? 0 : start();
	if (!got) {
		change = wanted;
		pthread_cond_broadcast(&changed);
		while (change)
			pthread_cond_wait(&changed, &lock);
		got = result;
	}
	pthread_mutex_unlock(&lock);
	pthread_mutex_unlock(&calling);
	return got;
}
