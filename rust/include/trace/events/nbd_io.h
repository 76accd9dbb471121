/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Events of the system nbd that say which connection a request was on, and how
 * long it took there.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM nbd
/* A file may define the events of <trace/events/nbd.h>, too. */
#undef TRACE_SYSTEM_VAR
#define TRACE_SYSTEM_VAR nbd_io

#if !defined(_TRACE_NBD_IO_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_NBD_IO_H

#include <linux/blk-mq.h>
#include <linux/blktrace_api.h>
#include <linux/tracepoint.h>

TRACE_DEFINE_ENUM(REQ_OP_READ);
TRACE_DEFINE_ENUM(REQ_OP_WRITE);
TRACE_DEFINE_ENUM(REQ_OP_FLUSH);
TRACE_DEFINE_ENUM(REQ_OP_DISCARD);
TRACE_DEFINE_ENUM(REQ_OP_WRITE_ZEROES);

/**
 * nbd_reply - the reply to a request is complete
 * @req: the request
 * @handle: what the server knows the request by
 * @dev_index: the number of the device
 * @connection: the number of the connection
 * @sent_ns: how long it took until the request was sent whole, in ns
 * @latency_ns: how long it took until now, in ns
 * @status: the result
 *
 * Times begin when the request was given to the connection. One that was given
 * to a connection before the event was on has none.
 */
TRACE_EVENT(nbd_reply,
	    TP_PROTO(struct request *req, u64 handle, int dev_index, unsigned int connection,
		     u64 sent_ns, u64 latency_ns, u8 status),
	    TP_ARGS(req, handle, dev_index, connection, sent_ns, latency_ns, status),
	    TP_STRUCT__entry(__field(struct request *, req)
			     __field(u64, handle)
			     __field(u64, sector)
			     __field(u64, sent_ns)
			     __field(u64, latency_ns)
			     __field(int, dev_index)
			     __field(unsigned int, connection)
			     __field(unsigned int, bytes)
			     __field(int, error)
			     __field(unsigned int, op)),
	    TP_fast_assign(__entry->req = req;
			   __entry->handle = handle;
			   __entry->sector = blk_rq_trace_sector(req);
			   __entry->sent_ns = sent_ns;
			   __entry->latency_ns = latency_ns;
			   __entry->dev_index = dev_index;
			   __entry->connection = connection;
			   __entry->bytes = blk_rq_bytes(req);
			   __entry->error = blk_status_to_errno((__force blk_status_t)status);
			   __entry->op = req_op(req);),
	    TP_printk("nbd%d: connection %u, request %p, handle 0x%016llx, %s at sector %llu, %u bytes, error %d, sent after %llu ns, answered after %llu ns",
		      __entry->dev_index,
		      __entry->connection,
		      __entry->req,
		      __entry->handle,
		      __print_symbolic(__entry->op,
				       { REQ_OP_READ, "read" },
				       { REQ_OP_WRITE, "write" },
				       { REQ_OP_FLUSH, "flush" },
				       { REQ_OP_DISCARD, "discard" },
				       { REQ_OP_WRITE_ZEROES, "write_zeroes" }),
		      __entry->sector,
		      __entry->bytes,
		      __entry->error,
		      __entry->sent_ns,
		      __entry->latency_ns));

/**
 * nbd_requeue - a request is taken back from a connection that does not answer it
 * @req: the request
 * @handle: what the server knows the request by
 * @dev_index: the number of the device
 * @connection: the number of the connection
 * @latency_ns: how long the connection had the request, in ns, or 0 if the
 *	event was not on then
 */
TRACE_EVENT(nbd_requeue,
	    TP_PROTO(struct request *req, u64 handle, int dev_index, unsigned int connection,
		     u64 latency_ns),
	    TP_ARGS(req, handle, dev_index, connection, latency_ns),
	    TP_STRUCT__entry(__field(struct request *, req)
			     __field(u64, handle)
			     __field(u64, latency_ns)
			     __field(int, dev_index)
			     __field(unsigned int, connection)),
	    TP_fast_assign(__entry->req = req;
			   __entry->handle = handle;
			   __entry->latency_ns = latency_ns;
			   __entry->dev_index = dev_index;
			   __entry->connection = connection;),
	    TP_printk("nbd%d: connection %u, request %p, handle 0x%016llx, after %llu ns",
		      __entry->dev_index,
		      __entry->connection,
		      __entry->req,
		      __entry->handle,
		      __entry->latency_ns));

#endif

/* This part must be outside of the protection. */
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE nbd_io
#include <trace/define_trace.h>
