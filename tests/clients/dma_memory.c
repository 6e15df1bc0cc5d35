/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose memory does DMA reach?  A client with the copier (examples/copier.py) that maps a page, and then changes what
 * is at that address: by an exec, a fork, a descriptor that it passes on, a thread that ends.
 *
 *	dma_memory CONTAINER DEVICE MODE [PROGRAM EUID]
 *
 * CONTAINER and DEVICE are descriptors that it is started with.  MODE is a row of `modes`.  PROGRAM is this program, to be executed by somebody else than root; it has to have EUID
 * then.  The program says "ok" and exits with 0 when each byte is where Linux has it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_REGISTER (((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4)
#define AREA ((char *)0x300000000) /* the same in each program */
#define BUFFER (AREA + 0x10000)
#define NEW_PROGRAM "dma_memory, executed" /* its argv[0] */
enum { PAGE = 4096, SOURCE = 0, TARGET = 8, SIZE = 0x10, COMMAND = 0x14, STATUS = 0x18, DONE = 1, FAULT = 2 };
enum { OLD = 0, OURS = 0x10000, NEW = 0x20000 }; /* iovas */
enum { NOBODY = 65534, SECONDS = 20 };

static int container, device;
static const char *program;
static const char *wanted_euid = "";

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "dma_memory, line %d: %s: %s\n", __LINE__, #what, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

static void page(char *at, char filling)
{
	CHECK(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	memset(at, filling, PAGE);
}

static int all(const volatile char *at, char filling)
{
	for (int i = 0; i < PAGE; i++)
		if (at[i] != filling)
			return 0;
	return 1;
}

static void wait_for(const volatile char *at, char filling)
{
	for (int i = 0; i < SECONDS * 1000 && !all(at, filling); i++)
		usleep(1000);
}

static void map(uint64_t iova, char *at)
{
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ |
		VFIO_DMA_MAP_FLAG_WRITE, .vaddr = (uintptr_t)at, .iova = iova, .size = PAGE};

	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

static void put(off_t offset, uint64_t value, size_t size)
{
	CHECK(pwrite(device, &value, size, offset) == (ssize_t)size);
}

/* Have the device copy a page. Returns its status. */
static uint32_t copy(uint64_t source, uint64_t target)
{
	uint32_t status = 0;

	put(SOURCE, source, 8);
	put(TARGET, target, 8);
	put(SIZE, PAGE, 4);
	put(COMMAND, 1, 4);
	for (int i = 0; i < SECONDS * 10000 && !status; i++) {
		CHECK(pread(device, &status, 4, STATUS) == 4);
		usleep(100);
	}
	put(STATUS, DONE | FAULT, 4);
	return status;
}

/* ---- exec ---- */

static int keep(void *unused)
{
	(void)unused;
	wait_for(AREA, 'W');
	_exit(!all(AREA, 'W'));
}

static void execute(const char *stage)
{
	char numbers[2][16];
	int file = open(program, O_PATH);

	snprintf(numbers[0], 16, "%d", container);
	snprintf(numbers[1], 16, "%d", device);
	CHECK(file >= 0);
	if (*wanted_euid)
		CHECK(!setresgid(NOBODY, NOBODY, NOBODY) && !setresuid(NOBODY, NOBODY, NOBODY));
	page(AREA, 'A');
	map(OLD, AREA);
	if (!strcmp(stage, "kept"))
		CHECK(clone(keep, (char *)malloc(65536) + 65536, CLONE_VM | SIGCHLD, NULL) > 0);
	char *args[] = {NEW_PROGRAM, (char *)stage, numbers[0], numbers[1], (char *)wanted_euid, NULL};
	fexecve(file, args, environ);
	CHECK(0);
}

static void gone(void)
{
	execute("gone");
}

static void kept(void)
{
	execute("kept");
}

/* What the new program finds: its own page at the address that was mapped stays as it is. */
static void new_program(char **args)
{
	int is_kept = !strcmp(args[1], "kept"), status = -1;

	container = atoi(args[2]), device = atoi(args[3]);
	CHECK(!*args[4] || geteuid() == (uid_t)atoi(args[4]));
	page(AREA, 'C');
	page(BUFFER, 'B');
	map(OURS, BUFFER);
	CHECK(copy(OLD, OURS) == (is_kept ? DONE : FAULT));
	CHECK(all(BUFFER, is_kept ? 'A' : 'B'));
	memset(BUFFER, 'W', PAGE);
	CHECK(copy(OURS, OLD) == (is_kept ? DONE : FAULT));
	CHECK(all(AREA, 'C'));
	if (is_kept)
		CHECK(wait(&status) > 0 && !status); /* the old memory has what the device wrote */
	map(NEW, AREA);
	CHECK(copy(OURS, NEW) == DONE && all(AREA, 'W'));
}

/* ---- other processes and threads ---- */

static void forked(void)
{
	int ready[2], go[2], status = -1;
	char byte = 0;

	page(AREA, 'A');
	page(BUFFER, 'B');
	map(OLD, AREA);
	map(OURS, BUFFER);
	CHECK(!pipe(ready) && !pipe(go));
	if (!fork()) {
		memset(AREA, 'C', PAGE);
		CHECK(write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1);
		_exit(!all(AREA, 'C'));
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	CHECK(copy(OLD, OURS) == DONE && all(BUFFER, 'A'));
	memset(BUFFER, 'W', PAGE);
	CHECK(copy(OURS, OLD) == DONE && all(AREA, 'W'));
	CHECK(write(go[1], &byte, 1) == 1);
	CHECK(wait(&status) > 0 && !status);
}

static void pass(int socket, int fd)
{
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec one = {&byte, 1};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	*head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
	memcpy(CMSG_DATA(head), &fd, sizeof(int));
	CHECK(sendmsg(socket, &message, 0) == 1);
}

static int passed_on(int socket)
{
	char byte, room[CMSG_SPACE(sizeof(int))];
	struct iovec one = {&byte, 1};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	int fd;

	CHECK(recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/* Two processes map their memory at the same address in one container. */
static void passed(void)
{
	int pair[2], status = -1;
	char byte = 0;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	pid_t child = fork();
	if (!child) {
		close(container);
		close(device);
		close(pair[0]);
		container = passed_on(pair[1]);
		page(AREA, 'K');
		map(NEW, AREA);
		CHECK(write(pair[1], &byte, 1) == 1 && read(pair[1], &byte, 1) == 1);
		_exit(!all(AREA, 'W'));
	}
	close(pair[1]);
	page(AREA, 'A');
	page(BUFFER, 'W');
	map(OLD, AREA);
	map(OURS, BUFFER);
	pass(pair[0], container);
	CHECK(read(pair[0], &byte, 1) == 1);
	CHECK(copy(NEW, OLD) == DONE && all(AREA, 'K'));
	CHECK(copy(OURS, NEW) == DONE && all(AREA, 'K'));
	CHECK(write(pair[0], &byte, 1) == 1);
	CHECK(waitpid(child, &status, 0) == child && !status);
	CHECK(copy(NEW, OURS) == FAULT && copy(OURS, NEW) == FAULT); /* its memory has gone with it */
	CHECK(all(BUFFER, 'W') && all(AREA, 'K'));
}

static void *map_old(void *unused)
{
	map(OLD, AREA);
	return unused;
}

static void thread(void)
{
	pthread_t mapper;

	page(AREA, 'A');
	page(BUFFER, 'B');
	CHECK(!pthread_create(&mapper, NULL, map_old, NULL) && !pthread_join(mapper, NULL));
	map(OURS, BUFFER);
	CHECK(copy(OLD, OURS) == DONE && all(BUFFER, 'A'));
}

static void *after_the_first(void *first)
{
	CHECK(!pthread_join(*(pthread_t *)first, NULL));
	map(OURS, BUFFER);
	CHECK(copy(OLD, OURS) == DONE && all(BUFFER, 'A'));
	memset(BUFFER, 'W', PAGE);
	CHECK(copy(OURS, OLD) == DONE && all(AREA, 'W'));
	puts("ok");
	exit(0);
}

static void first(void)
{
	static pthread_t self, other;

	self = pthread_self();
	page(AREA, 'A');
	page(BUFFER, 'B');
	map(OLD, AREA);
	CHECK(!pthread_create(&other, NULL, after_the_first, &self));
	pthread_exit(NULL);
}

static const struct {
	const char *name;
	void (*run)(void);
} modes[] = {
	{"gone", gone},     /* an exec; nothing keeps the old memory */
	{"kept", kept},     /* an exec; a child of clone(2) with CLONE_VM keeps the old memory */
	{"fork", forked},   /* a child has a copy of the page */
	{"passed", passed}, /* another process, with its own page, is passed the container */
	{"thread", thread}, /* the thread that mapped the page ends */
	{"first", first},   /* the first thread maps the page and ends */
};

int main(int argc, char **argv)
{
	alarm(4 * SECONDS);
	if (!strcmp(argv[0], NEW_PROGRAM)) {
		new_program(argv);
		puts("ok");
		return 0;
	}
	if (argc < 4)
		return 2;
	container = atoi(argv[1]), device = atoi(argv[2]);
	program = argc > 4 ? argv[4] : argv[0];
	wanted_euid = argc > 5 ? argv[5] : "";
	put(COMMAND_REGISTER, 6, 2); /* memory decoding, bus master */
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		if (strcmp(modes[i].name, argv[3]))
			continue;
		modes[i].run();
		puts("ok");
		return 0;
	}
	return 2;
}
