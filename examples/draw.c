/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user-space driver of a vGPU: it draws a picture by commands of the engine, and waits for the interrupt.
 *
 *	vfsfuse run --mount MNT -- ./draw UUID
 *
 * Nothing but the kernel's VFIO interface and what docs/vgpu.md says of the device; draw.py is the same in Python.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGION(index) ((off_t)(index) << 40)
#define GTT REGION(VFIO_PCI_BAR1_REGION_INDEX)
#define DISPI (REGION(VFIO_PCI_BAR2_REGION_INDEX) + 0x500)
#define ENGINE (REGION(VFIO_PCI_BAR2_REGION_INDEX) + 0x1000)
#define COMMAND (REGION(VFIO_PCI_CONFIG_REGION_INDEX) + 4)
#define BUS_MASTER 4

enum { CONTROL = 0x04, STATUS = 0x08, RING_BASE = 0x20, RING_SIZE = 0x28, RING_TAIL = 0x30 };
enum { ENABLE = 1, RESET = 2 };
enum { FILL = 1, BLIT = 3, FENCE = 4 };
enum { WIDTH = 640, HEIGHT = 480, PITCH = WIDTH * 4, SPRITE = 64, PAGE = 4096 };
enum { IOVA = 1 << 30, RING = 0, FENCES = PAGE, TEXTURE = 2 * PAGE, SIZE = TEXTURE + 4 * SPRITE * SPRITE };
#define SYSTEM ((uint64_t)1 << 40)
#define AT(x, y) ((uint64_t)(y) * PITCH + 4 * (x)) /* graphics address of a pixel */

struct packet {
	uint32_t opcode, flags;
	union {
		struct { uint64_t target; uint32_t pitch, width, height, pattern; } fill;
		struct { uint64_t target, source; uint32_t target_pitch, source_pitch, width, height; } blit;
		struct { uint64_t address, value; } fence;
		char room[56];
	};
};

static int container, device;

#define CHECK(what) \
	do { \
		if (!(what)) { \
			perror("draw: " #what); \
			exit(1); \
		} \
	} while (0)

static void put(off_t offset, const void *data, size_t size)
{
	CHECK(pwrite(device, data, size, offset) == (ssize_t)size);
}

static void put32(off_t offset, uint32_t value)
{
	put(offset, &value, sizeof(value));
}

static void open_device(const char *name)
{
	char path[256], link[256] = "";
	int group;

	snprintf(path, sizeof(path), "/sys/bus/mdev/devices/%s/iommu_group", name);
	CHECK(readlink(path, link, sizeof(link) - 1) > 0);
	snprintf(path, sizeof(path), "/dev/vfio/%.200s", strrchr(link, '/') + 1);
	CHECK((container = open("/dev/vfio/vfio", O_RDWR)) >= 0);
	CHECK((group = open(path, O_RDWR)) >= 0);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	CHECK((device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name)) >= 0);
}

static char *map_memory(void)
{
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, .iova = IOVA, .size = SIZE,
	};
	uint64_t entries[SIZE / PAGE];
	uint16_t command;

	CHECK(memory != MAP_FAILED);
	map.vaddr = (uintptr_t)memory;
	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	for (int page = 0; page < SIZE / PAGE; page++)
		entries[page] = (IOVA + (uint64_t)page * PAGE) | 3;
	put(GTT, entries, sizeof(entries));
	CHECK(pread(device, &command, sizeof(command), COMMAND) == sizeof(command));
	command |= BUS_MASTER;
	put(COMMAND, &command, sizeof(command));
	return memory;
}

static int fence_interrupt(void)
{
	struct { struct vfio_irq_set set; int eventfd; } irq = {.eventfd = eventfd(0, 0)};

	irq.set.argsz = sizeof(irq), irq.set.index = VFIO_PCI_MSIX_IRQ_INDEX, irq.set.count = 1;
	irq.set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &irq));
	return irq.eventfd;
}

static size_t picture(struct packet *ring)
{
	const struct packet packets[] = {
		{FILL, .fill = {0, PITCH, 4 * WIDTH, HEIGHT, 0x204060}},
		{FILL, .fill = {AT(40, 30), PITCH, 4 * 200, 100, 0xffcc00}},
		{BLIT, .blit = {AT(60, 50), AT(40, 30), PITCH, PITCH, 4 * 200, 100}}, /* over a part of itself */
		{BLIT, .blit = {AT(300, 200), SYSTEM + TEXTURE, PITCH, 4 * SPRITE, 4 * SPRITE, SPRITE}},
		{BLIT, .blit = {AT(500, 400), AT(300, 200), PITCH, PITCH, 4 * SPRITE, SPRITE}},
		{FENCE, 1, .fence = {SYSTEM + FENCES, 1}},
	};

	memcpy(ring, packets, sizeof(packets));
	return sizeof(packets);
}

int main(int argc, char **argv)
{
	const uint16_t mode[] = {WIDTH, HEIGHT, 32, 0x41};
	uint64_t base = SYSTEM + RING;
	struct pollfd done;
	char *memory;
	uint32_t *texture, tail, state[4];

	CHECK(argc == 2);
	open_device(argv[1]);
	memory = map_memory();
	done = (struct pollfd){.fd = fence_interrupt(), .events = POLLIN};
	put(DISPI + 2, mode, sizeof(mode));
	texture = (uint32_t *)(memory + TEXTURE);
	for (uint32_t y = 0; y < SPRITE; y++)
		for (uint32_t x = 0; x < SPRITE; x++)
			*texture++ = (4 * x) << 16 | (4 * y) << 8 | 128;
	tail = picture((struct packet *)(memory + RING));

	put32(ENGINE + CONTROL, RESET);
	put(ENGINE + RING_BASE, &base, sizeof(base));
	put32(ENGINE + RING_SIZE, PAGE);
	put32(ENGINE + CONTROL, ENABLE);
	put32(ENGINE + RING_TAIL, tail);

	if (poll(&done, 1, 10000) == 1 && *(volatile uint64_t *)(memory + FENCES) == 1)
		return 0;
	CHECK(pread(device, state, sizeof(state), ENGINE + STATUS) == sizeof(state));
	fprintf(stderr, "draw: the engine did not finish: status %#x, error %u\n", state[0], state[1]);
	return 1;
}
