/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * control.c - both ends of the control socket. See control.h.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"

#define IDLE_MS 1000
#define REQUEST_TIMEOUT_MS 1000
#define CANCEL_TIMEOUT_MS 900

static int make_address(const char *path, struct sockaddr_un *address, struct dioh_error *err)
{
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address->sun_path))
		return hv_fail(err, ENAMETOOLONG, "%s: a socket's name has at most %zu bytes", path,
		               sizeof(address->sun_path) - 1);
	strcpy(address->sun_path, path);
	return 0;
}

static int connect_to(const char *path, int *ret_fd, struct dioh_error *err)
{
	HV_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	int rc = make_address(path, &address, err);

	if (rc)
		return rc;
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)))
		return hv_fail(err, errno, "%s: no dioh-hypervisor answers there: %m", path);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* ---- the server ------------------------------------------------------------------------------------------------ */

/* Nobody answers at a file that is no socket either: somebody's disk or image, by a slip of the finger. */
static void remove_stale(const char *path)
{
	HV_CLOSE int fd = -1;
	struct stat status;

	if (lstat(path, &status) == 0 && S_ISSOCK(status.st_mode) && connect_to(path, &fd, NULL) == -ECONNREFUSED)
		(void)unlink(path);
}

int hv_control_listen(const char *path, int *ret_fd, struct dioh_error *err)
{
	HV_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	mode_t old_mask;
	int rc = make_address(path, &address, err);

	if (rc)
		return rc;
	remove_stale(path);
	old_mask = umask(0177);
	rc = fd < 0 ? -1 : bind(fd, (const struct sockaddr *)&address, sizeof(address));
	(void)umask(old_mask);
	if (rc || listen(fd, 8))
		return hv_fail(err, errno, "%s: the control socket cannot be made: %m", path);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* A client that does not read loses progress; one that is gone loses the result too. */
static void answer(struct hv_server *server, uint32_t kind, const struct hv_progress *progress, const char *text)
{
	struct hv_answer message = { .kind = kind };

	if (progress) {
		message.done_bytes = progress->done_bytes;
		message.total_bytes = progress->total_bytes;
		message.bytes_per_second = progress->bytes_per_second;
	}
	(void)snprintf(message.text, sizeof(message.text), "%s", text);
	(void)send(server->client_fd, &message, sizeof(message), MSG_NOSIGNAL | (progress ? MSG_DONTWAIT : 0));
}

struct client_reporter {
	struct hv_reporter reporter; /* first: it is found from here */
	struct hv_server *server;
};

static void report_to_client(struct hv_reporter *reporter, const struct hv_progress *progress)
{
	struct hv_server *server = ((struct client_reporter *)reporter)->server;

	answer(server, HV_ANSWER_PROGRESS, progress, progress->stage);
}

/* True: the guest is to end. */
static bool serve_save(struct hv_server *server, const struct hv_request *request)
{
	struct client_reporter reporter = { { report_to_client }, server };
	struct hv_helper_options options = { server->helper_program, server->cancel, &reporter.reporter };
	char summary[HV_SUMMARY_BYTES];
	struct dioh_error error;
	bool keep_running = request->flags & HV_REQUEST_KEEP_RUNNING;
	enum hv_layout layout = request->flags & HV_REQUEST_CONTAINER ? HV_LAYOUT_CONTAINER : HV_LAYOUT_MAPPED_RAM;
	int rc;

	server->cancel->client_fd = server->client_fd;
	rc = hv_save(server->vm, request->path, layout, &options, summary, &error);
	server->cancel->client_fd = -1;
	server->cancel->cancelled = false;
	if (rc == 0 && keep_running)
		rc = hv_vm_cont(server->vm, &error);
	if (rc)
		(void)fprintf(stderr, "dioh-hypervisor: save: %s\n", error.text);
	answer(server, rc ? HV_ANSWER_ERROR : HV_ANSWER_OK, NULL, rc ? error.text : summary);
	return rc == 0 && !keep_running;
}

static bool serve_request(struct hv_server *server, const struct hv_request *request)
{
	switch (request->verb) {
	case HV_VERB_SAVE:
		return serve_save(server, request);
	case HV_VERB_QUIT:
		answer(server, HV_ANSWER_OK, NULL, "the guest has been ended");
		return true;
	default:
		answer(server, HV_ANSWER_ERROR, NULL, "this request is not known");
		return false;
	}
}

static bool serve_client(struct hv_server *server)
{
	struct hv_request request;
	struct timeval limit = { .tv_sec = REQUEST_TIMEOUT_MS / 1000 };
	bool end = false;
	ssize_t n;

	server->client_fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (server->client_fd < 0)
		return false;
	(void)setsockopt(server->client_fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	(void)setsockopt(server->client_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	n = recv(server->client_fd, &request, sizeof(request), 0);
	if (n == (ssize_t)sizeof(request) && memchr(request.path, '\0', sizeof(request.path)))
		end = serve_request(server, &request);
	hv_close(&server->client_fd);
	return end;
}

int hv_control_serve(struct hv_server *server, struct dioh_error *err)
{
	while (!server->cancel->quit) {
		int rc;

		if (!hv_vm_alive(server->vm))
			return hv_fail(err, EPIPE, "QEMU has ended by itself");
		hv_qmp_skip_events(&server->vm->qmp);
		rc = hv_wait_readable(server->cancel, server->listen_fd, IDLE_MS, err);
		if (rc == -ECANCELED)
			return 0; /* nothing runs that could be cancelled: this means the guest */
		if (rc < 0)
			return rc;
		if (rc > 0 && serve_client(server))
			return 0;
	}
	return 0;
}

/* ---- the client ------------------------------------------------------------------------------------------------ */

/* SIGINT is passed on once. Then the answer should come soon; a second one, or its not coming, ends the wait. */
static int pass_on(int fd, struct hv_cancel *cancel, int64_t *deadline_ms)
{
	if (*deadline_ms)
		return -ECANCELED;
	(void)send(fd, "cancel", 6, MSG_NOSIGNAL);
	*deadline_ms = hv_now_ms() + CANCEL_TIMEOUT_MS;
	cancel->cancelled = false;
	return 0;
}

/* The next message. Cancelling is quick; a manager that does not say so in time is not waited for. */
static int receive(int fd, struct hv_cancel *cancel, int64_t *deadline_ms, struct hv_answer *ret_answer,
                   struct dioh_error *err)
{
	ssize_t n;
	int rc;

	while ((rc = hv_wait_readable(cancel, fd, *deadline_ms ? CANCEL_TIMEOUT_MS : IDLE_MS, err)) <= 0) {
		if (rc == -ECANCELED)
			rc = pass_on(fd, cancel, deadline_ms);
		else if (rc == 0 && *deadline_ms && hv_now_ms() >= *deadline_ms)
			rc = hv_fail(err, ECANCELED, "cancelled; the guest's manager has not answered yet");
		if (rc)
			return rc;
	}
	do /* a server that closed without having read "cancel" resets the connection, but its answer stands */
		n = recv(fd, ret_answer, sizeof(*ret_answer), 0);
	while (n < 0 && errno == ECONNRESET);
	if (n != (ssize_t)sizeof(*ret_answer))
		return hv_fail(err, EPIPE, "the dioh-hypervisor that ran the guest has gone away");
	ret_answer->text[sizeof(ret_answer->text) - 1] = '\0';
	return 0;
}

static int follow(int fd, struct hv_cancel *cancel, struct hv_display *display, char text[HV_SUMMARY_BYTES],
                  struct dioh_error *err)
{
	int64_t deadline_ms = 0; /* not cancelled */
	struct hv_answer answered;
	int rc;

	while ((rc = receive(fd, cancel, &deadline_ms, &answered, err)) == 0 && answered.kind == HV_ANSWER_PROGRESS) {
		struct hv_progress progress = { answered.text, answered.done_bytes, answered.total_bytes,
			                        answered.bytes_per_second };

		hv_display_progress(display, &progress);
	}
	if (rc == 0 && answered.kind != HV_ANSWER_OK)
		rc = hv_fail(err, deadline_ms ? ECANCELED : EREMOTEIO, "%s", answered.text);
	if (rc == 0)
		(void)snprintf(text, HV_SUMMARY_BYTES, "%s", answered.text);
	return rc;
}

int hv_control_request(const char *path, const struct hv_request *request, struct hv_cancel *cancel,
                       char text[HV_SUMMARY_BYTES], struct dioh_error *err)
{
	struct hv_display display;
	HV_CLOSE int fd = -1;
	int rc = connect_to(path, &fd, err);

	if (rc)
		return rc;
	if (send(fd, request, sizeof(*request), MSG_NOSIGNAL) != (ssize_t)sizeof(*request))
		return hv_fail(err, errno, "%s: the request cannot be sent: %m", path);
	hv_display_init(&display);
	rc = follow(fd, cancel, &display, text, err);
	hv_display_end(&display);
	return rc;
}
