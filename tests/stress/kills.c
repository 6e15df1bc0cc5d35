/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGKILL of clients at random moments. Each client opens a device by its group, in a container or in an iommufd, or by
 * its own file, which it binds and attaches. Then it maps memory, arms interrupts and lets the engine run. Some share the
 * iommufd with a process that has asked for it, or the device with a child. A client is killed at any of these steps.
 * Soon afterwards the device must be free again.
 *
 *	kills PROGRESS ROOT GROUP NAME CDEV SEED KILLS
 *	kills PROGRESS ROOT GROUP NAME CDEV SEED live|probe
 *
 * `live` is one such client, to be killed from outside; `probe` asks whether the device is free. Runs under `vfsfuse run`.
 */
#include "stress.h"
#include <sys/socket.h>

enum { PAGES = 64, RING = PAGE, IOVA = 1 << 20, FREE_MS = 1000 };

static const char *root, *group, *name, *cdev;

static int map(struct opened *o, uint64_t iova, void *memory, uint64_t size)
{
	return o->ioas ? ioas_map(o->iommufd, o->ioas, iova, memory, size) : map_dma(o->container, iova, memory, size, 3);
}

static int unmap(struct opened *o, uint64_t iova, uint64_t size)
{
	return o->ioas ? ioas_unmap(o->iommufd, o->ioas, iova, size) : unmap_dma(o->container, iova, size);
}

/* A ring full of copies, whose doorbell is rung again and again. */
static void run_engine(struct opened *o, unsigned char *memory)
{
	struct packet copy = {.opcode = COPY, .copy = {SYSTEM_BASE + 8 * PAGE, SYSTEM_BASE + 9 * PAGE, 40 * PAGE}};

	for (unsigned i = 0; i < RING / sizeof(copy); i++)
		memcpy(memory + i * sizeof(copy), &copy, sizeof(copy));
	for (unsigned i = 0; i < PAGES; i++)
		put(o->device, GTT + i * 8, (IOVA + i * PAGE) | VALID | WRITABLE, 8);
	be_master(o->device);
	enable_engine(o->device, SYSTEM_BASE, RING);
	put(o->device, ENGINE + RING_TAIL, RING - sizeof(copy), 4);
}

static void arm(struct opened *o)
{
	struct {
		struct vfio_irq_set set;
		int fds[2];
	} irqs = {.set = {.argsz = sizeof(irqs), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			  .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 2},
		.fds = {eventfd(0, 0), eventfd(0, 0)}};

	ioctl(o->device, VFIO_DEVICE_SET_IRQS, &irqs);
}

/* Another IOAS gets what this one maps, and the device; and then the first one has it again. */
static void move(struct opened *o)
{
	uint32_t other = ioas_alloc(o->iommufd);
	struct iommu_ioas_copy copy = {.size = sizeof(copy), .dst_ioas_id = other, .src_ioas_id = o->ioas,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.length = PAGES * PAGE, .dst_iova = IOVA, .src_iova = IOVA};
	struct vfio_device_detach_iommufd_pt detach = {.argsz = sizeof(detach)};
	struct iommu_destroy destroy = {.size = sizeof(destroy), .id = other};

	ioctl(o->iommufd, IOMMU_IOAS_COPY, &copy);
	attach_device(o->device, other);
	if (chance(50))
		ioctl(o->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach);
	attach_device(o->device, o->ioas);
	ioctl(o->iommufd, IOMMU_DESTROY, &destroy);
}

/* ---- who shares an iommufd ---- */

union control {
	struct cmsghdr head;
	char room[CMSG_SPACE(sizeof(int))];
};

static void hand_over(int channel, int fd)
{
	char byte = 0;
	struct iovec data = {&byte, 1};
	union control control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	sendmsg(channel, &message, 0);
}

/* Gets the iommufd, and maps memory of its own into it until its parent is killed. */
static void partner(int channel, pid_t parent)
{
	char byte, *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec data = {&byte, 1};
	union control control;
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int iommufd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it was killed before */
		_exit(0);
	if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != 1 || message.msg_controllen < sizeof(control))
		_exit(0);
	memcpy(&iommufd, CMSG_DATA(&control.head), sizeof(iommufd));
	for (;;) {
		uint64_t iova = IOVA * (4 + below(8));
		uint32_t ioas = 1 + below(4);
		if (chance(50))
			ioas_map(iommufd, ioas, iova, memory, PAGES * PAGE);
		else
			ioas_unmap(iommufd, ioas, iova, PAGES * PAGE);
	}
}

/* A process that waits for an iommufd; the socket to hand it over. */
static int start_partner(void)
{
	int channel[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel));
	pid_t parent = getpid(), child = fork();
	CHECK(child >= 0);
	if (!child) {
		close(channel[0]);
		partner(channel[1], parent);
	}
	close(channel[1]);
	return channel[0];
}

/* One step of a client that goes on until it is killed. */
static void step(struct opened *o, unsigned char *memory)
{
	static unsigned char buffer[64 * PAGE];
	struct vfio_device_info info = {.argsz = sizeof(info)};

	switch (below(10)) {
	case 0:
		map(o, IOVA * 2, memory, 8 * PAGE);
		break;
	case 1:
		unmap(o, IOVA * 2, 8 * PAGE);
		break;
	case 7:
		if (o->ioas)
			move(o);
		break;
	case 2:
		ioctl(o->device, VFIO_DEVICE_GET_INFO, &info);
		break;
	case 3:
		(void)!pread(o->device, buffer, 1 + below(sizeof(buffer)), 0);
		break;
	case 4:
		(void)!pwrite(o->device, buffer, 1 + below(sizeof(buffer)), 0);
		break;
	case 5:
		arm(o);
		break;
	case 6:
		ioctl(o->device, VFIO_DEVICE_RESET);
		break;
	default:
		run_engine(o, memory);
	}
}

static void live(bool shared)
{
	struct opened o;
	unsigned char *memory;
	bool bound = chance(60);
	int channel = bound && chance(40) ? start_partner() : -1;
	const char *container = chance(50) ? "dev/iommu" : "dev/vfio/vfio";

	while (!(bound ? open_bound(root, cdev, &o) : open_device_in(root, container, group, name, &o)))
		usleep(100);
	if (channel >= 0)
		hand_over(channel, o.iommufd);
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	map(&o, IOVA, memory, PAGES * PAGE);
	volatile unsigned char *video = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, o.device, 0);
	if (video != MAP_FAILED)
		*video = 1;
	run_engine(&o, memory);
	pid_t parent = getpid();
	if (chance(20) && !fork()) { /* a child with the same descriptors, which lives a moment longer */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(0);
		random_state++;
	}
	for (;;) {
		begin("a step of a client", 0, 0, 0, 0);
		step(&o, memory);
		end();
	}
}

/* Whether the device can be opened again, by its group and by its own file; the milliseconds that this took. */
static int64_t free_after(void)
{
	uint64_t begun = now_ns(), took;
	struct opened o;

	do {
		bool by_group = open_device(root, group, name, &o);
		close_device(&o);
		if (by_group && open_bound(root, cdev, &o)) {
			close_device(&o);
			return (now_ns() - begun) / 1000000;
		}
		took = (now_ns() - begun) / 1000000;
		usleep(500);
	} while (took < FREE_MS);
	return -1;
}

static void kill_one(uint64_t *longest)
{
	uint64_t seed = random64();
	unsigned wait = chance(50) ? below(3000) : below(25000);
	pid_t parent = getpid(), child = fork();

	CHECK(child >= 0);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(0);
		random_state = seed;
		live(chance(50));
	}
	usleep(wait);
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	begin("open of the killed client's device", wait, 0, 0, 0);
	int64_t took = free_after();
	int error = errno;
	end();
	if (took < 0)
		fault("the device is not free %d ms after its client was killed: %s", FREE_MS, strerror(error));
	else if ((uint64_t)took > *longest)
		*longest = took;
}

int main(int argc, char **argv)
{
	uint64_t longest = 0;

	CHECK(argc == 8);
	open_progress(argv[1]);
	root = argv[2], group = argv[3], name = argv[4], cdev = argv[5];
	random_state = strtoull(argv[6], NULL, 0);
	if (!strcmp(argv[7], "live"))
		live(chance(50));
	if (!strcmp(argv[7], "probe")) {
		if (free_after() < 0)
			fault("the device is not free: %s", strerror(errno));
		return 0;
	}
	for (uint64_t kills = strtoull(argv[7], NULL, 0); kills--;)
		kill_one(&longest);
	printf("most free_ms %llu\n", (unsigned long long)longest);
	return 0;
}
