/* SPDX-License-Identifier: Apache-2.0 */
/* The seccomp filter that stops on some ioctl numbers, and its listener.  seccomp_unotify(2), seccomp(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "seccomp.h"

#if defined(__x86_64__) && defined(__LP64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#endif

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV /* Linux 5.19 */
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

/* Bytes of room for the structures of newer kernels.  A kernel says how large they are, and refuses a smaller
 * buffer. */
#define NOTIF_ROOM 512

/* Of an argument, the low half: both architectures are little-endian. */
#define LOAD(field) ((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field)))
#define UNLESS_EQUAL_SKIP(value, skip) \
	((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, (skip)))
#define IF_EQUAL_SKIP(value, skip) ((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (skip), 0))
#define UNLESS_FLAG_SKIP(flag, skip) ((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (flag), 0, (skip)))
#define RETURN(action) ((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (action)))

#define MAX_STATEMENTS (32 + 2 * MAX_TRAPPED)

static int sizes_fit(void)
{
	struct seccomp_notif_sizes sizes;

	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0)
		return -errno;
	return sizes.seccomp_notif <= NOTIF_ROOM && sizes.seccomp_notif_resp <= NOTIF_ROOM ? 0 : -E2BIG;
}

static int load(const struct sock_fprog *program, unsigned long flags)
{
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
}

/*
 * Only a fatal signal may interrupt a call that has been received.  After any other signal the kernel would
 * restart the call, and the device would be opened twice (a Go runtime preempts by signals all the time).
 * Linux before 5.19 has no flag for this, and returns EINVAL.
 */
static int load_killable(const struct sock_fprog *program)
{
	int listener = load(program, SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);

	if (listener < 0 && errno == EINVAL)
		listener = load(program, SECCOMP_FILTER_FLAG_NEW_LISTENER);
	return listener;
}

#ifdef OUR_ARCH
/* A filter in the making. */
struct filter {
	unsigned short count;
	struct sock_filter code[MAX_STATEMENTS];
};

static void add(struct filter *filter, struct sock_filter statement)
{
	filter->code[filter->count++] = statement;
}

/* Stop on system call `nr`; its number is loaded. */
static void stop_on(struct filter *filter, int nr)
{
	add(filter, UNLESS_EQUAL_SKIP(nr, 1));
	add(filter, RETURN(SECCOMP_RET_USER_NOTIF));
}

/* Stop on system call `nr` if its argument at `flags` has AT_EMPTY_PATH; its number is loaded. */
static void stop_on_descriptor(struct filter *filter, int nr, struct sock_filter load_flags)
{
	add(filter, UNLESS_EQUAL_SKIP(nr, 4));
	add(filter, load_flags);
	add(filter, UNLESS_FLAG_SKIP(AT_EMPTY_PATH, 1));
	add(filter, RETURN(SECCOMP_RET_USER_NOTIF));
	add(filter, RETURN(SECCOMP_RET_ALLOW));
}

/* Stop on every other stat. */
static void stop_on_paths(struct filter *filter)
{
	stop_on(filter, SYS_newfstatat);
	stop_on(filter, SYS_statx);
#ifdef SYS_stat
	stop_on(filter, SYS_stat);
	stop_on(filter, SYS_lstat);
#endif
}

/*
 * Beyond these rows only the architecture and the number of a system call decide: the kernel sees that when the
 * filter is loaded, and does not run it for those calls.
 */
static void build(struct filter *filter, const uint32_t *cmds, int count, int stat_paths)
{
	int row;

	add(filter, LOAD(arch));
	add(filter, IF_EQUAL_SKIP(OUR_ARCH, 1));
	add(filter, RETURN(SECCOMP_RET_ALLOW));
	add(filter, LOAD(nr));
	stop_on(filter, SYS_fstat);
	if (stat_paths) {
		stop_on_paths(filter);
	} else {
		stop_on_descriptor(filter, SYS_newfstatat, LOAD(args[3]));
		stop_on_descriptor(filter, SYS_statx, LOAD(args[2]));
	}
	add(filter, UNLESS_EQUAL_SKIP(SYS_ioctl, (uint8_t)(2 * count + 1)));
	add(filter, LOAD(args[1])); /* only the low half of an ioctl's number counts, as for the kernel */
	for (row = 0; row < count; row++)
		stop_on(filter, (int)cmds[row]);
	add(filter, RETURN(SECCOMP_RET_ALLOW));
}

/*
 * Filter the calling thread and all it will start; the listener is close-on-exec.  It stops on ioctls with one of
 * `count` numbers, and on stats of descriptors, or with `stat_paths` on each stat.  Calls of other architectures
 * (32-bit programs, x32) are not caught. NO_NEW_PRIVS disables sudo in the client, so it is set only without
 * CAP_SYS_ADMIN, when the kernel demands it.
 * -EBUSY: this process already runs under a filter with a listener, and the kernel allows one.
 * -EOPNOTSUPP: the system call numbers of this architecture are not known here.
 */
int shim_seccomp_install(const uint32_t *cmds, int count, int stat_paths)
{
	struct filter filter = {0};
	int listener = sizes_fit();

	if (listener < 0)
		return listener;
	if (count < 0 || count > MAX_TRAPPED)
		return -E2BIG;
	build(&filter, cmds, count, stat_paths);
	const struct sock_fprog program = {filter.count, filter.code};

	listener = load_killable(&program);
	if (listener < 0 && errno == EACCES && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
		listener = load_killable(&program);
	return listener < 0 ? -errno : listener;
}
#else
int shim_seccomp_install(const uint32_t *cmds, int count, int stat_paths)
{
	(void)cmds;
	(void)count;
	(void)stat_paths;
	(void)load_killable;
	(void)sizes_fit;
	return -EOPNOTSUPP;
}
#endif

/* Has the kernel run the other side on this processor at once when it is woken: each sleeps while the other
 * runs.  An older kernel refuses. */
int shim_seccomp_wake_here(int listener)
{
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP) < 0 ? -errno : 0;
}

/*
 * The file at `path`, or behind `fd` when `path` is empty.  Unless `ask` is set, a file system that is served
 * by a process is not asked: its server might never answer.
 */
int shim_file_id(int fd, const char *path, int ask, struct shim_file_id *id)
{
	int flags = AT_EMPTY_PATH | AT_NO_AUTOMOUNT | (ask ? AT_STATX_FORCE_SYNC : AT_STATX_DONT_SYNC);
	struct statx found;

	if (statx(fd, path, flags, STATX_INO, &found) < 0)
		return -errno;
	*id = (struct shim_file_id){.inode = found.stx_ino, .major = found.stx_dev_major, .minor = found.stx_dev_minor};
	return 0;
}

/* Blocks until there is a call.  -ENOENT: the calling thread ended before the call was received. */
int shim_seccomp_receive(int listener, struct shim_seccomp_call *call)
{
	union {
		struct seccomp_notif notif;
		char room[NOTIF_ROOM];
	} in;
	int got;

	do {
		memset(&in, 0, sizeof(in)); /* the kernel refuses anything else */
		got = ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &in.notif);
	} while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	*call = (struct shim_seccomp_call){
		.id = in.notif.id,
		.tid = in.notif.pid,
		.nr = in.notif.data.nr,
	};
	memcpy(call->args, in.notif.data.args, sizeof(call->args));
	return 0;
}

/* -ENOENT: the caller has ended, and another thread may have its number already. */
int shim_seccomp_valid(int listener, uint64_t id)
{
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) < 0 ? -errno : 0;
}

static int respond(int listener, uint64_t id, int32_t value, int32_t error, uint32_t flags)
{
	union {
		struct seccomp_notif_resp resp;
		char room[NOTIF_ROOM];
	} out;

	memset(&out, 0, sizeof(out));
	out.resp.id = id;
	out.resp.val = value;
	out.resp.error = -error;
	out.resp.flags = flags;
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &out.resp) < 0 ? -errno : 0;
}

/* Let the kernel carry out the call as if there were no filter. */
int shim_seccomp_proceed(int listener, uint64_t id)
{
	return respond(listener, id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

int shim_seccomp_fail(int listener, uint64_t id, int32_t error)
{
	return respond(listener, id, 0, error, 0);
}

int shim_seccomp_succeed(int listener, uint64_t id, int value)
{
	return respond(listener, id, value, 0, 0);
}

/*
 * Put a close-on-exec duplicate of our `fd` into the caller; returns its number there.
 * SECCOMP_ADDFD_FLAG_SEND is not used, because the caller would run on while we still hold the file, and
 * could find it busy.
 */
int shim_seccomp_install_fd(int listener, uint64_t id, int fd)
{
	struct seccomp_notif_addfd add = {
		.id = id,
		.srcfd = (uint32_t)fd,
		.newfd_flags = O_CLOEXEC,
	};
	int number;

	do {
		number = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
	} while (number < 0 && errno == EINTR);
	return number < 0 ? -errno : number;
}
