/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QEMU's educational PCI device "edu", by its group: registers, MSI, and a reset, which the device may lack.
 * It prints what the device answers.  It knows VFIO, and nothing of this project.
 *
 *	edu_client GROUP DEVICE
 *
 * Source: QEMU's docs/specs/edu.rst.
 */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { IDENTITY = 0, FACTORIAL = 8, STATUS = 0x20, COMPUTING = 1, RAISE = 0x60, ACKNOWLEDGE = 0x64, COMMAND = 4 };
static int device;

static off_t region(unsigned index)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = index};

	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	printf("region %u: %llu bytes, flags %u\n", index, info.size, info.flags);
	return (off_t)info.offset;
}

static void put(off_t at, uint32_t value, size_t size)
{
	CHECK(pwrite(device, &value, size, at) == (ssize_t)size);
}

static uint32_t get(off_t at)
{
	uint32_t value = 0;

	CHECK(pread(device, &value, sizeof(value), at) == sizeof(value));
	return value;
}

static int interrupt(void)
{
	struct { struct vfio_irq_set set; int event; } irq = {{.argsz = sizeof(irq), .flags = VFIO_IRQ_SET_DATA_EVENTFD |
		VFIO_IRQ_SET_ACTION_TRIGGER, .index = VFIO_PCI_MSI_IRQ_INDEX, .count = 1}, eventfd(0, EFD_CLOEXEC)};

	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &irq));
	return irq.event;
}

int main(int argc, char **argv)
{
	char path[64];
	uint64_t signals = 0;

	CHECK(argc == 3);
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(path, O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[2]);
	CHECK(device >= 0);
	off_t bar = region(VFIO_PCI_BAR0_REGION_INDEX), config = region(VFIO_PCI_CONFIG_REGION_INDEX);
	put(config + COMMAND, 6, 2);
	int event = interrupt();
	printf("identity %#x\n", get(bar + IDENTITY));
	put(bar + FACTORIAL, 5, 4);
	while (get(bar + STATUS) & COMPUTING)
		usleep(1000);
	printf("5! = %u\n", get(bar + FACTORIAL));
	for (int number = 0; number < 3; number++) {
		put(bar + RAISE, 7, 4);
		CHECK(read(event, &signals, sizeof(signals)) == sizeof(signals));
		printf("%llu interrupt\n", (unsigned long long)signals);
		put(bar + ACKNOWLEDGE, 7, 4);
	}
	printf("reset: %s\n", ioctl(device, VFIO_DEVICE_RESET) ? strerror(errno) : "done");
	/* The group is free as soon as the device is closed here: nobody else keeps it open. */
	CHECK(!close(device) && !ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	puts("ok");
	return 0;
}
