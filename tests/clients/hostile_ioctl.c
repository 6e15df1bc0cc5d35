/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile client of dev/iommu: it makes an ioctl whose struct, or what the struct points to, is memory that waits
 * when it is touched (held_memory.h), or that takes a descriptor of a file that answers nothing (held_file.h).
 *
 *   hostile_ioctl [-u | -f] [-s SECONDS] [-m MEMORY] [-b BYTES] [-o OFFSET] [-d OFFSET] FILE DEV CALL...
 *
 * FILE is an ordinary file, the mount point; DEV is opened.  CALL is NUMBER:HEX, an ioctl and the bytes of its struct.
 * All but the last are made before, with structs in plain memory.  What may stand before the number, in this order:
 *   "+" makes the call on the file that "+PATH", a CALL without a number, has opened;
 *   "@OFFSET," puts the number of the open DEV there, "*OFFSET," the address of the memory that waits.
 * -u mounts in a user namespace, -f through fusermount3, as an ordinary user does.
 * -m is the memory of the last struct, a row of `memories`.  -b is how many of its bytes lie in plain memory before.
 * -o leaves the struct in plain memory; at OFFSET it points to that memory.  -d puts the hostile file's number there.
 *
 * It says what hostile_fuse says: "held KIND", "returned 0" or "returned ERRNO".  A byte on stdin releases what is held.
 */
#define _GNU_SOURCE
#include "held_file.h"
#include "held_memory.h"

enum { LONGEST = PAGE };
struct call {
	char data[LONGEST] __attribute__((aligned(8)));
	size_t size;
	unsigned long number;
	int fd;
};

static int dev = -1, device = -1;

static void put(struct call *call, long offset, const void *value, size_t size)
{
	CHECK(offset >= 0 && offset + size <= LONGEST);
	memcpy(call->data + offset, value, size);
}

/* The call that `text` describes. */
static void parse(const char *text, struct call *call)
{
	char *rest;
	long dev_at = -1, memory_at = -1;
	unsigned byte;

	*call = (struct call){.fd = *text == '+' ? device : dev};
	text += *text == '+';
	if (*text == '@')
		dev_at = strtol(text + 1, &rest, 0), text = rest + 1;
	if (*text == '*')
		memory_at = strtol(text + 1, &rest, 0), text = rest + 1;
	call->number = strtoul(text, &rest, 0);
	CHECK(*rest == ':');
	for (text = rest + 1; sscanf(text, "%2x", &byte) == 1; text += 2) {
		CHECK(call->size < LONGEST);
		call->data[call->size++] = byte;
	}
	if (dev_at >= 0)
		put(call, dev_at, &dev, sizeof(dev));
	if (memory_at >= 0)
		put(call, memory_at, &memory, sizeof(memory));
}

static void prepare(const char *text)
{
	struct call call;

	if (text[0] == '+' && text[1] == '/') {
		device = open(text + 1, O_RDWR | O_CLOEXEC);
		CHECK(device >= 0);
		return;
	}
	parse(text, &call);
	CHECK(!ioctl(call.fd, call.number, call.data));
}

int main(int argc, char **argv)
{
	char hold[] = "FLUSH,GETATTR,OPEN,READ,RELEASE,WRITE";
	const struct memory *kind = memories;
	const char *memory_name = "plain";
	long plain = 0, points_at = -1, file_at = -1;
	int option;
	unsigned seconds = 150;
	enum how how = AS_ROOT;
	static struct call call;
	char *argument = call.data;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((option = getopt(argc, argv, "ufs:m:b:o:d:")) != -1) {
		switch (option) {
		case 'u': how = IN_USER_NAMESPACE; break;
		case 'f': how = BY_FUSERMOUNT; break;
		case 's': seconds = strtoul(optarg, NULL, 10); break;
		case 'm': memory_name = optarg; break;
		case 'b': plain = strtol(optarg, NULL, 10); break;
		case 'o': points_at = strtol(optarg, NULL, 10); break;
		case 'd': file_at = strtol(optarg, NULL, 10); break;
		default: return 2;
		}
	}
	if (argc - optind < 3)
		return 2;
	while (kind->name && strcmp(kind->name, memory_name))
		kind++;
	CHECK(kind->name != NULL);
	hostile = held_file(argv[optind], kinds_of(hold), seconds, how, 0);
	alarm(seconds + 2);
	make_memory(kind);
	dev = open(argv[optind + 1], O_RDWR | O_CLOEXEC);
	CHECK(dev >= 0);
	for (int i = optind + 2; i < argc - 1; i++)
		prepare(argv[i]);
	parse(argv[argc - 1], &call);
	if (file_at >= 0)
		put(&call, file_at, &hostile, sizeof(hostile));
	if (points_at >= 0)
		put(&call, points_at, &memory, sizeof(memory));
	else
		argument = place(kind, call.data, call.size, plain);
	arm_memory(kind);
	int result = ioctl(call.fd, call.number, argument);
	printf("returned %s\n", result < 0 ? strerrorname_np(errno) : "0");
	await(&held->released);
	return 0;
}
