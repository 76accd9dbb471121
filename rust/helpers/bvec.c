// SPDX-License-Identifier: GPL-2.0

#include <linux/bvec.h>
#include <linux/mm.h>
#include <linux/net.h>

__rust_helper void rust_helper_bvec_set_virt(struct bio_vec *bvec, void *addr,
					     unsigned int len)
{
	bvec_set_virt(bvec, addr, len);
}

__rust_helper bool rust_helper_is_slab_address(const void *addr)
{
	return virt_addr_valid(addr) && folio_test_slab(virt_to_folio(addr));
}

__rust_helper int rust_helper_page_ref_count(struct page *page)
{
	return page_ref_count(page);
}

__rust_helper bool rust_helper_sendpage_ok(struct page *page)
{
	return sendpage_ok(page);
}

__rust_helper bool rust_helper_page_is_large_kmalloc(struct page *page)
{
	return folio_test_large_kmalloc(page_folio(page));
}

__rust_helper void *rust_helper_page_address(struct page *page)
{
	return page_address(page);
}
