/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "places.h"

#include <sys/mount.h> /* before linux/fs.h, for a glibc before 2.36 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "loop_device.h"

#define MIN_BYTES (512 * MIB) /* of which mkfs.xfs makes something */

static struct {
	pid_t owner;
	char mounted[512];
	struct loop_device loop;
	int zram; /* -1: none */
} made = { .loop = { .fd = -1 }, .zram = -1 };

static char why[256];

static const char *because(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *because(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	(void)vsnprintf(why, sizeof(why), format, list);
	va_end(list);
	return why;
}

static bool run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool run(const char *format, ...)
{
	char command[2048];
	va_list list;

	va_start(list, format);
	(void)vsnprintf(command, sizeof(command), format, list);
	va_end(list);
	return system(command) == 0;
}

/* The first line of what a command says. */
static bool ask(const char *command, char *text, size_t size)
{
	FILE *out = popen(command, "re");
	bool said;

	if (!out)
		return false;
	said = fgets(text, (int)size, out);
	text[said ? strcspn(text, "\n") : 0] = '\0';
	return pclose(out) == 0 && text[0];
}

/* ---- the end ---- */

static void undo(void)
{
	if (made.mounted[0])
		(void)umount2(made.mounted, MNT_DETACH);
	made.mounted[0] = '\0';
	loop_device_close(&made.loop);
	if (made.zram >= 0 && !run("echo 1 >/sys/block/zram%d/reset && echo %d >/sys/class/zram-control/hot_remove",
	                           made.zram, made.zram))
		fprintf(stderr, "zram%d could not be removed\n", made.zram);
	made.zram = -1;
}

static void undo_at_exit(void)
{
	if (getpid() == made.owner)
		undo();
}

const char *place_own_namespace(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return because("no mount namespace of our own: %s", strerror(errno));
	return NULL;
}

/* ---- devices ---- */

static const char *make_backing(char *path, size_t size, uint64_t bytes)
{
	int fd;

	(void)snprintf(path, size, "%s", fixture_path("backing"));
	(void)unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return because("no file for a loop device: %s", strerror(errno));
	close(fd);
	return NULL;
}

static const char *open_loop(struct place *place, const char *backing, unsigned sector_bytes)
{
	DIOH_AUTO_FD int file = open(backing, O_RDWR | O_CLOEXEC);
	const char *r;

	if (file < 0)
		return because("%s: %s", backing, strerror(errno));
	r = loop_device_open(&made.loop, file, sector_bytes);
	if (r)
		return because("%s, with sectors of %u bytes", r, sector_bytes);
	(void)snprintf(place->path, sizeof(place->path), "%s", made.loop.path);
	place->is_device = true;
	return NULL;
}

static const char *open_zram(struct place *place, uint64_t bytes)
{
	char number[16];

	if (access("/sys/class/zram-control/hot_add", R_OK) < 0)
		return "no zram in this kernel, or its devices cannot be added to";
	if (!ask("cat /sys/class/zram-control/hot_add", number, sizeof(number)))
		return "no further zram device to be had";
	made.zram = atoi(number);
	(void)snprintf(place->path, sizeof(place->path), "/dev/zram%d", made.zram);
	place->is_device = true;
	if (!run("echo %llu >/sys/block/zram%d/disksize", (unsigned long long)bytes, made.zram))
		return "the zram device cannot be sized";
	return access(place->path, W_OK) == 0 ? NULL : because("%s has not appeared", place->path);
}

/* ---- file systems ---- */

static const char *make_directory(char *path, size_t size)
{
	(void)snprintf(path, size, "%s", fixture_path("place"));
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return because("%s: %s", path, strerror(errno));
	return NULL;
}

static const char *mount_image(struct place *place, const char *mkfs, uint64_t bytes)
{
	char directory[512], backing[512];
	const char *r = make_directory(directory, sizeof(directory));

	if (!r)
		r = make_backing(backing, sizeof(backing), bytes < MIN_BYTES ? MIN_BYTES : bytes);
	if (r)
		return r;
	if (!run("%s %s >/dev/null 2>&1", mkfs, backing))
		return because("no file system by \"%s\": is the program there?", mkfs);
	if (!run("mount -o loop %s %s", backing, directory))
		return because("the kernel does not mount what \"%s\" makes", mkfs);
	(void)snprintf(made.mounted, sizeof(made.mounted), "%s", directory);
	(void)snprintf(place->path, sizeof(place->path), "%.400s/image", directory);
	return NULL;
}

static const char *go_nocow(struct place *place)
{
	char directory[480];
	int flags = FS_NOCOW_FL;
	DIOH_AUTO_FD int fd = -1;

	(void)snprintf(directory, sizeof(directory), "%.400s/nocow", made.mounted);
	if (mkdir(directory, 0755) < 0)
		return because("%s: %s", directory, strerror(errno));
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
		return because("the attribute NOCOW cannot be set: %s", strerror(errno));
	(void)snprintf(place->path, sizeof(place->path), "%s/image", directory);
	return NULL;
}

static const char *mount_tmpfs(struct place *place)
{
	char directory[512];
	const char *r = make_directory(directory, sizeof(directory));

	if (!r && mount("tmpfs", directory, "tmpfs", 0, NULL) < 0)
		r = because("tmpfs: %s", strerror(errno));
	if (r)
		return r;
	(void)snprintf(made.mounted, sizeof(made.mounted), "%s", directory);
	(void)snprintf(place->path, sizeof(place->path), "%.400s/image", directory);
	return NULL;
}

static const char *start_fuse(struct place *place)
{
	const struct fuse_file_options options = { .async_dio = true };
	const char *r = NULL;

	place->fuse = fuse_file_start("fuse", &options, &r);
	if (!place->fuse)
		return r;
	(void)snprintf(place->path, sizeof(place->path), "%s", fuse_file_path(place->fuse));
	return NULL;
}

static const char *open_network(struct place *place, uint64_t bytes)
{
	const char *r = start_fuse(place);

	if (!r && truncate(fuse_file_path(place->fuse), (off_t)bytes) < 0)
		r = because("the FUSE file cannot be sized: %s", strerror(errno));
	return r ? r : open_loop(place, fuse_file_path(place->fuse), 512);
}

/* ---- places ---- */

const char *place_name(enum place_kind kind)
{
	static const char *const names[] = {
		[PLACE_EXT4] = "ext4",
		[PLACE_XFS] = "XFS",
		[PLACE_XFS_16K] = "XFS, 16 KiB",
		[PLACE_BTRFS] = "btrfs",
		[PLACE_BTRFS_NOCOW] = "btrfs, NOCOW",
		[PLACE_TMPFS] = "tmpfs",
		[PLACE_FUSE] = "FUSE",
		[PLACE_LOOP_512] = "loop, 512 B",
		[PLACE_LOOP_4096] = "loop, 4096 B",
		[PLACE_ZRAM] = "zram",
		[PLACE_NETWORK] = "loop on FUSE",
	};

	return names[kind];
}

static const char *open_place(struct place *place, uint64_t bytes)
{
	char backing[512];
	const char *r;

	switch (place->kind) {
	case PLACE_EXT4: return mount_image(place, "mkfs.ext4 -q -F -m 0", bytes);
	case PLACE_XFS: return mount_image(place, "mkfs.xfs -q -f", bytes);
	case PLACE_XFS_16K: return mount_image(place, "mkfs.xfs -q -f -b size=16k", bytes);
	case PLACE_BTRFS: return mount_image(place, "mkfs.btrfs -q -f", bytes);
	case PLACE_BTRFS_NOCOW:
		r = mount_image(place, "mkfs.btrfs -q -f", bytes);
		return r ? r : go_nocow(place);
	case PLACE_TMPFS: return mount_tmpfs(place);
	case PLACE_FUSE: return start_fuse(place);
	case PLACE_ZRAM: return open_zram(place, bytes);
	case PLACE_NETWORK: return open_network(place, bytes);
	default:
		r = make_backing(backing, sizeof(backing), bytes);
		return r ? r : open_loop(place, backing, place->kind == PLACE_LOOP_4096 ? 4096 : 512);
	}
}

const char *place_open(struct place *place, enum place_kind kind, uint64_t bytes)
{
	const char *r;

	if (!made.owner) {
		fixture_dir(); /* its removal comes after undo() */
		made.owner = getpid();
		atexit(undo_at_exit);
	}
	memset(place, 0, sizeof(*place));
	place->kind = kind;
	r = open_place(place, bytes);
	if (r)
		place_close(place);
	return r;
}

void place_close(struct place *place)
{
	undo();
	fuse_file_stop(place->fuse);
	place->fuse = NULL;
	(void)unlink(fixture_path("backing"));
}
