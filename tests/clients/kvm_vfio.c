/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's VFIO device and files of a lab, under `vfsfuse run`:
 *
 *   kvm_vfio GROUP VFIO NAME MODE
 *
 * errors   each wrong call has the kernel's errno
 * files    groups, device files and descriptors of GET_DEVICE_FD are added once each, and taken away once
 * numbers  another file or another VM under the number of one that is closed is another one
 * forked   a child that inherits the VM gets EIO, whoever calls first
 * many     several hundred VMs, more than are remembered, in one process and in many
 * free     the group can be opened again, and the VM ends, as soon as the program has closed them
 * swapped  another thread puts other files under the numbers all the time: calls fail, and nothing else happens
 * held     the attribute, and then the number, are in memory that waits: others go on meanwhile
 *
 * Says "ok" at the end; exits with 77 and the reason when there is no KVM, or no userfaultfd for "held".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
enum { FILES = 1, ADD = 1, DEL = 2, SKIP = 77 }; /* KVM_DEV_VFIO_FILE and its attributes, which Debian 12 lacks */

static const char *name;
static char group_path[64], cdev_path[64];
static int kvm, container, group, cdev;

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s (errno %d, %s)\n", __LINE__, #what, errno, strerror(errno)); \
			_exit(1); \
		} \
	} while (0)
#define FAILS(call, error) CHECK((errno = 0, (call) == -1) && errno == (error))

struct vm { int vm, device; };

static struct vm make_vm(void)
{
	struct kvm_create_device made = {.type = KVM_DEV_TYPE_VFIO};
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	CHECK(vm >= 0 && !ioctl(vm, KVM_CREATE_DEVICE, &made));
	return (struct vm){vm, made.fd};
}

static void end_vm(struct vm vm)
{
	CHECK(!close(vm.device) && !close(vm.vm));
}

static int set(int device, uint64_t attribute, int32_t fd)
{
	struct kvm_device_attr attr = {.group = FILES, .attr = attribute, .addr = (uintptr_t)&fd};

	return ioctl(device, KVM_SET_DEVICE_ATTR, &attr);
}

static int other(int device, uint32_t of, uint64_t attribute, const void *address, unsigned long cmd)
{
	struct kvm_device_attr attr = {.group = of, .attr = attribute, .addr = (uintptr_t)address};

	return ioctl(device, cmd, &attr);
}

static int must_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

static void errors(void)
{
	struct vm vm = make_vm();
	int device = vm.device, null = must_open("/dev/null", O_RDWR), path = must_open(group_path, O_PATH);
	int iommu = must_open("/dev/iommu", O_RDWR), unbind = must_open("/sys/bus/pci/drivers_probe", O_WRONLY);
	int32_t *number = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *end = (char *)number + PAGE;

	CHECK(!munmap(end, PAGE));
	CHECK(!other(device, FILES, ADD, NULL, KVM_HAS_DEVICE_ATTR) && !other(device, FILES, DEL, NULL, KVM_HAS_DEVICE_ATTR));
	FAILS(other(device, FILES, 9, NULL, KVM_HAS_DEVICE_ATTR), ENXIO);
	FAILS(other(device, FILES, ADD, NULL, KVM_GET_DEVICE_ATTR), EPERM);
	FAILS(set(device, ADD, -1), EBADF);
	FAILS(set(device, ADD, 999), EBADF);
	FAILS(set(device, DEL, 999), EBADF);
	FAILS(set(device, ADD, path), EBADF);
	FAILS(set(device, DEL, path), EBADF);
	for (int i = 0; i < 5; i++) {
		int no_vfio = (int[]){null, container, iommu, unbind, vm.vm}[i];
		FAILS(set(device, ADD, no_vfio), EINVAL);
		FAILS(set(device, DEL, no_vfio), ENOENT);
	}
	FAILS(set(device, DEL, group), ENOENT);
	FAILS(set(device, DEL, cdev), ENOENT);
	*number = group;
	FAILS(other(device, FILES, 9, number, KVM_SET_DEVICE_ATTR), ENXIO);
	FAILS(other(device, FILES, ADD + (1ull << 32), number, KVM_SET_DEVICE_ATTR), ENXIO);
	FAILS(other(device, 9, ADD, number, KVM_SET_DEVICE_ATTR), ENXIO);
	FAILS(other(device, FILES, ADD, NULL, KVM_SET_DEVICE_ATTR), EFAULT);
	FAILS(other(device, FILES, ADD, end - 2, KVM_SET_DEVICE_ATTR), EFAULT);
	FAILS(ioctl(device, KVM_SET_DEVICE_ATTR, NULL), EFAULT);
	FAILS(ioctl(device, KVM_SET_DEVICE_ATTR, end - 8), EFAULT);
	FAILS(set(vm.vm, ADD, group), ENOTTY);
	FAILS(set(null, ADD, group), ENOTTY);
	FAILS(set(group, ADD, group), ENOTTY);
	FAILS(set(999, ADD, group), EBADF);
	/* none of all that has added anything; KVM looks at no flags */
	FAILS(set(device, DEL, group), ENOENT);
	struct kvm_device_attr flagged = {.flags = ~0u, .group = FILES, .attr = ADD, .addr = (uintptr_t)number};
	CHECK(!ioctl(device, KVM_SET_DEVICE_ATTR, &flagged));
	FAILS(ioctl(device, KVM_SET_DEVICE_ATTR, &flagged), EEXIST);
	end_vm(vm);
}

static void add_once(int device, int fd)
{
	FAILS(set(device, DEL, fd), ENOENT);
	CHECK(!set(device, ADD, fd));
	FAILS(set(device, ADD, fd), EEXIST);
}

static void delete_once(int device, int fd)
{
	CHECK(!set(device, DEL, fd));
	FAILS(set(device, DEL, fd), ENOENT);
}

static void files(void)
{
	struct vm vm = make_vm(), second = make_vm();
	int copy = dup(group), device_copy = dup(vm.device);

	add_once(vm.device, group);
	FAILS(set(vm.device, ADD, copy), EEXIST); /* the same open file */
	FAILS(set(device_copy, ADD, group), EEXIST);
	add_once(vm.device, cdev); /* before it is bound */
	add_once(second.device, group);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) && !ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name), again = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	CHECK(device >= 0 && again >= 0);
	add_once(vm.device, device);
	add_once(vm.device, again);
	delete_once(vm.device, cdev);
	delete_once(vm.device, device);
	delete_once(device_copy, copy);
	FAILS(set(vm.device, ADD, again), EEXIST);
	delete_once(vm.device, again);
	delete_once(second.device, group);
	add_once(vm.device, group);
	end_vm(vm);
	end_vm(second);
}

static void renumber(int from, int to)
{
	CHECK(from == to || (dup3(from, to, O_CLOEXEC) == to && !close(from)));
}

static void numbers(void)
{
	struct vm vm = make_vm();
	int number = group;

	add_once(vm.device, group);
	CHECK(!close(group));
	renumber(must_open(group_path, O_RDWR), number);
	add_once(vm.device, group); /* another open file */
	for (int i = 0; i < 3; i++) {
		struct vm old = vm;
		end_vm(old);
		vm = make_vm();
		renumber(vm.vm, old.vm);
		renumber(vm.device, old.device);
		vm = old;
		add_once(vm.device, group); /* of another VM */
	}
	delete_once(vm.device, group);
	end_vm(vm);
}

static void expect_child(pid_t child)
{
	int status;

	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status);
}

static void forked(void)
{
	struct vm vm = make_vm(), second = make_vm();
	usleep(20000); /* a child that was started within the same clock tick as its parent is told by its number */
	pid_t child = fork();
	if (!child) {
		struct vm own;
		set(second.device, ADD, group); /* before the parent: nobody knows yet whose it is */
		kvm = must_open("/dev/kvm", O_RDWR);
		own = make_vm();
		add_once(own.device, group);
		delete_once(own.device, group);
		_exit(0);
	}
	expect_child(child);
	add_once(vm.device, group);
	add_once(second.device, group);
	child = fork();
	if (!child) {
		FAILS(set(vm.device, ADD, cdev), EIO);
		FAILS(set(vm.device, DEL, group), EIO);
		FAILS(set(vm.device, ADD, 999), EIO);
		FAILS(ioctl(vm.device, KVM_SET_DEVICE_ATTR, NULL), EIO);
		_exit(0);
	}
	expect_child(child);
	delete_once(vm.device, group);
	delete_once(second.device, group);
}

static void many(void)
{
	struct vm lasting = make_vm();

	add_once(lasting.device, group);
	for (int i = 0; i < 200; i++) {
		struct vm vm = make_vm();
		add_once(vm.device, group);
		if (i % 2)
			delete_once(vm.device, group);
		end_vm(vm);
	}
	for (int i = 0; i < 300; i++) {
		pid_t child = fork();
		if (!child) {
			kvm = must_open("/dev/kvm", O_RDWR);
			add_once(make_vm().device, group);
			_exit(0);
		}
		expect_child(child);
	}
	CHECK(!set(lasting.device, DEL, group) || errno == ENOENT); /* it may be forgotten */
	add_once(lasting.device, group);
}

static void free_again(void)
{
	struct vm vm = make_vm();

	for (int i = 0; i < 20; i++) {
		add_once(vm.device, group);
		CHECK(!close(group));
		group = must_open(group_path, O_RDWR); /* EBUSY while somebody has it */
	}
	end_vm(vm);
}

static int swapped_device, swapped_file, swapping = 1;

static void *swap(void *unused)
{
	int vfio_device = dup(swapped_device), file = dup(swapped_file), null = must_open("/dev/null", O_RDWR);

	for (unsigned i = 0; __atomic_load_n(&swapping, __ATOMIC_RELAXED); i++) {
		dup2((int[]){vfio_device, null, group, kvm}[i % 4], swapped_device);
		dup2((int[]){file, cdev, null}[i % 3], swapped_file);
	}
	return unused;
}

static void swapped(void)
{
	static const int fair[] = {EEXIST, ENOENT, EINVAL, ENOTTY, EBADF};
	struct vm vm = make_vm();
	pthread_t thread;

	swapped_device = dup(vm.device), swapped_file = dup(group);
	CHECK(!pthread_create(&thread, NULL, swap, NULL));
	for (int i = 0; i < 2000; i++) {
		int failed = set(swapped_device, i % 3 ? ADD : DEL, swapped_file) ? errno : 0, known = !failed;
		for (size_t each = 0; each < sizeof(fair) / sizeof(*fair); each++)
			known |= failed == fair[each];
		CHECK(known);
	}
	__atomic_store_n(&swapping, 0, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	set(vm.device, DEL, group);
	add_once(vm.device, group);
}

static char *waiting;
static int faults;

static void *add_waiting(void *device)
{
	struct kvm_device_attr *attr = (void *)waiting;

	return (void *)(long)ioctl(*(int *)device, KVM_SET_DEVICE_ATTR, attr);
}

/* Wait until somebody touches `page`, add a file to another VM meanwhile, then give the page. */
static void give(char *page, const void *content, int device)
{
	static char zeros[PAGE];
	struct pollfd ready = {faults, POLLIN, 0};
	struct uffd_msg message;

	CHECK(poll(&ready, 1, 30000) == 1 && read(faults, &message, sizeof(message)) == sizeof(message));
	CHECK(message.event == UFFD_EVENT_PAGEFAULT && message.arg.pagefault.address == (uintptr_t)page);
	for (int i = 0; i < 50; i++) {
		add_once(device, cdev);
		delete_once(device, cdev);
	}
	memcpy(zeros, content, sizeof(struct kvm_device_attr));
	struct uffdio_copy copy = {.dst = (uintptr_t)page, .src = (uintptr_t)zeros, .len = PAGE};
	CHECK(!ioctl(faults, UFFDIO_COPY, &copy));
}

static void held(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct vm vm = make_vm(), second = make_vm();
	struct { int32_t fd; char rest[32]; } number = {.fd = group};
	pthread_t thread;
	void *result;

	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (faults < 0) {
		printf("userfaultfd(2) is refused: %s\n", strerror(errno));
		exit(SKIP);
	}
	CHECK(!ioctl(faults, UFFDIO_API, &api));
	waiting = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = {.range = {(uintptr_t)waiting, 2 * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	CHECK(waiting != MAP_FAILED && !ioctl(faults, UFFDIO_REGISTER, &range));
	struct kvm_device_attr attr = {.group = FILES, .attr = ADD, .addr = (uintptr_t)waiting + PAGE};
	CHECK(!pthread_create(&thread, NULL, add_waiting, &vm.device));
	give(waiting, &attr, second.device);
	give(waiting + PAGE, &number, second.device);
	CHECK(!pthread_join(thread, &result) && !result);
	delete_once(vm.device, group);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } modes[] = {
		{"errors", errors}, {"files", files}, {"numbers", numbers}, {"forked", forked}, {"many", many},
		{"free", free_again}, {"held", held}, {"swapped", swapped},
	};

	CHECK(argc == 5);
	name = argv[3];
	snprintf(group_path, sizeof(group_path), "/dev/vfio/%s", argv[1]);
	snprintf(cdev_path, sizeof(cdev_path), "/dev/vfio/devices/%s", argv[2]);
	if ((kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0 || close(ioctl(kvm, KVM_CREATE_VM, 0))) {
		printf("/dev/kvm makes no VM: %s\n", strerror(errno));
		return SKIP;
	}
	container = must_open("/dev/vfio/vfio", O_RDWR);
	group = must_open(group_path, O_RDWR);
	cdev = must_open(cdev_path, O_RDWR);
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (!strcmp(argv[4], modes[i].name)) {
			modes[i].run();
			puts("ok");
			return 0;
		}
	return 2;
}
