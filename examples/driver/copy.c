/* SPDX-License-Identifier: Apache-2.0 */
/* A driver in 60 lines: it has a copier (../copier.py) copy SIZE bytes.  Usage: copy GROUP DEVICE SIZE */
#include <err.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, TARGET = PAGE / 2, IOVA = 0x100000 }; /* the device finds our page at IOVA */
/* The registers, in BAR 0, which is at offset 0 of the device's file. */
enum { SOURCE_REG = 0, TARGET_REG = 8, SIZE_REG = 0x10, COMMAND_REG = 0x14, STATUS_REG = 0x18 };
static int device;

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void put(off_t offset, uint64_t value, size_t size)
{
	must(pwrite(device, &value, size, offset), "write of a register");
}

int main(int argc, char **argv)
{
	char path[64], *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ |
		VFIO_DMA_MAP_FLAG_WRITE, .vaddr = (uintptr_t)memory, .iova = IOVA, .size = PAGE};
	struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
	struct { struct vfio_irq_set set; int event; } irq = {{.argsz = sizeof(irq), .flags = VFIO_IRQ_SET_DATA_EVENTFD |
		VFIO_IRQ_SET_ACTION_TRIGGER, .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 1}, eventfd(0, 0)};
	uint32_t status = 0, size = argc == 4 ? strtoul(argv[3], NULL, 0) : 0;
	uint64_t interrupts;

	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	int container = must(open("/dev/vfio/vfio", O_RDWR), "/dev/vfio/vfio"), group = must(open(path, O_RDWR), path);
	must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "SET_CONTAINER");
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "SET_IOMMU");
	must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");
	device = must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]), argv[2]);
	must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config), "GET_REGION_INFO");
	must(ioctl(device, VFIO_DEVICE_SET_IRQS, &irq), "SET_IRQS");
	put(config.offset + 4, 6, 2); /* COMMAND of configuration space: decode memory, be bus master */
	memset(memory, '*', TARGET);
	put(SOURCE_REG, IOVA, 8), put(TARGET_REG, IOVA + TARGET, 8), put(SIZE_REG, size, 4), put(COMMAND_REG, 1, 4);
	must(read(irq.event, &interrupts, sizeof(interrupts)), "the interrupt");
	must(pread(device, &status, 4, STATUS_REG), "STATUS");
	put(STATUS_REG, status, 4); /* acknowledge it */
	if (status != 1)
		errx(1, "the device cannot copy %u bytes: status %u", size, status);
	return printf("%.*s\n", (int)size, memory + TARGET) < 0;
}
