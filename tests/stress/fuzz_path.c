/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz of the tree: look-ups, and every system call that takes a path or an open file, on names that are there, that are
 * not, and that cannot be; stores of random text into attributes.
 *
 *	fuzz_path PROGRESS ROOT SEED CALLS PROTECTED...
 *
 * ROOT is a mounted lab. Names that contain one of PROTECTED are left alone, with all that is below them.
 */
#include "arena.h"
#include <dirent.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/xattr.h>

enum { PATHS = 6000, ROUND = 3000, ERRNOS = 134, FUSE_MAGIC = 0x65735546, NAME_ROOM = 400 };

static int root_fd;
static char **protected_names;
static char *paths[PATHS];
static unsigned path_count;
static uint64_t errors[ERRNOS], longest;

static const char *const words[] = {"0", "1", "2", "4", "-1", "Y", "N", "auto", "vfio-pci", "vgpu", "(null)", "\n",
	"99999999999999999999", "0x10", "1234 1111", "1234 86f0", "ffffffff ffffffff", "0000:86:00.0", "0000:87:00.0",
	"0000:86:00.4", "pty", "loopback", "small", "small,weight=3", "small,vram=1M", "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01",
	"6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01:0", "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01:0:small", "add", "remove",
	"change 6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01 A=1"};

static bool is_protected(const char *name)
{
	for (char **each = protected_names; *each; each++)
		if (strstr(name, *each))
			return true;
	return false;
}

static void collect(const char *directory)
{
	int fd = openat(root_fd, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *stream = fd < 0 ? NULL : fdopendir(fd);

	for (struct dirent *entry; stream && path_count < PATHS && (entry = readdir(stream));) {
		char path[1024];
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || is_protected(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		paths[path_count++] = strdup(path);
		if (entry->d_type == DT_DIR)
			collect(path);
	}
	if (stream)
		closedir(stream);
}

static void look_round(void)
{
	while (path_count)
		free(paths[--path_count]);
	collect(".");
}

/* A name that may be there, and may be none that is possible. */
static const char *name(void)
{
	static char made[NAME_ROOM];
	const char *known = path_count ? strrchr(paths[below(path_count)], '/') + 1 : "sys";
	size_t length = chance(60) ? below(12) : chance(70) ? 250 + below(10) : below(NAME_ROOM);

	if (chance(40))
		return known;
	for (size_t i = 0; i < length; i++)
		made[i] = chance(30) ? 'a' + below(26) : 1 + below(255);
	made[length] = 0;
	if (chance(40)) /* nearly a known one */
		snprintf(made, sizeof(made), "%.200s%c", known, (char)below(256));
	for (char *at = made; (at = strchr(at, '/'));)
		*at = '_'; /* it stays below the lab's root */
	return strcmp(made, "..") ? made : ".";
}

/* Sets `path` to one of the lab, or to a name in one of its directories. */
static const char *any_path(void)
{
	static char made[2][2048];
	static unsigned turn;
	char *path = made[turn++ % 2];

	if (path_count && chance(70))
		return paths[below(path_count)];
	const char *known = path_count && chance(90) ? paths[below(path_count)] : ".";
	snprintf(path, sizeof(made[0]), "%.1500s/%s", known, name());
	return path;
}

/* EIO is the server's own trouble, but for this attribute, which Linux refuses so too. */
static int is_fault(int error, const char *path)
{
	if (error == EIO)
		return !strstr(path, "autosuspend_delay_ms");
	return error == ENOTCONN || error >= ERRNOS;
}

static void done(const char *what, int64_t result, const char *path)
{
	int error = errno;
	uint64_t took = end();

	longest = took > longest ? took : longest;
	errors[result < 0 ? (error < ERRNOS ? error : ERRNOS - 1) : 0]++;
	if (result < 0 && is_fault(error, path)) {
		fault("%s %.300s: %s", what, path, strerror(error));
		if (error == ENOTCONN)
			exit(1);
	}
}

#define TRY(call) \
	do { \
		begin(#call, 0, 0, 0, 0); \
		memccpy(progress->details, path, 0, sizeof(progress->details) - 1); \
		done(#call, (int64_t)(call), path); \
	} while (0)

static size_t random_text(char *text, size_t room)
{
	size_t length = 0;

	for (unsigned i = 1 + below(3); i--;)
		length += snprintf(text + length, room - length, "%s%s", words[below(LENGTH(words))], chance(20) ? ":" : "");
	if (chance(15)) {
		length = chance(50) ? below(room) : 4090 + below(12);
		for (size_t i = 0; i < length; i++)
			text[i] = below(256);
	} else if (chance(30)) {
		text[below(length)] = below(256);
	}
	return length;
}

/* ---- open files ---- */

static int open_any(const char *path)
{
	static const int accesses[] = {O_RDONLY, O_WRONLY, O_RDWR};
	static const int extras[] = {O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECT, O_PATH, O_DIRECTORY, O_NOFOLLOW, O_TMPFILE,
		O_SYNC, O_NOATIME, O_ASYNC};
	int flags = accesses[below(3)] | O_CLOEXEC | O_NONBLOCK, fd;

	while (chance(30))
		flags |= extras[below(LENGTH(extras))];
	TRY(fd = openat(root_fd, path, flags, 0600));
	return fd;
}

static void use(int fd, const char *path)
{
	static char text[16384];
	struct stat status;
	struct pollfd ready = {.fd = fd, .events = POLLIN | POLLPRI};
	off_t offset = chance(50) ? (off_t)below(64) : (off_t)edge64();
	size_t size = random_text(text, 200);

	switch (below(19)) {
	case 0 ... 2:
		TRY(pread(fd, pointer(NULL, 4096), below(5000), chance(60) ? 0 : offset));
		break;
	case 3 ... 5:
		TRY(pwrite(fd, text, size, chance(80) ? 0 : offset));
		break;
	case 6:
		TRY(write(fd, pointer(text, size), size));
		break;
	case 7:
		TRY(ftruncate(fd, offset));
		break;
	case 8:
		TRY(fallocate(fd, below(4), offset, below(9000)));
		break;
	case 9:
		TRY(fstat(fd, &status));
		break;
	case 10:
		TRY(poll(&ready, 1, 0));
		break;
	case 11:
		TRY(lseek(fd, offset, (int)below(6)));
		break;
	case 12:
		TRY(fsync(fd));
		break;
	case 13:
		TRY(flock(fd, (chance(50) ? LOCK_SH : LOCK_UN) | LOCK_NB));
		break;
	case 14:
		TRY(fgetxattr(fd, name(), text, sizeof(text)));
		break;
	case 15:
		TRY(sendfile(strangers[8], fd, NULL, below(5000)));
		break;
	case 16:
		TRY(copy_file_range(fd, NULL, fd, NULL, below(5000), 0));
		break;
	case 17:
		TRY(fcntl(fd, F_SETFL, (int)(random64() & (O_APPEND | O_DIRECT)) | O_NONBLOCK));
		break;
	default:
		TRY(syscall(SYS_getdents64, fd, ARENA, below(6000)));
		TRY(lseek(fd, offset, SEEK_SET));
	}
}

static void fuzz_open(void)
{
	const char *path = any_path();
	int fd = open_any(path);

	for (unsigned i = below(4); fd >= 0 && i--;)
		use(fd, path);
	if (fd >= 0)
		TRY(close(fd));
}

/* An attribute is written, as echo does it. */
static void fuzz_store(void)
{
	char text[8192];
	size_t size = random_text(text, 200);
	const char *path = any_path();
	int fd;

	TRY(fd = openat(root_fd, path, O_WRONLY | O_CLOEXEC | O_NONBLOCK));
	if (fd < 0)
		return;
	TRY(write(fd, text, size));
	TRY(close(fd));
}

/* ---- paths ---- */

static void fuzz_status(const char *path)
{
	struct stat status;
	struct statx more;
	char text[4096];

	switch (below(6)) {
	case 0:
		TRY(fstatat(root_fd, path, &status, chance(50) ? AT_SYMLINK_NOFOLLOW : 0));
		break;
	case 1:
		TRY(statx(root_fd, path, (int)(random64() & (AT_STATX_DONT_SYNC | AT_STATX_FORCE_SYNC)), edge64() & 0xffff, &more));
		break;
	case 2:
		TRY(readlinkat(root_fd, path, text, below(sizeof(text))));
		break;
	case 3:
		TRY(faccessat(root_fd, path, (int)below(8), 0));
		break;
	default:
		TRY(fstatat(root_fd, path, &status, AT_SYMLINK_NOFOLLOW));
	}
}

/* All that a lab must refuse, or allow as sysfs does. */
static void fuzz_change(const char *path)
{
	const char *other = any_path();
	struct timespec times[2] = {{.tv_sec = (time_t)edge64(), .tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
	struct stat status;

	switch (below(12)) {
	case 0:
		TRY(mkdirat(root_fd, path, 0700));
		break;
	case 1:
		TRY(mknodat(root_fd, path, chance(50) ? S_IFIFO | 0600 : S_IFREG | 0600, 0));
		break;
	case 2:
		TRY(unlinkat(root_fd, path, chance(50) ? AT_REMOVEDIR : 0));
		break;
	case 3:
		TRY(syscall(SYS_renameat2, root_fd, path, root_fd, other, chance(50) ? 0 : below(8)));
		break;
	case 4:
		TRY(linkat(root_fd, path, root_fd, other, 0));
		break;
	case 5:
		TRY(symlinkat(other, root_fd, path));
		break;
	case 6: /* not of directories: an ordinary user would lock themselves out */
		if (!fstatat(root_fd, path, &status, AT_SYMLINK_NOFOLLOW) && S_ISREG(status.st_mode))
			TRY(fchmodat(root_fd, path, 0600 | (random64() & 07077), 0));
		break;
	case 7:
		TRY(fchownat(root_fd, path, chance(50) ? (uid_t)-1 : getuid(), chance(50) ? (gid_t)-1 : getgid(),
			AT_SYMLINK_NOFOLLOW));
		break;
	case 8:
		TRY(utimensat(root_fd, path, times, AT_SYMLINK_NOFOLLOW));
		break;
	case 9:
		TRY(openat(root_fd, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
		break;
	default:
		TRY(faccessat(root_fd, path, W_OK, 0));
	}
}

static void fuzz_attributes(const char *path)
{
	static const char *const names[] = {"user.x", "security.selinux", "system.posix_acl_access", "trusted.overlay.opaque"};
	char value[300], below_fd[2100];
	const char *key = chance(70) ? names[below(LENGTH(names))] : name();

	snprintf(below_fd, sizeof(below_fd), "/proc/self/fd/%d/%s", root_fd, path);
	switch (below(6)) {
	case 0:
		TRY(lsetxattr(below_fd, key, value, below(sizeof(value)), (int)below(3)));
		break;
	case 1:
		TRY(lgetxattr(below_fd, key, value, below(sizeof(value))));
		break;
	case 2:
		TRY(llistxattr(below_fd, value, below(sizeof(value))));
		break;
	case 3:
		TRY(lremovexattr(below_fd, key));
		break;
	case 4:
		TRY(truncate(below_fd, (off_t)edge64()));
		break;
	default:
		TRY(access(below_fd, F_OK));
	}
}

/* A file handle, which root may forge: inode numbers that nobody has looked up. */
static void fuzz_handle(const char *path)
{
	static struct {
		struct file_handle head;
		uint64_t words[8];
	} handle;
	int mount, fd;

	handle.head.handle_bytes = sizeof(handle.words);
	TRY(name_to_handle_at(root_fd, path, &handle.head, &mount, 0));
	uint32_t *words = (uint32_t *)handle.head.f_handle; /* inode, high half first, and generation */
	if (handle.head.handle_bytes > sizeof(handle.words))
		return;
	if (chance(70))
		words[below(3)] ^= chance(50) ? 1u << below(32) : (uint32_t)edge64();
	TRY(fd = open_by_handle_at(root_fd, &handle.head, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	if (fd >= 0) { /* a forged handle may be any file's */
		char link[64], real[4096] = "";
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		(void)!readlink(link, real, sizeof(real) - 1);
		use(fd, path = real);
		TRY(close(fd));
	}
}

static void fuzz_watch(const char *path)
{
	static int watcher = -1;
	char below_fd[2100];
	int watch;

	if (watcher < 0)
		CHECK((watcher = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) >= 0);
	snprintf(below_fd, sizeof(below_fd), "/proc/self/fd/%d/%s", root_fd, path);
	TRY(watch = inotify_add_watch(watcher, below_fd, IN_ALL_EVENTS));
	if (watch >= 0)
		inotify_rm_watch(watcher, watch);
}

int main(int argc, char **argv)
{
	static void (*const kinds[])(const char *) = {fuzz_status, fuzz_status, fuzz_change, fuzz_attributes, fuzz_handle,
		fuzz_watch};
	struct statfs found;

	CHECK(argc >= 5);
	open_progress(argv[1]);
	CHECK((root_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0);
	CHECK(!fstatfs(root_fd, &found));
	if (found.f_type != FUSE_MAGIC) { /* never on another file system, such as the machine's own /sys */
		fault("%s is no FUSE mount", argv[2]);
		return 1;
	}
	random_state = strtoull(argv[3], NULL, 0);
	uint64_t calls = strtoull(argv[4], NULL, 0);
	protected_names = argv + 5;
	make_arena();
	make_strangers();
	for (unsigned i = 0; progress->calls < calls; i++) {
		if (i % ROUND == 0)
			look_round();
		if (chance(35))
			fuzz_open();
		else if (chance(30))
			fuzz_store();
		else
			kinds[below(LENGTH(kinds))](any_path());
	}
	for (unsigned i = 0; i < ERRNOS; i++)
		if (errors[i])
			printf("count %s %llu\n", i ? strerrorname_np(i) : "good", (unsigned long long)errors[i]);
	printf("most own %llu\n", (unsigned long long)longest / 1000);
	return 0;
}
