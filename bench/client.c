/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client, many loops: does one thing COUNT times and prints what each time took, in nanoseconds:
 *
 *   client LOOP COUNT [ARGUMENT...]   ->   count min p10 p50 p90 p99 p99.9 max mean
 *
 * The first tenth of the calls warms up and is not counted; what reading the clock takes is taken off each.  Each
 * line of `loops` at the end says the arguments.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include "../examples/iommufd.h"
#include <sched.h>
#include <signal.h>
#include <spawn.h>
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
#include <sys/syscall.h>
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

#define DEVICES "/dev/vfio/devices/"
enum { FEW = 16 };

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

/* What a sample of nothing takes. */
static uint64_t clock_cost(void)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 1000; i++) {
		uint64_t start = now(), spent = now() - start;
		least = spent < least ? spent : least;
	}
	return least;
}

static void report(void)
{
	static const double parts[] = {0, 0.1, 0.5, 0.9, 0.99, 0.999, 1};
	uint64_t *kept = samples + taken / 10, sum = 0, cost = clock_cost();
	long count = taken - taken / 10;

	CHECK(count > 0);
	for (long i = 0; i < count; i++) {
		kept[i] -= kept[i] < cost ? kept[i] : cost;
		sum += kept[i];
	}
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

static void bind_device(int device, int iommufd)
{
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = iommufd};

	CHECK(iommufd >= 0 && !ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
}

/* The file of an argument.  That of a device of a lab is bound to an iommufd context of its own. */
static int opened(int index)
{
	int fd = open(args[index], O_RDWR | O_CLOEXEC);
	char path[4096], *end;

	CHECK(fd >= 0);
	snprintf(path, sizeof(path), "%s", args[index]);
	if ((end = strstr(path, DEVICES))) {
		strcpy(end, "/dev/iommu");
		int iommufd = open(path, O_RDWR | O_CLOEXEC);
		bind_device(fd, iommufd);
		close(iommufd);
	}
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

/* Reads from START (nanoseconds of the monotonic clock) on, for so many MILLISECONDS, or COUNT times if that is less. */
static void do_during(void)
{
	int fd = opened(0);
	off_t offset = (off_t)number(1);
	uint64_t start = number(2), end = start + number(3) * 1000000;
	struct timespec begin = {.tv_sec = (time_t)(start / 1000000000), .tv_nsec = (long)(start % 1000000000)};
	uint32_t value;

	CHECK(now() < start); /* or the others have begun without us */
	CHECK(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &begin, NULL));
	for (start = now(); taken < calls && start < end; start = now()) {
		CHECK(pread(fd, &value, sizeof(value), offset) == sizeof(value));
		samples[taken++] = now() - start;
	}
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

/* COUNT lines from the end of a file, which loses them: whoever asks next gets others. */
static char **taken_from(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	CHECK(fd >= 0 && !fstat(fd, &st));
	char **lines = malloc((size_t)calls * sizeof(*lines)), *text = malloc((size_t)st.st_size), *end = text + st.st_size;

	CHECK(read(fd, text, (size_t)st.st_size) == st.st_size);
	for (long i = 0; i < calls; i++) {
		CHECK(end > text);
		*--end = 0;
		while (end > text && end[-1] != '\n')
			end--;
		lines[i] = end;
	}
	CHECK(!ftruncate(fd, end - text));
	close(fd);
	return lines;
}

/* Names of a directory that nobody has looked up yet, so that the kernel has to ask for each. */
static void do_lookup(void)
{
	int dir = open(args[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char **names = taken_from(args[1]);
	struct stat st;

	CHECK(dir >= 0);
	TIMED(CHECK(!fstatat(dir, names[i], &st, AT_SYMLINK_NOFOLLOW)));
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

/* SIZE bytes of shared memory, and as many of our own. */
static void copies(int into_shared)
{
	size_t size = number(0);
	int fd = memfd_create("bench", MFD_CLOEXEC);

	CHECK(!ftruncate(fd, (off_t)size));
	char *shared = mapped(fd, 0, size), *own = malloc(size);
	char *to = into_shared ? shared : own, *from = into_shared ? own : shared;
	memset(own, 1, size);
	TIMED(memcpy(to, from, size); __asm__ volatile("" ::: "memory"));
}

static void do_memcpy_read(void)
{
	copies(0);
}

static void do_memcpy_write(void)
{
	copies(1);
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

static char *there;
static int touched;

/* A process whose memory is its own: it has written to all of it since the fork. */
static void touch_and_wait(void)
{
	uint64_t one = 1;

	memset(there, 1, number(0));
	CHECK(write(touched, &one, sizeof(one)) == sizeof(one));
	pause();
}

/* The other process' memory as the server reaches it: by a descriptor of /proc/PID/mem that is open already. */
static void other_process(int write)
{
	size_t size = number(0);
	char *here = malloc(size), path[32];
	uint64_t value;

	there = malloc(size), touched = eventfd(0, EFD_CLOEXEC);
	memset(here, 1, size);
	pid_t child = child_of_ours(touch_and_wait);
	CHECK(read(touched, &value, sizeof(value)) == sizeof(value));
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	int mem = open(path, O_RDWR | O_CLOEXEC);
	CHECK(mem >= 0);
	if (write) {
		TIMED(CHECK(pwrite(mem, here, size, (off_t)there) == (ssize_t)size));
	} else {
		TIMED(CHECK(pread(mem, here, size, (off_t)there) == (ssize_t)size));
	}
	kill(child, SIGKILL), waitpid(child, NULL, 0);
}

static void do_memread(void)
{
	other_process(0);
}

static void do_memwrite(void)
{
	other_process(1);
}

/* ---- interrupts ---- */

/* What whoever raises says of it, once it has raised: how often, and when the last time was. */
struct raised {
	volatile uint64_t count, when;
};

/* Where it says so: in memory, or where that cannot be mapped, in a file. */
static struct raised *board;
static int board_file;
static off_t board_offset;

static struct raised said(void)
{
	struct raised it;

	if (board)
		it.count = board->count, it.when = board->when;
	else
		CHECK(pread(board_file, &it, sizeof(it), board_offset) == sizeof(it));
	return it;
}

/* `seen` of them were raised before. */
static void latencies(int event, uint64_t seen)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event wanted = {.events = EPOLLIN};
	struct raised last;
	uint64_t value, end = seen + (uint64_t)calls;

	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
	while (seen < end) {
		CHECK(epoll_wait(epoll, &wanted, 1, 10000) == 1);
		uint64_t woken = now();
		CHECK(read(event, &value, sizeof(value)) == sizeof(value));
		seen += value;
		while (last = said(), last.count < seen)
			sched_yield(); /* it says so after it has raised */
		if (last.count == seen && value == 1)
			samples[taken++] = woken - last.when;
	}
}

static int raise_event;

static void raise_all(void)
{
	struct timespec gap = {.tv_nsec = 300000};
	uint64_t one = 1;

	for (long i = 0; i < calls; i++) {
		nanosleep(&gap, NULL);
		uint64_t when = now();
		CHECK(write(raise_event, &one, sizeof(one)) == sizeof(one));
		board->when = when;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		board->count++;
	}
}

static void do_eventfd(void)
{
	raise_event = eventfd(0, EFD_CLOEXEC);
	board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(raise_event >= 0 && board != MAP_FAILED);
	pid_t child = child_of_ours(raise_all);
	latencies(raise_event, 0);
	waitpid(child, NULL, 0);
}

/* DEVICE COMMAND_OFFSET BOARD_OFFSET: bench/model.py raises vector 0 as often as COMMAND says. */
static void do_interrupt(void)
{
	int device = opened(0), event = eventfd(0, EFD_CLOEXEC);
	char request[sizeof(struct vfio_irq_set) + sizeof(int)] = "";
	struct vfio_irq_set *set = (struct vfio_irq_set *)request;
	uint32_t count = (uint32_t)calls;

	board_file = device, board_offset = (off_t)number(2);
	board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, board_offset);
	if (board == MAP_FAILED)
		board = NULL;
	*set = (struct vfio_irq_set){.argsz = sizeof(request), .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 1,
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER};
	memcpy(set->data, &event, sizeof(event));
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, set));
	uint64_t before = said().count; /* read later, it could have the first of ours in it */
	CHECK(pwrite(device, &count, sizeof(count), (off_t)number(1)) == sizeof(count));
	latencies(event, before);
}

/* ---- the IOMMU ---- */

/* A container with a group, or an iommufd with a device attached to `ioas`, and a page that is mapped. */
static struct {
	int fd;
	uint32_t ioas;
	uint64_t page;
	int group;
} iommu;

static void make_container(void)
{
	iommu.group = opened(1);
	CHECK(!ioctl(iommu.group, VFIO_GROUP_SET_CONTAINER, &iommu.fd));
	CHECK(!ioctl(iommu.fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static void make_ioas(void)
{
	int device = open(args[1], O_RDWR | O_CLOEXEC);
	struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach)};

	CHECK(device >= 0);
	bind_device(device, iommu.fd);
	CHECK(!ioctl(iommu.fd, IOMMU_IOAS_ALLOC, &alloc));
	attach.pt_id = iommu.ioas = alloc.out_ioas_id;
	CHECK(!ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
}

static void make_iommu(void)
{
	iommu.fd = opened(0), iommu.page = (uintptr_t)aligned_alloc(4096, 4096);
	strstr(args[1], DEVICES) ? make_ioas() : make_container();
}

static void map_at(long index)
{
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .iova = (uint64_t)index * 8192, .size = 4096,
		.vaddr = iommu.page, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE};
	struct iommu_ioas_map area = {.size = sizeof(area), .ioas_id = iommu.ioas, .iova = map.iova, .length = 4096,
		.user_va = iommu.page,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE};

	CHECK(!(iommu.ioas ? ioctl(iommu.fd, IOMMU_IOAS_MAP, &area) : ioctl(iommu.fd, VFIO_IOMMU_MAP_DMA, &map)));
}

static void unmap_at(long index)
{
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = (uint64_t)index * 8192, .size = 4096};
	struct iommu_ioas_unmap area = {.size = sizeof(area), .ioas_id = iommu.ioas, .iova = unmap.iova, .length = 4096};

	if (iommu.ioas)
		CHECK(!ioctl(iommu.fd, IOMMU_IOAS_UNMAP, &area) && area.length == 4096);
	else
		CHECK(!ioctl(iommu.fd, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == 4096);
}

static void do_map(void)
{
	make_iommu();
	TIMED(map_at(i));
}

static void do_unmap(void)
{
	make_iommu();
	for (long i = 0; i < calls; i++)
		map_at(i);
	TIMED(unmap_at(i));
}

/* Beside FEW mappings, one comes and goes. */
static void come_and_go(int time_the_map)
{
	make_iommu();
	for (long i = 1; i <= FEW; i++)
		map_at(i);
	for (long i = 0; i < calls; i++) {
		uint64_t start = now();
		map_at(0);
		uint64_t mapped = now();
		unmap_at(0);
		samples[taken++] = time_the_map ? mapped - start : now() - mapped;
	}
}

static void do_map_few(void)
{
	come_and_go(1);
}

static void do_unmap_few(void)
{
	come_and_go(0);
}

/* ---- what `vfsfuse run` stops, and what it does not ---- */

/* Samples of BATCH calls each. */
static void do_getppid(void)
{
	TIMED(for (size_t n = 0; n < BATCH; n++) syscall(SYS_getppid));
}

static void do_fstat(void)
{
	int fd = open(args[0], O_RDONLY | O_CLOEXEC);
	struct stat about;

	TIMED(CHECK(!fstat(fd, &about)));
}

/* A device of a group, again and again.  Its close is not timed. */
static void do_device_fd(void)
{
	make_iommu();
	for (long i = 0; i < calls; i++) {
		uint64_t start = now();
		int device = ioctl(iommu.group, VFIO_GROUP_GET_DEVICE_FD, args[2]);
		samples[taken++] = now() - start;
		CHECK(device >= 0 && !close(device));
	}
}

/* The start and the end of an interpreter. */
static void do_python(void)
{
	char *command[] = {args[0], "-c", "pass", NULL};
	int status;
	pid_t child;

	TIMED(CHECK(!posix_spawn(&child, args[0], NULL, NULL, command, environ));
		CHECK(waitpid(child, &status, 0) == child && !status));
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
	{"during", do_during, 4, "PATH OFFSET START MILLISECONDS"},
	{"write", do_write, 3, "PATH OFFSET SIZE"},
	{"ioctl-struct", do_ioctl_struct, 1, "PATH"},
	{"ioctl-value", do_ioctl_value, 1, "PATH"},
	{"raw-ioctl", do_raw_ioctl, 2, "PATH NUMBER"},
	{"attr-read", do_attr_read, 1, "PATH"},
	{"attr-write", do_attr_write, 2, "PATH TEXT"},
	{"lookup", do_lookup, 2, "DIRECTORY NAMES"},
	{"readdir", do_readdir, 2, "DIRECTORY LEAST"},
	{"load", do_load, 3, "PATH OFFSET SIZE"},
	{"store", do_store, 3, "PATH OFFSET SIZE"},
	{"memset", do_memset, 3, "PATH OFFSET SIZE"},
	{"memcpy-read", do_memcpy_read, 1, "SIZE"},
	{"memcpy-write", do_memcpy_write, 1, "SIZE"},
	{"memread", do_memread, 1, "SIZE"},
	{"memwrite", do_memwrite, 1, "SIZE"},
	{"eventfd", do_eventfd, 0, ""},
	{"interrupt", do_interrupt, 3, "DEVICE COMMAND_OFFSET BOARD_OFFSET"},
	{"map", do_map, 2, "CONTAINER GROUP | IOMMU DEVICE"},
	{"unmap", do_unmap, 2, "CONTAINER GROUP | IOMMU DEVICE"},
	{"map-few", do_map_few, 2, "CONTAINER GROUP | IOMMU DEVICE"},
	{"unmap-few", do_unmap_few, 2, "CONTAINER GROUP | IOMMU DEVICE"},
	{"getppid", do_getppid, 0, ""},
	{"fstat", do_fstat, 1, "PATH"},
	{"device-fd", do_device_fd, 3, "CONTAINER GROUP DEVICE"},
	{"python", do_python, 1, "PROGRAM"},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof(loops) / sizeof(*loops); i++)
		if (argc > 2 && !strcmp(argv[1], loops[i].name) && argc - 3 == loops[i].arguments &&
		    (calls = strtol(argv[2], NULL, 0)) > 0) {
			args = argv + 3;
			samples = calloc((size_t)calls, sizeof(*samples));
			CHECK(samples);
			memset(samples, 1, (size_t)calls * sizeof(*samples));
			loops[i].run();
			report();
			return 0;
		}
	for (size_t i = 0; i < sizeof(loops) / sizeof(*loops); i++)
		fprintf(stderr, "client %s COUNT %s\n", loops[i].name, loops[i].usage);
	return 2;
}
