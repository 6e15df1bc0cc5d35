/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that knows VFIO and the copier (examples/copier.py), and nothing of this project: it maps two pages, has the
 * device copy one to the other, waits for MSI-X vector 0, and lets everything go.  Each call is made once, in the order
 * of the source, so that a listener's account can be compared with it line by line.
 *
 *	copier_client GROUP DEVICE
 *
 * With a third argument it does a round of calls again and again instead, until its stdin ends, and checks each result.
 * It prints the number of rounds from time to time.
 */
#define _GNU_SOURCE
#include <errno.h>
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

#define COMMAND_REGISTER (((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4)
#define MEMORY_AND_MASTER 6
enum { PAGE = 4096, IOVA = 1 << 20, SOURCE = 0, TARGET = 8, SIZE = 0x10, COMMAND = 0x14, STATUS = 0x18 };

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "copier_client: %s: %s\n", #what, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

static int device;

static void put(off_t offset, uint64_t value, size_t size)
{
	CHECK(pwrite(device, &value, size, offset) == (ssize_t)size);
}

static void use_interrupt(int event)
{
	char room[sizeof(struct vfio_irq_set) + 4];
	struct vfio_irq_set *set = (void *)room;

	*set = (struct vfio_irq_set){.argsz = sizeof(room), .flags = VFIO_IRQ_SET_DATA_EVENTFD |
		VFIO_IRQ_SET_ACTION_TRIGGER, .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 1};
	memcpy(set->data, &event, 4);
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, set));
}

static void copy(int event)
{
	struct pollfd wait = {.fd = event, .events = POLLIN};
	uint32_t status = 0;

	put(COMMAND_REGISTER, MEMORY_AND_MASTER, 2);
	put(SOURCE, IOVA, 8);
	put(TARGET, IOVA + PAGE, 8);
	put(SIZE, 100, 4);
	put(COMMAND, 1, 4);
	CHECK(poll(&wait, 1, 60000) == 1);
	CHECK(pread(device, &status, 4, STATUS) == 4);
	printf("status %u\n", status);
	put(STATUS, status, 4);
}

static void check_info(void)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};

	CHECK(!ioctl(device, VFIO_DEVICE_GET_INFO, &info) && info.num_regions == 9 && info.num_irqs == 5);
	CHECK(info.flags == (VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET));
}

/* One round: a copy of `memory`, with what it contains before and after, and a mapping that comes and goes. */
static void do_round(int container, int event, char *memory, uint32_t number)
{
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ,
		.vaddr = (uintptr_t)memory, .iova = 2 * IOVA, .size = PAGE};
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = 2 * IOVA, .size = PAGE};
	uint64_t signals = 0;
	uint32_t status = 0;

	memset(memory, (int)number, PAGE);
	check_info();
	put(SIZE, 64 + number % 64, 4);
	put(COMMAND, 1, 4);
	CHECK(read(event, &signals, 8) == 8 && signals == 1);
	CHECK(!memcmp(memory, memory + PAGE, 64 + number % 64));
	CHECK(pread(device, &status, 4, STATUS) == 4 && status == 1);
	put(STATUS, status, 4);
	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == PAGE);
}

static int go_round(int container, int event, char *memory)
{
	struct pollfd end = {.fd = 0, .events = POLLIN};
	uint32_t number = 0;

	put(COMMAND_REGISTER, MEMORY_AND_MASTER, 2);
	put(SOURCE, IOVA, 8);
	put(TARGET, IOVA + PAGE, 8);
	setvbuf(stdout, NULL, _IOLBF, 0);
	do {
		do_round(container, event, memory, number++);
		if (number % 50 == 1)
			printf("%u\n", number);
	} while (!poll(&end, 1, 0));
	return 0;
}

int main(int argc, char **argv)
{
	char path[64];
	char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_device_info info = {.argsz = sizeof(info)};
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ |
		VFIO_DMA_MAP_FLAG_WRITE, .vaddr = (uintptr_t)memory, .iova = IOVA, .size = 2 * PAGE};
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = IOVA, .size = 2 * PAGE};
	int event = eventfd(0, EFD_CLOEXEC);

	if (argc != 3 && argc != 4)
		return 2;
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	memset(memory, 7, PAGE);
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(path, O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
	CHECK(device >= 0);
	CHECK(!ioctl(device, VFIO_DEVICE_GET_INFO, &info));
	use_interrupt(event);
	if (argc == 4)
		return go_round(container, event, memory);
	copy(event);
	CHECK(!memcmp(memory, memory + PAGE, 100));
	if (ioctl(device, VFIO_DEVICE_RESET))
		fprintf(stderr, "reset: %s\n", strerror(errno));
	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == 2 * PAGE);
	puts("ok");
	return 0;
}
