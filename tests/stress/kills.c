/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGKILL of clients at random moments. Each client opens a vGPU, maps memory, arms interrupts and lets the engine run;
 * it is killed at any of these steps. Soon afterwards the group must be free again.
 *
 *	kills PROGRESS ROOT GROUP NAME SEED KILLS
 *	kills PROGRESS ROOT GROUP NAME SEED live|probe
 *
 * `live` is one such client, to be killed from outside; `probe` asks whether the group is free. Runs under `vfsfuse run`.
 */
#include "stress.h"

enum { PAGES = 64, RING = PAGE, IOVA = 1 << 20, FREE_MS = 1000 };

static const char *root, *group, *name;

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

/* One step of a client that goes on until it is killed. */
static void step(struct opened *o, unsigned char *memory)
{
	static unsigned char buffer[64 * PAGE];
	struct vfio_device_info info = {.argsz = sizeof(info)};

	switch (below(9)) {
	case 0:
		map_dma(o->container, IOVA * 2, memory, 8 * PAGE, 3);
		break;
	case 1:
		unmap_dma(o->container, IOVA * 2, 8 * PAGE);
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

	while (!open_device(root, group, name, &o))
		usleep(100);
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	map_dma(o.container, IOVA, memory, PAGES * PAGE, 3);
	volatile unsigned char *video = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, o.device, 0);
	if (video != MAP_FAILED)
		*video = 1;
	run_engine(&o, memory);
	for (;;) {
		begin("a step of a client", 0, 0, 0, 0);
		step(&o, memory);
		end();
	}
}

/* Whether the vGPU can be opened again; the milliseconds that this took. */
static int64_t free_after(void)
{
	uint64_t begun = now_ns(), took;
	struct opened o;

	do {
		if (open_device(root, group, name, &o)) {
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
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		random_state = seed;
		live(chance(50));
	}
	usleep(wait);
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	begin("open of the killed client's vGPU", wait, 0, 0, 0);
	int64_t took = free_after();
	int error = errno;
	end();
	if (took < 0)
		fault("the vGPU is not free %d ms after its client was killed: %s", FREE_MS, strerror(error));
	else if ((uint64_t)took > *longest)
		*longest = took;
}

int main(int argc, char **argv)
{
	uint64_t longest = 0;

	CHECK(argc == 7);
	open_progress(argv[1]);
	root = argv[2], group = argv[3], name = argv[4];
	random_state = strtoull(argv[5], NULL, 0);
	if (!strcmp(argv[6], "live"))
		live(chance(50));
	if (!strcmp(argv[6], "probe")) {
		if (free_after() < 0)
			fault("the vGPU is not free: %s", strerror(errno));
		return 0;
	}
	for (uint64_t kills = strtoull(argv[6], NULL, 0); kills--;)
		kill_one(&longest);
	printf("most free_ms %llu\n", (unsigned long long)longest);
	return 0;
}
