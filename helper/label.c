/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * label.c - see label.h. The label is set by fsetxattr(2) on the descriptor, which is what fsetfilecon_raw(3) does: libselinux
 * would be one more library in a process that is to hold little, and its is_selinux_enabled(3) says no inside a domain
 * that may not look around.
 */
#define _GNU_SOURCE
#include "label.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cleanup.h"

#define PLACE DIOH_PLACE(LABEL, IMAGE, 0, DIOH_OFFSET_NONE)
#define XATTR "security.selinux"
#define LABEL_ASKS (DIOH_IMAGE_ASK_LABEL_REQUIRED | DIOH_IMAGE_ASK_LABEL_IF_ENABLED)

/* A kernel without SELinux lets root write the attribute all the same: an answer of 0 would prove nothing. */
bool dioh_label_own_context(char context[DIOH_LABEL_BYTES])
{
	DIOH_AUTO_FD int fd = open("/proc/self/attr/current", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, context, DIOH_LABEL_BYTES - 1);
	const char *role;

	memset(context + (n > 0 ? n : 0), 0, DIOH_LABEL_BYTES - (size_t)(n > 0 ? n : 0));
	role = strchr(context, ':'); /* AppArmor's has no user:role:type */
	if (role && strchr(role + 1, ':'))
		return true;
	context[0] = '\0';
	return false;
}

static void read_label(int fd, char label[DIOH_LABEL_BYTES])
{
	ssize_t n = fgetxattr(fd, XATTR, label, DIOH_LABEL_BYTES - 1);

	memset(label + (n > 0 ? n : 0), 0, DIOH_LABEL_BYTES - (size_t)(n > 0 ? n : 0));
}

static int set_label(const struct dioh_msg_attach_image *request, int fd, struct dioh_msg_attach_image_reply *reply,
                     struct dioh_error *err)
{
	const uint32_t how = request->ask & LABEL_ASKS;
	char own[DIOH_LABEL_BYTES];

	if (!how)
		return 0;
	if (!dioh_label_own_context(own)) {
		if (how == DIOH_IMAGE_ASK_LABEL_IF_ENABLED)
			return 0;
		return dioh_error_set(err, EOPNOTSUPP, PLACE, "image: label %.100s is required, and SELinux is not enabled here",
		                      request->label);
	}
	read_label(fd, reply->label_before);
	if (fsetxattr(fd, XATTR, request->label, strlen(request->label) + 1, 0) < 0)
		return dioh_error_errno(err, errno, PLACE, "image: setting label %.100s failed (it had %.60s)", request->label,
		                        reply->label_before);
	read_label(fd, reply->label_after);
	reply->done |= how;
	return 0;
}

static int set_owner(const struct dioh_msg_attach_image *request, int fd, struct dioh_msg_attach_image_reply *reply,
                     struct dioh_error *err)
{
	if (!(request->ask & DIOH_IMAGE_ASK_OWNER))
		return 0;
	if (fchown(fd, request->uid, request->gid) < 0)
		return dioh_error_errno(err, errno, PLACE, "image: giving it to uid %u, gid %u failed", (unsigned)request->uid,
		                        (unsigned)request->gid);
	reply->done |= DIOH_IMAGE_ASK_OWNER;
	return 0;
}

static int set_mode(const struct dioh_msg_attach_image *request, int fd, struct dioh_msg_attach_image_reply *reply,
                    struct dioh_error *err)
{
	if (!(request->ask & DIOH_IMAGE_ASK_MODE))
		return 0;
	if (fchmod(fd, request->mode) < 0)
		return dioh_error_errno(err, errno, PLACE, "image: setting mode %04o failed", (unsigned)request->mode);
	reply->done |= DIOH_IMAGE_ASK_MODE;
	return 0;
}

int dioh_label_check(const struct dioh_msg_attach_image *request, uint32_t allowed, struct dioh_error *err)
{
	static const struct {
		uint32_t ask;
		uint32_t allow;
		const char *name;
	} kinds[] = {
		{ LABEL_ASKS, DIOH_ALLOW_LABEL, "label" },
		{ DIOH_IMAGE_ASK_OWNER, DIOH_ALLOW_OWNER, "owner" },
		{ DIOH_IMAGE_ASK_MODE, DIOH_ALLOW_MODE, "mode" },
	};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (request->ask & kinds[i].ask && !(allowed & kinds[i].allow))
			return dioh_error_set(err, EPERM, PLACE, "image: setting its %s was not allowed: serve has no --allow=%s",
			                      kinds[i].name, kinds[i].name);
	return 0;
}

int dioh_label_image(const struct dioh_msg_attach_image *request, struct dioh_image *image,
                     struct dioh_msg_attach_image_reply *reply, struct dioh_error *err)
{
	int r = set_label(request, image->header_fd, reply, err);

	if (r == 0)
		r = set_owner(request, image->header_fd, reply, err);
	if (r == 0)
		r = set_mode(request, image->header_fd, reply, err);
	if (reply->done)
		atomic_store(&image->metadata_changed, true);
	return r;
}
