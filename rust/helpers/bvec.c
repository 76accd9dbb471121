// SPDX-License-Identifier: GPL-2.0

#include <linux/bvec.h>
#include <linux/mm.h>

__rust_helper void rust_helper_bvec_set_virt(struct bio_vec *bvec, void *addr,
					     unsigned int len)
{
	bvec_set_virt(bvec, addr, len);
}

__rust_helper bool rust_helper_is_slab_address(const void *addr)
{
	return virt_addr_valid(addr) && folio_test_slab(virt_to_folio(addr));
}
