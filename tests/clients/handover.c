/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose device VFIO_GROUP_GET_DEVICE_FD gives under `vfsfuse run`, and who may hold it up:
 *
 *   handover GROUP NAME MODE [MEMORY]
 *
 * path      the group is open elsewhere: a descriptor that was opened with O_PATH is EBADF
 * sent      a process that opened nothing gets the group by SCM_RIGHTS, and the device by it
 * forked    a child has its parent's group
 * reused    the group's number is closed, or is another file's
 * dropped   a group without IOMMU, before and after CAP_SYS_RAWIO is given up
 * after     says "ready", waits for a line on stdin: then nobody answers the call any more
 * held      the name is in memory that says "held" when it is read, and shows the name once stdin has a line
 * swapped   the same, and meanwhile the group's number becomes that of a stranger's file
 * stranger  the call on a stranger's file
 *
 * A stranger's file is on a FUSE mount whose server answers no GETATTR, and FLUSH to this process alone.
 * MEMORY of "held" and "swapped" is "fuse", a mapping of such a file, or "userfaultfd".
 * Says "ok" at the end; exits with 77 when the kernel does not allow userfaultfd.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static int container, group;
static const char *number, *name, *memory;
static pid_t server; /* of the stranger's file */

static void end(int status)
{
	if (server > 0)
		kill(server, SIGKILL);
	_exit(status);
}

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s (errno %d, %s)\n", __LINE__, #what, errno, strerror(errno)); \
			end(1); \
		} \
	} while (0)
#define FAILS(call, error) CHECK((errno = 0, (call) == -1) && errno == (error))

static int get(int fd, const void *string)
{
	return ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, string);
}

static void good(int fd, const void *string)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};
	int device = get(fd, string);

	CHECK(device >= 0 && !ioctl(device, VFIO_DEVICE_GET_INFO, &info) && !close(device));
}

static int open_group(int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", number);
	return open(path, flags | O_CLOEXEC);
}

static void join(int iommu)
{
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), group = open_group(O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) && !ioctl(container, VFIO_SET_IOMMU, iommu));
}

static void path(void)
{
	int fd = open_group(O_PATH);

	FAILS(open_group(O_RDWR), EBUSY);
	CHECK(fd >= 0);
	FAILS(get(fd, name), EBADF);
	FAILS(get(fd, NULL), EBADF);
}

static void expect_child(pid_t child)
{
	int status;

	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status);
}

static void forked(void)
{
	join(VFIO_TYPE1v2_IOMMU);
	pid_t child = fork();
	if (!child) {
		good(group, name);
		end(0);
	}
	expect_child(child);
	good(group, name);
}

static void sent(void)
{
	union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control = {0};
	char byte = 'x';
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int ends[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	pid_t child = fork(); /* before anything is open */
	if (!child) {
		CHECK(recvmsg(ends[1], &message, 0) == 1);
		memcpy(&group, CMSG_DATA(&control.head), sizeof(group));
		good(group, name);
		end(0);
	}
	join(VFIO_TYPE1v2_IOMMU);
	control.head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.head), &group, sizeof(group));
	CHECK(sendmsg(ends[0], &message, 0) == 1);
	expect_child(child);
}

static void reused(void)
{
	static const struct { const char *path; int flags, error; } others[] = {
		{"/dev/null", O_RDONLY, ENOTTY},
		{"/sys/bus/mdev/drivers_probe", O_WRONLY, ENOTTY},
		{"/sys/bus", O_RDONLY, ENOTTY},
		{"/dev/vfio/vfio", O_RDONLY, EINVAL}, /* a container without IOMMU */
	};

	join(VFIO_TYPE1v2_IOMMU);
	good(group, name);
	int kept = dup(group), old = group;
	CHECK(kept >= 0 && !close(old));
	FAILS(get(old, name), EBADF);
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
		int other = open(others[i].path, others[i].flags);
		CHECK(other == old);
		FAILS(get(old, name), others[i].error);
		FAILS(get(old, NULL), others[i].error);
		CHECK(!close(old));
	}
	int device = get(kept, name);
	CHECK(device == old);
	FAILS(get(device, name), ENOTTY);
	CHECK(!close(device) && dup2(kept, old) == old);
	good(old, name);
}

static void dropped(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];

	join(VFIO_NOIOMMU_IOMMU);
	good(group, name);
	CHECK(!syscall(SYS_capget, &head, sets));
	sets[0].effective &= ~(1u << CAP_SYS_RAWIO), sets[0].permitted &= ~(1u << CAP_SYS_RAWIO);
	CHECK(!syscall(SYS_capset, &head, sets));
	FAILS(get(group, name), EPERM);
}

static void wait_for_line(void)
{
	char byte;

	while (read(0, &byte, 1) == 1 && byte != '\n')
		;
}

static void after(void)
{
	join(VFIO_TYPE1v2_IOMMU);
	good(group, name);
	puts("ready");
	wait_for_line();
	FAILS(get(group, name), EOPNOTSUPP);
}

/* The stranger: a FUSE mount of one file, and its server, a process of its own. */

static int fuse;
static int held[2];   /* says that the page of the name is read */
static int shown[2];  /* the page may be shown */

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
	static char out[2 * PAGE];
	struct fuse_out_header head = {sizeof(head) + size, error, unique};

	memcpy(out, &head, sizeof(head));
	if (size)
		memcpy(out + sizeof(head), data, size);
	CHECK(write(fuse, out, head.len) == (ssize_t)head.len || errno == ENOENT);
}

static void show_page(void *page)
{
	char byte = 0;

	memset(page, 0, PAGE);
	strcpy(page, name);
	CHECK(write(held[1], &byte, 1) == 1 && read(shown[0], &byte, 1) == 1);
}

static void answer(const struct fuse_in_header *head)
{
	static char page[PAGE];
	static int stats;
	struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = PAGE, .max_background = 8};
	struct fuse_attr_out attr = {.attr = {.ino = 1, .mode = S_IFREG | 0666, .nlink = 1, .size = PAGE}};
	struct fuse_open_out open = {0};

	switch (head->opcode) {
	case FUSE_INIT:
		return reply(head->unique, 0, &init, sizeof(init));
	case FUSE_GETATTR: /* of our own fstat(2), by which the kernel knows the size */
		return !stats++ ? reply(head->unique, 0, &attr, sizeof(attr)) : (void)0;
	case FUSE_OPEN:
		return reply(head->unique, 0, &open, sizeof(open));
	case FUSE_READ:
		show_page(page);
		return reply(head->unique, 0, page, sizeof(page));
	case FUSE_IOCTL:
		return reply(head->unique, -ENOTTY, NULL, 0);
	case FUSE_FLUSH: /* at our own end */
		return syscall(SYS_tgkill, getppid(), head->pid, 0) ? (void)0 : reply(head->unique, 0, NULL, 0);
	default:
		return;
	}
}

static void serve_fuse(void)
{
	static char in[1 << 17];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(fuse, in, sizeof(in)) > 0 || errno == EINTR)
		answer((void *)in);
	_exit(0);
}

static int open_stranger(void)
{
	static char file[] = "/tmp/handover-XXXXXX";
	char options[128];
	struct stat found;
	int place = mkstemp(file), fd;

	CHECK(place >= 0 && !close(place));
	CHECK(!unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	CHECK(fuse >= 0);
	snprintf(options, sizeof(options), "fd=%d,rootmode=100000,user_id=0,group_id=0", fuse);
	CHECK(!mount("stranger", file, "fuse", MS_NOSUID | MS_NODEV, options));
	CHECK(!pipe(held) && !pipe(shown));
	server = fork();
	if (!server)
		serve_fuse();
	CHECK(server > 0 && !close(fuse));
	fd = open(file, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && !fstat(fd, &found) && found.st_size == PAGE);
	CHECK(!umount2(file, MNT_DETACH) && !unlink(file));
	return fd;
}

static void stranger(void)
{
	int fd = open_stranger();

	join(VFIO_TYPE1v2_IOMMU);
	FAILS(get(fd, name), ENOTTY);
	good(group, name);
}

static int faults;

static void *serve_faults(void *at)
{
	static char page[PAGE];
	struct uffd_msg message;
	struct uffdio_copy copy = {.dst = (uintptr_t)at, .src = (uintptr_t)page, .len = PAGE};

	CHECK(read(faults, &message, sizeof(message)) == sizeof(message));
	show_page(page);
	CHECK(!ioctl(faults, UFFDIO_COPY, &copy));
	return at;
}

static void *faulting_page(void)
{
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register where = {{(uintptr_t)at, PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
	pthread_t thread;

	faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (faults < 0)
		end(77);
	CHECK(!ioctl(faults, UFFDIO_API, &api) && !ioctl(faults, UFFDIO_REGISTER, &where));
	CHECK(!pthread_create(&thread, NULL, serve_faults, at));
	return at;
}

struct call {
	const void *string;
	int result, error;
};

static void *make_call(void *data)
{
	struct call *call = data;

	call->result = get(group, call->string);
	call->error = errno;
	return data;
}

static int foreign; /* the stranger's file */

/* A page that will hold the name. */
static const void *held_page(void)
{
	const void *page;

	foreign = open_stranger();
	if (strcmp(memory, "fuse"))
		return faulting_page();
	page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, foreign, 0);
	CHECK(page != MAP_FAILED);
	return page;
}

/* The call whose name is in held memory; `meanwhile` is done while it is held. */
static struct call call_held(const void *string, void (*meanwhile)(void))
{
	struct call call = {.string = string};
	pthread_t thread;
	char byte;

	CHECK(!pthread_create(&thread, NULL, make_call, &call));
	CHECK(read(held[0], &byte, 1) == 1);
	meanwhile();
	CHECK(write(shown[1], &byte, 1) == 1 && !pthread_join(thread, NULL));
	return call;
}

static void say_held(void)
{
	puts("held");
	wait_for_line();
}

static void held_up(void)
{
	join(VFIO_TYPE1v2_IOMMU);
	const void *page = held_page();

	CHECK(!close(foreign)); /* killed while it is held, we could not end: nobody would answer FLUSH */
	struct call call = call_held(page, say_held);
	errno = call.error;
	CHECK(call.result >= 0);
	good(group, name);
}

static int kept;

static void swap(void)
{
	kept = dup(group);
	CHECK(kept >= 0 && dup2(foreign, group) == group);
}

static void swapped(void)
{
	join(VFIO_TYPE1v2_IOMMU);
	struct call call = call_held(held_page(), swap);
	errno = call.error;
	CHECK(call.result == -1 && call.error == ENOTTY);
	good(kept, name);
}

static const struct mode {
	const char *name;
	void (*act)(void);
} modes[] = {
	{"path", path}, {"sent", sent}, {"forked", forked}, {"reused", reused}, {"dropped", dropped}, {"after", after},
	{"held", held_up}, {"swapped", swapped}, {"stranger", stranger}, {0},
};

int main(int argc, char **argv)
{
	const struct mode *mode = modes;

	while (mode->name && (argc < 4 || strcmp(mode->name, argv[3])))
		mode++;
	if (!mode->name)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	number = argv[1], name = argv[2], memory = argc > 4 ? argv[4] : "fuse";
	mode->act();
	puts("ok");
	end(0);
}
