/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container docker|podman [sys_admin] [sys_ptrace] [fuse] [no_new_privs] [without-CALL]... -- CMD ARG...: runs CMD with the
 * limits that a container engine sets by default: namespaces, a small /dev, a read-only /sys, masked parts of /proc, capabilities
 * and a filter of system calls. The files are those of the machine.
 *
 * `docker` has the filter of Docker and of Kubernetes' RuntimeDefault, `podman` that of Podman. `sys_admin` and `sys_ptrace`
 * are --cap-add of these, `fuse` is --device /dev/fuse. `without-mount` refuses mount(2), as a stricter profile does. Root's container is in root's user namespace, that of another user in
 * one of its own. A step that fails is one line on stderr and status 99.
 *
 * Source: moby's profiles/seccomp/default.json, Podman's seccomp.json, the OCI runtime specification; seccomp(2),
 * capabilities(7), mount_namespaces(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NEW_NAMESPACES 0x7e020000 /* the CLONE_NEW* that clone(2) may not have without CAP_SYS_ADMIN */

/* the calls that Docker allows with CAP_SYS_ADMIN only */
static const int of_admin[] = {
	SYS_mount, SYS_umount2, SYS_unshare, SYS_setns, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount,
	SYS_fspick, SYS_mount_setattr, SYS_bpf, SYS_perf_event_open, SYS_quotactl, SYS_sethostname, SYS_setdomainname,
};
/* with CAP_SYS_PTRACE only */
static const int of_ptrace[] = { SYS_kcmp, SYS_pidfd_getfd, SYS_process_madvise };
/* with neither */
static const int of_nobody[] = {
	SYS_pivot_root, SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key, SYS_reboot, SYS_swapon, SYS_swapoff,
	SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_move_pages, SYS_migrate_pages,
};
/* CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
   AUDIT_WRITE, SETFCAP */
static const int capabilities[] = { 0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31 };
static const char *const nodes[] = { "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "fuse" };

/* the calls that can be refused by name */
static const struct {
	const char *name;
	int number;
} named[] = {
	{ "without-mount", SYS_mount },		{ "without-open_tree", SYS_open_tree },
	{ "without-move_mount", SYS_move_mount }, { "without-process_vm_readv", SYS_process_vm_readv },
	{ "without-seccomp", SYS_seccomp },
};

static struct {
	int refused[COUNT(named)];
	size_t refused_count;
	int podman, sys_admin, sys_ptrace, fuse, no_new_privs;
} options;

static void fail(const char *format, ...)
{
	int error = errno;
	va_list words;

	va_start(words, format);
	fputs("container: ", stderr);
	vfprintf(stderr, format, words);
	va_end(words);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(99);
}

static void store(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("%s", path);
	close(fd);
}

static void enter_namespaces(void)
{
	unsigned int uid = geteuid(), gid = getegid();
	char map[64];

	if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (uid ? CLONE_NEWUSER : 0)))
		fail("unshare");
	if (uid) {
		store("/proc/self/setgroups", "deny");
		snprintf(map, sizeof(map), "0 %u 1", uid);
		store("/proc/self/uid_map", map);
		snprintf(map, sizeof(map), "0 %u 1", gid);
		store("/proc/self/gid_map", map);
	}
	if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL))
		fail("mount /");
}

static void make_dev(void)
{
	int fds[COUNT(nodes)];
	char from[64], to[64];
	struct stat found;

	for (size_t i = 0; i < COUNT(nodes); i++) {
		snprintf(from, sizeof(from), "/dev/%s", nodes[i]);
		fds[i] = strcmp(nodes[i], "fuse") || options.fuse ? open(from, O_PATH | O_CLOEXEC) : -1;
	}
	if (mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=65536k"))
		fail("mount /dev");
	for (size_t i = 0; i < COUNT(nodes); i++) {
		if (fds[i] < 0 || fstat(fds[i], &found))
			continue;
		snprintf(from, sizeof(from), "/proc/self/fd/%d", fds[i]);
		snprintf(to, sizeof(to), "/dev/%s", nodes[i]);
		if (S_ISDIR(found.st_mode) ? mkdir(to, 0755) : close(open(to, O_CREAT | O_WRONLY, 0644)))
			fail("make %s", to);
		if (mount(from, to, NULL, MS_BIND, NULL))
			fail("mount %s", to);
	}
	if (mkdir("/dev/shm", 01777) || mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777") ||
	    symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/2", "/dev/stderr"))
		fail("/dev");
}

static void make_read_only(const char *path)
{
	if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) ||
	    mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		fail("read-only %s", path);
}

static void mask(const char *path)
{
	if (!access(path, F_OK) && mount("/dev/null", path, NULL, MS_BIND, NULL))
		fail("mask %s", path);
}

static void add(struct sock_fprog *program, struct sock_filter row)
{
	program->filter[program->len++] = row;
}

static void refuse(struct sock_fprog *program, const int *calls, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)calls[i], 0, 1));
		add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
	}
}

static void install_filter(void)
{
	struct sock_filter rows[256];
	struct sock_fprog program = { .len = 0, .filter = rows };

	add(&program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
	refuse(&program, options.refused, options.refused_count);
	refuse(&program, of_nobody + options.podman, COUNT(of_nobody) - (size_t)options.podman); /* Podman has pivot_root(2) */
	if (!options.sys_ptrace) /* Podman refuses kcmp(2) alone */
		refuse(&program, of_ptrace, options.podman ? 1 : COUNT(of_ptrace));
	if (!options.sys_admin && !options.podman) {
		refuse(&program, of_admin, COUNT(of_admin));
		add(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
		add(&program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
		add(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
		add(&program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])));
		add(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NEW_NAMESPACES, 0, 1));
		add(&program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
	}
	add(&program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	if (options.no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("no_new_privs");
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		fail("seccomp");
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 }, { 0 } };
	unsigned long long keep = 0, have;

	for (size_t i = 0; i < COUNT(capabilities); i++)
		keep |= 1ull << capabilities[i];
	keep |= options.sys_admin ? 1ull << CAP_SYS_ADMIN : 0;
	keep |= options.sys_ptrace ? 1ull << CAP_SYS_PTRACE : 0;
	for (int number = 0; number < 64; number++)
		if (!(keep >> number & 1) && prctl(PR_CAPBSET_DROP, number, 0, 0, 0) && errno != EINVAL)
			fail("drop capability %d", number);
	if (syscall(SYS_capget, &header, data))
		fail("capget");
	have = keep & (data[0].permitted | (unsigned long long)data[1].permitted << 32);
	data[0] = (struct __user_cap_data_struct){ .effective = (unsigned int)have, .permitted = (unsigned int)have };
	data[1] = (struct __user_cap_data_struct){ .effective = have >> 32, .permitted = have >> 32 };
	if (syscall(SYS_capset, &header, data))
		fail("capset");
}

static int is(const char *word, const char *name, int *flag)
{
	*flag |= !strcmp(word, name);
	return !strcmp(word, name);
}

static int is_without(const char *word)
{
	for (size_t i = 0; i < COUNT(named); i++)
		if (!strcmp(word, named[i].name) && options.refused_count < COUNT(named)) {
			options.refused[options.refused_count++] = named[i].number;
			return 1;
		}
	return 0;
}

int main(int argc, char **argv)
{
	int at = 1, docker = 0;

	for (; at < argc && strcmp(argv[at], "--"); at++)
		if (!is(argv[at], "docker", &docker) && !is(argv[at], "podman", &options.podman) &&
		    !is(argv[at], "sys_admin", &options.sys_admin) && !is(argv[at], "sys_ptrace", &options.sys_ptrace) &&
		    !is(argv[at], "fuse", &options.fuse) && !is(argv[at], "no_new_privs", &options.no_new_privs) &&
		    !is_without(argv[at]))
			break;
	if (at + 1 >= argc || strcmp(argv[at], "--") || docker == options.podman) {
		fputs("container: bad arguments\n", stderr);
		return 99;
	}
	enter_namespaces();
	make_dev();
	make_read_only("/sys");
	make_read_only("/proc/sys");
	mask("/proc/keys");
	mask("/proc/timer_list");
	install_filter();
	drop_capabilities();
	execvp(argv[at + 1], argv + at + 1);
	fail("%s", argv[at + 1]);
	return 99;
}
