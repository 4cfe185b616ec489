/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image.c - opens image files and codes this program's own header. See image.h.
 *
 * The file is opened twice: without O_DIRECT for the small writes, with it for the pages. The second time by way of the
 * first descriptor, so that it is the same file whatever happens to its name meanwhile.
 *
 * The header in front of a mapped-ram image is the one thing in a file that this program reads and writes by itself: it
 * is outside the image that the helper sees, and no more than JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"

#define HEADER_FORMAT "dioh-hypervisor"
#define HEADER_VERSION 1

static int open_directory(struct hv_image *image, const char *path, struct dioh_error *err)
{
	char for_directory[PATH_MAX], for_name[PATH_MAX];
	const char *name;

	if (strlen(path) >= PATH_MAX)
		return hv_fail(err, ENAMETOOLONG, "%.64s...: the name is too long", path);
	strcpy(for_directory, path); /* dirname() and basename() write into what they get */
	strcpy(for_name, path);
	name = basename(for_name);
	if (strlen(name) >= sizeof(image->name))
		return hv_fail(err, ENAMETOOLONG, "%.64s...: the name is too long", name);
	strcpy(image->name, name);
	image->directory_fd = open(dirname(for_directory), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (image->directory_fd < 0)
		return hv_fail(err, errno, "%s: its directory cannot be opened: %m", path);
	return 0;
}

/* What is neither file nor disk is not opened again, a FIFO would wait for its other end: the helper says what is wrong. */
static int open_direct(struct hv_image *image, const char *path, int access_mode, struct dioh_error *err)
{
	char by_descriptor[32];
	struct stat status;

	if (fstat(image->buffered_fd, &status))
		return hv_fail(err, errno, "%s: what it is cannot be found out: %m", path);
	if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
		return 0;
	(void)snprintf(by_descriptor, sizeof(by_descriptor), "/proc/self/fd/%d", image->buffered_fd);
	image->direct_fd = open(by_descriptor, access_mode | O_DIRECT | O_CLOEXEC);
	if (image->direct_fd < 0 && errno != EINVAL)
		return hv_fail(err, errno, "%s: it cannot be opened with O_DIRECT: %m", path);
	return 0;
}

/*
 * Goes to the helper with the descriptor, and lasts as long: when a save was given up because the disk does not answer, what its
 * helper has under way may still come, and nobody else may write there before.
 */
static int claim(const struct hv_image *image, const char *path, struct dioh_error *err)
{
	/* A file system without locks goes without. */
	if (flock(image->buffered_fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
		return 0;
	return hv_fail(err, EBUSY, "%s: it is being written to, perhaps by the helper of a save that was given up and whose disk does "
	               "not answer", path);
}

int hv_image_open_for_save(struct hv_image *image, const char *path, struct dioh_error *err)
{
	const int flags = O_RDWR | O_CLOEXEC | O_NOCTTY;
	int rc = open_directory(image, path, err);

	if (rc)
		return rc;
	/* Guest memory is nobody else's business: 0600. */
	image->buffered_fd = openat(image->directory_fd, image->name, flags | O_CREAT | O_EXCL, 0600);
	image->created = image->buffered_fd >= 0;
	if (image->buffered_fd < 0 && errno == EEXIST)
		image->buffered_fd = openat(image->directory_fd, image->name, flags | O_EXCL); /* a device: EBUSY as below */
	if (image->buffered_fd < 0)
		return hv_fail(err, errno, "%s: it cannot be opened for writing: %m", path);
	rc = claim(image, path, err);
	return rc ? rc : open_direct(image, path, O_RDWR, err);
}

int hv_image_open_for_load(struct hv_image *image, const char *path, struct dioh_error *err)
{
	char first;

	image->buffered_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (image->buffered_fd < 0)
		return hv_fail(err, errno, "%s: it cannot be opened: %m", path);
	/* What this is, if it is no image at all, the helper says. */
	if (pread(image->buffered_fd, &first, 1, 0) == 1 && first == '{')
		image->base_offset = HV_MAPPED_RAM_OFFSET;
	return open_direct(image, path, O_RDONLY, err);
}

void hv_image_discard(struct hv_image *image)
{
	if (image->created)
		(void)unlinkat(image->directory_fd, image->name, 0);
	image->created = false;
}

void hv_image_close(struct hv_image *image)
{
	hv_close(&image->direct_fd);
	hv_close(&image->buffered_fd);
	hv_close(&image->directory_fd);
}

/* ---- the header in front --------------------------------------------------------------------------------------- */

int hv_image_write_front(const struct hv_image *image, const char *header, struct dioh_error *err)
{
	char front[HV_MAPPED_RAM_OFFSET];
	size_t length = strlen(header);

	if (length > sizeof(front))
		return hv_fail(err, EMSGSIZE, "the image's header is too long");
	memset(front, ' ', sizeof(front));
	memcpy(front, header, length); /* NOLINT(bugprone-not-null-terminated-result): spaces follow, not a string's end */
	errno = 0;
	if (pwrite(image->buffered_fd, front, sizeof(front), 0) != (ssize_t)sizeof(front))
		return hv_fail(err, errno ? errno : EIO, "the image's header cannot be written: %m");
	return 0;
}

int hv_image_read_front(const struct hv_image *image, struct hv_machine *ret_machine, struct dioh_error *err)
{
	char front[HV_MAPPED_RAM_OFFSET];
	ssize_t n = pread(image->buffered_fd, front, sizeof(front), 0);

	if (n < 0)
		return hv_fail(err, errno, "the image's header cannot be read: %m");
	return hv_header_decode(front, (size_t)n, ret_machine, err);
}

/* ---- the header ------------------------------------------------------------------------------------------------ */

char *hv_header_encode(const struct hv_machine *machine)
{
	json_t *header;
	char *text;

	header = json_pack("{s:s, s:i, s:s, s:s, s:I, s:s}", "format", HEADER_FORMAT, "version", HEADER_VERSION, "machine",
	                   machine->type, "accel", machine->accel, "memory-bytes", (json_int_t)machine->memory_bytes,
	                   "qemu-version", machine->qemu_version);
	text = header ? json_dumps(header, JSON_INDENT(2)) : NULL;
	json_decref(header);
	return text;
}

/* These end up on QEMU's command line, where a comma would begin an option of somebody else's choice. */
static bool harmless_name(const char *name)
{
	size_t length = strlen(name);

	return length > 0 && length < HV_NAME_BYTES && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_") == length;
}

static int decode(json_t *header, struct hv_machine *ret_machine, struct dioh_error *err)
{
	struct hv_machine machine = { .memory_bytes = 0 };
	const char *format, *type, *accel, *qemu_version;
	json_int_t bytes;
	int version;

	if (json_unpack(header, "{s:s, s:i, s:s, s:s, s:I, s:s}", "format", &format, "version", &version, "machine", &type,
	                "accel", &accel, "memory-bytes", &bytes, "qemu-version", &qemu_version) ||
	    strcmp(format, HEADER_FORMAT) != 0)
		return hv_fail(err, EBADMSG, "the image was not made by dioh-hypervisor");
	if (version != HEADER_VERSION)
		return hv_fail(err, EOPNOTSUPP, "the image's header has version %d, this program knows %d", version,
		               HEADER_VERSION);
	if (!harmless_name(type) || !harmless_name(accel) || !harmless_name(qemu_version))
		return hv_fail(err, EBADMSG, "the image's header names an impossible machine");
	if (bytes % (1 << 20) || (uint64_t)bytes < HV_MEMORY_BYTES_MIN || (uint64_t)bytes > HV_MEMORY_BYTES_MAX)
		return hv_fail(err, EBADMSG, "the image's header gives an impossible size of memory");
	(void)snprintf(machine.type, HV_NAME_BYTES, "%s", type);
	(void)snprintf(machine.accel, HV_NAME_BYTES, "%s", accel);
	(void)snprintf(machine.qemu_version, HV_NAME_BYTES, "%s", qemu_version);
	machine.memory_bytes = (uint64_t)bytes;
	*ret_machine = machine;
	return 0;
}

int hv_header_decode(const char *bytes, size_t count, struct hv_machine *ret_machine, struct dioh_error *err)
{
	json_t *header = json_loadb(bytes, count, 0, NULL);
	int rc = decode(header, ret_machine, err);

	json_decref(header);
	return rc;
}
