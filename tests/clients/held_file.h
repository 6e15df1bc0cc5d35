/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of a FUSE file system that answers nothing of what it is told to hold.
 *
 * A process of its own serves the file, so that no lock of the client's memory stops it.  The file is the root of
 * the file system, HELD_SIZE bytes.  Its first page is what held->content has, the rest is zeros.  Once
 * held->armed is set, the server keeps the requests of the chosen kinds, and says "held KIND" on stdout for the
 * first one of each.  A byte on stdin releases them: it answers them and holds nothing any more.  At the end of
 * stdin, or when its time is over, the server ends; the kernel then aborts all requests.  Include this once.
 * Source: fuse(4), <linux/fuse.h>.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #what, errno, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

enum { PAGE = 4096, HELD_SIZE = 64 * PAGE, MAX_HELD = 256, NO_OPCODE = 63 };

static struct held {
	atomic_int armed, released, reached;
	atomic_ulong kinds; /* 1 << opcode of what is or was held */
	unsigned char content[PAGE];
} *held;

static const struct kind {
	const char *name;
	unsigned opcode;
} kinds[] = {
	{"GETATTR", FUSE_GETATTR}, {"SETATTR", FUSE_SETATTR}, {"OPEN", FUSE_OPEN}, {"READ", FUSE_READ},
	{"WRITE", FUSE_WRITE}, {"STATFS", FUSE_STATFS}, {"RELEASE", FUSE_RELEASE}, {"FSYNC", FUSE_FSYNC},
	{"FLUSH", FUSE_FLUSH}, {"IOCTL", FUSE_IOCTL}, {"POLL", FUSE_POLL}, {"LSEEK", FUSE_LSEEK}, {0},
};

/* The bits of names with commas between them. */
static uint64_t kinds_of(char *names)
{
	uint64_t found = 0;

	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		const struct kind *kind = kinds;

		while (kind->name && strcmp(kind->name, name))
			kind++;
		CHECK(kind->name != NULL);
		found |= 1ull << kind->opcode;
	}
	return found;
}

/* Say that something is held, once for each `bit`: an opcode, or from NO_OPCODE down. */
static void say_held(const char *name, unsigned bit)
{
	if (!(atomic_fetch_or(&held->kinds, 1ul << bit) >> bit & 1))
		dprintf(1, "held %s\n", name);
}

struct request {
	struct fuse_in_header head;
	union {
		struct fuse_read_in read;
		struct fuse_write_in write;
	};
};

static void reply(int dev, const struct request *request, int error, const void *data, size_t size)
{
	static char message[sizeof(struct fuse_out_header) + HELD_SIZE];
	struct fuse_out_header head = {.len = sizeof(head) + size, .error = error, .unique = request->head.unique};

	memcpy(message, &head, sizeof(head));
	if (size)
		memcpy(message + sizeof(head), data, size);
	(void)!write(dev, message, head.len); /* fails for a request whose process has ended */
}

static void (*before_answer)(void); /* what the server does before each answer, if anything */

static void answer(int dev, const struct request *request)
{
	static unsigned char file[HELD_SIZE];
	struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 65536, .max_background = 64,
		.congestion_threshold = 48};
	struct fuse_attr_out attr = {.attr = {.ino = 1, .mode = S_IFREG | 0666, .nlink = 1, .size = HELD_SIZE}};
	struct fuse_open_out open = {.fh = 1};
	struct fuse_poll_out ready = {.revents = POLLIN};
	struct fuse_write_out written = {.size = request->write.size};

	if (before_answer)
		before_answer();
	switch (request->head.opcode) {
	case FUSE_INIT:
		reply(dev, request, 0, &init, sizeof(init));
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		reply(dev, request, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
		reply(dev, request, 0, &open, sizeof(open));
		break;
	case FUSE_READ:
		memcpy(file, held->content, PAGE);
		CHECK(request->read.offset + request->read.size <= HELD_SIZE);
		reply(dev, request, 0, file + request->read.offset, request->read.size);
		break;
	case FUSE_WRITE:
		reply(dev, request, 0, &written, sizeof(written));
		break;
	case FUSE_POLL:
		reply(dev, request, 0, &ready, sizeof(ready));
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_FSYNC:
		reply(dev, request, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(dev, request, -ENOSYS, NULL, 0);
	}
}

static int keeps(const struct request *request, uint64_t hold)
{
	unsigned opcode = request->head.opcode;

	if (!held->armed || held->released || opcode >= 64 || !(hold >> opcode & 1))
		return 0;
	for (const struct kind *kind = kinds; kind->name; kind++)
		if (kind->opcode == opcode)
			say_held(kind->name, opcode);
	return 1;
}

static void serve(int dev, uint64_t hold)
{
	static char message[HELD_SIZE + 65536];
	static struct request kept[MAX_HELD], request;
	struct pollfd ready[2] = {{.fd = dev, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	int count = 0;

	for (;;) {
		char byte;

		(void)poll(ready, 2, -1);
		if (ready[1].revents) {
			if (read(0, &byte, 1) <= 0)
				_exit(0);
			held->released = 1;
			while (count)
				answer(dev, &kept[--count]);
		}
		if (ready[0].revents & (POLLERR | POLLHUP))
			_exit(0);
		if (!(ready[0].revents & POLLIN) || read(dev, message, sizeof(message)) <= 0)
			continue;
		memcpy(&request, message, sizeof(request));
		if (keeps(&request, hold) && count < MAX_HELD)
			kept[count++] = request;
		else
			answer(dev, &request);
	}
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd));
}

/* Namespaces of our own, where the mount is seen by nobody else.  Who is no superuser becomes one in there. */
static void leave_namespaces(int new_user)
{
	char map[64];
	unsigned uid = geteuid(), gid = getegid();

	CHECK(!unshare(CLONE_NEWNS | (new_user ? CLONE_NEWUSER : 0)));
	if (new_user) {
		write_file("/proc/self/setgroups", "deny");
		snprintf(map, sizeof(map), "0 %u 1", uid);
		write_file("/proc/self/uid_map", map);
		snprintf(map, sizeof(map), "0 %u 1", gid);
		write_file("/proc/self/gid_map", map);
	}
	CHECK(!mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL));
}

/* Run fusermount3, which an ordinary user has for mounts; the /dev/fuse that it hands over. */
static int fusermount(const char *path, const char *option)
{
	char variable[32], data[CMSG_SPACE(sizeof(int))], byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = data, .msg_controllen = sizeof(data)};
	int ends[2], status, dev = -1;
	pid_t child;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		snprintf(variable, sizeof(variable), "%d", ends[0]);
		setenv("_FUSE_COMMFD", variable, 1);
		execlp("fusermount3", "fusermount3", option, option[1] == 'o' ? "rw,subtype=held" : path,
			option[1] == 'o' ? path : NULL, NULL);
		_exit(127);
	}
	close(ends[0]);
	if (option[1] == 'o' && recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC) > 0 && CMSG_FIRSTHDR(&message))
		memcpy(&dev, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(dev));
	CHECK(waitpid(child, &status, 0) == child && !status);
	close(ends[1]);
	return dev;
}

enum how { AS_ROOT, IN_USER_NAMESPACE, BY_FUSERMOUNT };

static int mount_file(const char *path, enum how how)
{
	char options[128];
	int dev;

	if (how == BY_FUSERMOUNT) {
		dev = fusermount(path, "-o");
		CHECK(dev >= 0);
		return dev;
	}
	leave_namespaces(how == IN_USER_NAMESPACE);
	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	CHECK(dev >= 0);
	snprintf(options, sizeof(options), "fd=%d,rootmode=%o,user_id=0,group_id=0%s", dev, S_IFREG | 0666,
		how == AS_ROOT ? ",allow_other" : ""); /* in a user namespace that would mean its users only */
	CHECK(!mount("held", path, "fuse.held", MS_NOSUID | MS_NODEV, options));
	return dev;
}

static void start_server(int dev, uint64_t hold, unsigned seconds)
{
	pid_t client = getpid(), server = fork();

	CHECK(server >= 0);
	if (server)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != client)
		_exit(0);
	signal(SIGPIPE, SIG_IGN);
	alarm(seconds);
	serve(dev, hold);
}

/*
 * Mount the file over the file `path` and start its server, which ends after `seconds`.  Gives an open file of it.
 * Unless `keep`, the mount is detached at once: the file stays, but no mountinfo names its file system.
 */
static int held_file(const char *path, uint64_t hold, unsigned seconds, enum how how, int keep)
{
	struct stat status;
	int dev, fd;

	held = mmap(NULL, sizeof(*held), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(held != MAP_FAILED);
	dev = mount_file(path, how);
	start_server(dev, hold, seconds);
	close(dev);
	close(0);
	CHECK(open("/dev/null", O_RDONLY) == 0);
	fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && !fstat(fd, &status)); /* so that the kernel knows the size */
	if (how == BY_FUSERMOUNT)
		fusermount(path, "-uz");
	else if (!keep)
		CHECK(!umount2(path, MNT_DETACH));
	return fd;
}
