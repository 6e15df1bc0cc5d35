/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that has nothing to do with a campaign: every 5 ms it reads an attribute, asks a bound device by ioctl and pread,
 * and opens and closes the device.  The longest answer of each tells how much the campaign held up everybody else.
 *
 *	bystander PROGRESS ATTRIBUTE DEVICE IOMMU
 *
 * With files of a tmpfs it is the control: what the machine itself held up.  It ends by SIGTERM.
 */
#include "stress.h"

enum { PAUSE_US = 5000 };

struct question {
	const char *name;
	bool (*ask)(void);
	uint64_t longest;
};

static const char *attribute, *device;
static int held;
static volatile sig_atomic_t ended;

static bool cat(void)
{
	char text[PAGE];
	int fd = open(attribute, O_RDONLY | O_CLOEXEC);
	bool good = fd >= 0 && read(fd, text, sizeof(text)) > 0;

	if (fd >= 0)
		close(fd);
	return good;
}

/* A file of the control is no device: ENOTTY is its answer. */
static bool info(void)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};

	return !ioctl(held, VFIO_DEVICE_GET_INFO, &info) || errno == ENOTTY;
}

static bool config(void)
{
	uint32_t identity;

	return pread(held, &identity, sizeof(identity), REGION(VFIO_PCI_CONFIG_REGION_INDEX)) >= 0;
}

static bool open_close(void)
{
	int fd = open(device, O_RDWR | O_CLOEXEC);

	return fd >= 0 && !close(fd);
}

static void end_it(int number)
{
	(void)number;
	ended = 1;
}

int main(int argc, char **argv)
{
	struct question questions[] = {{.name = "cat", .ask = cat}, {.name = "ioctl", .ask = info},
		{.name = "pread", .ask = config}, {.name = "open", .ask = open_close}};

	CHECK(argc == 5);
	open_progress(argv[1]);
	attribute = argv[2], device = argv[3];
	CHECK((held = open(device, O_RDWR | O_CLOEXEC)) >= 0);
	int iommufd = open(argv[4], O_RDWR | O_CLOEXEC);
	CHECK(iommufd >= 0 && (bind_device(held, iommufd) || errno == ENOTTY));
	close(iommufd);
	signal(SIGTERM, end_it);
	while (!ended) {
		for (unsigned i = 0; i < LENGTH(questions) && !ended; i++) {
			struct question *q = &questions[i];

			begin(q->name, 0, 0, 0, 0);
			bool good = q->ask();
			int error = errno;
			uint64_t took = end();
			if (!good && error != EINTR) {
				fault("%s: %s", q->name, strerror(error));
				return 1;
			}
			q->longest = took > q->longest ? took : q->longest;
		}
		usleep(PAUSE_US);
	}
	for (unsigned i = 0; i < LENGTH(questions); i++)
		printf("most %s %llu\n", questions[i].name, (unsigned long long)questions[i].longest / 1000);
	return 0;
}
