// SPDX-License-Identifier: GPL-2.0
/*
 * Sockmaps: sockets in one have their sk_user_data in use.
 */
#include <linux/bpf.h>

#include "nbd_test.h"

static int bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

/* A map for n sockets, which holds them while it is open; -1 if there is none. */
int sockmap_new(int n)
{
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_SOCKMAP,
		.key_size = sizeof(uint32_t),
		.value_size = sizeof(uint32_t),
		.max_entries = n,
	};

	return bpf(BPF_MAP_CREATE, &attr);
}

/* 0 or the error. */
int sockmap_add(int map, uint32_t place, int fd)
{
	uint32_t value = fd;
	union bpf_attr attr = {
		.map_fd = map,
		.key = (uintptr_t)&place,
		.value = (uintptr_t)&value,
	};

	return bpf(BPF_MAP_UPDATE_ELEM, &attr) ? errno : 0;
}
