/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* multifd_maker.h - what multifd's channels begin with and their packets' heads, as QEMU 10 sends them, made without QEMU. */
#ifndef DIOH_MULTIFD_MAKER_H
#define DIOH_MULTIFD_MAKER_H

#include "multifd_format.h"

void multifd_put_init(uint8_t to[DIOH_MULTIFD_INIT_BYTES], const struct dioh_multifd_init *init);
void multifd_put_packet(uint8_t to[DIOH_MULTIFD_PACKET_BYTES], const struct dioh_qemu_setup *setup,
                        const struct dioh_multifd_packet *packet);

#endif
