// SPDX-License-Identifier: GPL-2.0

#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>

__rust_helper sector_t rust_helper_blk_rq_pos(const struct request *rq)
{
	return blk_rq_pos(rq);
}

__rust_helper unsigned int rust_helper_blk_rq_bytes(const struct request *rq)
{
	return blk_rq_bytes(rq);
}

__rust_helper enum req_op rust_helper_req_op(const struct request *rq)
{
	return req_op(rq);
}

__rust_helper bool rust_helper_bvec_iter_advance(const struct bio_vec *bv,
						 struct bvec_iter *iter, unsigned int bytes)
{
	return bvec_iter_advance(bv, iter, bytes);
}

__rust_helper u16 rust_helper_blk_mq_unique_tag_to_hwq(u32 tag)
{
	return blk_mq_unique_tag_to_hwq(tag);
}

__rust_helper u16 rust_helper_blk_mq_unique_tag_to_tag(u32 tag)
{
	return blk_mq_unique_tag_to_tag(tag);
}

__rust_helper struct request *rust_helper_blk_mq_tag_to_rq(struct blk_mq_tags *tags,
							   unsigned int tag)
{
	return blk_mq_tag_to_rq(tags, tag);
}

__rust_helper bool rust_helper_blk_should_fake_timeout(struct request_queue *q)
{
	return blk_should_fake_timeout(q);
}

__rust_helper bool rust_helper_blk_queue_usage_tryget(struct request_queue *q)
{
	return percpu_ref_tryget(&q->q_usage_counter);
}

__rust_helper void rust_helper_blk_queue_usage_put(struct request_queue *q)
{
	percpu_ref_put(&q->q_usage_counter);
}

__rust_helper struct queue_limits
rust_helper_queue_limits_start_update(struct request_queue *q)
{
	return queue_limits_start_update(q);
}

__rust_helper void rust_helper_queue_limits_cancel_update(struct request_queue *q)
{
	queue_limits_cancel_update(q);
}

__rust_helper int rust_helper_blk_validate_block_size(unsigned long bsize)
{
	return blk_validate_block_size(bsize);
}

__rust_helper sector_t rust_helper_get_capacity(struct gendisk *disk)
{
	return get_capacity(disk);
}

__rust_helper void rust_helper_bdev_clear_read_only(struct block_device *bdev)
{
	bdev_clear_flag(bdev, BD_READ_ONLY);
}

__rust_helper struct device *rust_helper_disk_to_dev(struct gendisk *disk)
{
	return disk_to_dev(disk);
}

__rust_helper struct gendisk *rust_helper_dev_to_disk(struct device *dev)
{
	return dev_to_disk(dev);
}

__rust_helper void rust_helper_disk_set_need_part_scan(struct gendisk *disk)
{
	set_bit(GD_NEED_PART_SCAN, &disk->state);
}

/* Keeps requests that were freed with an I/O scheduler readable by their tags. */
__rust_helper int rust_helper_blk_mq_tags_read_lock(struct blk_mq_tag_set *set)
{
	return srcu_read_lock(&set->tags_srcu);
}

__rust_helper void rust_helper_blk_mq_tags_read_unlock(struct blk_mq_tag_set *set, int idx)
{
	srcu_read_unlock(&set->tags_srcu, idx);
}
