/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmp.c - a small client of QEMU's machine protocol. See qmp.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qmp.h"

#define ANSWER_TIMEOUT_MS 30000 /* a QEMU that starts on a busy machine takes seconds, never this */

/* Sends it all, and `fd` with the first byte if it is not -1. */
static int send_bytes(struct hv_qmp *qmp, const char *bytes, size_t count, int fd, struct dioh_error *err)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	size_t sent = 0;

	while (sent < count) {
		struct iovec iov = { .iov_base = (char *)(uintptr_t)(bytes + sent), .iov_len = count - sent };
		struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (fd >= 0 && sent == 0) {
			control.align.cmsg_level = SOL_SOCKET;
			control.align.cmsg_type = SCM_RIGHTS;
			control.align.cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(&control.align), &fd, sizeof(int));
			message.msg_control = &control;
			message.msg_controllen = sizeof(control.bytes);
		}
		n = sendmsg(qmp->fd, &message, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return hv_fail(err, EPIPE, "QEMU does not take commands any more: %m");
		sent += (size_t)n;
	}
	return 0;
}

/* Reads what there is behind `used`, perhaps nothing yet; QEMU must have something to say before `deadline_ms`. */
static int fill_buffer(struct hv_qmp *qmp, int64_t deadline_ms, struct dioh_error *err)
{
	int64_t left_ms = deadline_ms - hv_now_ms();
	ssize_t n;
	int rc;

	if (qmp->used == HV_QMP_ANSWER_BYTES_MAX)
		return hv_fail(err, EMSGSIZE, "QEMU's answer is longer than %u bytes", HV_QMP_ANSWER_BYTES_MAX);
	rc = hv_wait_readable(qmp->cancel, qmp->fd, left_ms > 0 ? (int)left_ms : 0, err);
	if (rc < 0 || (rc == 0 && hv_now_ms() < deadline_ms))
		return rc;
	if (rc == 0)
		return hv_fail(err, ETIMEDOUT, "QEMU has not answered for %d s", ANSWER_TIMEOUT_MS / 1000);
	do
		n = read(qmp->fd, qmp->buffer + qmp->used, HV_QMP_ANSWER_BYTES_MAX - qmp->used);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return hv_fail(err, EPIPE, "QEMU has ended");
	qmp->used += (size_t)n;
	return 0;
}

/* The next object QEMU sends: each is a line. */
static int read_object(struct hv_qmp *qmp, int64_t deadline_ms, json_t **ret_object, struct dioh_error *err)
{
	json_t *object;
	char *end;
	int rc;

	while (!(end = memchr(qmp->buffer, '\n', qmp->used))) {
		rc = fill_buffer(qmp, deadline_ms, err);
		if (rc)
			return rc;
	}
	object = json_loadb(qmp->buffer, (size_t)(end - qmp->buffer), 0, NULL);
	qmp->used -= (size_t)(end + 1 - qmp->buffer);
	memmove(qmp->buffer, end + 1, qmp->used);
	if (!json_is_object(object)) {
		json_decref(object);
		return hv_fail(err, EBADMSG, "QEMU's answer is not a JSON object");
	}
	*ret_object = object;
	return 0;
}

/* The answer to command `id`; events, and answers that somebody stopped waiting for, are read past. */
static int read_answer(struct hv_qmp *qmp, uint64_t id, json_t **ret_answer, struct dioh_error *err)
{
	int64_t deadline_ms = hv_now_ms() + ANSWER_TIMEOUT_MS;

	for (;;) {
		json_t *object = NULL, *its_id;
		int rc = read_object(qmp, deadline_ms, &object, err);

		if (rc)
			return rc;
		its_id = json_object_get(object, "id");
		if (json_is_integer(its_id) && (uint64_t)json_integer_value(its_id) == id) {
			*ret_answer = object;
			return 0;
		}
		json_decref(object);
	}
}

static int take_result(const char *command, json_t *answer, json_t **ret_result, struct dioh_error *err)
{
	json_t *error = json_object_get(answer, "error");
	const char *text = json_string_value(json_object_get(error, "desc"));

	if (error)
		return hv_fail(err, EREMOTEIO, "QEMU refuses %s: %s", command, text ? text : "it does not say why");
	if (ret_result)
		*ret_result = json_incref(json_object_get(answer, "return"));
	return 0;
}

static int command_with_fd(struct hv_qmp *qmp, const char *command, json_t *arguments, int fd, json_t **ret_result,
                           struct dioh_error *err)
{
	uint64_t id = ++qmp->last_id;
	json_t *answer, *object;
	char *text;
	int rc;

	object = json_pack("{s:s, s:I, s:o*}", "execute", command, "id", (json_int_t)id, "arguments", arguments);
	text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	json_decref(object);
	if (!text)
		return hv_fail(err, ENOMEM, "no memory for QEMU's %s command", command);
	rc = send_bytes(qmp, text, strlen(text), fd, err);
	free(text);
	if (rc == 0)
		rc = read_answer(qmp, id, &answer, err);
	if (rc)
		return rc;
	rc = take_result(command, answer, ret_result, err);
	json_decref(answer);
	return rc;
}

int hv_qmp_command(struct hv_qmp *qmp, const char *command, json_t *arguments, json_t **ret_result,
                   struct dioh_error *err)
{
	return command_with_fd(qmp, command, arguments, -1, ret_result, err);
}

int hv_qmp_give_fd(struct hv_qmp *qmp, const char *name, int fd, struct dioh_error *err)
{
	return command_with_fd(qmp, "getfd", json_pack("{s:s}", "fdname", name), fd, NULL, err);
}

void hv_qmp_skip_events(struct hv_qmp *qmp)
{
	char *last;
	ssize_t n;

	/* Half an event stays for the next time, unless it is longer than anything we are ready to read. */
	if (qmp->used == HV_QMP_ANSWER_BYTES_MAX)
		qmp->used = 0;
	n = recv(qmp->fd, qmp->buffer + qmp->used, HV_QMP_ANSWER_BYTES_MAX - qmp->used, MSG_DONTWAIT);
	if (n <= 0)
		return;
	qmp->used += (size_t)n;
	last = memrchr(qmp->buffer, '\n', qmp->used);
	if (!last)
		return;
	qmp->used -= (size_t)(last + 1 - qmp->buffer);
	memmove(qmp->buffer, last + 1, qmp->used);
}

int hv_qmp_open(struct hv_qmp *qmp, int fd, struct hv_cancel *cancel, struct dioh_error *err)
{
	json_t *greeting = NULL;
	int rc;

	*qmp = (struct hv_qmp){ .fd = fd, .cancel = cancel, .buffer = malloc(HV_QMP_ANSWER_BYTES_MAX) };
	if (!qmp->buffer) {
		hv_qmp_close(qmp);
		return hv_fail(err, ENOMEM, "no memory for QEMU's answers");
	}
	rc = read_object(qmp, hv_now_ms() + ANSWER_TIMEOUT_MS, &greeting, err);
	if (rc == 0) {
		json_decref(greeting);
		rc = hv_qmp_command(qmp, "qmp_capabilities", NULL, NULL, err);
	}
	if (rc)
		hv_qmp_close(qmp);
	return rc;
}

void hv_qmp_close(struct hv_qmp *qmp)
{
	hv_close(&qmp->fd);
	free(qmp->buffer);
	qmp->buffer = NULL;
}
