/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A session with a server that lies. One thread is the server of all connections and keeps
 * asynchronous I/O in flight, so that what it does next is decided by the seed; what may block
 * (opening, disconnecting, NBD_DO_IT) is done by others. Every sector's content is a function of
 * its offset, for reads and writes alike: data in the wrong request is seen.
 */
#ifndef LIES_H
#define LIES_H

#include <linux/aio_abi.h>
#include <pthread.h>

#include "nbd_fuzz.h"

#define SLOTS		16
#define SLOT_SIZE	(256UL << 10)
#define SLOT_BASE	(1UL << 20)	/* an open of the device reads what is before */
#define LIES_SIZE	(SLOT_BASE + SLOTS * SLOT_SIZE)
#define CONNS		12
#define CONN_MAX	4		/* of one session */
#define HELD		256
#define OLD		64

/* What comes of a lie. */
enum outcome {
	NOT_NOW,	/* it needs something that is not there */
	HARMLESS,	/* the connection stays */
	DOOM,		/* the driver must close the connection at once */
	LEAVE,		/* the same, after a second at most */
	PERHAPS,	/* the driver may close it */
	STALL,		/* nothing more comes, until the server closes it */
	DEAF,		/* the same, and the server reads nothing more */
	CLOSE,		/* the server closes it now */
};

enum ending { END_NETLINK, END_DISCONNECT, END_CLEAR, END_SIGNAL, END_SERVERS, ENDINGS };

struct held {
	uint64_t cookie, from;		/* the cookie as it came */
	uint32_t type, len;
};

enum conn_state { CONN_NONE, CONN_OPEN, CONN_DOOMED, CONN_STALLED };

struct conn {
	int fd;
	enum conn_state state;
	long long until;		/* the driver (doomed) or the server (stalled) closes it */
	const char *told;		/* the last lie */
	bool deaf, excused, served, disc;
	bool replaced;			/* another link has its place, for sure */
	int early;			/* the write being read was answered */
	struct nbd_request h;
	size_t have, left, pos;		/* of the header, of the payload, and where it belongs */
	struct held held[HELD];
	int nheld;
	uint64_t done[8];		/* cookies that were answered */
	int ndone;
};

struct slot {
	struct iocb cb;
	unsigned char *buf;
	bool busy, error_ok, tainted;
	long long since;
};

struct liar;

struct lie {
	const char *name;
	int conns;			/* the least number of connections */

	enum outcome (*tell)(struct liar *l, struct conn *c, struct held *h);
};

/* What a session is like. */
struct lies_plan {
	const char *name;
	bool ioctl, tcp;
	int conns;
	int dead, timeout;		/* in seconds */
	int sndbuf;			/* of the driver's sockets, or 0 */
	bool fine;			/* requests are read header by header */
	bool work;			/* no reply is received in a callback of the socket */
	bool replace;			/* at times the driver gets a new link before a lie */
	const struct lie *only;		/* no other */
	long lies;			/* to be told; then nothing but the truth */
	bool at_disconnect;		/* only once the driver has sent NBD_CMD_DISC */
	bool abrupt;			/* ends as soon as the lies are told */
	enum ending end;
};

struct liar {
	struct lies_plan plan;
	struct nbd_dev *dev;
	struct fuzz_random rng;
	struct genl genl, genl2;
	int sockmap;
	int log, wake;			/* an event for whatever the server thread waits for */
	unsigned char *image, *junk;
	struct conn conn[CONNS];
	struct held old[OLD];		/* of connections that are gone */
	unsigned int nold;
	struct slot slot[SLOTS];
	aio_context_t aio;
	int io, config;			/* descriptors of the device */
	bool running, ending, may_fail, over;
	bool eio;			/* DO_IT may say so */
	int busy, told;
	long long lenient;		/* until then any I/O may fail */
	long long crowd;		/* since when there are too many open connections */
	long lies, ios, good_ios;
	long replaced, drained;		/* links, and lies on such links */
	long long told_at;
	int ios_after;
	const char *last;
	pthread_t do_it;
	atomic_int do_it_ret, open_ret, end_ret;	/* 1: not yet, 0 or -errno */
	atomic_int do_it_tid;
};

unsigned int pick(struct liar *l, unsigned int n);
void lies_fill(unsigned char *image, size_t size);
struct slot *slot_of(struct liar *l, uint64_t from);
void all_may_fail(struct liar *l);

/* Sending; false if the driver has closed the connection */

bool put(struct liar *l, struct conn *c, const void *buf, size_t len);
bool put_header(struct liar *l, struct conn *c, uint32_t magic, uint64_t cookie, uint32_t error);
bool put_reply(struct liar *l, struct conn *c, uint64_t cookie, uint32_t error);
size_t payload(const struct held *h);
bool put_answer(struct liar *l, struct conn *c, const struct held *h);
void conn_forget(struct conn *c, struct held *h);
void conn_close(struct liar *l, struct conn *c);
int conns_in(struct liar *l, enum conn_state state);
int conn_new(struct liar *l);

/* Lies */

bool lies_strict(struct liar *l);
void lie_told(struct liar *l, struct conn *c, const struct lie *lie, enum outcome what);

const struct lie *lie_named(const char *name);
void lies_tell(struct liar *l, struct conn *c);
void lies_early(struct liar *l, struct conn *c);
extern const struct lie closes_at_each_byte;

/* Receiving */

bool lies_wants(struct liar *l, struct conn *c);
void lies_replace(struct liar *l, struct conn *c);
bool conn_read(struct liar *l, struct conn *c);
void conn_ended(struct liar *l, struct conn *c);
void conn_serve(struct liar *l, struct conn *c, bool idle);

/* Input and output */

void slots_fill(struct liar *l);
void slots_reap(struct liar *l);

/* What may block */

void lies_thread(void *(*fn)(void *), struct liar *l, pthread_t *id);
void *lies_open(void *arg);
void *lies_do_it(void *arg);
void *lies_end(void *arg);
int lies_connected(struct liar *l);
int lies_sockets(struct liar *l, int cmd, int n);
int lies_place(struct liar *l, int index);

/* Sessions */

void lies_session(struct liar *l);
bool lies_init(struct liar *l, struct nbd_dev *dev);

#endif /* LIES_H */
