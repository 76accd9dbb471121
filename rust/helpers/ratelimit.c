// SPDX-License-Identifier: GPL-2.0

#include <linux/ratelimit.h>

__rust_helper void rust_helper_ratelimit_state_init(struct ratelimit_state *rs)
{
	ratelimit_state_init(rs, DEFAULT_RATELIMIT_INTERVAL,
			     DEFAULT_RATELIMIT_BURST);
}
