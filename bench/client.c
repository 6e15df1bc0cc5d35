/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client, many loops: does one thing COUNT times and prints what each time took, in nanoseconds:
 *
 *   client LOOP COUNT [ARGUMENT...]   ->   count min p10 p50 p90 p99 p99.9 max mean
 *
 * The first tenth of the calls warms up and is not counted.  Each line of `loops` at the end says the arguments.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "client: line %d: %s (%s)\n", __LINE__, #what, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

static char **args;
static long calls;
static uint64_t *samples;
static long taken;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t number(int index)
{
	return strtoull(args[index], NULL, 0);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void report(void)
{
	static const double parts[] = {0, 0.1, 0.5, 0.9, 0.99, 0.999, 1};
	uint64_t *kept = samples + taken / 10, sum = 0;
	long count = taken - taken / 10;

	CHECK(count > 0);
	for (long i = 0; i < count; i++)
		sum += kept[i];
	qsort(kept, (size_t)count, sizeof(*kept), compare);
	printf("%ld", count);
	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		printf(" %lu", kept[(long)(parts[i] * (double)(count - 1))]);
	printf(" %.1f\n", (double)sum / (double)count);
}

/* Runs the statement `calls` times, each one a sample. */
#define TIMED(...) \
	for (long i = 0; i < calls; i++) { \
		uint64_t start = now(); \
		__VA_ARGS__; \
		samples[taken++] = now() - start; \
	}

static int opened(int index)
{
	int fd = open(args[index], O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

/* ---- files ---- */

static void do_read(void)
{
	int fd = opened(0);
	off_t offset = (off_t)number(1);
	size_t size = number(2);
	char *buffer = malloc(size);

	TIMED(CHECK(pread(fd, buffer, size, offset) == (ssize_t)size));
}

/* A client that does little: one read each PAUSE microseconds. */
static void do_quiet(void)
{
	int fd = opened(0);
	off_t offset = (off_t)number(1);
	struct timespec pause = {.tv_nsec = (long)number(2) * 1000};
	uint32_t value;

	for (long i = 0; i < calls; i++) {
		nanosleep(&pause, NULL);
		uint64_t start = now();
		CHECK(pread(fd, &value, sizeof(value), offset) == sizeof(value));
		samples[taken++] = now() - start;
	}
}

/* Reads for ever: a neighbour that is busy, until it is killed.  COUNT means nothing. */
static void do_busy(void)
{
	int fd = opened(0);
	off_t offset = (off_t)number(1);
	uint32_t value;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		CHECK(pread(fd, &value, sizeof(value), offset) == sizeof(value));
}

static void do_write(void)
{
	int fd = opened(0);
	off_t offset = (off_t)number(1);
	size_t size = number(2);
	char *buffer = calloc(1, size);

	TIMED(CHECK(pwrite(fd, buffer, size, offset) == (ssize_t)size));
}

static void do_ioctl_struct(void)
{
	int fd = opened(0);
	struct vfio_region_info info = {.argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX};

	TIMED(CHECK(!ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info)));
}

static void do_ioctl_value(void)
{
	int fd = opened(0);

	TIMED(CHECK(ioctl(fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU) == 1));
}

static void do_raw_ioctl(void)
{
	int fd = opened(0);
	unsigned long cmd = number(1);
	char room[256] = "";

	TIMED(CHECK(ioctl(fd, cmd, room) >= 0));
}

static void do_attr_read(void)
{
	char text[4096];

	TIMED(int fd = open(args[0], O_RDONLY); CHECK(read(fd, text, sizeof(text)) > 0); close(fd));
}

static void do_attr_write(void)
{
	size_t size = strlen(args[1]);

	TIMED(int fd = open(args[0], O_WRONLY); CHECK(write(fd, args[1], size) == (ssize_t)size); close(fd));
}

/* Every entry of a directory, which the kernel does not know yet. */
static void do_lookup(void)
{
	DIR *dir = opendir(args[0]);
	char **names = malloc((size_t)calls * sizeof(*names));
	struct dirent *entry;
	struct stat st;
	long count = 0;

	CHECK(dir);
	while ((entry = readdir(dir)) && count < calls)
		if (*entry->d_name != '.')
			names[count++] = strdup(entry->d_name);
	int drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
	CHECK(drop >= 0 && write(drop, "2", 1) == 1);
	calls = count;
	TIMED(CHECK(!fstatat(dirfd(dir), names[i], &st, AT_SYMLINK_NOFOLLOW)));
}

/* A sample is one listing of the whole directory. */
static void do_readdir(void)
{
	long entries = 0;

	for (long i = 0; i < calls; i++) {
		uint64_t start = now();
		DIR *dir = opendir(args[0]);
		CHECK(dir);
		for (entries = 0; readdir(dir);)
			entries++;
		closedir(dir);
		samples[taken++] = now() - start;
	}
	CHECK(entries >= (long)number(1));
}

/* ---- memory ---- */

#define BATCH 1000

static char *mapped(int fd, off_t offset, size_t size)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);

	CHECK(at != MAP_FAILED);
	memset(at, 1, size);
	return at;
}

/* PATH ("memfd": one of our own) OFFSET SIZE */
static char *mapping(void)
{
	size_t size = number(2);
	int own = !strcmp(args[0], "memfd"), fd = own ? memfd_create("bench", MFD_CLOEXEC) : opened(0);

	CHECK(!own || !ftruncate(fd, (off_t)size));
	return mapped(fd, own ? 0 : (off_t)number(1), size);
}

/* Samples of BATCH accesses each, all over the mapping. */
static void do_load(void)
{
	volatile uint32_t *at = (volatile uint32_t *)mapping();
	size_t words = number(2) / 4;

	TIMED(for (size_t n = 0; n < BATCH; n++)(void)at[(n * 1021) % words]);
}

static void do_store(void)
{
	volatile uint32_t *at = (volatile uint32_t *)mapping();
	size_t words = number(2) / 4;

	TIMED(for (size_t n = 0; n < BATCH; n++) at[(n * 1021) % words] = (uint32_t)n);
}

static void do_memset(void)
{
	char *at = mapping();
	size_t size = number(2);

	TIMED(memset(at, (int)i, size));
}

static void do_memcpy(void)
{
	size_t size = number(0);
	int fd = memfd_create("bench", MFD_CLOEXEC);

	CHECK(!ftruncate(fd, (off_t)size));
	char *from = mapped(fd, 0, size), *to = malloc(size);
	memset(to, 1, size);
	TIMED(memcpy(to, from, size); __asm__ volatile("" ::: "memory"));
}

static pid_t child_of_ours(void (*run)(void))
{
	pid_t parent = getpid(), pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			run();
		_exit(0);
	}
	return pid;
}

static void wait_for_end(void)
{
	pause();
}

static void do_vmread(void)
{
	size_t size = number(0);
	char *there = malloc(size), *here = malloc(size);

	memset(there, 1, size), memset(here, 1, size);
	pid_t child = child_of_ours(wait_for_end);
	struct iovec local = {here, size}, remote = {there, size};
	TIMED(CHECK(process_vm_readv(child, &local, 1, &remote, 1, 0) == (ssize_t)size));
	kill(child, SIGKILL), waitpid(child, NULL, 0);
}

/* ---- interrupts ---- */

/* What whoever raises says of it, once it has raised: how often, and when the last time was. */
struct raised {
	volatile uint64_t count, when;
};

/* `seen` of them were raised before. */
static void latencies(int event, const struct raised *raised, uint64_t seen)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event wanted = {.events = EPOLLIN};
	uint64_t value, last = seen + (uint64_t)calls;

	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
	while (seen < last) {
		CHECK(epoll_wait(epoll, &wanted, 1, 10000) == 1);
		uint64_t woken = now();
		CHECK(read(event, &value, sizeof(value)) == sizeof(value));
		seen += value;
		while (raised->count < seen)
			sched_yield(); /* it says so after it has raised */
		if (raised->count == seen && value == 1)
			samples[taken++] = woken - raised->when;
	}
}

static int raise_event;
static struct raised *raise_board;

static void raise_all(void)
{
	struct timespec gap = {.tv_nsec = 300000};
	uint64_t one = 1;

	for (long i = 0; i < calls; i++) {
		nanosleep(&gap, NULL);
		uint64_t when = now();
		CHECK(write(raise_event, &one, sizeof(one)) == sizeof(one));
		raise_board->when = when;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		raise_board->count++;
	}
}

static void do_eventfd(void)
{
	raise_event = eventfd(0, EFD_CLOEXEC);
	raise_board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(raise_event >= 0 && raise_board != MAP_FAILED);
	pid_t child = child_of_ours(raise_all);
	latencies(raise_event, raise_board, 0);
	waitpid(child, NULL, 0);
}

/* DEVICE COMMAND_OFFSET BOARD_OFFSET: bench/model.py raises vector 0 as often as COMMAND says. */
static void do_interrupt(void)
{
	int device = opened(0), event = eventfd(0, EFD_CLOEXEC);
	char request[sizeof(struct vfio_irq_set) + sizeof(int)] = "";
	struct vfio_irq_set *set = (struct vfio_irq_set *)request;
	uint32_t count = (uint32_t)calls;
	const struct raised *board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)number(2));

	CHECK(board != MAP_FAILED);
	*set = (struct vfio_irq_set){.argsz = sizeof(request), .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 1,
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER};
	memcpy(set->data, &event, sizeof(event));
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, set));
	uint64_t before = board->count; /* read later, it could have the first of ours in it */
	CHECK(pwrite(device, &count, sizeof(count), (off_t)number(1)) == sizeof(count));
	latencies(event, board, before);
}

/* ---- the IOMMU ---- */

static int container_of(int group_index)
{
	int container = opened(0), group = opened(group_index);

	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	return container;
}

static void map_at(int container, const void *page, long index)
{
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .iova = (uint64_t)index * 8192, .size = 4096,
		.vaddr = (uintptr_t)page, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE};

	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

static void unmap_at(int container, long index)
{
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = (uint64_t)index * 8192, .size = 4096};

	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == 4096);
}

static void *page(void)
{
	return aligned_alloc(4096, 4096);
}

static void do_map(void)
{
	int container = container_of(1);
	void *at = page();

	TIMED(map_at(container, at, i));
}

static void do_unmap(void)
{
	int container = container_of(1);
	void *at = page();

	for (long i = 0; i < calls; i++)
		map_at(container, at, i);
	TIMED(unmap_at(container, i));
}

static const struct loop {
	const char *name;
	void (*run)(void);
	int arguments;
	const char *usage;
} loops[] = {
	{"read", do_read, 3, "PATH OFFSET SIZE"},
	{"quiet", do_quiet, 3, "PATH OFFSET PAUSE"},
	{"busy", do_busy, 2, "PATH OFFSET"},
	{"write", do_write, 3, "PATH OFFSET SIZE"},
	{"ioctl-struct", do_ioctl_struct, 1, "PATH"},
	{"ioctl-value", do_ioctl_value, 1, "PATH"},
	{"raw-ioctl", do_raw_ioctl, 2, "PATH NUMBER"},
	{"attr-read", do_attr_read, 1, "PATH"},
	{"attr-write", do_attr_write, 2, "PATH TEXT"},
	{"lookup", do_lookup, 1, "DIRECTORY"},
	{"readdir", do_readdir, 2, "DIRECTORY LEAST"},
	{"load", do_load, 3, "PATH OFFSET SIZE"},
	{"store", do_store, 3, "PATH OFFSET SIZE"},
	{"memset", do_memset, 3, "PATH OFFSET SIZE"},
	{"memcpy", do_memcpy, 1, "SIZE"},
	{"vmread", do_vmread, 1, "SIZE"},
	{"eventfd", do_eventfd, 0, ""},
	{"interrupt", do_interrupt, 3, "DEVICE COMMAND_OFFSET BOARD_OFFSET"},
	{"map", do_map, 2, "CONTAINER GROUP"},
	{"unmap", do_unmap, 2, "CONTAINER GROUP"},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof(loops) / sizeof(*loops); i++)
		if (argc > 2 && !strcmp(argv[1], loops[i].name) && argc - 3 == loops[i].arguments) {
			calls = strtol(argv[2], NULL, 0);
			args = argv + 3;
			samples = calloc((size_t)calls + 1, sizeof(*samples));
			CHECK(calls > 0 && samples);
			memset(samples, 1, (size_t)calls * sizeof(*samples));
			loops[i].run();
			report();
			return 0;
		}
	for (size_t i = 0; i < sizeof(loops) / sizeof(*loops); i++)
		fprintf(stderr, "client %s COUNT %s\n", loops[i].name, loops[i].usage);
	return 2;
}
