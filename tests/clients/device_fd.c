/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VFIO_GROUP_GET_DEVICE_FD alone, under `vfsfuse run`:
 *
 *   device_fd GROUP NAME MODE
 *
 * errors       each wrong call has the kernel's errno
 * signals      good calls while signals arrive all the time
 * last-thread  good calls from a thread that has outlived the first; it sets the container and an interrupt, too
 * unset        the device, closed, is in nobody's hands: the group can leave its container at once
 * forever      good calls until killed
 * hold         says "held" and keeps the device open until stdin ends
 *
 * Says "ok" at the end; exits with 2 for another MODE.
 */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static int container, group;
static const char *name;

static int get(int fd, const void *string)
{
	return ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, string);
}

static void good(const char *string)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};
	int device = get(group, string);

	CHECK(device >= 0 && fcntl(device, F_GETFD) == FD_CLOEXEC && (fcntl(device, F_GETFL) & O_ACCMODE) == O_RDWR);
	CHECK(!ioctl(device, VFIO_DEVICE_GET_INFO, &info) && info.flags & VFIO_DEVICE_FLAGS_PCI);
	CHECK(!close(device));
}

static void errors(void)
{
	char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *end = pages + 2 * 4096;
	int null = open("/dev/null", O_RDWR), path = open("/dev/vfio/vfio", O_PATH);

	CHECK(!munmap(end, 4096));
	FAILS(get(group, "nobody"), ENODEV);
	FAILS(get(group, ""), ENODEV);
	FAILS(get(group, NULL), EFAULT);
	FAILS(get(group, (void *)-4096l), EFAULT);
	FAILS(get(999, name), EBADF);
	FAILS(get(-1, name), EBADF);
	FAILS(get(path, name), EBADF);
	FAILS(get(container, name), ENOTTY);
	FAILS(get(null, name), ENOTTY);
	memset(pages, 'x', 2 * 4096);
	FAILS(get(group, end - 1), EFAULT);
	FAILS(get(group, pages + 1), EINVAL); /* no NUL in PAGE_SIZE bytes */
	pages[4096 + 1] = 0;
	FAILS(get(group, pages + 1), EINVAL);
	FAILS(get(group, pages + 2), ENODEV); /* 4095 of them and NUL */
	good(strcpy(pages + 4096 - 2, name));
	good(strcpy(end - strlen(name) - 1, name));
	CHECK(syscall(SYS_ioctl, group, 1ul << 32 | VFIO_GROUP_GET_DEVICE_FD, name) >= 0);
}

static volatile sig_atomic_t ticks;

static void tick(int number)
{
	ticks += number > 0;
}

static void signals(void)
{
	struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
	struct itimerval often = {{0, 100}, {0, 100}};

	CHECK(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &often, NULL));
	for (int i = 0; i < 200; i++)
		good(name);
	CHECK(ticks > 0);
}

static void join(void)
{
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static void *outlive(void *first)
{
	struct { struct vfio_irq_set set; int eventfd; } request = {.eventfd = eventfd(0, 0)};
	int device;

	request.set.argsz = sizeof(request), request.set.index = VFIO_PCI_REQ_IRQ_INDEX, request.set.count = 1;
	request.set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	CHECK(!pthread_join(*(pthread_t *)first, NULL));
	CHECK(!ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	join();
	good(name);
	device = get(group, name);
	CHECK(device >= 0 && !ioctl(device, VFIO_DEVICE_SET_IRQS, &request));
	puts("ok");
	exit(0);
}

static void last_thread(void)
{
	static pthread_t first, other;

	first = pthread_self();
	CHECK(!pthread_create(&other, NULL, outlive, &first));
	pthread_exit(NULL);
}

static void unset(void)
{
	for (int i = 0; i < 200; i++) {
		CHECK(!close(get(group, name)));
		CHECK(!ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
		join();
	}
}

static void forever(void)
{
	for (;;)
		good(name);
}

static void hold(void)
{
	char byte;

	CHECK(get(group, name) >= 0);
	puts("held");
	while (read(0, &byte, 1) > 0)
		;
}

static const struct mode {
	const char *name;
	void (*act)(void);
} modes[] = {
	{"errors", errors}, {"signals", signals}, {"last-thread", last_thread}, {"unset", unset}, {"forever", forever}, {"hold", hold}, {0},
};

int main(int argc, char **argv)
{
	const struct mode *mode = modes;
	char path[64];

	while (mode->name && (argc != 4 || strcmp(mode->name, argv[3])))
		mode++;
	if (!mode->name)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	name = argv[2];
	snprintf(path, sizeof(path), "/dev/vfio/%s", argv[1]);
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), group = open(path, O_RDWR | O_CLOEXEC);
	CHECK(container >= 0 && group >= 0);
	FAILS(get(group, name), EINVAL);
	join();
	mode->act();
	puts("ok");
	return 0;
}
