/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * proto.h - what a well-formed message is: pure functions on bytes, no I/O. The helper checks requests with it, the
 * library replies and events. Whether a message suits the session's phase is helper/session.c's business; whether a
 * descriptor is what it should be, helper/attach.c's.
 */
#ifndef DIOH_PROTO_H
#define DIOH_PROTO_H

#include "error.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "diohelper speaks little-endian structs and has not been ported to big-endian hosts"
#endif
#if __SIZEOF_LONG__ != 8
#error "diohelper maps guests' memory and counts in 64 bits, and has not been ported to hosts of 32"
#endif

/* Names for people: "SAVE_MEMORY", "io_uring", "container", ...; "unknown" for what is not known. Never NULL. */
const char *dioh_msg_name(uint32_t type);
const char *dioh_engine_name(uint32_t engine);
const char *dioh_layout_name(uint32_t layout);
/* The name of the lowest bit set; "none" for 0, "unknown" for a bit without a name. */
const char *dioh_feature_name(uint64_t bits);
const char *dioh_layer_name(uint32_t bits);

/*
 * Checks a request's header, payload and number of descriptors: known type, no flags, id not 0, exact or bounded size,
 * counts that match the size, reserved fields zero, enums and flags known, names NUL-terminated and not empty, numbers
 * and sizes within their limits, as many descriptors as the payload announces. Everything that can be decided without
 * knowing the session is decided here. Errors: -EOPNOTSUPP for an unknown type, -EBADMSG for a malformed message,
 * -EINVAL for a value out of its range, each with a sentence that names message and field.
 */
int dioh_proto_check_request(const struct dioh_msg_header *header, const void *payload, unsigned fd_count,
                             struct dioh_error *err);

/* The same for what the helper sends: replies (to `request`, a request's type and id) and events. No descriptors. */
int dioh_proto_check_reply(const struct dioh_msg_header *header, const void *payload, unsigned fd_count,
                           uint32_t request_type, uint32_t request_id, struct dioh_error *err);
int dioh_proto_check_event(const struct dioh_msg_header *header, const void *payload, unsigned fd_count,
                           struct dioh_error *err);

/* What PUT_TABLE does not show by itself: only in layout raw does the manager choose places. -EINVAL names the entry. */
int dioh_proto_check_places(uint32_t layout, const struct dioh_msg_entry *entries, uint32_t count, struct dioh_error *err);

#endif
